"""Who works here: a person, what they may do, and the sentences for what they may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, select

from preftune.data import tables
from preftune.errors import PreftuneError

Role = Literal["owner", "rater"]


class AuthError(PreftuneError):
    """Somebody may not do what they asked for; the sentence is fit for a page."""


class NotYours(AuthError):
    """An assignment is another's, or there is none: the words are the same, so that nobody learns which."""

    def __init__(self) -> None:
        super().__init__("this task is not one of yours", fix="Go back to the start and take the next one.")


@dataclass(frozen=True)
class Person:
    """Someone with an account. pseudonym: the rater of their judgements, the only name that leaves the store."""

    id: str
    name: str
    role: Role
    pseudonym: str
    disabled: bool


def person_from_row(row: Row[Any]) -> Person:
    """Return the person that a row of the people holds."""
    return Person(row.id, row.name, row.role, row.pseudonym, row.disabled)


def demand_owner(person: Person) -> None:
    """Raise AuthError unless this is an owner."""
    if person.role != "owner" or person.disabled:
        raise AuthError("only an owner may do this", fix="Ask one.")


def locked(connection: Connection, query: Select[Any]) -> Row[Any] | None:
    """Return the one row of a query, kept from other writers until the transaction ends (SQLite has one writer anyway)."""
    return connection.execute(query.with_for_update()).first()


def present(connection: Connection, person_id: str) -> Row[Any]:
    """Return the row of a person who has not been deleted, kept from other writers. Raises AuthError where there is none."""
    table = tables.people
    row = locked(connection, select(table).where(table.c.id == person_id, table.c.deleted.is_(None)))
    if row is None:
        raise AuthError("there is no such person here", fix="Look at the list of people again.")
    return row


def demand_another_owner(connection: Connection, person_id: str) -> None:
    """Raise AuthError where no owner but this one can log in: somebody must be able to let people in."""
    table = tables.people
    owners = select(table.c.id).where(table.c.role == "owner", table.c.disabled.is_(False)).order_by(table.c.id)
    # Kept from other writers, so that two owners cannot each put the other out at once.
    if not set(connection.execute(owners.with_for_update()).scalars()) - {person_id}:
        raise AuthError("this is the last owner", fix="Make another person an owner first.")
