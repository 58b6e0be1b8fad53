"""Which prompts raters differ on: read from the store once, then again only where somebody has said something since.

Of each such prompt only what the list is sorted by is kept, and the next look costs what is new. Where rows have gone (a person's data,
expired feedback), all is read again. "All" is at most the prompts that have one of the newest MOST judgements: nobody settles more than
those of a store of millions, and the list is there in seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Text, cast, func, select

from preftune.data import tables
from preftune.data.store import CHUNK, Store, judgement_from_row, prompt_from_row
from preftune.records import CHECKS, SETTLED, Judgement
from preftune.web.disputes import Dispute, dispute_of

Place = tuple[bool, bool, float]  # what a dispute is sorted by: whether it is settled, whether nobody is opposed, minus how even it is
MOST = 50_000  # judgements that are looked at first
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Seen:
    """What a look saw of the judgements: the newest one's number and id, and how many there were. Nothing, before the first look."""

    last: int = 0
    id: str | None = ""
    rows: int = 0


class Contested:
    """The prompts of a store on which raters differ. newest: how many of its judgements were looked at first; None where all were."""

    def __init__(self, store: Store, most: int = MOST) -> None:
        self.newest: int | None = None
        self._store, self._most = store, most
        self._places: dict[str, Place] = {}
        self._sorted: list[tuple[str, bool]] = []
        self._seen = Seen()

    def marked(self) -> list[tuple[str, bool]]:
        """Return each prompt's id and whether it is open: these first, then the opposed before those against a tie, the most even first."""
        with _ONE_AT_A_TIME, self._store.frozen(), self._store.reading() as connection:
            now = _seen_in(connection)
            since = _judged_since(connection, self._seen, now, self._most)
            self._seen = Seen()  # should reading break off, all is read the next time
            if since is None:
                self._places.clear()
                before = _number_before(connection, self._most)
                self.newest = self._most if before else None
                judged = _with_several_words(connection, before)
            else:
                judged = since
            for prompt_id in judged:
                self._places.pop(prompt_id, None)
            for dispute in disputes_of(connection, judged):
                worst = dispute.contests[0]
                self._places[dispute.prompt.id] = (not dispute.is_open, not worst.is_opposed, -worst.split)
            if judged or since is None:
                ordered = sorted(self._places, key=lambda prompt_id: (self._places[prompt_id], prompt_id))
                self._sorted = [(prompt_id, not self._places[prompt_id][0]) for prompt_id in ordered]
            self._seen = now
            return self._sorted


def _seen_in(connection: Connection) -> Seen:
    table = tables.judgements
    last, rows = connection.execute(select(func.max(table.c.number), func.count()).select_from(table)).one()
    return Seen(last or 0, _id_of(connection, last or 0), rows)


def _judged_since(connection: Connection, seen: Seen, now: Seen, most: int) -> list[str] | None:
    """Return the prompts that were judged since the last look.

    None where all has to be looked at: at first, after rows went, and after more than `most` came.
    """
    if _id_of(connection, seen.last) != seen.id or now.rows - seen.rows > most:
        return None
    table = tables.judgements.c
    new = connection.execute(select(table.prompt_id).where(table.number > seen.last)).scalars().all()
    return sorted(set(new)) if now.rows == seen.rows + len(new) else None


def _id_of(connection: Connection, number: int) -> str | None:
    table = tables.judgements.c
    return connection.execute(select(table.id).where(table.number == number)).scalar()


def disputes_of(connection: Connection, ids: Sequence[str]) -> Iterator[Dispute]:
    """Yield what raters differ on in each of these prompts, some hundred prompts in memory at a time; none where they say the same."""
    for start in range(0, len(ids), CHUNK):
        yield from _disputes_of(connection, ids[start : start + CHUNK])


def _disputes_of(connection: Connection, ids: Sequence[str]) -> Iterator[Dispute]:
    prompts, judgements = tables.prompts, tables.judgements
    said: dict[str, list[Judgement]] = {}
    for row in connection.execute(select(judgements).where(judgements.c.prompt_id.in_(ids)).order_by(judgements.c.number)).all():
        said.setdefault(row.prompt_id, []).append(judgement_from_row(row))
    found = {row.id: row for row in connection.execute(select(prompts).where(prompts.c.id.in_(ids))).all()}
    for prompt_id in ids:
        dispute = dispute_of(prompt_from_row(found[prompt_id]), said.get(prompt_id, ()))
        if dispute is not None:
            yield dispute


def _number_before(connection: Connection, most: int) -> int:
    """Return the number of the judgement before the newest `most`; 0 where there is none."""
    number = tables.judgements.c.number
    return connection.execute(select(number).order_by(number.desc()).offset(most).limit(1)).scalar() or 0


def _with_several_words(connection: Connection, before: int) -> Sequence[str]:
    # Those on which all have written down the very same need no closer look; whether two different words contradict is seen there.
    judgements = tables.judgements.c
    newly = tables.judgements.alias("newly").c
    judged = [judgements.prompt_id.in_(select(newly.prompt_id).where(newly.number > before))] if before else []
    several = (
        select(judgements.prompt_id)
        .where(judgements.picked_by.not_in(CHECKS), judgements.rater.not_like(f"{SETTLED}%"), *judged)
        .group_by(judgements.prompt_id)
        .having(func.count(judgements.rater.distinct()) > 1, func.count(cast(judgements.ranking, Text).distinct()) > 1)
    )
    return connection.execute(several).scalars().all()
