"""The win rate that would be left if both sides wrote answers of the same length.

P(A beats B) = σ(θ + φ · tanh((length of A − length of B) / sd)); the length-controlled rate is σ(θ), where the lengths are equal.
Pure functions of numbers (numpy alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preftune.data.calibration import floats
from preftune.errors import DataError
from preftune.evaluate.statistics import Clusters, Estimate, cluster_numbers, wilson

Floats = NDArray[np.float64]
RIDGE = 0.1  # on φ and a tenth of it on θ: small beside the data, and enough where all wins go one way
FAR = 0.10  # a controlled rate that is further than this from the raw one leans on the model, not on the data
RESAMPLES = 1000


@dataclass(frozen=True)
class LengthControlled:
    """The controlled rate; raw: the plain one; phi: the pull of length (> 0: longer wins); ratio: mean length of A / of B."""

    rate: Estimate
    raw: float
    phi: float
    ratio: float

    @property
    def far(self) -> bool:
        """Whether it lies more than 10 points from the raw rate: a sign that one side is longer nearly always, or the fit fails."""
        return abs(self.rate.value - self.raw) > FAR


def length_controlled(
    scores: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, clusters: Clusters | None = None, *, seed: int = 0
) -> LengthControlled:
    """Return the rate at which A would win at equal length, with a 95 % interval for which the fit is made anew on resampled prompts.

    scores: 1 where A won, 0.5 tie, 0 where B won. lengths: of both answers, characters. clusters: the prompt of each.
    Source: Dubois et al. 2404.04475, eq. 1. Differs: no term for a prompt's difficulty, which takes many models to fit; ridge for L1.
    """
    y, a, b = floats(scores, "scores"), floats(lengths_a, "lengths_a"), floats(lengths_b, "lengths_b")
    if not y.size == a.size == b.size:
        raise DataError(f"{y.size} scores and {a.size}, {b.size} lengths", "length_controlled", "Give both lengths of each comparison.")
    groups = cluster_numbers(clusters, y.size)
    count = int(groups.max()) + 1
    x = _scaled(a - b)
    theta, phi = fit(y, x, np.ones((1, y.size)))
    random = np.random.default_rng(seed)
    drawn = np.empty(RESAMPLES)
    rows = max(1, 500_000 // y.size)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        times = random.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        drawn[start : start + size] = _sigmoid(fit(y, x, times[:, groups])[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = float(_sigmoid(theta)[0])
    if y.std() == 0:  # drawn again they are all alike, and the ridge alone would set the width
        plain = wilson(float(y[0]) * count, count)
        low, high = min(low, plain.low), max(high, plain.high)
    rate = Estimate(value, float(low), float(high), y.size)
    return LengthControlled(rate, float(y.mean()), float(phi[0]), float(a.mean() / b.mean()) if b.mean() else float("inf"))


def fit(y: Floats, x: Floats, weights: Floats, *, ridge: float = RIDGE) -> tuple[Floats, Floats]:
    """Return (θ [R], φ [R]) of R logistic fits of y [n] (0 to 1) on x [n], by Newton's method. weights: of each row in each fit, [R, n]."""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(50):
        p = _sigmoid(theta[:, None] + phi[:, None] * x)
        gap, curve = weights * (y - p), weights * p * (1 - p)
        g0, g1 = gap.sum(1) - 0.1 * ridge * theta, (gap * x).sum(1) - ridge * phi
        h00 = curve.sum(1) + 0.1 * ridge + 1e-9
        h01 = (curve * x).sum(1)
        h11 = (curve * x * x).sum(1) + ridge + 1e-9
        determinant = h00 * h11 - h01 * h01
        d0, d1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        longest = np.maximum(1.0, np.maximum(abs(d0), abs(d1)) / 2)  # a step too far would overshoot where all wins go one way
        theta, phi = theta + d0 / longest, phi + d1 / longest
        if max(abs(d0).max(), abs(d1).max()) < 1e-10:
            break
    return theta, phi


def _scaled(differences: Floats) -> Floats:
    deviation = float(differences.std(ddof=1)) if differences.size > 1 else 0.0
    result: Floats = np.tanh(differences / deviation) if deviation > 0 else np.sign(differences)
    return result


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(x / 2))
    return result
