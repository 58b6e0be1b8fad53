"""Estimates with their uncertainty: win rates, bootstrap over prompts, retention tests, and how many items they need.

Pure functions of numbers (numpy and scipy alone). Comparisons of one prompt are not independent: wherever an argument `clusters` is
offered, give the prompt's id of each value. Intervals are two-sided, 95 % unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from preftune.data.calibration import floats
from preftune.errors import DataError
from preftune.evaluate.tango import tango_bound, tango_statistic

Floats = NDArray[np.float64]
Clusters = Sequence[Hashable]
FEW_OUTCOMES = 10  # prompts' worth of wins or of losses, below which a bootstrap does not know the tail


@dataclass(frozen=True)
class Estimate:
    """A value, the two ends of its interval, and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g}, n = {self.n})"


@dataclass(frozen=True)
class NonInferiority:
    """Whether something that was there before is still there after, given a margin that was set beforehand.

    difference: mean change in the good direction. lower: its one-sided bound. p_value: of "it fell by the margin or more".
    verdict: "kept" (lower > −margin), "lost" (the upper one-sided bound < −margin), or else "not proved".
    """

    difference: float
    se: float
    lower: float
    margin: float
    n: int
    verdict: Literal["kept", "lost", "not proved"]
    p_value: float


def cluster_numbers(clusters: Clusters | None, n: int) -> NDArray[np.intp]:
    """Return the number of the cluster of each value, from 0; each value is its own where no clusters are given."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise DataError(f"there are {n} values and {len(clusters)} clusters", "statistics", "Give one cluster for each value.")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)


def _z(share: float) -> float:
    return float(stats.norm.ppf(share))


# Win rates


def wilson(successes: float, n: float, confidence: float = 0.95) -> Estimate:
    """Return a share with its Wilson score interval.

    successes, n: may be fractions, so that an effective number of observations can be put in. Estimate.n is n, rounded.
    Source: Wilson 1927. Differs: none.
    """
    if not 0 <= successes <= n or n <= 0:
        raise DataError(f"{successes:g} successes of {n:g}", "wilson", "Give 0 <= successes <= n and n > 0.")
    z = _z((1 + confidence) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    ends = min(share, max(centre - half, 0.0)), max(share, min(centre + half, 1.0))  # by rounding, 0 of 7 would lie below its interval
    return Estimate(share, *ends, round(n))


def win_rate(scores: ArrayLike, clusters: Clusters | None = None, confidence: float = 0.95) -> Estimate:
    """Return (wins + ties / 2) / n with a Wilson interval on the effective number of observations.

    scores: 1 for a win, 0.5 for a tie, 0 for a loss (or the mean over both orders of showing). clusters: the prompt of each.
    The Wilson interval assumes 0 and 1; ties carry less variance and clusters more, hence n_eff = s (1 − s) / se² takes the
    place of n. Where all scores are alike the variance says nothing, and n_eff is the number of scores (or of clusters).
    """
    values = floats(scores, "scores")
    if ((values < 0) | (values > 1)).any():
        raise DataError("a score lies outside 0 to 1", "win_rate", "Give 1 for a win, 0.5 for a tie, 0 for a loss.")
    rate = float(values.mean())
    se = math.sqrt(values.var() / values.size) if clusters is None else cluster_se(values, clusters)
    independent = len(set(cluster_numbers(clusters, values.size).tolist()))
    effective = rate * (1 - rate) / se**2 if se > 0 and 0 < rate < 1 else float(independent)
    interval = wilson(rate * effective, effective, confidence)
    return Estimate(rate, interval.low, interval.high, values.size)


def clustered_rate(scores: ArrayLike, clusters: Clusters | None = None, *, seed: int = 0) -> Estimate:
    """Return (wins + ties / 2) / n with a bootstrap interval over prompts, or with that of `win_rate` where the bootstrap would mislead.

    scores: from 0 to 1. Draws from 20 wins of 20 are all alike, and the bootstrap would call that certain; so with fewer than 10 prompts'
    worth of either outcome the interval is Wilson's on the effective number.
    """
    values = floats(scores, "scores")
    if ((values < 0) | (values > 1)).any():
        raise DataError("a score lies outside 0 to 1", "clustered_rate", "Give 1 for a win, 0.5 for a tie, 0 for a loss.")
    independent = len(set(cluster_numbers(clusters, values.size).tolist()))
    rarer = independent * min(float(values.mean()), 1 - float(values.mean()))
    spread = independent > 1 and cluster_se(values, clusters) > 0
    if rarer < FEW_OUTCOMES or not spread:
        return win_rate(values, clusters) if independent > 1 else _of_one_prompt(values)
    return bootstrap_mean(values, clusters, seed)


def _of_one_prompt(values: Floats) -> Estimate:
    # However many the values are, they are one observation.
    interval = wilson(float(values.mean()), 1)
    return Estimate(float(values.mean()), interval.low, interval.high, values.size)


def share_difference(before: ArrayLike, after: ArrayLike) -> Estimate:
    """Return the change in a share of the same items (0 or 1 each) with Tango's score interval, which has a width even if none changed."""
    change = _paired(before, after)
    if not np.isin(change, (-1, 0, 1)).all():
        raise DataError("an item is neither 0 nor 1", "share_difference", "Give 0 or 1 of each item, before and after.")
    lost, gained, z = int((change == -1).sum()), int((change == 1).sum()), _z(0.975)
    low, high = tango_bound(lost, gained, change.size, z), -tango_bound(gained, lost, change.size, z)
    return Estimate(float(change.mean()), low, high, change.size)


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p of "a win is as likely as a loss"; ties are left out beforehand."""
    if wins + losses == 0:
        return 1.0
    return min(1.0, 2 * float(stats.binom.cdf(min(wins, losses), wins + losses, 0.5)))


# Clusters and bootstrap


def cluster_se(values: ArrayLike, clusters: Clusters | None = None) -> float:
    """Return the standard error of the mean with clusters as the units (CR1: with the factor G / (G − 1)).

    Without clusters it is the usual s / √n. Raises DataError with fewer than two clusters, which say nothing of their spread.
    """
    array = floats(values, "values")
    groups = cluster_numbers(clusters, array.size)
    sums = np.bincount(groups, array - array.mean())
    _need_two(sums.size)
    return math.sqrt(sums.size / (sums.size - 1) * float((sums**2).sum())) / array.size


def _need_two(clusters: int) -> None:
    if clusters < 2:
        raise DataError("all values come from one cluster", "statistics", "Give values of at least two prompts.")


def bootstrap_distribution(values: ArrayLike, clusters: Clusters | None = None, seed: int = 0, resamples: int = 10_000) -> Floats:
    """Return the means of samples that are drawn with replacement from the clusters, each with all its values; [resamples]."""
    array = floats(values, "values")
    groups = cluster_numbers(clusters, array.size)
    sums, counts = np.bincount(groups, array), np.bincount(groups).astype(np.float64)
    _need_two(sums.size)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, 2_000_000 // sums.size)  # 16 MB of indices at a time
    for start in range(0, resamples, rows):
        drawn = random.integers(sums.size, size=(min(rows, resamples - start), sums.size))
        means[start : start + rows] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def bootstrap_mean(
    values: ArrayLike, clusters: Clusters | None = None, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> Estimate:
    """Return the mean with a percentile bootstrap interval over clusters.

    The percentiles are widened for few clusters, as the bootstrap's spread is too small by √((G − 1) / G) and knows no t.
    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", expanded percentile interval. Differs: G clusters for n.
    """
    array = floats(values, "values")
    num_clusters = len(set(cluster_numbers(clusters, array.size).tolist()))
    means = bootstrap_distribution(array, clusters, seed, resamples)
    t = float(stats.t.ppf((1 - confidence) / 2, num_clusters - 1))
    tail = float(stats.norm.cdf(t * math.sqrt(num_clusters / (num_clusters - 1))))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high), array.size)


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Clusters | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Estimate:
    """Return the mean of after − before, item by item, with the interval of `bootstrap_mean`."""
    return bootstrap_mean(_paired(before, after), clusters, seed, resamples, confidence)


def _paired(before: ArrayLike, after: ArrayLike) -> Floats:
    first, second = floats(before, "before"), floats(after, "after")
    if first.size != second.size:
        raise DataError(f"before has {first.size} items and after {second.size}", "statistics", "Give the same items in the same order.")
    return second - first


def design_effect(cluster_size: float, icc: float) -> float:
    """Return by how much clusters of this size with this intra-class correlation multiply the variance of a mean."""
    return 1 + (cluster_size - 1) * icc


# How many


def required_n(win_rate: float, *, power: float = 0.8, alpha: float = 0.05, tie_rate: float = 0.0, clusters_effect: float = 1.0) -> int:
    """Return how many comparisons tell this true win rate from 0.5 with the given power (two-sided test at alpha).

    tie_rate: share of ties, which count half and shrink the variance by 1 − tie_rate. clusters_effect: see `design_effect`.
    """
    if win_rate == 0.5 or not 0 < win_rate < 1:
        raise DataError(f"a win rate of {win_rate:g} cannot be told from 0.5", "required_n", "Give one between 0 and 1 other than 0.5.")
    z, z_power = _z(1 - alpha / 2), _z(power)
    n = ((z / 2 + z_power * math.sqrt(win_rate * (1 - win_rate))) / (win_rate - 0.5)) ** 2
    return math.ceil(n * (1 - tie_rate) * clusters_effect)


def detectable_win_rate(n: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true win rate above 0.5 that n comparisons without ties find with the given power."""
    z, z_power = _z(1 - alpha / 2), _z(power)

    def missing(rate: float) -> float:
        return float((z / 2 + z_power * math.sqrt(rate * (1 - rate))) / (rate - 0.5) - math.sqrt(n))

    if missing(1 - 1e-12) > 0:
        raise DataError(f"{n} comparisons find no win rate with this power", "detectable_win_rate", "Give more comparisons.")
    return float(optimize.brentq(missing, 0.5 + 1e-9, 1 - 1e-12))


