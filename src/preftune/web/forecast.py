"""When the work will be done at the team's present pace, with an interval; pure functions of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

WINDOW_DAYS = 14
FEWEST_DAYS = 3  # under three whole days a pace is a guess


@dataclass(frozen=True)
class Forecast:
    """What remains, and the pace of the last days.

    per_day: judgements a day, with the two ends of its 95 % interval. days: the counts behind it, oldest first, each 24 hours up to now.
    days_left: at that pace; the earliest and latest come from the interval, latest is None where even standing still cannot be ruled out.
    """

    remaining: int
    days: tuple[int, ...]
    per_day: float
    per_day_low: float
    per_day_high: float

    @property
    def days_left(self) -> float:
        """Days until nothing remains at the present pace."""
        return self.remaining / self.per_day

    @property
    def earliest(self) -> float:
        """Days until nothing remains at the pace of the interval's upper end."""
        return self.remaining / self.per_day_high

    @property
    def latest(self) -> float | None:
        """Days until nothing remains at the pace of the interval's lower end."""
        return self.remaining / self.per_day_low if self.per_day_low > 0 else None


def forecast(days: Sequence[int], remaining: int) -> Forecast | None:
    """Return when `remaining` judgements will be there; None where it is too early to say.

    days: how many came in each of the last whole 24 hours, oldest first. The interval of the pace is that of the mean of these counts
    (Student's t), with at least the variance of a Poisson count: people work in bursts and not at weekends, which a plain Poisson interval
    would hide. None too where nothing came in the whole window.
    """
    if len(days) < FEWEST_DAYS or not sum(days):
        return None
    mean = sum(days) / len(days)
    between = sum((count - mean) ** 2 for count in days) / (len(days) - 1)
    half = float(stats.t.ppf(0.975, len(days) - 1)) * math.sqrt(max(between, mean) / len(days))
    return Forecast(remaining, tuple(days), mean, max(0.0, mean - half), mean + half)
