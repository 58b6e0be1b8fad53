"""What a judge says who was asked in both orders of showing, how far it can be believed, and how far it agrees with people.

Verdicts are about answer A: 1 better, 0.5 tie, 0 worse, None where what was said cannot be read. Pure functions (numpy alone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from preftune.data.calibration import floats
from preftune.data.intervals import Share, clustered_share
from preftune.errors import DataError
from preftune.evaluate.statistics import Clusters, Estimate, cluster_numbers, clustered_rate

Verdict = float | None
NAMED = {1.0: "A", 0.5: "tie", 0.0: "B"}
LOOSE = 0.80  # below this consistency a judge's verdicts are much about the place of an answer
FEW = 30  # below so many items a coefficient corrected for chance says next to nothing


@dataclass(frozen=True)
class Orders:
    """How a judge took to having the answers turned round.

    consistency: share of the same verdict in both orders, of those read in both. first: of the verdicts that name one, the share for the
    answer shown first; 50 % where the place does not matter and both orders were asked. unread: verdicts that cannot be read, of `asked`.
    """

    consistency: Share | None
    first: Share | None
    unread: int
    asked: int

    @property
    def loose(self) -> bool:
        """Whether its verdicts depend on the order so often that little can be built on them."""
        return self.consistency is not None and self.consistency.value < LOOSE


def settle(a_first: Verdict, b_first: Verdict) -> Verdict:
    """Return the one verdict of both orders: what both say, a tie where they differ, None where one cannot be read."""
    if a_first is None or b_first is None:
        return None
    return a_first if a_first == b_first else 0.5


def orders(a_first: Sequence[Verdict], b_first: Sequence[Verdict], clusters: Clusters | None = None) -> Orders:
    """Return how far the verdicts hang on the order. a_first: with A shown first; b_first: of the same items, with B shown first.

    Answers that are alike should be left out: nobody need be asked about them.
    """
    if len(a_first) != len(b_first):
        raise DataError(f"{len(a_first)} verdicts in one order, {len(b_first)} in the other", "orders", "Give both of each item.")
    groups = cluster_numbers(clusters, len(a_first))
    both = [(x == y, g) for x, y, g in zip(a_first, b_first, groups, strict=True) if x is not None and y is not None]
    strict = [(x == 1, g) for x, g in zip(a_first, groups, strict=True) if x in (0.0, 1.0)]
    strict += [(y == 0, g) for y, g in zip(b_first, groups, strict=True) if y in (0.0, 1.0)]
    unread = sum(v is None for v in (*a_first, *b_first))
    return Orders(_share(both), _share(strict), unread, 2 * len(a_first))


def _share(pairs: list[tuple[bool, np.intp]]) -> Share | None:
    return clustered_share([float(hit) for hit, _ in pairs], [int(group) for _, group in pairs]) if pairs else None


@dataclass(frozen=True)
class Kappa:
    """Agreement of two who judged the same items. kappa: Cohen's, nan where it is not defined (both always say the same one thing)."""

    kappa: Estimate
    agreement: Estimate

    @property
    def told(self) -> bool:
        """Whether there are enough items for the coefficient to say something."""
        return self.kappa.n >= FEW and math.isfinite(self.kappa.value)


def cohen_kappa(table: ArrayLike) -> float:
    """Return Cohen's κ = (po − pe) / (1 − pe) of a square table of counts (one's verdict by the other's); nan where pe is 1.

    Source: Cohen 1960. Differs: none.
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.sum() <= 0:
        raise DataError(f"this is no table of counts ({counts.shape})", "cohen_kappa", "Give as many rows as columns, not all 0.")
    shares = counts / counts.sum()
    agreed, chance = float(np.trace(shares)), float(shares.sum(0) @ shares.sum(1))
    return (agreed - chance) / (1 - chance) if chance < 1 else math.nan


def fleiss_kappa(counts: ArrayLike) -> float:
    """Return Fleiss' κ of N items judged by r raters each. counts: how many raters gave each value to each item, [N, values].

    Source: Fleiss 1971. Differs: none. nan where all raters gave one value to everything.
    """
    table = np.asarray(counts, dtype=np.float64)
    raters = table.sum(1) if table.ndim == 2 else np.zeros(0)
    if not raters.size or (raters != raters[0]).any() or raters[0] < 2:
        raise DataError("the items were not all judged by the same number of raters", "fleiss_kappa", "See krippendorff_alpha.")
    r = raters[0]
    agreed = float(((table * (table - 1)).sum(1) / (r * (r - 1))).mean())
    chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    return (agreed - chance) / (1 - chance) if chance < 1 else math.nan


def agreement_with(
    judge: Sequence[float], people: Sequence[float], clusters: Clusters | None = None, *, seed: int = 0, resamples: int = 1000
) -> Kappa:
    """Return how far a judge says what people say of the same answers (1, 0.5 or 0 of each), with intervals by resampling prompts."""
    ours, theirs = floats(judge, "judge"), floats(people, "people")
    if ours.size != theirs.size or not np.isin([*ours, *theirs], (0, 0.5, 1)).all():
        raise DataError("the verdicts are not 1, 0.5 or 0 of the same items", "agreement_with", "Give one of each for each item.")
    groups = cluster_numbers(clusters, ours.size)
    cells = (2 * ours * 3 + 2 * theirs).astype(np.intp)
    count = int(groups.max()) + 1
    by_cluster = np.bincount(groups * 9 + cells, minlength=9 * count).reshape(count, 9)
    value = cohen_kappa(by_cluster.sum(0).reshape(3, 3))
    agreed = (ours == theirs).astype(np.float64)
    said = clustered_rate(agreed, groups.tolist(), seed=seed)
    if count < 2 or agreed.all():
        # One prompt has no spread, and full agreement drawn again stays full, which is no certainty: κ where chance agrees in half.
        return Kappa(Estimate(value, 2 * said.low - 1 if count > 1 else -1.0, 1.0, ours.size), said)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = [cohen_kappa(row.reshape(3, 3)) for row in times @ by_cluster]
    finite = [k for k in drawn if math.isfinite(k)] or [value]
    low, high = np.quantile(finite, [0.025, 0.975])
    return Kappa(Estimate(value, float(low), float(high), ours.size), said)
