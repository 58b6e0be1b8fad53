"""How far the work is: items by state, what remains, each rater's pace. Read from the store in one go, counted here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles
from typing import Any

from sqlalchemy import and_, func, select

from preftune.data import tables
from preftune.data.store import Store
from preftune.web.assign import BARRED
from preftune.web.choosing import OPEN
from preftune.web.forecast import WINDOW_DAYS, Forecast, counts_by_day, forecast

WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Items:
    """Items to be judged (gold ones left out) and the judgements wanted of them.

    judged: all that were wanted are there. begun: some are. untouched: none. wanted, done, remaining: judgements; an item that more
    raters judged than were wanted counts as many as were wanted. held: slots that are in somebody's hands now. out_of_reach: judgements
    that are wanted of more raters than there are people who can log in.
    """

    judged: int = 0
    begun: int = 0
    untouched: int = 0
    wanted: int = 0
    done: int = 0
    held: int = 0
    out_of_reach: int = 0

    @property
    def total(self) -> int:
        """All items."""
        return self.judged + self.begun + self.untouched

    @property
    def remaining(self) -> int:
        """Judgements that are wanted and not there."""
        return self.wanted - self.done


@dataclass(frozen=True)
class Pace:
    """One rater's work in the app. seconds: quartiles of the active time a judgement, None where none was measured."""

    rater: str
    judged: int
    skipped: int
    last_week: int
    seconds: tuple[float, float, float] | None
    hours: float
    last: datetime | None


@dataclass(frozen=True)
class Overview:
    """The overview page's numbers. skips: how often for which reason. days: judgements in each whole 24 hours up to now, oldest first."""

    items: Items
    paces: tuple[Pace, ...]
    skips: dict[str, int]
    days: tuple[int, ...]
    forecast: Forecast | None


def overview(store: Store, now: datetime) -> Overview:
    """Return how far the work is."""
    items, assignments, people = tables.items.c, tables.assignments.c, tables.people.c
    submitted = func.count(assignments.id).label("submitted")
    judged = and_(assignments.item_id == items.id, assignments.state == "submitted", assignments.purpose == "normal")
    each = (
        select(items.wanted, submitted)
        .select_from(tables.items.outerjoin(tables.assignments, judged))
        .where(items.purpose == "normal")
        .group_by(items.id, items.wanted)
        .subquery()
    )
    with store.reading() as connection:
        counts = connection.execute(select(each.c.wanted, each.c.submitted, func.count().label("items")).group_by(*each.c)).all()
        live = (assignments.state.in_(OPEN), assignments.lease_until > now, assignments.holds.is_(True))
        held = connection.execute(select(func.count()).select_from(tables.assignments).where(*live)).scalar_one()
        able = connection.execute(select(func.count()).select_from(tables.people).where(people.disabled.is_(False))).scalar_one()
        rows = connection.execute(
            select(
                people.pseudonym, assignments.purpose, assignments.state, assignments.skip_reason, assignments.active_seconds,
                assignments.submitted,
            )
            .join(tables.people, people.id == assignments.person_id)
            .where(assignments.state.in_(("submitted", "skipped")), func.coalesce(assignments.skip_reason, "") != BARRED)
        ).all()  # fmt: skip
    found = items_from(counts, held, able)
    times = [row.submitted for row in rows if row.state == "submitted" and row.purpose == "normal"]
    return Overview(
        items=found,
        paces=tuple(paces(rows, now)),
        skips=dict(Counter(row.skip_reason or "no reason" for row in rows if row.state == "skipped").most_common()),
        days=counts_by_day(times, now, WINDOW_DAYS),
        forecast=forecast(times, found.remaining, now),
    )


def items_from(counts: Iterable[Any], held: int, able: int) -> Items:
    """Return the items by state. counts: rows of wanted, submitted and how many items have both. able: people who can log in."""
    rows = list(counts)
    return Items(
        judged=sum(row.items for row in rows if row.submitted >= row.wanted),
        begun=sum(row.items for row in rows if 0 < row.submitted < row.wanted),
        untouched=sum(row.items for row in rows if row.submitted == 0 < row.wanted),
        wanted=sum(row.items * row.wanted for row in rows),
        done=sum(row.items * min(row.submitted, row.wanted) for row in rows),
        held=held,
        out_of_reach=sum(row.items * max(0, row.wanted - max(able, row.submitted)) for row in rows),
    )


def paces(rows: Iterable[Any], now: datetime) -> list[Pace]:
    """Return each rater's pace, the busiest first; judgements of every purpose count, as all of them are work.

    rows: of the tasks that were judged or skipped: pseudonym, state, active_seconds, submitted.
    """
    by_rater: dict[str, list[Any]] = {}
    for row in rows:
        by_rater.setdefault(row.pseudonym, []).append(row)
    found = []
    for rater, mine in by_rater.items():
        judged = [row for row in mine if row.state == "submitted"]
        seconds = [row.active_seconds for row in judged if row.active_seconds is not None]
        found.append(
            Pace(
                rater=rater,
                judged=len(judged),
                skipped=len(mine) - len(judged),
                last_week=sum(now - row.submitted <= WEEK for row in judged),
                seconds=quartiles(seconds),
                hours=sum(seconds) / 3600,
                last=max((row.submitted for row in mine), default=None),
            )
        )
    return sorted(found, key=lambda pace: (-pace.judged, pace.rater))


def quartiles(values: list[float]) -> tuple[float, float, float] | None:
    """Return the quartiles of some numbers (inclusive method); None of none."""
    if not values:
        return None
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high
