"""How far a word like "80 % sure" can be believed: reliability, calibration error, and the temperature that mends it.

Pure functions of numbers (numpy and scipy alone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from preftune.errors import DataError

Floats = NDArray[np.float64]
COLDEST, HOTTEST = 0.02, 50.0  # temperatures; margins that are all right have none that is best


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin of predictions: its ends, how many there are, their mean confidence and the share that came true."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def floats(values: ArrayLike, what: str) -> Floats:
    """Return a list of finite numbers as an array. Raises DataError where it is anything else; what: its name for that."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(f"{what} is {array.shape or 'a single number'}", "statistics", "Give a list with at least one number.")
    if not np.isfinite(array).all():
        raise DataError(f"{what} holds nan or an infinite number", "statistics", "Leave such items out, and say how many.")
    return array


def reliability_bins(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int | Sequence[float] = 10) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram; empty ones are left out.

    probabilities: how sure each prediction was. outcomes: 1 where it came true, 0 where not, 0.5 for a tie.
    bins: a number of bins that hold equally many predictions, or the edges (the last bin has its upper edge in it).
    """
    p, y = _calibration(probabilities, outcomes)
    if isinstance(bins, int):
        order = np.argsort(p, kind="stable")
        parts = [part for part in np.array_split(order, bins) if part.size]
        ends = [(float(p[part[0]]), float(p[part[-1]])) for part in parts]
    else:
        edges = np.asarray(bins, dtype=np.float64)
        if p.min() < edges[0] or p.max() > edges[-1]:
            raise DataError(f"a probability lies outside {edges[0]:g} to {edges[-1]:g}", "reliability_bins", "Widen the edges.")
        places = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, edges.size - 2)
        used = np.unique(places)
        parts = [np.flatnonzero(places == place) for place in used]
        ends = [(float(edges[place]), float(edges[place + 1])) for place in used]
    return [
        ReliabilityBin(low, high, part.size, float(p[part].mean()), float(y[part].mean()))
        for (low, high), part in zip(ends, parts, strict=True)
    ]


def ece(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int | Sequence[float] = 10) -> float:
    """Return the expected calibration error: the mean gap between accuracy and confidence, over bins by their size.

    It is biased upwards for few predictions: the true gap of a calibrated model is 0, this is not.
    """
    found = reliability_bins(probabilities, outcomes, bins=bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / sum(b.count for b in found)


def brier(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Return the mean squared distance between probability and outcome (0 best, 0.25 for always saying 0.5)."""
    p, y = _calibration(probabilities, outcomes)
    return float(((p - y) ** 2).mean())


def nll(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Return the mean negative log-likelihood in nats; infinite where something held for impossible happened."""
    p, y = _calibration(probabilities, outcomes)
    return float(-(special.xlogy(y, p) + special.xlogy(1 - y, 1 - p)).mean())


def _calibration(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    p, y = floats(probabilities, "probabilities"), floats(outcomes, "outcomes")
    if p.size != y.size:
        raise DataError(f"there are {p.size} probabilities and {y.size} outcomes", "statistics", "Give one outcome for each.")
    if min(p.min(), y.min()) < 0 or max(p.max(), y.max()) > 1:
        raise DataError("a probability or outcome lies outside 0 to 1", "statistics", "Give shares, not percents or logits.")
    return p, y


def fit_temperature(margins: ArrayLike) -> float:
    """Return the temperature T at which σ(margin / T) is the likeliest account of pairs, between COLDEST and HOTTEST.

    margins: score of the chosen less that of the rejected answer of each pair. Above 1: the scores are surer than they are right.
    Source: Guo et al. 1706.04599, for pairs. Differs: none.
    """
    d = floats(margins, "margins")

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -d / math.exp(log_temperature)).mean())

    found = optimize.minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def cross_fitted_temperatures(margins: ArrayLike, clusters: ArrayLike, *, folds: int = 5, seed: int = 0) -> Floats:
    """Return for each pair the temperature that was fitted on the other folds, so that no pair is judged by what it helped to fit.

    clusters: a whole number for each pair; those of one number (a prompt) are in one fold. Raises DataError where there are fewer than two.
    """
    d, names = floats(margins, "margins"), np.asarray(clusters)
    numbers, places = np.unique(names, return_inverse=True)
    if numbers.size < 2:
        raise DataError("all pairs are of one prompt", "cross_fitted_temperatures", "Hold out pairs of more prompts.")
    fold_of = np.empty(numbers.size, dtype=np.int64)
    fold_of[np.random.default_rng(seed).permutation(numbers.size)] = np.arange(numbers.size) % folds
    fold, found = fold_of[places], np.empty(d.size)
    for number in np.unique(fold):
        found[fold == number] = fit_temperature(d[fold != number])
    return found
