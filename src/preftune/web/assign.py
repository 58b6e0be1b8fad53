"""What a rater is asked, and what they said: next item, drafts, submit, skip, undo, history.

Everything is one short write transaction: SQLite has one writer at a time, in PostgreSQL the person's row and the item's row are
locked, so that two tabs of one person take turns and two raters never get the same last slot. A lease that has run out gives the
slot to others; whoever submits late is still taken. A judgement is never changed: an edit is a new row that supersedes, an undo a
row that takes the one before back and says nothing instead. All rows of one assignment form one chain, so its last row stands.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Select, Update, bindparam, select, update

from preftune.data import tables
from preftune.data.store import Store, Writer, judgement_from_row
from preftune.errors import PreftuneError
from preftune.records import GOLD, RETEST, Judgement
from preftune.web.answers import Answer, BadAnswer, answer_of, judgement_from
from preftune.web.choosing import OPEN, Choice, Empty, choose
from preftune.web.items import add_gold, fill_items, shift_taken
from preftune.web.persons import NotYours, Person, locked
from preftune.web.settings import LabelSettings, Task
from preftune.web.tasks import (
    BARRED,
    Assignment,
    OwnProgress,
    done_by_person,
    history,
    load_assignment,
    one_of_person,
    own_progress,
    task_of,
)

__all__ = [
    "BARRED",
    "SKIP_REASONS",
    "Answer",
    "Assignment",
    "BadAnswer",
    "Conflict",
    "Empty",
    "NotYours",
    "OwnProgress",
    "Task",
    "add_gold",
    "answer_of",
    "fill_items",
    "history",
    "load_assignment",
    "next_assignment",
    "own_progress",
    "save_draft",
    "skip",
    "submit",
    "take_next",
    "task_of",
    "undo",
]

SKIP_REASONS = ("not my field", "text is broken", "personal data in it", "too long", "conflict of interest", "other")
MAX_DRAFT = 500_000  # characters as JSON
TRIES, TRY_AGAIN_SECONDS = 20, 0.02  # where others are just taking the items that are left
SUBMISSION_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class Conflict(PreftuneError):
    """Another tab has saved a newer draft. version, draft: the newer one; yours: the one that was not saved. Nothing is lost."""

    def __init__(self, version: int, draft: dict[str, Any] | None, yours: dict[str, Any]) -> None:
        self.version, self.draft, self.yours = version, draft, yours
        super().__init__("this task was changed in another tab since you opened it here", fix="Keep the one version or the other.")


# Getting


def next_assignment(store: Store, person: Person, settings: LabelSettings) -> Assignment | Empty:
    """Return what a rater is to judge next: what they have open, or else a new item, kept for them for settings.lease_minutes."""
    found = take_next(store, person, settings)
    return found if isinstance(found, Empty) else load_assignment(store, person, found)


def take_next(store: Store, person: Person, settings: LabelSettings) -> str | Empty:
    """Do as `next_assignment`, but return the assignment's id alone, for who only needs to know where to go."""
    give_back_expired(store)
    for _ in range(TRIES):
        found = _taken(store, person, settings)
        if found is not None:
            return found
        time.sleep(TRY_AGAIN_SECONDS)
    return Empty("waiting")


def _taken(store: Store, person: Person, settings: LabelSettings) -> str | Empty | None:
    # None: others were just taking what there is.
    lease = timedelta(minutes=settings.lease_minutes)
    with store.writer() as writer:
        connection = writer.connection
        take_turns(connection, person)
        found = _resumed(connection, person, lease)
        while found is None:
            chosen = choose(connection, person, settings)
            if chosen is None or isinstance(chosen, Empty):
                return chosen
            found = _assign(connection, person, chosen, lease)
    return found


# Saying


def save_draft(store: Store, person: Person, assignment_id: str, version: int, payload: dict[str, Any]) -> int:
    """Keep what the page holds so far and return the draft's new version; the lease runs anew.

    Raises Conflict, which holds both, where `version` is not the newest; BadAnswer where the draft is huge.
    """
    _check_size(payload)
    now = datetime.now(UTC)
    with store.writer() as writer:
        connection = writer.connection
        take_turns(connection, person)
        row = _mine(connection, person, assignment_id)
        if row.draft_version != version:
            raise Conflict(row.draft_version, row.draft, payload)
        values: dict[str, Any] = {"draft": payload, "draft_version": version + 1}
        if row.state in OPEN:
            _take_slot(connection, row)
            values |= {"state": "draft", "lease_until": now + timedelta(seconds=row.lease_seconds)}
        _change(connection, row, **values)
    return version + 1


