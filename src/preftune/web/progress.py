"""How far the work is: items by state, what remains, each rater's pace. The database counts; what is read is a few rows a rater."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles
from typing import Any

from sqlalchemy import Connection, and_, case, func, select

from preftune.data import tables
from preftune.data.store import Store
from preftune.web.assign import BARRED
from preftune.web.choosing import OPEN
from preftune.web.forecast import WINDOW_DAYS, Forecast, forecast

DAY, WEEK = timedelta(days=1), timedelta(days=7)
TIMED = 1_000  # judgements of a rater, the newest, of which the time is told


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
    """One rater's work in the app. seconds: quartiles of the active time of the last TIMED judgements, None where none was measured."""

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
    # The item alone joins them: SQLite would look up all that is submitted, for each item, were its state a condition of the join.
    submitted = func.count(case((and_(assignments.state == "submitted", assignments.purpose == "normal"), 1))).label("submitted")
    each = (
        select(items.wanted, submitted)
        .select_from(tables.items.outerjoin(tables.assignments, assignments.item_id == items.id))
        .where(items.purpose == "normal")
        .group_by(items.id, items.wanted)
        .subquery()
    )
    with store.reading() as connection:
        counts = connection.execute(select(each.c.wanted, each.c.submitted, func.count().label("items")).group_by(*each.c)).all()
        live = (assignments.state.in_(OPEN), assignments.lease_until > now, assignments.holds.is_(True))
        held = connection.execute(select(func.count()).select_from(tables.assignments).where(*live)).scalar_one()
        able = connection.execute(select(func.count()).select_from(tables.people).where(people.disabled.is_(False))).scalar_one()
        skips, days, each_pace = _skips(connection), counts_by_day(connection, now), paces(connection, now)
    found = items_from(counts, held, able)
    return Overview(
        items=found,
        paces=tuple(each_pace),
        skips=skips,
        days=days,
        forecast=forecast(days, found.remaining),
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


def counts_by_day(connection: Connection, now: datetime) -> tuple[int, ...]:
    """Return how many judgements came in each whole 24 hours up to now, oldest first.

    At most WINDOW_DAYS days, and none that began before the first judgement. Gold and repeated items are left out.
    """
    table = tables.assignments.c
    votes = (table.state == "submitted", table.purpose == "normal")
    first = connection.execute(select(func.min(table.submitted)).where(*votes)).scalar()
    whole = min(WINDOW_DAYS, (now - first) // DAY) if first else 0
    if whole < 1:
        return ()
    ends = [now - back * DAY for back in reversed(range(whole))]
    counts = [func.count(case((and_(table.submitted > end - DAY, table.submitted <= end), 1))) for end in ends]
    return tuple(connection.execute(select(*counts).where(*votes, table.submitted > ends[0] - DAY)).one())


def paces(connection: Connection, now: datetime) -> list[Pace]:
    """Return each rater's pace, the busiest first; judgements of every purpose count, as all of them are work."""
    people, table = tables.people.c, tables.assignments.c
    judged = table.state == "submitted"
    columns = {
        "judged": func.count(case((judged, 1))),
        "skipped": func.count(case((table.state == "skipped", 1))),
        "last_week": func.count(case((and_(judged, table.submitted >= now - WEEK), 1))),
        "seconds": func.sum(case((judged, table.active_seconds))),
        "last": func.max(table.submitted),
    }
    done = (table.state.in_(("submitted", "skipped")), func.coalesce(table.skip_reason, "") != BARRED)
    query = select(table.person_id, *(column.label(name) for name, column in columns.items())).where(*done).group_by(table.person_id)
    names = {row.id: row.pseudonym for row in connection.execute(select(people.id, people.pseudonym))}
    found = []
    for row in connection.execute(query).all():
        times, hours = quartiles(_times(connection, row.person_id)), (row.seconds or 0.0) / 3600
        found.append(Pace(names[row.person_id], row.judged, row.skipped, row.last_week, times, hours, row.last))
    return sorted(found, key=lambda pace: (-pace.judged, pace.rater))


def _skips(connection: Connection) -> dict[str, int]:
    table, many = tables.assignments.c, func.count().label("many")
    by_others = (table.state == "skipped", func.coalesce(table.skip_reason, "") != BARRED)
    query = select(table.skip_reason, many).where(*by_others).group_by(table.skip_reason).order_by(many.desc(), table.skip_reason)
    return {reason or "no reason": count for reason, count in connection.execute(query)}


def _times(connection: Connection, person: str) -> list[float]:
    """Return the active seconds of somebody's last TIMED judgements, where they were measured."""
    table = tables.assignments.c
    query = select(table.active_seconds).where(table.person_id == person, table.state == "submitted")
    found = connection.execute(query.order_by(table.submitted.desc()).limit(TIMED)).scalars()
    return [seconds for seconds in found if seconds is not None]


def quartiles(values: list[float]) -> tuple[float, float, float] | None:
    """Return the quartiles of some numbers (inclusive method); None of none."""
    if not values:
        return None
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high
