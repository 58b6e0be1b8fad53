"""Shares with their 95 % intervals, for what is counted in judgements.

Comparisons of one prompt are not independent: where a share is over such, give the cluster (the prompt) of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Z = 1.959963984540054  # of a two-sided interval at 95 %


@dataclass(frozen=True)
class Share:
    """A share of n observations with the two ends of its interval, all from 0 to 1."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} (95 % CI {100 * self.low:.1f} to {100 * self.high:.1f}, n = {self.n:,})"


@dataclass(frozen=True)
class Estimate:
    """A number with the two ends of its interval; n says from how many observations."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 % CI {self.low:.3f} to {self.high:.3f}, n = {self.n:,})"


def wilson(successes: float, total: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share; halves may be counted among the successes.

    Source: Wilson 1927. Differs: takes each observation as independent, so it is too narrow where many share a prompt; for those
    there is `clustered_share`.
    """
    if not total:
        return 0.0, 1.0
    share = min(1.0, successes / total)
    centre = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z / (1 + Z * Z / total) * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_share(hits: ArrayLike, clusters: ArrayLike) -> Share | None:
    """Return the share of hits with a Wilson interval on the effective number of observations; None where there are none.

    hits: 0 or 1 of each observation. clusters: a whole number from 0 for each, the same for those that hang together. The effective
    number is p (1 − p) / var(p) with the variance between clusters (CR1), never more than n; so the interval is the plain Wilson one
    where each cluster has one observation. Where all hits are alike the variance says nothing: then it is the number of clusters.
    """
    values = np.asarray(hits, dtype=np.float64)
    if not values.size:
        return None
    numbers, places = np.unique(np.asarray(clusters), return_inverse=True)
    groups, n = numbers.size, values.size
    share = float(values.mean())
    effective = float(groups)
    if 0 < share < 1:
        residuals = np.bincount(places, weights=values - share)
        factor = groups / (groups - 1) if 1 < groups < n else 1.0
        variance = factor * float(residuals @ residuals) / n**2
        effective = min(float(n), share * (1 - share) / variance) if variance > 0 else float(n)
    low, high = wilson(share * effective, effective)
    return Share(share, low, high, n)


def exact_share(successes: int, total: int) -> Share | None:
    """Return a share with its exact binomial interval (Clopper and Pearson 1934); None where there are no observations."""
    if not total:
        return None
    low = float(special.betaincinv(successes, total - successes + 1, 0.025)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, total - successes, 0.975)) if successes < total else 1.0
    return Share(successes / total, low, high, total)


def even_chance_p(successes: int, total: int) -> float:
    """Return the exact two-sided p of "each way is as likely as the other"."""
    if not total:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(successes, total - successes), total, 0.5)))


def jackknife(value: float, left_out: NDArray[np.float64], n: int) -> Estimate:
    """Return an estimate with its interval from the values that it has when each cluster in turn is left out.

    Source: Efron and Stein 1981 (delete-one jackknife). Where fewer than two clusters are there, the interval is everything from −1 to 1.
    """
    usable = left_out[np.isfinite(left_out)]
    if usable.size < 2:
        return Estimate(value, -1.0, 1.0, n)
    se = math.sqrt((usable.size - 1) / usable.size * float(((usable - usable.mean()) ** 2).sum()))
    return Estimate(value, max(-1.0, value - Z * se), min(1.0, value + Z * se), n)
