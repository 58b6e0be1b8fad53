"""What tells the chosen answers from the rejected ones although it is not quality: length, and how an answer looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.checks.gather import Gathered
from preftune.data.checks.shares import Floats, folds_of, held_out_hits, mean_difference, nearer_length_wins
from preftune.data.checks.surface import FEATURES
from preftune.data.intervals import Estimate, Share, clustered_share

LEAST_PROMPTS = 30  # with fewer, an interval over prompts means little, and cross-validation less
BINS = 24


@dataclass(frozen=True)
class Look:
    """How often the chosen and the rejected answers have one feature, and the difference with an interval for all features at once."""

    feature: str
    chosen: float
    rejected: float
    difference: Estimate


@dataclass(frozen=True)
class Bias:
    """What little things alone tell about which answer was chosen; all accuracies are held out (cross-validated by prompt group).

    longer_wins: equal lengths count as half. by_length: accuracy of "the answer whose length is nearer to best_length wins", the best
    length sought on other prompts (None: the longer wins; 0: the shorter). by_looks: accuracy of a logistic regression on FEATURES.
    by_both: on both. None where there are fewer than 30 prompts. histogram: how many chosen and rejected answers have a length
    (in characters) between two edges.
    """

    longer_wins: Share
    by_length: Share | None = None
    best_length: float | None = None
    by_looks: Share | None = None
    by_both: Share | None = None
    looks: tuple[Look, ...] = ()
    histogram: dict[str, list[float]] = field(default_factory=dict)


def measure_bias(gathered: Gathered, group_of_prompt: NDArray[np.int64]) -> Bias:
    """Return the biases of the pairs. group_of_prompt: for each place in gathered.names a number of its near-duplicate group, from 0."""
    groups = group_of_prompt[gathered.prompt_of_pair()]
    chosen, rejected = gathered.lengths("chosen"), gathered.lengths("rejected")
    longer_wins = _share((np.sign(chosen - rejected) + 1) / 2, groups)
    looks_chosen, looks_rejected = gathered.surfaces("chosen"), gathered.surfaces("rejected")
    differences = looks_chosen.astype(np.float64) - looks_rejected
    looks = tuple(
        Look(name, float(looks_chosen[:, n].mean()), float(looks_rejected[:, n].mean()), _difference(differences[:, n], groups))
        for n, name in enumerate(FEATURES)
        if looks_chosen[:, n].any() or looks_rejected[:, n].any()
    )
    histogram = _histogram(chosen, rejected)
    if len(np.unique(groups)) < LEAST_PROMPTS:
        return Bias(longer_wins, looks=looks, histogram=histogram)
    folds = folds_of(groups)
    logs = np.log1p(chosen), np.log1p(rejected)
    hits, best = nearer_length_wins(*logs, folds)
    steps = np.column_stack([differences, logs[0] - logs[1]])
    return Bias(
        longer_wins,
        by_length=_share(hits, groups),
        best_length=None if np.isinf(best) else max(0.0, best - 1),  # lengths went in as 1 + length
        by_looks=_share(held_out_hits(differences, folds), groups),
        by_both=_share(held_out_hits(steps, folds), groups),
        looks=looks,
        histogram=histogram,
    )


def _share(hits: Floats, groups: NDArray[np.int64]) -> Share:
    found = clustered_share(hits, groups)
    assert found is not None
    one_prompt = len(np.unique(groups)) == 1  # which says nothing on others
    return Share(found.value, 0.0, 1.0, found.n) if one_prompt else found


def _difference(differences: NDArray[np.float64], groups: NDArray[np.int64]) -> Estimate:
    return mean_difference(differences, groups, comparisons=len(FEATURES))


def _histogram(chosen: NDArray[Any], rejected: NDArray[Any]) -> dict[str, list[float]]:
    longest = max(int(chosen.max()), int(rejected.max()), 1)
    edges = np.unique(np.rint(np.geomspace(1, longest + 1, BINS + 1))) - 1  # in steps of equal factors, from 0
    counts = {name: np.histogram(lengths, edges)[0] for name, lengths in (("chosen", chosen), ("rejected", rejected))}
    return {"edges": edges.tolist(), **{name: found.tolist() for name, found in counts.items()}}
