"""The arithmetic of the checks: differences of shares, and what a length or a few features alone predict.

Pure functions of arrays. A "group" is a prompt (or a group of near-duplicate prompts): its pairs are not independent of each other,
so intervals are widened accordingly and a fold of the cross-validation holds whole groups.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.intervals import Estimate

FOLDS = 5
RIDGE = 1.0  # keeps weights finite where a feature tells all pairs apart
MAX_NEWTON_STEPS = 50

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def mean_difference(differences: Floats, groups: Ints, *, comparisons: int = 1) -> Estimate:
    """Return the mean of paired differences with an interval that holds for all of so many comparisons at once (95 %, Bonferroni).

    Source: the sandwich variance over groups.
    """
    n = len(differences)
    if not n:
        return Estimate(0.0, -1.0, 1.0, 0)
    value = float(differences.mean())
    sums = np.bincount(groups, weights=differences - value)
    clusters = len(np.unique(groups))
    if clusters < 2:
        return Estimate(value, -1.0, 1.0, n)
    error = math.sqrt(float(np.square(sums).sum()) * clusters / (clusters - 1)) / n
    reach = NormalDist().inv_cdf(1 - 0.025 / comparisons) * error
    return Estimate(value, value - reach, value + reach, n)


def folds_of(groups: Ints, *, seed: int = 0) -> Ints:
    """Return the fold of each observation, whole groups in one; which group is in which fold hangs on the seed alone."""
    shuffled = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    return np.asarray(shuffled[groups] % FOLDS)


def nearer_length_wins(log_chosen: Floats, log_rejected: Floats, folds: Ints) -> tuple[Floats, float]:
    """Return how often the rule "the answer whose length is nearer to L is chosen" is right, and the L of all data (inf = the longer).

    The best L is sought among 19 quantiles, 0 (the shorter wins) and infinity (the longer wins) on the other folds, then asked on the
    fold left out; nearness is that of logarithms. Returns the hits (0, ½ for equally near, 1) of each pair, held out, and L in the
    unit of the lengths.
    """
    both = np.concatenate([log_chosen, log_rejected])
    targets = [
        np.inf,
        -np.inf,
        *np.unique(np.quantile(both, np.linspace(0.05, 0.95, 19))),
    ]  # the plainest first, where several tell as much
    hits = np.empty((len(targets), len(log_chosen)), np.float32)
    for row, target in enumerate(targets):
        if np.isinf(target):
            gain = np.sign(target) * (log_chosen - log_rejected)
        else:
            gain = np.abs(log_rejected - target) - np.abs(log_chosen - target)
        hits[row] = (np.sign(np.where(np.abs(gain) < 1e-12, 0.0, gain)) + 1) / 2
    held_out = np.empty(len(log_chosen))
    for fold in range(FOLDS):
        out = folds == fold
        best = int(hits[:, ~out].mean(axis=1).argmax()) if not out.all() else 0
        held_out[out] = hits[best, out]
    return held_out, float(np.exp(targets[int(hits.mean(axis=1).argmax())]))


def held_out_hits(differences: Floats, folds: Ints) -> Floats:
    """Return how often a Bradley–Terry model of features is right on pairs that it was not fitted to: 0, ½ (cannot tell) or 1 each.

    differences: float [pairs, features], chosen − rejected.
    """
    spread = np.sqrt(np.square(differences).mean(axis=0))
    scaled = differences[:, spread > 0] / spread[spread > 0]
    hits = np.full(len(scaled), 0.5)
    for fold in range(FOLDS):
        out = folds == fold
        if out.any() and not out.all():
            margin = scaled[out] @ bradley_terry(scaled[~out])
            hits[out] = (np.sign(np.where(np.abs(margin) < 1e-9, 0.0, margin)) + 1) / 2
    return hits


def bradley_terry(differences: Floats) -> Floats:
    """Return the weights w that make Σ log σ(w · difference) − ½ |w|² largest, by Newton's method.

    Source: Bradley and Terry 1952, as logistic regression without an intercept: swapping the two answers swaps the answer.
    """
    weights = np.zeros(differences.shape[1])
    for _ in range(MAX_NEWTON_STEPS):
        wrong = 1 / (1 + np.exp(np.clip(differences @ weights, -500, 500)))
        slope = differences.T @ wrong - RIDGE * weights
        curve = (differences * (wrong * (1 - wrong))[:, None]).T @ differences + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        weights += step
        if np.abs(step).max(initial=0.0) < 1e-8:
            break
    return weights
