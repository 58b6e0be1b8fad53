"""How far the work is, counted by the database: the same as counted from the rows here, one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import quantiles

import pytest

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Prompt
from preftune.web import assign, auth, progress
from preftune.web.assign import BARRED
from preftune.web.progress import overview
from preftune.web.settings import LabelSettings

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
Ask = Callable[..., Prompt]


@pytest.fixture
def did(any_store: Store, ask: Ask, rater: Callable[..., auth.Person], plain: LabelSettings) -> Callable[..., None]:
    """Return a function that lets somebody have done something so many hours before NOW, on an item of its own."""
    people: dict[str, auth.Person] = {}

    def work(
        name: str, hours: float, state: str = "submitted", *, purpose: str = "normal", why: str = "", seconds: float | None = None
    ) -> None:
        if name not in people:
            people[name] = rater(any_store, name)
        prompt = ask(any_store, f"{name} {hours} {len(list(any_store.prompts()))}", "a", "b")
        assign.fill_items(any_store, plain)
        when = NOW - hours * HOUR
        row = {"purpose": purpose, "state": state, "skip_reason": why or None, "active_seconds": seconds, "submitted": when}
        with any_store.writer() as writer:
            table = tables.items.c
            item = writer.connection.execute(tables.items.select().where(table.prompt_id == prompt.id)).one()
            fixed = {"presentation": [], "holds": False, "lease_until": when, "lease_seconds": 60, "draft_version": 0}
            about = {"id": f"a{item.number}", "item_id": item.id, "person_id": people[name].id, "created": when, "updated": when}
            writer.connection.execute(tables.assignments.insert(), [{**about, **fixed, **row}])

    return work


def test_only_whole_days_up_to_now_are_counted_and_none_before_the_first(any_store: Store, did: Callable[..., None]) -> None:
    assert overview(any_store, NOW).days == ()
    did("Ann", 23)
    assert overview(any_store, NOW).days == ()
    for name, hours in (("Ann", 50), ("Bob", 47), ("Ann", 25), ("Bob", 1), ("Ann", 24)):
        did(name, hours)
    # The first was 50 hours ago: two whole days fit, and it lies before them; what is 24 hours old to the second is of the day before.
    assert overview(any_store, NOW).days == (3, 2)
    did("Ann", 12, "skipped", why="other")
    did("Ann", 12, purpose="gold")
    assert overview(any_store, NOW).days == (3, 2)  # work, but no judgement that was wanted


def test_no_more_days_than_the_window_has_are_counted(any_store: Store, did: Callable[..., None]) -> None:
    for hours in (24 * 40, 24 * 13.5, 1):
        did("Ann", hours)
    seen = overview(any_store, NOW)
    assert seen.days == (1, *([0] * 12), 1)
    assert seen.forecast is not None


def test_each_raters_pace_is_that_of_their_rows(any_store: Store, did: Callable[..., None]) -> None:
    chance = random.Random(0)
    made = []
    for _ in range(40):
        name, hours, skipped = chance.choice("AB"), chance.uniform(0, 400), chance.random() < 0.3
        why = chance.choice(["", "other", "too long", BARRED]) if skipped else ""
        seconds = chance.choice([None, round(chance.uniform(3, 90), 2)])
        did(name, hours, "skipped" if skipped else "submitted", purpose=chance.choice(["normal", "retest"]), why=why, seconds=seconds)
        made.append((name, hours, skipped, why, seconds))
    seen = overview(any_store, NOW)
    names = {person.pseudonym: person.name for person in auth.people(any_store)}
    counted = [one for one in made if one[3] != BARRED]
    assert sum(seen.skips.values()) == sum(skipped for _, _, skipped, _, _ in counted)
    assert seen.skips["no reason"] == sum(skipped and not why for _, _, skipped, why, _ in counted)
    assert [pace.judged for pace in seen.paces] == sorted((pace.judged for pace in seen.paces), reverse=True)
    for pace in seen.paces:
        mine = [one for one in counted if one[0] == names[pace.rater]]
        judged = [(hours, seconds) for _, hours, skipped, _, seconds in mine if not skipped]
        times = [seconds for _, seconds in judged if seconds is not None]
        assert (pace.judged, pace.skipped) == (len(judged), len(mine) - len(judged))
        assert pace.last_week == sum(hours <= 7 * 24 for hours, _ in judged)
        assert pace.hours == pytest.approx(sum(times) / 3600)
        assert pace.seconds == pytest.approx(quantiles(times, n=4, method="inclusive"))
        assert pace.last == NOW - min(hours for _, hours, _, _, _ in mine) * HOUR


def test_the_time_is_that_of_a_raters_newest_judgements(
    any_store: Store, did: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TIMED", 3)
    for hours, seconds in ((1, 10.0), (50, 99.0), (3, 30.0), (2, 20.0)):
        did("Ann", hours, seconds=seconds)
    (pace,) = overview(any_store, NOW).paces
    assert (pace.seconds, pace.judged) == ((15.0, 20.0, 25.0), 4)
    assert pace.hours == pytest.approx(159 / 3600)
