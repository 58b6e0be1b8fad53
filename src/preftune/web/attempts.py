"""Rate limits for logging in, kept in the database so that a restart forgets none.

An attempt is written down before the password is looked at and taken back when it was right, so that a hundred at once are
counted like a hundred in a row.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, select, text

from preftune.data import tables
from preftune.progress import counted
from preftune.web.persons import AuthError

# kind → (attempts, in so much time). An address may be a whole office behind one router, hence its larger numbers.
LIMITS: dict[str, tuple[tuple[int, timedelta], ...]] = {
    "name": ((5, timedelta(minutes=1)), (30, timedelta(hours=1))),
    "address": ((100, timedelta(minutes=10)), (300, timedelta(hours=6))),
}
KEPT = max(window for limits in LIMITS.values() for _, window in limits)


def key_of(kind: str, value: str) -> str:
    """Return what is written down in place of a name or address."""
    return hashlib.sha256(f"{kind}\0{value}".encode("utf-8", "surrogatepass")).hexdigest()


def begin(connection: Connection, name: str, address: str) -> list[int]:
    """Write an attempt down and return its numbers. Raises AuthError where there were too many."""
    table, now = tables.attempts, datetime.now(UTC)
    connection.execute(delete(table).where(table.c.at < now - KEPT))
    keys = {"name": key_of("name", name), "address": key_of("address", address)}
    if connection.dialect.name == "postgresql":  # those that come at once see each other; SQLite has one writer anyway
        for key in keys.values():
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:key))"), {"key": key})
    for kind, key in keys.items():
        for most, window in LIMITS[kind]:
            # The one that lets the next try wait: the most-th newest inside the window.
            query = select(table.c.at).where(table.c.key == key, table.c.at > now - window).order_by(table.c.at.desc()).offset(most - 1)
            oldest = connection.execute(query.limit(1)).scalar()
            if oldest is not None:
                seconds = max(1, round((oldest + window - now).total_seconds()))
                raise AuthError("there were too many attempts to log in", fix=f"Wait {_spoken(seconds)} and try again.")
    return [connection.execute(table.insert().returning(table.c.number), {"key": key, "at": now}).scalar_one() for key in keys.values()]


def succeeded(connection: Connection, numbers: list[int], name: str) -> None:
    """Take an attempt back, and all others at this name: whoever knows the password had forgotten it for a moment."""
    table = tables.attempts
    connection.execute(delete(table).where(table.c.number.in_(numbers)))
    forget(connection, name)


def forget(connection: Connection, name: str) -> None:
    """Delete all attempts at a name."""
    connection.execute(delete(tables.attempts).where(tables.attempts.c.key == key_of("name", name)))


def _spoken(seconds: int) -> str:
    if seconds < 90:
        return counted(seconds, "seconds")
    return f"{round(seconds / 60)} minutes"
