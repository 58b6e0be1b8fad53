"""Taking a person out of the store: what is deleted, what stays, and how much it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, or_, select, update

from preftune.data import tables
from preftune.data.store import Store
from preftune.web import attempts
from preftune.web.items import shift_taken

SETTLED = "settled:"  # before the pseudonym of an owner who decides what others disagreed about


@dataclass(frozen=True)
class PersonalData:
    """How much there is of a person. judgements: rows, withdrawals and edited ones included; texts: those with words of their own."""

    judgements: int
    texts: int
    demonstrations: int
    open_tasks: int
    skipped: int
    sessions: int


def personal_data(store: Store, person_id: str) -> PersonalData:
    """Return how much there is of a person, to say before it is deleted."""
    judgements, assignments, demonstrations = tables.judgements, tables.assignments, tables.demonstrations
    with store.reading() as connection:
        pseudonym = connection.execute(select(tables.people.c.pseudonym).where(tables.people.c.id == person_id)).scalar() or ""

        def count(table: Any, *where: Any) -> int:
            return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())

        mine = judgements.c.rater.in_(raters_of(pseudonym))
        theirs = assignments.c.person_id == person_id
        return PersonalData(
            judgements=count(judgements, mine),
            texts=count(judgements, mine, or_(judgements.c.rationale.is_not(None), judgements.c.rewrite.is_not(None))),
            demonstrations=count(demonstrations, demonstrations.c.author == pseudonym),
            open_tasks=count(assignments, theirs, assignments.c.state.in_(("leased", "draft"))),
            skipped=count(assignments, theirs, assignments.c.state == "skipped"),
            sessions=count(tables.sessions, tables.sessions.c.person_id == person_id),
        )


def raters_of(pseudonym: str) -> tuple[str, str]:
    """Return the raters under which a person's judgements stand: their own, and those by which they settled others'."""
    return pseudonym, SETTLED + pseudonym


def erase(connection: Connection, person: Row[Any], *, keep_judgements: bool) -> dict[str, int]:
    """Delete a person's data and return how many rows of each kind went.

    The person's row stays without name and password, as the audit trail and, where judgements are kept, the assignments point to
    it; so does the pseudonym, which leads to nobody from then on. Slots that the person held are free again, those of deleted
    judgements too.
    """
    gone = {
        "sessions": _delete(connection, tables.sessions, tables.sessions.c.person_id == person.id),
        "links": _delete(connection, tables.invitations, tables.invitations.c.person_id == person.id),
        "assignments": _delete_assignments(connection, person.id, keep_submitted=keep_judgements),
    }
    attempts.forget(connection, person.name_key)
    if not keep_judgements:
        judgements, demonstrations = tables.judgements, tables.demonstrations
        gone["judgements"] = _delete(connection, judgements, judgements.c.rater.in_(raters_of(person.pseudonym)))
        gone["demonstrations"] = _delete(connection, demonstrations, demonstrations.c.author == person.pseudonym)
    blank = {"name": "", "name_key": f"deleted:{person.id}", "password_hash": "", "disabled": True, "deleted": datetime.now(UTC)}
    connection.execute(update(tables.people).where(tables.people.c.id == person.id).values(**blank))
    return gone


def _delete_assignments(connection: Connection, person_id: str, *, keep_submitted: bool) -> int:
    table = tables.assignments
    going = [table.c.person_id == person_id]
    if keep_submitted:
        going.append(table.c.state != "submitted")
        connection.execute(update(table).where(table.c.person_id == person_id).values(draft=None))
    rows = connection.execute(select(table.c.id, table.c.item_id, table.c.holds).where(*going).order_by(table.c.item_id)).all()
    for row in rows:
        if row.holds:
            shift_taken(connection, row.item_id, -1)
    submissions = tables.submissions
    _delete(connection, submissions, submissions.c.assignment_id.in_(select(table.c.id).where(*going)))
    return _delete(connection, table, *going)


def _delete(connection: Connection, table: Any, *where: Any) -> int:
    return int(connection.execute(delete(table).where(*where)).rowcount)
