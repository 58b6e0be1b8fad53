"""Everything that the owner's pages show about agreement, place, time and gold: read from the store, measured by `data.agreement`.

People and programs are told apart: a judge or a reward model that has left judgements in the store is compared with the people, and
does not count among them. What an owner settled counts for neither, as it was said in sight of the others' words.

A store of more than MOST judgements is measured on some of its prompts, each with all its judgements: those that come first by id. An id
is a hash of the prompt's text, so this is a draw by chance that an index gives, and which stays the same from look to look. Gold items are
few and judged by all, so their judgements are all read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastapi import Request
from sqlalchemy import ColumnElement, Connection, func, select

from preftune.data import tables
from preftune.data.agreement import Agreement, RaterAgreement, agreement, per_rater
from preftune.data.comparisons import comparisons
from preftune.data.habits import gold_accuracy
from preftune.data.store import Store, judgement_from_row
from preftune.records import GOLD, Judgement
from preftune.web.disputes import is_program
from preftune.web.kept import Kept, kept
from preftune.web.site import store_of

MOST = 50_000  # judgements: some seconds of one core; a share that all of them tell is known to half a point


@dataclass(frozen=True)
class Figures:
    """people: all that is measured of people. programs: each against the people's majority. num_judgements: of programs, by name.

    measured: judgements that all but gold was measured on, those of programs among them. stored: judgements in the store.
    """

    people: Agreement
    programs: dict[str, RaterAgreement] = field(default_factory=dict)
    num_judgements: dict[str, int] = field(default_factory=dict)
    measured: int = 0
    stored: int = 0


def measure(store: Store, most: int) -> Figures:
    """Return the figures of a store, imported judgements included; of one with more than `most` judgements, of about so many."""
    prompts, candidates, judgements, items = tables.prompts.c, tables.candidates.c, tables.judgements.c, tables.items.c
    with store.reading() as connection:
        last = connection.execute(select(judgements.prompt_id).order_by(judgements.prompt_id).offset(most).limit(1)).scalar()

        def drawn(prompt_id: ColumnElement[str]) -> list[ColumnElement[bool]]:
            return [] if last is None else [prompt_id <= last]

        rows = _judgements(connection, *drawn(judgements.prompt_id))
        stored = len(rows) if last is None else connection.execute(select(func.count()).select_from(tables.judgements)).scalar_one()
        gold = _judgements(connection, judgements.picked_by == GOLD)
        kinds = {row.id: row.kind for row in connection.execute(select(prompts.id, prompts.kind).where(*drawn(prompts.id)))}
        length = func.length(candidates.text).label("length")
        texts = connection.execute(select(candidates.id, candidates.source, length).where(*drawn(candidates.prompt_id))).all()
        expected = connection.execute(select(items.expected).where(items.purpose == "gold")).scalars().all()
    figures = figures_of_rows(
        rows,
        gold,
        kinds=kinds,
        expected=[tuple(tuple(tier) for tier in ranking) for ranking in expected if ranking],
        lengths={row.id: row.length for row in texts},
        sources={row.id: row.source for row in texts},
    )
    return replace(figures, measured=len(rows), stored=stored)


def _judgements(connection: Connection, *which: ColumnElement[bool]) -> list[Judgement]:
    """Return the judgements of which this holds, oldest first."""
    # Sorted here: asked for an order, SQLite reads the whole table in it instead of looking some rows up.
    rows = connection.execute(select(tables.judgements).where(*which)).all()
    return [judgement_from_row(row) for row in sorted(rows, key=lambda row: row.number)]


def figures_of_rows(
    rows: Sequence[Judgement],
    gold: Sequence[Judgement],
    *,
    kinds: dict[str, str],
    expected: Sequence[tuple[tuple[str, ...], ...]],
    lengths: dict[str, int],
    sources: dict[str, str],
) -> Figures:
    """Return the figures of judgements, oldest first. gold: those on gold items. The settings are those of `data.agreement.agreement`."""
    people = [j for j in rows if not is_program(j.rater)]
    programs: dict[str, list[Judgement]] = {}
    for judgement in rows:
        if is_program(judgement.rater):
            programs.setdefault(judgement.rater, []).append(judgement)
    compared: dict[str, RaterAgreement] = {}
    for name, words in sorted(programs.items()):
        against = per_rater(comparisons([*people, *words]).first_words()).get(name)
        if against is not None:
            compared[name] = against
    measured = agreement(people, kinds=kinds, lengths=lengths, sources=sources)
    measured = replace(measured, gold=gold_accuracy([j for j in gold if not is_program(j.rater)], expected))
    return Figures(measured, compared, {name: len(words) for name, words in sorted(programs.items())})


def figures_for(request: Request) -> Kept[Figures]:
    """Return the figures as they are now: measured anew where a judgement or a gold item came or went (but see `kept`)."""
    store = store_of(request)
    return kept(request, "owner_figures", lambda: _state(store), lambda: measure(store, MOST))


def _state(store: Store) -> tuple[int | None, ...]:
    judgements, items = tables.judgements.c, tables.items.c
    with store.reading() as connection:
        newest = connection.execute(select(func.max(judgements.number), func.count()).select_from(tables.judgements)).one()
        gold = connection.execute(select(func.max(items.number), func.count()).where(items.purpose == "gold")).one()
    return (*newest, *gold)
