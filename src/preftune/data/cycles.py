"""Preferences that go round in a circle: a better than b, b better than c, c better than a.

No reward can be fitted to those three. In one ranking they cannot occur; they do where a rater judges pairs of one prompt one by one, or
where a majority is made of several raters (Condorcet's paradox). Of coin flips a quarter of the triples go round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from preftune.data.comparisons import Comparisons, Ints
from preftune.data.intervals import Share, wilson
from preftune.records import UNKNOWN


@dataclass(frozen=True)
class Cycles:
    """triples: three answers of which each two are strictly decided. cyclic: those that go round. prompts: where, by id."""

    triples: int = 0
    cyclic: int = 0
    prompts: tuple[str, ...] = ()

    @property
    def share(self) -> Share | None:
        """The share that goes round, each triple taken as independent."""
        return Share(self.cyclic / self.triples, *wilson(self.cyclic, self.triples), self.triples) if self.triples else None


@dataclass(frozen=True)
class CycleReport:
    """Intransitive triples within each rater's own words, and in the majority over all raters."""

    raters: dict[str, Cycles] = field(default_factory=dict)
    majority: Cycles = field(default_factory=Cycles)

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        triples = sum(c.triples for c in self.raters.values())
        cyclic = sum(c.cyclic for c in self.raters.values())
        found = []
        if triples:
            found.append(f"{cyclic:,} of {triples:,} triples go round in a circle within one rater's own words (coin flips: a quarter)")
        if self.majority.triples:
            found.append(f"{self.majority.cyclic:,} of {self.majority.triples:,} triples go round in the majority's words")
        return found


def find_cycles(table: Comparisons) -> CycleReport:
    """Return the intransitive triples; only prompts with two judgements or more (by the rater, or by all) are looked at."""
    raters: dict[str, list[tuple[int, int, str]]] = {}
    key = table.cluster * max(1, len(table.raters)) + table.rater
    for rows in _groups_of_several(table, key):
        rater, prompt = table.raters[table.rater[rows[0]]], table.prompts[table.cluster[rows[0]]]
        if rater != UNKNOWN:  # who may be many people
            raters.setdefault(rater, []).append((*_count(table, rows), prompt))
    everyone = []
    for rows in _groups_of_several(table, table.cluster):
        everyone.append((*_count(table, rows), table.prompts[table.cluster[rows[0]]]))
    return CycleReport({name: _sum(found) for name, found in sorted(raters.items())}, _sum(everyone))


def _groups_of_several(table: Comparisons, key: Ints) -> Iterator[Ints]:
    """Yield the rows of each group in which two judgements or more compare three answers or more."""
    order = np.argsort(key, kind="stable")
    edges = np.flatnonzero(np.diff(key[order])) + 1
    for rows in np.split(order, edges):
        if len(rows) >= 3 and (table.judgement[rows] != table.judgement[rows[0]]).any() and len(np.unique(table.two[rows])) >= 3:
            yield rows


def _count(table: Comparisons, rows: Ints) -> tuple[int, int]:
    """Return how many triples are strictly decided by the votes of these rows (of one prompt), and how many of them go round."""
    twos, place = np.unique(table.two[rows], return_inverse=True)
    votes = np.bincount(place, weights=table.verdict[rows])
    names: dict[str, int] = {}
    edges = []
    for two, vote in zip(twos.tolist(), votes.tolist(), strict=True):
        a, b = (names.setdefault(candidate, len(names)) for candidate in table.twos[two])
        if vote:
            edges.append((a, b) if vote > 0 else (b, a))
    beats = np.zeros((len(names), len(names)))
    for better, worse in edges:
        beats[better, worse] = 1.0
    decided = beats + beats.T
    # Closed walks of three steps: each circle is found from each of its three corners, each triangle six times.
    cyclic = round(np.trace(beats @ beats @ beats) / 3)
    return round(np.trace(decided @ decided @ decided) / 6), cyclic


def _sum(found: list[tuple[int, int, str]]) -> Cycles:
    return Cycles(sum(t for t, _, _ in found), sum(c for _, c, _ in found), tuple(prompt for _, c, prompt in found if c))