def submit(store: Store, person: Person, assignment_id: str, submission_id: str, answer: Answer) -> Judgement:
    """Keep what a rater said and return the judgement; when this returns, it is on the disk.

    submission_id: drawn by the page for each press of the button. The same one again stores nothing and returns what it stored
    first. Where a judgement stands already the new one supersedes it. A lease that has run out does not matter.
    Raises BadAnswer, with nothing stored, where the answer says nothing or makes no sense.
    """
    if not SUBMISSION_ID.fullmatch(submission_id):
        raise BadAnswer("the form has no submission id of 8 to 64 letters and digits", fix="Open the task again.")
    now = datetime.now(UTC)
    with store.writer() as writer:
        connection = writer.connection
        take_turns(connection, person)
        row = _mine(connection, person, assignment_id)
        if before := _submitted_before(connection, row.id, submission_id):
            return before
        judgement = _judgement(connection, person, row, answer, now)
        writer.add(judgements=[judgement])
        said = {"assignment_id": row.id, "id": submission_id, "judgement_id": judgement.id, "created": now}
        connection.execute(tables.submissions.insert(), [said])
        _take_slot(connection, row, even_if_full=True)
        _change(
            connection,
            row,
            state="submitted",
            skip_reason=None,
            draft=None,
            draft_version=row.draft_version + 1,
            judgement_id=judgement.id,
            head_id=judgement.id,
            active_seconds=judgement.active_seconds,
            submitted=now,
        )
    return judgement


def skip(store: Store, person: Person, assignment_id: str, reason: str, draft: dict[str, Any] | None = None) -> None:
    """Leave an item to others; its draft is kept and `undo` brings it back.

    reason: one of SKIP_REASONS. draft: what the page held when it was left; None keeps the draft that was saved before.
    """
    if reason not in SKIP_REASONS:
        raise BadAnswer(f'"{reason[:40]}" is no reason to skip', fix=f"Give one of: {', '.join(SKIP_REASONS)}.")
    _check_size(draft)
    with store.writer() as writer:
        connection = writer.connection
        take_turns(connection, person)
        row = _mine(connection, person, assignment_id)
        if row.state == "submitted":
            raise BadAnswer("this task was judged already", fix="Undo that first.")
        if row.holds:
            shift_taken(connection, row.item_id, -1)
        values = {} if draft is None else {"draft": draft, "draft_version": row.draft_version + 1}
        _change(connection, row, state="skipped", skip_reason=reason, holds=False, submitted=datetime.now(UTC), **values)


def undo(store: Store, person: Person, assignment_id: str | None = None) -> str | None:
    """Take a submission or a skip back, the last one unless it is named, and return its assignment, which is open again.

    Its draft is what was said before. None where there is nothing to take back. Raises NotYours.
    """
    with store.writer() as writer:
        connection = writer.connection
        take_turns(connection, person)
        if assignment_id is None:
            row = connection.execute(done_by_person(1, locked=True), {"person": person.id}).first()
        else:
            row = _mine(connection, person, assignment_id)
        if row is None or row.state in OPEN or row.skip_reason == BARRED:
            return None
        now = datetime.now(UTC)
        values: dict[str, Any] = {"skip_reason": None, "submitted": None, "lease_until": now + timedelta(seconds=row.lease_seconds)}
        if row.state == "submitted":
            values |= _withdraw(writer, person, row, now)
        values["state"] = "draft" if row.state == "submitted" or row.draft else "leased"
        _take_slot(connection, row)
        _change(connection, row, **values)
    return str(row.id)


# Inside a transaction


def give_back_expired(store: Store) -> int:
    """Give the slots of leases that have run out back and return how many there were; what was drafted stays."""
    table, now = tables.assignments, datetime.now(UTC)
    with store.reading() as connection:
        expired = connection.execute(_run_out(), {"now": now}).scalars().all()
    given = 0
    for name in expired:  # one transaction each, so that none ever holds two items' rows
        with store.writer() as writer:
            still = (table.c.id == name, table.c.state.in_(OPEN), table.c.lease_until < now, table.c.holds.is_(True))
            query = update(table).where(*still).values(holds=False).returning(table.c.item_id)
            if item := writer.connection.execute(query).scalar():
                shift_taken(writer.connection, item, -1)
                given += 1
    return given


def take_turns(connection: Connection, person: Person) -> None:
    """Let what one person does at once, in two tabs, come one after the other."""
    if connection.dialect.name != "sqlite":  # which has one writer anyway
        connection.execute(_person_locked(), {"person": person.id})


def _resumed(connection: Connection, person: Person, lease: timedelta) -> str | None:
    for row in connection.execute(_open_of_person(), {"person": person.id}).all():
        if row.purpose != "normal" or _take_slot(connection, row):
            _change(connection, row, lease_until=datetime.now(UTC) + lease, lease_seconds=int(lease.total_seconds()))
            return str(row.id)
    return None


