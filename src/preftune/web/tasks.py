"""What a rater has been given, read back: one assignment, their history, how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from statistics import median
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, and_, bindparam, func, select

from preftune.data import tables
from preftune.data.store import Store, candidate_from_row, judgement_from_row, prompt_from_row
from preftune.records import Candidate, Judgement, Prompt
from preftune.web.answers import Answer, answer_of
from preftune.web.choosing import OPEN
from preftune.web.persons import NotYours, Person
from preftune.web.settings import Task

BARRED = "may not judge it"  # the reason of a skip that is the program's: never shown, never undone
DONE = ("submitted", "skipped")
RECENT = 50  # judgements that one's own pace is taken from


@dataclass(frozen=True)
class Assignment:
    """An item as one rater meets it. candidates: in the order shown. purpose (normal, gold, retest) is not for raters' eyes.

    state: leased (open, nothing said yet), draft, submitted, skipped. draft: what the page last saved, in `Answer`'s fields and
    whatever the page adds. judgement: the one that stands.
    """

    id: str
    item_id: str
    person_id: str
    task: Task
    purpose: str
    prompt: Prompt
    candidates: tuple[Candidate, ...]
    state: str
    draft: dict[str, Any] | None
    draft_version: int
    judgement: Judgement | None
    expires: datetime
    submitted: datetime | None
    skip_reason: str | None

    @property
    def answer(self) -> Answer | None:
        """What the form said, from the judgement that stands."""
        return answer_of(self.judgement, [candidate.id for candidate in self.candidates]) if self.judgement else None


@dataclass(frozen=True)
class OwnProgress:
    """How far one rater is. remaining: items that they may still judge (others may come first); today: since midnight UTC.

    median_seconds: of the last 50 judgements; eta_seconds: remaining at that pace. None before the first judgement.
    """

    done: int
    skipped: int
    remaining: int
    today: int
    median_seconds: float | None
    eta_seconds: float | None


def load_assignment(store: Store, person: Person, assignment_id: str) -> Assignment:
    """Return an assignment of this person. Raises NotYours for another's, and in the same words where there is none."""
    with store.reading() as connection:
        rows = connection.execute(one_of_person(), {"person": person.id, "assignment": assignment_id}).all()
        if not rows:
            raise NotYours
        return _assignments(connection, rows)[0]


def task_of(store: Store, person: Person, assignment_id: str) -> tuple[Task, int, str]:
    """Return what is asked in an assignment of this person, of how many answers, and its state. Raises NotYours."""
    with store.reading() as connection:
        row = connection.execute(one_of_person(), {"person": person.id, "assignment": assignment_id}).first()
    if row is None:
        raise NotYours
    return row.task, len(row.presentation), row.state


def history(store: Store, person: Person, limit: int = 50) -> list[Assignment]:
    """Return what a person has submitted or skipped, newest first."""
    with store.reading() as connection:
        return _assignments(connection, connection.execute(done_by_person(limit), {"person": person.id}).all())


def own_progress(store: Store, person: Person) -> OwnProgress:
    """Return how far a person is, and how fast."""
    table, items = tables.assignments, tables.items
    mine, open_ = table.c.person_id == person.id, items.c.queue.in_(("fresh", "started"))
    done = and_(mine, table.c.state == "submitted")
    skipped = and_(mine, table.c.state == "skipped", table.c.skip_reason != BARRED)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    joined = table.join(items, items.c.id == table.c.item_id)
    pace = select(table.c.active_seconds).where(done).order_by(table.c.submitted.desc()).limit(RECENT)
    with store.reading() as connection:

        def count(source: Any, where: Any) -> int:
            return int(connection.execute(select(func.count()).select_from(source).where(where)).scalar_one())

        # Open items that one has not met, and one's own open tasks, whose item may be closed by that very task.
        remaining = count(items, open_) - count(joined, and_(mine, open_, table.c.purpose == "normal"))
        remaining += count(table, and_(mine, table.c.state.in_(OPEN), table.c.holds.is_(True)))
        seconds = [row.active_seconds for row in connection.execute(pace) if row.active_seconds]
        usual = float(median(seconds)) if seconds else None
        today = count(table, and_(done, table.c.submitted >= midnight))
        return OwnProgress(count(table, done), count(table, skipped), remaining, today, usual, None if usual is None else usual * remaining)


# The statements are built once, as building one takes longer than running it.


@cache
def one_of_person(*, locked: bool = False) -> Select[Any]:
    """Return the query for the assignment :assignment of the person :person, with what its item says. locked: kept from other writers."""
    query = _of_person().where(tables.assignments.c.id == bindparam("assignment"))
    return query.with_for_update(of=tables.assignments) if locked else query


@cache
def done_by_person(limit: int, *, locked: bool = False) -> Select[Any]:
    """Return the query for what the person :person has submitted or skipped, newest first."""
    table = tables.assignments
    query = _of_person().where(table.c.state.in_(DONE)).order_by(table.c.submitted.desc(), table.c.updated.desc()).limit(limit)
    return query.with_for_update(of=table) if locked else query


def _of_person() -> Select[Any]:
    # Without those that they must not see.
    table, items = tables.assignments, tables.items
    columns = (items.c.prompt_id, items.c.task, items.c.picked_by, items.c.picked_probability)
    query = select(table, *columns).join(items, items.c.id == table.c.item_id)
    return query.where(table.c.person_id == bindparam("person"), func.coalesce(table.c.skip_reason, "") != BARRED)


@cache
def _with_ids(table: Table) -> Select[Any]:
    return select(table).where(table.c.id.in_(bindparam("ids", expanding=True)))


def _assignments(connection: Connection, rows: Sequence[Row[Any]]) -> list[Assignment]:
    prompts = _by_id(connection, tables.prompts, (row.prompt_id for row in rows), prompt_from_row)
    candidates = _by_id(connection, tables.candidates, (c for row in rows for c in row.presentation), candidate_from_row)
    judgements = _by_id(connection, tables.judgements, (row.judgement_id for row in rows if row.judgement_id), judgement_from_row)
    return [
        Assignment(
            id=row.id,
            item_id=row.item_id,
            person_id=row.person_id,
            task=row.task,
            purpose=row.purpose,
            prompt=prompts[row.prompt_id],
            candidates=tuple(candidates[candidate] for candidate in row.presentation),
            state=row.state,
            draft=row.draft,
            draft_version=row.draft_version,
            judgement=judgements.get(row.judgement_id),
            expires=row.lease_until,
            submitted=row.submitted,
            skip_reason=row.skip_reason,
        )
        for row in rows
    ]


def _by_id(connection: Connection, table: Table, ids: Iterable[str], read: Callable[[Row[Any]], Any]) -> dict[str, Any]:
    wanted = list(dict.fromkeys(ids))
    return {row.id: read(row) for row in connection.execute(_with_ids(table), {"ids": wanted})} if wanted else {}
