"""Everything that the owner's pages show about agreement, place, time and gold: read from the store, measured by `data.agreement`.

People and programs are told apart: a judge or a reward model that has left judgements in the store is compared with the people, and
does not count among them. What an owner settled counts for neither, as it was said in sight of the others' words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fastapi import Request
from sqlalchemy import func, select

from preftune.data import tables
from preftune.data.agreement import Agreement, RaterAgreement, agreement, per_rater
from preftune.data.comparisons import comparisons
from preftune.data.store import Store
from preftune.records import Judgement
from preftune.web.disputes import is_program
from preftune.web.site import store_of

QUICK_SECONDS = 1.0
PATIENCE = 20.0  # how many times as long as measuring took the figures of a large store are kept
_ONE_AT_A_TIME = threading.Lock()  # two owners who look at once need one measurement


@dataclass(frozen=True)
class Figures:
    """people: all that is measured of people. programs: each against the people's majority. num_judgements: of programs, by name."""

    people: Agreement
    programs: dict[str, RaterAgreement] = field(default_factory=dict)
    num_judgements: dict[str, int] = field(default_factory=dict)


def measure(store: Store) -> Figures:
    """Return the figures of all judgements in a store, imported ones included."""
    with store.frozen():
        rows = list(store.judgements())
        prompts, candidates, items = tables.prompts.c, tables.candidates.c, tables.items.c
        with store.reading() as connection:
            kinds = {row.id: row.kind for row in connection.execute(select(prompts.id, prompts.kind))}
            texts = connection.execute(select(candidates.id, candidates.source, func.length(candidates.text).label("length"))).all()
            expected = connection.execute(select(items.expected).where(items.purpose == "gold")).scalars().all()
    return figures_of_rows(
        rows,
        kinds=kinds,
        expected=[tuple(tuple(tier) for tier in ranking) for ranking in expected if ranking],
        lengths={row.id: row.length for row in texts},
        sources={row.id: row.source for row in texts},
    )


def figures_of_rows(
    rows: Sequence[Judgement],
    *,
    kinds: dict[str, str],
    expected: Sequence[tuple[tuple[str, ...], ...]],
    lengths: dict[str, int],
    sources: dict[str, str],
) -> Figures:
    """Return the figures of judgements, oldest first. The settings are those of `data.agreement.agreement`."""
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
    measured = agreement(people, kinds=kinds, expected=expected, lengths=lengths, sources=sources)
    return Figures(measured, compared, {name: len(words) for name, words in sorted(programs.items())})


@dataclass(frozen=True)
class Kept:
    """Figures with what they were measured from. state: counts of the store; at: when; took: seconds."""

    state: tuple[int | None, ...]
    at: datetime
    took: float
    figures: Figures

    def is_good(self, state: tuple[int | None, ...], now: datetime) -> bool:
        """Return whether to show these: nothing has come since, or measuring is slow and was done not long ago."""
        patience = timedelta(seconds=PATIENCE * self.took) if self.took > QUICK_SECONDS else timedelta()
        return state == self.state or now - self.at < patience


def figures_for(request: Request) -> Kept:
    """Return the figures as they are now.

    They are measured anew where a judgement or a gold item came or went. In a large store, where that takes seconds in which raters would
    wait, it is done no more often than a twentieth of the time allows; `at` says how old they are then.
    """
    store, app = store_of(request), request.app.state
    with _ONE_AT_A_TIME:
        state, now = _state(store), datetime.now(UTC)
        known: Kept | None = getattr(app, "owner_figures", None)
        if known is None or not known.is_good(state, now):
            begun = time.monotonic()
            figures = measure(store)
            known = app.owner_figures = Kept(state, now, time.monotonic() - begun, figures)
    return known


def _state(store: Store) -> tuple[int | None, ...]:
    judgements, items = tables.judgements.c, tables.items.c
    with store.reading() as connection:
        newest = connection.execute(select(func.max(judgements.number), func.count()).select_from(tables.judgements)).one()
        gold = connection.execute(select(func.max(items.number), func.count()).where(items.purpose == "gold")).one()
    return (*newest, *gold)
