"""When the work will be done: counted by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from preftune.web.forecast import counts_by_day, forecast
from preftune.web.owner_words import days_in_words

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


def at(*hours_ago: float) -> list[datetime]:
    return [NOW - timedelta(hours=hours) for hours in hours_ago]


def test_only_whole_days_up_to_now_are_counted_and_none_before_the_first():
    # The first was 50 hours ago: two whole days fit, and it lies before them.
    assert counts_by_day(at(50, 47, 25, 23, 1), NOW) == (2, 2)
    assert counts_by_day(at(23), NOW) == ()
    assert counts_by_day([], NOW) == ()


def test_no_more_than_the_window_is_counted():
    assert counts_by_day(at(24 * 40, 24 * 13.5, 1), NOW) == (1, *([0] * 12), 1)


def test_the_forecast_is_the_mean_pace_with_students_interval():
    times = at(73, *[60] * 2, *[40] * 4, *[10] * 6)  # 2, 4 and 6 a day: mean 4, standard deviation 2
    ahead = forecast(times, 12, NOW)
    assert ahead is not None
    assert ahead.days == (2, 4, 6)
    assert ahead.per_day == 4
    assert ahead.days_left == 3
    # t at 97.5 % with 2 degrees of freedom is 4.303 in any table; 4.303 * 2 / √3 = 4.968, which is more than the mean.
    assert ahead.per_day_high == pytest.approx(8.968, abs=1e-3)
    assert ahead.earliest == pytest.approx(12 / 8.968, abs=1e-3)
    assert (ahead.per_day_low, ahead.latest) == (0, None)


def test_a_steady_pace_still_has_the_spread_of_counts():
    ahead = forecast(at(24 * 4 + 1, *(24 * day + 12 for day in range(4) for _ in range(100))), 1000, NOW)
    assert ahead is not None
    # 100 every day: no spread between days, so that of Poisson counts, √100 = 10; t with 3 degrees of freedom is 3.182.
    assert ahead.per_day_low == pytest.approx(100 - 3.182 * 10 / 2, abs=0.01)
    assert ahead.latest == pytest.approx(1000 / 84.09, abs=0.01)


@pytest.mark.parametrize("times", [[], at(1, 30, 60), at(24 * 30, 24 * 20)])
def test_too_little_or_too_long_ago_gives_no_forecast(times: list[datetime]):
    assert forecast(times, 10, NOW) is None


@pytest.mark.parametrize(
    ("days", "words"),
    [(0.4, "less than a day"), (1.2, "about 1 day"), (2.5, "about 3 days"), (35, "about 5 weeks"), (400, "over a year")],
)
def test_days_are_said_as_people_say_them(days: float, words: str):
    assert days_in_words(days) == words