def _assign(connection: Connection, person: Person, chosen: Choice, lease: timedelta) -> str | None:
    now, name = datetime.now(UTC), secrets.token_urlsafe(16)
    holds = chosen.purpose == "normal" and not chosen.barred
    row = {
        "id": name,
        "item_id": chosen.item.id,
        "person_id": person.id,
        "purpose": chosen.purpose,
        "presentation": chosen.presentation,
        "state": "skipped" if chosen.barred else "leased",
        "holds": holds,
        "skip_reason": BARRED if chosen.barred else None,
        "lease_until": now + lease,
        "lease_seconds": int(lease.total_seconds()),
        "draft_version": 0,
        "created": now,
        "updated": now,
    }
    connection.execute(tables.assignments.insert(), [row])
    if holds:
        shift_taken(connection, chosen.item.id, 1)
    return None if chosen.barred else name


def _take_slot(connection: Connection, row: Row[Any], *, even_if_full: bool = False) -> bool:
    # Returns whether the assignment holds a slot now; one whose lease had run out takes it again where there is one.
    if row.holds or row.purpose != "normal":
        return bool(row.holds)
    item = locked(connection, select(tables.items.c.taken, tables.items.c.wanted).where(tables.items.c.id == row.item_id))
    if item is None or not (even_if_full or item.taken < item.wanted):
        return False
    shift_taken(connection, row.item_id, 1)
    _change(connection, row, holds=True)
    return True


def _change(connection: Connection, row: Row[Any], **values: Any) -> None:
    connection.execute(_changed(), {"assignment": row.id, "updated": datetime.now(UTC), **values})


def _check_size(draft: dict[str, Any] | None) -> None:
    size = len(json.dumps(draft))
    if size > MAX_DRAFT:
        raise BadAnswer(f"the draft has {size:,} characters", fix=f"Use at most {MAX_DRAFT:,}.")


def _mine(connection: Connection, person: Person, assignment_id: str) -> Row[Any]:
    row = connection.execute(one_of_person(locked=True), {"person": person.id, "assignment": assignment_id}).first()
    if row is None:
        raise NotYours
    return row


def _submitted_before(connection: Connection, assignment_id: str, submission_id: str) -> Judgement | None:
    row = connection.execute(_said_by(), {"assignment": assignment_id, "submission": submission_id}).first()
    return judgement_from_row(row) if row else None


def _picked(row: Row[Any]) -> dict[str, Any]:
    # A check of the rater carries its purpose, so that it is no vote.
    if row.purpose in (GOLD, RETEST):
        return {"picked_by": row.purpose, "picked_probability": None}
    return {"picked_by": row.picked_by, "picked_probability": row.picked_probability}


def _judgement(connection: Connection, person: Person, row: Row[Any], answer: Answer, now: datetime) -> Judgement:
    texts: dict[str, str] = {}
    if answer.rewrite:
        table = tables.candidates
        found = connection.execute(select(table.c.id, table.c.text).where(table.c.id.in_(row.presentation)))
        texts = {candidate.id: candidate.text for candidate in found}
    about = {"rater": person.pseudonym, "supersedes": row.head_id, "created": now, **_picked(row)}
    return judgement_from(answer, row.presentation, row.prompt_id, texts, **about)


def _withdraw(writer: Writer, person: Person, row: Row[Any], now: datetime) -> dict[str, Any]:
    table = tables.judgements
    said = judgement_from_row(writer.connection.execute(select(table).where(table.c.id == row.judgement_id)).one())
    back = Judgement(prompt_id=row.prompt_id, rater=person.pseudonym, supersedes=said.id, created=now, **_picked(row))
    writer.add(judgements=[back])
    draft = answer_of(said, row.presentation).model_dump(mode="json")
    return {"judgement_id": None, "head_id": back.id, "draft": draft, "draft_version": row.draft_version + 1}


# The statements are built once, as building one takes longer than running it.


@cache
def _changed() -> Update:  # of the columns that are given when it is run
    return update(tables.assignments).where(tables.assignments.c.id == bindparam("assignment"))


@cache
def _person_locked() -> Select[Any]:
    return select(tables.people.c.id).where(tables.people.c.id == bindparam("person")).with_for_update()


@cache
def _open_of_person() -> Select[Any]:
    table = tables.assignments
    return select(table).where(table.c.person_id == bindparam("person"), table.c.state.in_(OPEN)).order_by(table.c.updated.desc())


@cache
def _run_out() -> Select[Any]:
    table = tables.assignments
    return select(table.c.id).where(table.c.state.in_(OPEN), table.c.lease_until < bindparam("now"), table.c.holds.is_(True))


@cache
def _said_by() -> Select[Any]:
    said, table = tables.submissions, tables.judgements
    query = select(table).join(said, said.c.judgement_id == table.c.id)
    return query.where(said.c.assignment_id == bindparam("assignment"), said.c.id == bindparam("submission"))
