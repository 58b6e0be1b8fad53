"""People, invitations and sessions. Every function takes the open store; AuthError carries a sentence fit for a page.

Nobody registers by themselves: the first owner comes by the command line, all others by a link that an owner makes. Tokens (of a
session, of an invitation) are 256 random bits, shown once and kept as a hash. A wrong name and a wrong password take the same
time and get the same words.
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from sqlalchemy import Connection, Select, bindparam, delete, or_, select, update
from sqlalchemy.exc import IntegrityError

from preftune.data import tables
from preftune.data.store import Store
from preftune.web import attempts, audit, erasure, passwords
from preftune.web.persons import AuthError, NotYours, Person, Role, demand_another_owner, demand_owner, person_from_row, present

__all__ = [
    "AuthError",
    "Invitation",
    "NotYours",
    "Person",
    "Role",
    "Session",
    "accept_invitation",
    "add_person",
    "delete_person",
    "disable",
    "enable",
    "first_invitation",
    "has_owner",
    "invite",
    "log_in",
    "log_out",
    "open_invitations",
    "password_link",
    "people",
    "revoke_sessions",
    "session_of",
    "withdraw_invitation",
]

IDLE, LIFE = timedelta(hours=12), timedelta(days=7)  # of a session
SEEN_EVERY = timedelta(minutes=5)  # a session's last use is written down no more often than this
INVITATION_LIFE = timedelta(hours=72)
MAX_TOKEN = 100
PROGRAM = "preftune"  # the actor in the audit trail where no person acts


@dataclass(frozen=True)
class Session:
    """Someone who is logged in. csrf: what their forms must carry."""

    person: Person
    csrf: str
    token_hash: str


@dataclass(frozen=True)
class Invitation:
    """A link that nobody has used yet. for_person: whose password it may set anew; None where it makes a new person."""

    token_hash: str
    role: Role
    created_by: str | None
    for_person: str | None
    expires: datetime


def add_person(store: Store, name: str, password: str, role: Role) -> Person:
    """Make an account. Raises AuthError where the name is taken, or the name or password cannot be used."""
    name = passwords.checked_name(name)
    passwords.check_password(password, name)
    kept = passwords.hash_password(password)
    with store.writer() as writer:
        person = _insert_person(writer.connection, name, kept, role)
        audit.record(writer.connection, PROGRAM, "add person", person.pseudonym, {"role": role})
    return person


def has_owner(store: Store) -> bool:
    """Return whether there is an owner who can log in."""
    table = tables.people
    with store.reading() as connection:
        query = select(table.c.id).where(table.c.role == "owner", table.c.disabled.is_(False)).limit(1)
        return connection.execute(query).first() is not None


def people(store: Store) -> list[Person]:
    """Return everyone with an account, disabled ones too, in the order in which they came."""
    table = tables.people
    with store.reading() as connection:
        query = select(table).where(table.c.deleted.is_(None)).order_by(table.c.created, table.c.id)
        return [person_from_row(row) for row in connection.execute(query)]


# Invitations


def invite(store: Store, by: Person, role: Role) -> str:
    """Return the token of a link by which one person can come in, once, within 72 hours. It is shown here and never again."""
    demand_owner(by)
    return _new_invitation(store, by, role, for_person=None)


def password_link(store: Store, by: Person, person_id: str) -> str:
    """Return the token of a link by which a person who has forgotten their password can set a new one."""
    demand_owner(by)
    with store.writer() as writer:
        role: Role = present(writer.connection, person_id).role
    return _new_invitation(store, by, role, for_person=person_id)


def first_invitation(store: Store) -> str:
    """Return the token of a link for the first owner. Raises AuthError where there is one already: owners invite others."""
    if has_owner(store):
        raise AuthError("there is an owner already", fix="Let them invite others.")
    return _new_invitation(store, None, "owner", for_person=None)


def _new_invitation(store: Store, by: Person | None, role: Role, *, for_person: str | None) -> str:
    token, now = passwords.new_token(), datetime.now(UTC)
    hashed = passwords.token_hash(token)
    row = {"token_hash": hashed, "role": role, "created_by": by.id if by else None, "person_id": for_person}
    with store.writer() as writer:
        writer.connection.execute(tables.invitations.insert(), [{**row, "expires": now + INVITATION_LIFE, "created": now}])
        action = "link for a new password" if for_person else "invite"
        audit.record(writer.connection, by.pseudonym if by else PROGRAM, action, hashed[:12], {"role": role})
    return token


def open_invitations(store: Store) -> list[Invitation]:
    """Return the links that can still be used, oldest first."""
    table = tables.invitations
    with store.reading() as connection:
        query = select(table).where(table.c.used_by.is_(None), table.c.expires > datetime.now(UTC)).order_by(table.c.created)
        return [Invitation(row.token_hash, row.role, row.created_by, row.person_id, row.expires) for row in connection.execute(query)]


def withdraw_invitation(store: Store, by: Person, token_hash: str) -> None:
    """Let a link be used no more."""
    demand_owner(by)
    table = tables.invitations
    with store.writer() as writer:
        gone = writer.connection.execute(delete(table).where(table.c.token_hash == token_hash, table.c.used_by.is_(None))).rowcount
        if gone:
            audit.record(writer.connection, by.pseudonym, "withdraw invitation", token_hash[:12])


def accept_invitation(store: Store, token: str, name: str, password: str) -> Person:
    """Come in by a link: make the account that it is for, or set the new password that it is for (the name is left as it is).

    Raises AuthError where the link is unknown, used, withdrawn or too old (one and the same sentence), where the name is taken, or
    the name or password cannot be used; the link can be tried again then.
    """
    hashed = passwords.token_hash(token[:MAX_TOKEN])
    with store.reading() as connection:
        for_person = _usable(connection, hashed)
        if for_person is not None:
            name = connection.execute(select(tables.people.c.name).where(tables.people.c.id == for_person)).scalar_one()
    name = passwords.checked_name(name)
    passwords.check_password(password, name)
    kept = passwords.hash_password(password)  # takes long, so it is done outside of the transaction
    table = tables.invitations
    with store.writer() as writer:
        connection = writer.connection
        connection.execute(select(table.c.token_hash).where(table.c.token_hash == hashed).with_for_update())
        _usable(connection, hashed)
        if for_person is None:
            role = connection.execute(select(table.c.role).where(table.c.token_hash == hashed)).scalar_one()
            person = _insert_person(connection, name, kept, role)
        else:
            person = person_from_row(present(connection, for_person))
            connection.execute(update(tables.people).where(tables.people.c.id == person.id).values(password_hash=kept))
            connection.execute(delete(tables.sessions).where(tables.sessions.c.person_id == person.id))
            attempts.forget(connection, passwords.name_key(person.name))
        connection.execute(update(table).where(table.c.token_hash == hashed).values(used_by=person.id))
        audit.record(connection, person.pseudonym, "accept invitation", hashed[:12], {"role": person.role})
    return person


def _usable(connection: Connection, hashed: str) -> str | None:
    # Returns whom the link is for, None for a new person.
    table = tables.invitations
    query = select(table.c.person_id).where(table.c.token_hash == hashed, table.c.used_by.is_(None), table.c.expires > datetime.now(UTC))
    row = connection.execute(query).first()
    if row is None:
        raise AuthError("this link is unknown, was used, or is too old", fix="Ask an owner for a new one.")
    found: str | None = row.person_id
    return found


def _insert_person(connection: Connection, name: str, kept: str, role: Role) -> Person:
    person = Person(secrets.token_hex(8), name, role, f"r_{secrets.token_hex(4)}", disabled=False)
    row = {"id": person.id, "name": name, "name_key": passwords.name_key(name), "role": role, "pseudonym": person.pseudonym}
    try:
        connection.execute(
            tables.people.insert(), [{**row, "password_hash": kept, "disabled": False, "deleted": None, "created": datetime.now(UTC)}]
        )
    except IntegrityError as error:
        raise AuthError(f'the name "{name}" is taken', fix="Take another.") from error
    return person


# Sessions


def log_in(store: Store, name: str, password: str, *, address: str) -> str:
    """Return the token of a new session. address: the caller's, for the limits.

    Raises AuthError in the same words for an unknown name, a wrong password and a disabled person, and after too many attempts.
    """
    key, nobody = passwords.name_key(name[: 4 * passwords.MAX_NAME]), passwords.hash_of_nobody()
    table = tables.people
    with store.writer() as writer:
        numbers = attempts.begin(writer.connection, key, address)
        row = writer.connection.execute(select(table).where(table.c.name_key == key, table.c.disabled.is_(False))).first()
    if not passwords.is_password(row.password_hash if row else nobody, password) or row is None:
        raise AuthError("the name or the password is wrong", fix="Try again, or ask an owner for a new link.")
    renewed = passwords.hash_password(password) if passwords.needs_new_hash(row.password_hash) else None
    token, now = passwords.new_token(), datetime.now(UTC)
    with store.writer() as writer:
        connection = writer.connection
        attempts.succeeded(connection, numbers, key)
        if renewed:
            connection.execute(update(table).where(table.c.id == row.id).values(password_hash=renewed))
        _delete_old_sessions(connection, row.id, now)
        new = {"token_hash": passwords.token_hash(token), "person_id": row.id, "csrf": passwords.new_token(), "address": _network(address)}
        connection.execute(tables.sessions.insert(), [{**new, "created": now, "last_seen": now}])
        audit.record(connection, row.pseudonym, "log in")
    return token


def session_of(store: Store, token: str | None) -> Session | None:
    """Return who a session's token belongs to; None where it is unknown, revoked or too old (12 hours unused, 7 days in all)."""
    if not token or len(token) > MAX_TOKEN:
        return None
    hashed, now = passwords.token_hash(token), datetime.now(UTC)
    with store.reading() as connection:
        row = connection.execute(_session_with_person(), {"hashed": hashed}).first()
    if row is None or row.disabled or now - row.last_seen > IDLE or now - row.begun > LIFE:
        return None
    if now - row.last_seen > SEEN_EVERY:
        session = tables.sessions
        with store.writer() as writer:
            writer.connection.execute(update(session).where(session.c.token_hash == hashed).values(last_seen=now))
    return Session(person_from_row(row), row.csrf, hashed)


