"""Which of two served models users prefer, from their feedback: may be looked at after every word (`data/sequential.py`).

A split shows each user one of the two models. What is counted is the user, not the thumb, as one user's thumbs are not
independent: the first answer that a user judged, with the thumb that stands. The k-th user of the one model is set against the k-th of
the other; up against down is a win, the same thumb a tie. If both models are alike, each such pair is as likely won as lost, whatever share
of the users each has.

Side by side each user sees both, so one conversation is one outcome; of several words on the same one the first counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, select

from preftune.data import tables
from preftune.data.feedback import by_kind, rows_since
from preftune.data.sequential import Verdict, verdict
from preftune.data.store import CHUNK, Store, judgement_from_row
from preftune.progress import counted
from preftune.records import Judgement, pairs_of


@dataclass(frozen=True)
class Thumbs:
    """A model's share of a split. users: who gave it a thumb; up, down: all thumbs that stand."""

    model: str
    users: int
    up: int
    down: int


@dataclass(frozen=True)
class SplitResult:
    """A and B of a split. verdict: over pairs of users, from A's side."""

    a: Thumbs
    b: Thumbs
    verdict: Verdict

    @property
    def says(self) -> str:
        """Return the verdict as a sentence."""
        return _named(self.verdict, self.a.model, self.b.model)


@dataclass(frozen=True)
class SideBySide:
    """A beside B, judged blind. verdict: one outcome for each conversation, from A's side."""

    a: str
    b: str
    verdict: Verdict

    @property
    def says(self) -> str:
        """Return the verdict as a sentence."""
        return _named(self.verdict, self.a, self.b)


def split_result(store: Store, a: str, b: str) -> SplitResult:
    """Return what the thumbs of a split say so far. a, b: the two models' names, in any order of serving."""
    return _split(_read(store), a, b)


def side_by_side(store: Store, a: str, b: str) -> SideBySide:
    """Return what users said when they saw A and B beside each other."""
    return _sides(_read(store), a, b)


@dataclass(frozen=True)
class _Said:
    """The words that stand, in the order in which each answer was first judged, and the judgements that they gave, by id."""

    rows: list[Row[Any]]
    judgements: dict[str, Judgement]


def _read(store: Store) -> _Said:
    # Whoever changes a word later does not move to another place.
    table, judged, found = tables.feedback, tables.judgements, {}
    rows = rows_since(store)  # before the numbers: a word that comes in between has one then
    with store.reading() as connection:
        first: dict[str, int] = {}
        for number, about in connection.execute(select(table.c.number, table.c.about).order_by(table.c.number)):
            first.setdefault(about, number)
        ids = [row.judgement_id for row in rows if row.kind in ("thumb", "better")]
        for start in range(0, len(ids), CHUNK):
            for row in connection.execute(judged.select().where(judged.c.id.in_(ids[start : start + CHUNK]))):
                found[row.id] = judgement_from_row(row)
    return _Said(sorted(rows, key=lambda row: first[row.about]), found)


def _split(said: _Said, a: str, b: str) -> SplitResult:
    rows = [row for row in said.rows if row.kind == "thumb" and sorted(row.split or ()) == sorted((a, b))]
    up = {row.judgement_id: bool(said.judgements[row.judgement_id].acceptable) for row in rows}
    first: dict[str, Row[Any]] = {}
    for row in rows:
        first.setdefault(row.rater, row)
    units = {name: [up[row.judgement_id] for row in first.values() if row.models[0] == name] for name in (a, b)}
    counts = Counter((x > y) - (x < y) for x, y in zip(units[a], units[b], strict=False))
    thumbs = [
        Thumbs(
            name,
            users=len(units[name]),
            up=sum(up[row.judgement_id] for row in rows if row.models[0] == name),
            down=sum(not up[row.judgement_id] for row in rows if row.models[0] == name),
        )
        for name in (a, b)
    ]
    return SplitResult(thumbs[0], thumbs[1], verdict(counts[1], counts[0], counts[-1]))


def _sides(said: _Said, a: str, b: str) -> SideBySide:
    first: dict[str, int] = {}
    for row in said.rows:
        if row.kind == "better" and sorted(row.models) == sorted((a, b)):
            candidate = row.candidate_ids[row.models.index(a)]
            pairs = pairs_of(said.judgements[row.judgement_id])
            first.setdefault(row.prompt_id, 0 if not pairs else 1 if pairs[0][0] == candidate else -1)
    counts = Counter(first.values())
    return SideBySide(a, b, verdict(counts[1], counts[0], counts[-1]))


def _named(seen: Verdict, a: str, b: str) -> str:
    return f"A = {a}, B = {b}: {seen}."


@dataclass(frozen=True)
class Overview:
    """All that stands. words: by kind. raters: pseudonyms. expired: words whose time is over and that still are there."""

    words: dict[str, int]
    raters: int
    expired: int
    splits: list[SplitResult]
    sides: list[SideBySide]

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        total = sum(self.words.values())
        if not total:
            return ["No feedback yet. Next: preftune serve PATH"]
        told = by_kind(self.words)
        lines = [f"{counted(total, 'words')} of {counted(self.raters, 'users')} {'stands' if total == 1 else 'stand'}: {told}."]
        if self.expired:
            lines.append(f"{counted(self.expired, 'have')} expired. Delete them: preftune feedback --delete-expired")
        for one in self.splits:
            parts = "; ".join(f"{t.model}: {t.up} up, {t.down} down, {counted(t.users, 'users')}" for t in (one.a, one.b))
            lines.append(f"Split. {one.says} ({parts})")
        return [*lines, *(f"Side by side. {one.says}" for one in self.sides)]


def overview(store: Store) -> Overview:
    """Return what stands, with each split and each side-by-side view that somebody was part of."""
    said, now = _read(store), datetime.now(UTC)
    rows = said.rows
    splits = dict.fromkeys(tuple(row.split) for row in rows if row.kind == "thumb" and row.split)
    sides = dict.fromkeys((row.models[0], row.models[1]) for row in rows if row.kind == "better" and row.models[0] != row.models[1])
    return Overview(
        words=dict(Counter(row.kind for row in rows)),
        raters=len({row.rater for row in rows}),
        expired=sum(row.expires <= now for row in rows),
        splits=[_split(said, *two) for two in _unordered(splits)],
        sides=[_sides(said, *two) for two in _unordered(sides)],
    )


def _unordered(twos: Iterable[tuple[str, ...]]) -> list[tuple[str, str]]:
    return sorted({(min(two), max(two)) for two in twos})
