"""A quick reward probe: how well can the preferred answer be told, and how does that grow with the pairs?

Bradley–Terry on fixed features: P(a is preferred to b) = σ(θ · (x_a − x_b)), with a normal prior on θ. It takes seconds where a reward
model takes hours, and what it finds a reward model finds too; what it misses, a reward model may still find. Everything is measured on
prompts whose group of near-duplicates it has not seen. Pure functions of numbers (numpy and scipy alone).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special

from preftune.evaluate.statistics import Estimate, win_rate

FOLDS = 5
REPEATS = 2
NUM_FITS = FOLDS * REPEATS  # folds that a learning curve goes through
PENALTIES = (0.1, 1.0, 10.0, 100.0)
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the training side, for the learning curve
EXPONENTS = (0.25, 0.35, 0.5, 0.7, 1.0)  # how fast an error can fall with the pairs: n^-b; 1/2 is the usual one
RESAMPLES = 1000

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Matrix: TypeAlias = sparse.csr_array


@dataclass(frozen=True)
class Pairs:
    """What the probe learns from. differences: features of the chosen less those of the rejected answer, [n, d]. weights: [n].

    groups: the number of the group of near-duplicate prompts of each, from 0, [n].
    """

    differences: Matrix
    weights: Floats
    groups: Ints

    def __len__(self) -> int:
        return int(self.weights.size)

    def take(self, places: NDArray[np.bool_] | Ints) -> Pairs:
        """Return the pairs at these places."""
        return Pairs(self.differences[places], self.weights[places], self.groups[places])


@dataclass(frozen=True)
class Curve:
    """Held-out accuracy as the pairs grow. sizes: mean number of training pairs at each point, [S].

    hits: how often each pair was told right at each point, over the repeats, [S, n]. groups: as in Pairs.
    """

    sizes: Floats
    hits: Floats
    groups: Ints

    def accuracy(self, point: int = -1) -> Estimate:
        """Return the accuracy at a point of the curve, its interval over groups of prompts."""
        return win_rate(self.hits[point], self.groups.tolist())


def fit(differences: Matrix, weights: Floats, penalty: float) -> Floats:
    """Return θ [d] that minimises Σ w log(1 + exp(−θ·x)) + penalty/2 |θ|²; 0 where there is nothing to learn from."""
    found = np.zeros(differences.shape[1])
    used = np.unique(differences.indices)  # all other columns stay 0, and most of the hashed ones are others
    columns = Matrix(differences[:, used])
    transposed = Matrix(columns.T)

    def loss(theta: Floats) -> tuple[float, Floats]:
        margins = columns @ theta
        value = float(weights @ np.logaddexp(0.0, -margins)) + penalty / 2 * float(theta @ theta)
        gradient = penalty * theta - transposed @ (weights * special.expit(-margins))
        return value, gradient

    if used.size:
        found[used] = optimize.minimize(loss, np.zeros(used.size), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return found


def choose_penalty(pairs: Pairs, seed: int) -> float:
    """Return the penalty that predicts a fifth of the groups best from the others."""
    held_out = folds_of(pairs.groups, 5, seed) == 0
    if held_out.all() or not held_out.any():
        return PENALTIES[1]
    train, test = pairs.take(~held_out), pairs.take(held_out)
    losses = [
        float(test.weights @ np.logaddexp(0.0, -(test.differences @ fit(train.differences, train.weights, penalty))))
        for penalty in PENALTIES
    ]
    return PENALTIES[int(np.argmin(losses))]


def folds_of(groups: Ints, folds: int, seed: int) -> Ints:
    """Return the fold of each pair: groups are dealt out at random, whole."""
    names = np.unique(groups)
    dealt = np.random.default_rng(seed).permutation(names.size) % folds
    return dealt[np.searchsorted(names, groups)]


def right(margins: Floats) -> Floats:
    """Return 1 where a margin is above 0, 0 below, 0.5 where nothing was told."""
    return (np.sign(margins) + 1) / 2


def learning_curve(
    pairs: Pairs,
    *,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    repeats: int = REPEATS,
    on_done: Callable[[int], None] = lambda n: None,
) -> Curve:
    """Return held-out accuracy by the number of training pairs, cross-validated by group.

    Each point takes a share of the training side's groups, the smaller ones within the larger. The penalty is chosen on the training side.
    on_done: called with 1 after each fold.
    """
    hits = np.zeros((len(shares), len(pairs)))
    sizes = np.zeros(len(shares))
    for repeat in range(repeats):
        folds = folds_of(pairs.groups, FOLDS, seed + repeat)
        for fold in range(FOLDS):
            test, train = folds == fold, np.flatnonzero(folds != fold)
            order = folds_of(pairs.groups[train], 2**31, seed + 31 * repeat + fold)  # each group's place in a random order
            train = train[np.argsort(order, kind="stable")]
            penalty = choose_penalty(pairs.take(train), seed + repeat)
            for point, share in enumerate(shares):
                part = pairs.take(train[: max(1, round(share * train.size))])
                theta = fit(part.differences, part.weights, penalty)
                hits[point, test] += right(pairs.differences[test] @ theta) / repeats
                sizes[point] += len(part) / (repeats * FOLDS)
            on_done(1)
    return Curve(sizes, hits, pairs.groups)


def transfer(learned: Pairs, judged: Pairs, *, seed: int = 0) -> Floats:
    """Return for each judged pair, [n], whether what is learned from other pairs on other groups tells it right (0, 0.5 or 1).

    The groups of both must be numbered alike.
    """
    every = np.concatenate([learned.groups, judged.groups])
    folds = folds_of(every, FOLDS, seed)
    of_learned, of_judged = folds[: len(learned)], folds[len(learned) :]
    hits = np.full(len(judged), 0.5)
    for fold in range(FOLDS):
        part, test = learned.take(of_learned != fold), of_judged == fold
        theta = fit(part.differences, part.weights, choose_penalty(part, seed))
        hits[test] = right(judged.differences[test] @ theta)
    return hits


def two_judges(pairs: Pairs, features: Matrix, groups: Ints, *, seed: int = 0) -> Floats:
    """Return two independent scores of each answer, [2, m]: from two halves of the pairs, of which none shares a group with the answer.

    features: [m, d] of the answers; groups: of each, numbered as the pairs'. What one judge picks as the best, the other can judge without
    the flattery that comes from having picked.
    """
    every = np.concatenate([pairs.groups, groups])
    folds, halves = folds_of(every, FOLDS, seed), folds_of(every, 2, seed + 1)
    scores = np.zeros((2, groups.size))
    for fold in range(FOLDS):
        test = folds[len(pairs) :] == fold
        for half in (0, 1):
            part = pairs.take((folds[: len(pairs)] != fold) & (halves[: len(pairs)] == half))
            theta = fit(part.differences, part.weights, choose_penalty(part, seed)) if len(part) else np.zeros(features.shape[1])
            scores[half, test] = features[test] @ theta
    return scores


def forecast(curve: Curve, at: Sequence[float], *, seed: int = 0) -> list[Estimate]:
    """Return the accuracy to expect with so many training pairs, each with a 95 % interval.

    accuracy(n) = c − a n^−b with a ≥ 0, by least squares on the curve's points, b from a short list, refitted on bootstrap samples of the
    groups. The interval holds what the sample of prompts leaves open; it cannot know whether the future pairs are of the same kind.
    """
    samples = _resampled(curve, seed)
    ahead = _extrapolate(curve.sizes, samples, np.asarray(at, dtype=np.float64))
    centre = _extrapolate(curve.sizes, curve.hits.mean(axis=1)[None], np.asarray(at, dtype=np.float64))[0]
    low, high = np.quantile(ahead, [0.025, 0.975], axis=0)
    return [Estimate(float(c), float(min(a, c)), float(max(b, c)), curve.groups.size) for c, a, b in zip(centre, low, high, strict=True)]


def gain_from_doubling(curve: Curve, pairs: int, *, seed: int = 0) -> Estimate:
    """Return by how much accuracy is expected to rise when `pairs` training pairs become twice as many, with a 95 % interval."""
    at = np.array([pairs, 2.0 * pairs])
    samples = _extrapolate(curve.sizes, _resampled(curve, seed), at)
    gains = samples[:, 1] - samples[:, 0]
    centre = _extrapolate(curve.sizes, curve.hits.mean(axis=1)[None], at)[0]
    low, high = np.quantile(gains, [0.025, 0.975])
    gain = float(centre[1] - centre[0])
    return Estimate(gain, min(float(low), gain), max(float(high), gain), curve.groups.size)


def _resampled(curve: Curve, seed: int) -> Floats:
    """Return the accuracies at each point in bootstrap samples of the groups, [resamples, S]."""
    names, places = np.unique(curve.groups, return_inverse=True)
    sums = np.array([np.bincount(places, row, names.size) for row in curve.hits])
    counts = np.bincount(places, minlength=names.size).astype(np.float64)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(names.size, np.full(names.size, 1 / names.size), size=RESAMPLES).astype(np.float64)
    return np.asarray((drawn @ sums.T) / (drawn @ counts)[:, None])


def _extrapolate(sizes: Floats, accuracies: Floats, at: Floats) -> Floats:
    """Return c − a n^−b fitted to each row of accuracies [R, S], at the sizes `at` [A]: [R, A]."""
    best = np.full(accuracies.shape[0], np.inf)
    found = np.repeat(accuracies.mean(axis=1, keepdims=True), at.size, axis=1)
    scale = sizes[-1]
    for exponent in EXPONENTS:
        shape = -((sizes / scale) ** -exponent)
        centred = shape - shape.mean()
        slope = np.maximum(0.0, (accuracies @ centred) / float(centred @ centred))
        base = accuracies.mean(axis=1) - slope * shape.mean()
        error = ((accuracies - base[:, None] - slope[:, None] * shape) ** 2).sum(axis=1)
        better = error < best
        ahead = base[:, None] - slope[:, None] * (at / scale) ** -exponent
        found[better], best[better] = ahead[better], error[better]
    return np.asarray(np.clip(found, 0.0, 1.0))


def sample_of(groups: Ints, at_most: int, *, seed: int = 0) -> Ints:
    """Return the places of at most so many pairs, whole groups drawn at random; all of them where they are no more."""
    if groups.size <= at_most:
        return np.arange(groups.size)
    order = folds_of(groups, 2**31, seed)
    return np.sort(np.argsort(order, kind="stable")[:at_most])