@cache
def _session_with_person() -> Select[Any]:  # built once: every request asks, and building it takes longer than running it
    session, person = tables.sessions, tables.people
    query = select(person, session.c.csrf, session.c.created.label("begun"), session.c.last_seen)
    return query.join(session, session.c.person_id == person.c.id).where(session.c.token_hash == bindparam("hashed"))


def log_out(store: Store, session: Session) -> None:
    """End a session."""
    with store.writer() as writer:
        writer.connection.execute(delete(tables.sessions).where(tables.sessions.c.token_hash == session.token_hash))
        audit.record(writer.connection, session.person.pseudonym, "log out")


def revoke_sessions(store: Store, person_id: str, by: Person | None = None) -> int:
    """End every session of a person and return how many there were. by: the owner who wants it; None: the person or the program."""
    if by is not None:
        demand_owner(by)
    with store.writer() as writer:
        person = present(writer.connection, person_id)
        ended = writer.connection.execute(delete(tables.sessions).where(tables.sessions.c.person_id == person_id)).rowcount
        actor = by.pseudonym if by else PROGRAM
        audit.record(writer.connection, actor, "revoke sessions", person.pseudonym, {"sessions": ended})
    return ended


def _delete_old_sessions(connection: Connection, person_id: str, now: datetime) -> None:
    table = tables.sessions
    old = or_(table.c.last_seen < now - IDLE, table.c.created < now - LIFE)
    connection.execute(delete(table).where(table.c.person_id == person_id, old))


