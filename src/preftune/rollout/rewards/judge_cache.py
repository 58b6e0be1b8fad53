"""Verdicts of judges, kept by content in a SQLite file of the project: a run that was stopped, or the same again, pays for none twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from preftune.data.endpoints import Endpoint
from preftune.data.remote import Ask, Reply
from preftune.errors import DiskError

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, reply TEXT NOT NULL, tokens INTEGER NOT NULL, run TEXT NOT NULL, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)
"""
CHARACTERS_A_TOKEN = 4  # where a server does not say what a request took


class JudgeCache:
    """The file of verdicts. run: whose calls are counted against its budget."""

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60)
            self._connection.execute(_TABLE)
            self._connection.commit()
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the replies that are there, by key."""
        found: dict[str, str] = {}
        try:
            for key in keys:
                row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
                if row:
                    found[key] = row[0]
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return found

    def keep(self, key: str, ask: Ask, reply: Reply) -> None:
        """Write a reply down, at once and for good."""
        characters = sum(len(message.content) for message in ask.messages) + len(reply.text)
        tokens = reply.tokens if reply.tokens is not None else -(-characters // CHARACTERS_A_TOKEN)
        try:
            with self._connection:
                values = (key, reply.text, tokens, self.run)
                self._connection.execute("INSERT OR REPLACE INTO replies (key, reply, tokens, run) VALUES (?, ?, ?, ?)", values)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def spent(self) -> tuple[int, int]:
        """Return how many (calls, tokens) this run has paid for, over all the times it was resumed."""
        row = self._connection.execute("SELECT COUNT(*), COALESCE(SUM(tokens), 0) FROM replies WHERE run = ?", (self.run,)).fetchone()
        return int(row[0]), int(row[1])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _unusable(self, error: Exception) -> DiskError:
        return DiskError(f"the judge's verdicts cannot be kept ({error})", str(self.path), "Make room or mend it (it may be deleted).")


def key_of(endpoint: Endpoint, ask: Ask) -> str:
    """Return what makes two requests the same: server, model, messages and how the answer is drawn."""
    said = [[message.role, message.content] for message in ask.messages]
    parts = [endpoint.url, endpoint.model, said, ask.temperature, ask.max_tokens, ask.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
