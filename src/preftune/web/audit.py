"""Who did what: log-ins, invitations, people, gold items, exports, settled disagreements.

Each entry holds the hash of the one before, so that none can be changed, taken out or put in between without notice. (Entries
cut off at the end leave no trace here: keep the last hash elsewhere where that matters.) What raters judge is not repeated here:
those rows never change anyway. An entry never holds a name or an address, so that a person's data can be deleted and the chain kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, select, text

from preftune.data import tables
from preftune.data.store import Store

PAGE = 500
NOTHING_BEFORE = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One line of the trail. actor: a pseudonym, or "preftune" for the program. object: what it was done to, by id."""

    number: int
    at: datetime
    actor: str
    action: str
    object: str
    detail: dict[str, Any]
    hash: str


def record(where: Connection | Store, actor: str, action: str, object: str = "", detail: dict[str, Any] | None = None) -> None:
    """Add an entry, in the transaction of a connection or in one of its own.

    detail: numbers, ids and short words; never a name, an address or a text of someone's.
    """
    if isinstance(where, Store):
        with where.writer() as writer:
            record(writer.connection, actor, action, object, detail)
        return
    if where.dialect.name == "postgresql":  # SQLite has one writer anyway
        where.execute(text("SELECT pg_advisory_xact_lock(hashtext('preftune_audit'))"))
    table = tables.audit
    last = where.execute(select(table.c.number, table.c.hash).order_by(table.c.number.desc()).limit(1)).first()
    number, previous = (last.number + 1, last.hash) if last else (1, NOTHING_BEFORE)
    at, said = datetime.now(UTC), detail or {}
    row = {"number": number, "at": at, "actor": actor, "action": action, "object": object, "detail": said, "previous_hash": previous}
    where.execute(table.insert(), [{**row, "hash": _hash(previous, number, at, actor, action, object, said)}])


def entries(store: Store, after: int = 0, limit: int = 100) -> list[Entry]:
    """Return entries with a number over `after`, oldest first."""
    return [
        Entry(row.number, row.at, row.actor, row.action, row.object, row.detail, row.hash) for row in _rows(store, after=after, limit=limit)
    ]


def last_number(store: Store) -> int:
    """Return the number of the newest entry, 0 where there is none."""
    with store.reading() as connection:
        return connection.execute(select(tables.audit.c.number).order_by(tables.audit.c.number.desc()).limit(1)).scalar() or 0


def verify(store: Store) -> list[str]:
    """Return a sentence for each place where the chain is broken; none where it is whole."""
    breaks, number, previous = [], 0, NOTHING_BEFORE
    for row in _every_row(store):
        if row.number != number + 1:
            gone = f"entry {number + 1} is" if row.number == number + 2 else f"entries {number + 1} to {row.number - 1} are"
            breaks.append(f"{gone} missing")
        elif row.previous_hash != previous:
            breaks.append(f"entry {row.number} does not follow on entry {number}: one of both was replaced")
        if row.hash != _hash(row.previous_hash, row.number, row.at, row.actor, row.action, row.object, row.detail):
            breaks.append(f"entry {row.number} was changed after it was written")
        number, previous = row.number, row.hash
    return breaks


def _hash(previous: str, number: int, at: datetime, actor: str, action: str, object: str, detail: dict[str, Any]) -> str:
    said = [previous, number, at.isoformat(timespec="microseconds"), actor, action, object, detail]
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _rows(store: Store, *, after: int, limit: int) -> list[Row[Any]]:
    query = select(tables.audit).where(tables.audit.c.number > after).order_by(tables.audit.c.number).limit(limit)
    with store.reading() as connection:
        return list(connection.execute(query))


def _every_row(store: Store) -> Iterator[Row[Any]]:
    after = 0
    while page := _rows(store, after=after, limit=PAGE):
        yield from page
        after = page[-1].number