def _network(address: str) -> str:
    # Enough to tell the office from elsewhere, too little to find a person by.
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network(f"{found}/{24 if found.version == 4 else 48}", strict=False))


# Leaving


def disable(store: Store, by: Person, person_id: str) -> None:
    """Let a person log in no more and end their sessions; what they judged stays. Raises AuthError for the last owner."""
    demand_owner(by)
    with store.writer() as writer:
        demand_another_owner(writer.connection, person_id)
        person = present(writer.connection, person_id)
        writer.connection.execute(update(tables.people).where(tables.people.c.id == person_id).values(disabled=True))
        writer.connection.execute(delete(tables.sessions).where(tables.sessions.c.person_id == person_id))
        audit.record(writer.connection, by.pseudonym, "disable", person.pseudonym)


def enable(store: Store, by: Person, person_id: str) -> None:
    """Let a disabled person log in again."""
    demand_owner(by)
    with store.writer() as writer:
        person = present(writer.connection, person_id)
        writer.connection.execute(update(tables.people).where(tables.people.c.id == person_id).values(disabled=False))
        audit.record(writer.connection, by.pseudonym, "enable", person.pseudonym)


def delete_person(store: Store, by: Person, person_id: str, *, judgements: Literal["keep_anonymous", "delete"]) -> None:
    """Delete a person's name, password, sessions and drafts; keep their judgements under the pseudonym alone, or delete them too.

    In an SQLite file the deleted text is overwritten. Copies of the store, exports and snapshots made before are not ours to reach.
    Raises AuthError for the last owner.
    """
    demand_owner(by)
    with store.writer() as writer:
        demand_another_owner(writer.connection, person_id)
        person = present(writer.connection, person_id)
        gone = erasure.erase(writer.connection, person, keep_judgements=judgements == "keep_anonymous")
        audit.record(writer.connection, by.pseudonym, "delete person", person.pseudonym, {"judgements": judgements, "deleted": gone})
    store.checkpoint()
