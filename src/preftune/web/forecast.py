"""When the work will be done at the team's present pace, with an interval; pure functions of times and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from scipy import stats

WINDOW_DAYS = 14
FEWEST_DAYS = 3  # under three whole days a pace is a guess
DAY = timedelta(days=1)


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


def counts_by_day(times: Sequence[datetime], now: datetime, most: int = WINDOW_DAYS) -> tuple[int, ...]:
    """Return how many of these times lie in each whole 24 hours up to now, oldest first.

    At most `most` days, and none that began before the first of the times.
    """
    if not times:
        return ()
    whole = min(most, int((now - min(times)) / DAY))
    counts = [0] * whole
    for time in times:
        back = int((now - time) / DAY)
        if 0 <= back < whole:
            counts[whole - 1 - back] += 1
    return tuple(counts)


def forecast(times: Sequence[datetime], remaining: int, now: datetime) -> Forecast | None:
    """Return when `remaining` judgements will be there, from when the earlier ones came; None where it is too early to say.

    The interval of the pace is that of the mean of daily counts (Student's t), with at least the variance of a Poisson count: people
    work in bursts and not at weekends, which a plain Poisson interval would hide. None too where nothing came in the whole window.
    """
    days = counts_by_day(times, now)
    if len(days) < FEWEST_DAYS or not sum(days):
        return None
    mean = sum(days) / len(days)
    between = sum((count - mean) ** 2 for count in days) / (len(days) - 1)
    half = float(stats.t.ppf(0.975, len(days) - 1)) * math.sqrt(max(between, mean) / len(days))
    return Forecast(remaining, days, mean, max(0.0, mean - half), mean + half)