def required_values(room: float, variance: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many values prove that their mean lies above a bound, where it is this far above it in truth (one-sided test at alpha).

    variance: of one value; of clustered values, n times the square of the clustered standard error. For right-or-wrong items see
    `tango.required_items`.
    """
    return math.ceil((_z(1 - alpha) + _z(power)) ** 2 * variance / room**2)


# Retention


def non_inferiority(
    before: ArrayLike,
    after: ArrayLike,
    *,
    margin: float,
    higher_is_better: bool = True,
    clusters: Clusters | None = None,
    alpha: float = 0.05,
) -> NonInferiority:
    """Test whether the mean over the same items fell by less than the margin.

    Right-or-wrong items without clusters: Tango's score bound, with b lost and c gained of n; se = √(b + c − (b − c)² / n) / n is told, but
    the bound is not built on it: difference − z · se promises too much (decision 0018). All else: the clustered standard error and the
    t distribution with G − 1 degrees of freedom.
    Source: Tango 1998. Differs: none.
    """
    if margin <= 0:
        raise DataError(f"the margin is {margin:g}", "non_inferiority", "Set a margin above 0 before you look at the results.")
    change = _paired(before, after) * (1 if higher_is_better else -1)
    n, difference = change.size, float(change.mean())
    if clusters is None and np.isin(change, (-1, 0, 1)).all():
        lost, gained = int((change == -1).sum()), int((change == 1).sum())
        se = math.sqrt(lost + gained - (lost - gained) ** 2 / n) / n
        z = _z(1 - alpha)
        lower, upper = tango_bound(lost, gained, n, z), -tango_bound(gained, lost, n, z)
        p_value = float(stats.norm.sf(tango_statistic(lost, gained, n, -margin)))
    else:
        se = cluster_se(change, clusters)
        freedom = len(set(cluster_numbers(clusters, n).tolist())) - 1
        reach = float(stats.t.ppf(1 - alpha, freedom)) * se
        lower, upper = difference - reach, difference + reach
        p_value = float(stats.t.sf((difference + margin) / se, freedom)) if se else float(difference <= -margin)
    verdict: Literal["kept", "lost", "not proved"] = "kept" if lower > -margin else "lost" if upper < -margin else "not proved"
    return NonInferiority(difference, se, lower, margin, n, verdict, p_value)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Return the exact two-sided p of "as many items are lost as gained". A large p does not prove retention."""
    return sign_test(lost, gained)


def mcnemar_mid_p(lost: int, gained: int) -> float:
    """Return the two-sided mid-p of "as many items are lost as gained": less conservative than the exact one."""
    total, fewer = lost + gained, min(lost, gained)
    if lost == gained:
        return 1.0
    return 2 * float(stats.binom.cdf(fewer, total, 0.5)) - float(stats.binom.pmf(fewer, total, 0.5))


def mcnemar_chi2(lost: int, gained: int) -> tuple[float, float]:
    """Return McNemar's chi-square with continuity correction, and its p."""
    if lost + gained == 0:
        return 0.0, 1.0
    chi2 = max(abs(lost - gained) - 1, 0) ** 2 / (lost + gained)
    return chi2, float(stats.chi2.sf(chi2, 1))


def holm(p_values: ArrayLike) -> list[float]:
    """Return Holm's adjusted p-values, in the order given: several checkpoints or capabilities looked at together."""
    array = floats(p_values, "p_values")
    order = np.argsort(array, kind="stable")
    scaled = array[order] * np.arange(array.size, 0, -1)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]
