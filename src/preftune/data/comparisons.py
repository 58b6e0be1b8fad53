"""What judgements say of each two candidates, as columns: the table that the statistics and the aggregation work on.

The two candidates of a row are in canonical order (by their ids, which are hashes): so "the first is better" means the same for every
rater, whatever order each was shown, and the first is neither the better-placed nor the chosen one by habit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from preftune.records import GOLD, UNKNOWN, Judgement, is_settled, standing

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
NOT_SAID = -1  # in `strength`


@dataclass(frozen=True)
class Comparisons:
    """Each row is one judgement's word on two candidates of a prompt. All columns have one entry a row.

    two: place in `twos`. rater: place in `raters`. verdict: +1 the first of the two is better, −1 the second, 0 a tie.
    strength: 0 to 3, or NOT_SAID. shown: +1 the first of the two was shown before the other, −1 after it, 0 not recorded.
    among: how many candidates the judgement ranks. judgement: its place among those given (standing ones, gold left out).
    twos: candidate ids in canonical order. prompt: the place in `prompts` of each two (not of each row).
    """

    two: Ints
    rater: Ints
    verdict: Ints
    strength: Ints
    shown: Ints
    among: Ints
    judgement: Ints
    twos: tuple[tuple[str, str], ...]
    prompt: Ints
    prompts: tuple[str, ...]
    raters: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.two)

    @property
    def cluster(self) -> Ints:
        """The prompt of each row: rows of one prompt are not independent."""
        return self.prompt[self.two]

    def where(self, mask: Mask | Ints) -> Comparisons:
        """Return the rows that a mask (or a list of places) takes; `twos`, `prompts` and `raters` stay."""
        columns = {name: getattr(self, name)[mask] for name in ("two", "rater", "verdict", "strength", "shown", "among", "judgement")}
        return replace(self, **columns)

    def first_words(self) -> Comparisons:
        """Return each rater's first word on each two alone, so that a retest does not count as another rater."""
        keys = self.two * max(1, len(self.raters)) + self.rater
        _, places = np.unique(keys, return_index=True)
        return self.where(np.sort(places))

    def counts(self) -> Ints:
        """Return how many rows of each two say "the first", "tie", "the second": [twos, 3]."""
        cells = self.two * 3 + (1 - self.verdict)
        return np.bincount(cells, minlength=3 * len(self.twos)).reshape(-1, 3)


def comparisons(judgements: Iterable[Judgement], *, settled: bool = False) -> Comparisons:
    """Return what the standing judgements say of each two candidates, in the order given; gold ones are left out.

    settled: whether words that an owner gave to settle a disagreement count as well; they were given in sight of the others'.
    """
    rows: list[tuple[int, int, int, int, int, int, int]] = []
    twos: dict[tuple[str, str], int] = {}
    prompt_of: list[int] = []
    prompts: dict[str, int] = {}
    raters: dict[str, int] = {}
    for place, judgement in enumerate(j for j in standing(judgements) if j.picked_by != GOLD and (settled or not is_settled(j))):
        tier_of = {candidate: n for n, tier in enumerate(judgement.ranking) for candidate in tier}
        if len(tier_of) < 2:
            continue
        shown_at = {candidate: n for n, candidate in enumerate(judgement.presentation)}
        rater = raters.setdefault(judgement.rater, len(raters))
        strength = NOT_SAID if judgement.strength is None else judgement.strength
        names = sorted(tier_of)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                two = twos.setdefault((first, second), len(twos))
                if two == len(prompt_of):
                    prompt_of.append(prompts.setdefault(judgement.prompt_id, len(prompts)))
                verdict = _sign(tier_of[second] - tier_of[first])
                seen = first in shown_at and second in shown_at
                shown = _sign(shown_at[second] - shown_at[first]) if seen else 0
                rows.append((two, rater, verdict, strength, shown, len(names), place))
    c = np.ascontiguousarray(np.array(rows, dtype=np.int64).reshape(-1, 7).T)
    prompt = np.array(prompt_of, dtype=np.int64)
    return Comparisons(c[0], c[1], c[2], c[3], c[4], c[5], c[6], tuple(twos), prompt, tuple(prompts), tuple(raters))


def rater_pairs(table: Comparisons) -> tuple[Ints, Ints]:
    """Return the places of each two rows that speak of the same two candidates: all pairs of raters, where each spoke once.

    The rater of the first place comes before that of the second in `raters`.
    """
    order = np.lexsort((table.rater, table.two))
    two = table.two[order]
    left: list[Ints] = []
    right: list[Ints] = []
    for gap in range(1, len(two)):
        same = np.flatnonzero(two[gap:] == two[:-gap])
        if not same.size:
            break
        left.append(order[same])
        right.append(order[same + gap])
    none = np.zeros(0, dtype=np.int64)
    return (np.concatenate(left), np.concatenate(right)) if left else (none, none)


def kinds_of(table: Comparisons, kinds: Mapping[str, str]) -> dict[str, Mask]:
    """Return for each kind of prompt the rows that speak of it. kinds: kind by prompt id; a prompt that is not in it has none ("")."""
    of_prompt = np.array([kinds.get(prompt, "") for prompt in table.prompts], dtype=object)
    of_row = of_prompt[table.cluster] if len(table) else np.zeros(0, dtype=object)
    return {str(kind): np.asarray(of_row == kind, dtype=np.bool_) for kind in sorted(set(of_row.tolist()))}


def by_rater(table: Comparisons) -> dict[str, Mask]:
    """Return for each rater with a row the rows that are theirs, by name; who is not known is left out (it may be many people)."""
    present = np.unique(table.rater)
    return {table.raters[n]: table.rater == n for n in sorted(present, key=lambda n: table.raters[n]) if table.raters[n] != UNKNOWN}


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
