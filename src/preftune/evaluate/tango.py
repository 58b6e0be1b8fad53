"""Paired right-or-wrong items: Tango's score test of "fewer are lost than the margin", its bound, its power, and how many items it takes.

Of n items, `lost` were right before and are wrong after, and `gained` the other way. All three functions rest on one statistic, so the
number of items that is named beforehand is counted by the test that gives the verdict afterwards (decision 0018).
Source: Tango 1998. Differs: none.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from preftune.errors import DataError

EXACT = 10_000  # items, from where the normal approximation is within 1 % of the exact number


def tango_statistic(lost: ArrayLike, gained: ArrayLike, n: int, difference: float) -> NDArray[np.float64]:
    """Return the score statistic of "the true difference gained − lost, as a share of n, is this", for each pair of counts."""
    lost, gained = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    distance = gained - lost - n * difference
    spread = np.sqrt(n * _variance(lost / n, gained / n, difference))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(distance) < 1e-9, 0.0, distance / spread)


def _variance(lost: ArrayLike, gained: ArrayLike, difference: float) -> NDArray[np.float64]:
    """Return the variance of one item's change if the true difference is as given; lost, gained: the shares that were seen."""
    lost, gained = np.asarray(lost), np.asarray(gained)
    b = (2 - gained + lost) * difference - lost - gained
    c = -lost * difference * (1 - difference)
    likeliest_lost = (np.sqrt(np.maximum(b * b - 8 * c, 0.0)) - b) / 4
    return np.asarray(np.maximum(2 * likeliest_lost + difference * (1 - difference), 0.0))


def tango_bound(lost: int, gained: int, n: int, z: float) -> float:
    """Return the one-sided lower bound of the difference: where the score statistic is z."""
    estimate = (gained - lost) / n
    if estimate <= -1:
        return -1.0
    edge = 1e-9
    return float(optimize.brentq(lambda d: float(tango_statistic(lost, gained, n, d)) - z, -1 + edge, min(estimate, 1 - edge)))


def power_of_kept(n: int, margin: float, lost: float, gained: float, alpha: float = 0.05) -> float:
    """Return how often "kept" is said of n items of which these shares are lost and gained in truth; exact.

    The number of items that change is binomial, and so are those of them that are gained; for each number of changes the fewest gained
    that the test lets pass is found by bisection.
    """
    z = stats.norm.ppf(1 - alpha)
    share = lost + gained
    if share == 0:
        return float(tango_statistic(0, 0, n, -margin) > z)
    first, last = stats.binom.ppf([1e-12, 1 - 1e-12], n, share)
    changed = np.arange(first, last + 1)
    too_few, enough = np.full(changed.size, -1.0), changed + 1
    while (enough - too_few > 1).any():
        middle = np.floor((too_few + enough) / 2)
        kept = tango_statistic(changed - middle, middle, n, -margin) > z
        too_few, enough = np.where(kept, too_few, middle), np.where(kept, middle, enough)
    return float((stats.binom.pmf(changed, n, share) * stats.binom.sf(enough - 1, changed, gained / share)).sum())


def required_items(margin: float, discordance: float, *, difference: float = 0.0, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many right-or-wrong items prove retention within a margin with the given power.

    discordance: the share of items that change either way. difference: the share gained less the share lost, in truth; above −margin.
    Up to 10,000 items the number is exact: from it up to the normal approximation the power is reached by every number. More items are
    the approximation's, which asks for up to 1 % too many.
    """
    lost, gained = (discordance - difference) / 2, (discordance + difference) / 2
    if lost < -1e-12 or gained < -1e-12 or difference <= -margin:
        raise DataError(
            f"a discordance of {discordance:g} and a difference of {difference:g} do not go with a margin of {margin:g}",
            "required_items",
            "Give a difference above −margin, and no larger than the share of items that change.",
        )
    lost, gained = max(lost, 0.0), max(gained, 0.0)
    tested = math.sqrt(float(_variance(lost, gained, -margin)))
    true = math.sqrt(max(lost + gained - (gained - lost) ** 2, 0.0))
    reach = float(stats.norm.ppf(1 - alpha)) * tested + float(stats.norm.ppf(power)) * true
    n = max(1, math.ceil((reach / (margin + difference)) ** 2))
    if n > EXACT:
        return n
    while power_of_kept(n, margin, lost, gained, alpha) < power:
        n += 1
    while n > 1 and power_of_kept(n - 1, margin, lost, gained, alpha) >= power:
        n -= 1
    return n
