"""When the work will be done: counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from preftune.web.forecast import forecast
from preftune.web.owner_words import days_in_words


def test_the_forecast_is_the_mean_pace_with_students_interval():
    ahead = forecast((2, 4, 6), 12)  # mean 4, standard deviation 2
    assert ahead is not None
    assert ahead.days == (2, 4, 6)
    assert ahead.per_day == 4
    assert ahead.days_left == 3
    # t at 97.5 % with 2 degrees of freedom is 4.303 in any table; 4.303 * 2 / √3 = 4.968, which is more than the mean.
    assert ahead.per_day_high == pytest.approx(8.968, abs=1e-3)
    assert ahead.earliest == pytest.approx(12 / 8.968, abs=1e-3)
    assert (ahead.per_day_low, ahead.latest) == (0, None)


def test_a_steady_pace_still_has_the_spread_of_counts():
    ahead = forecast([100] * 4, 1000)
    assert ahead is not None
    # 100 every day: no spread between days, so that of Poisson counts, √100 = 10; t with 3 degrees of freedom is 3.182.
    assert ahead.per_day_low == pytest.approx(100 - 3.182 * 10 / 2, abs=0.01)
    assert ahead.latest == pytest.approx(1000 / 84.09, abs=0.01)


@pytest.mark.parametrize("days", [(), (5, 5), [0] * 14])
def test_too_little_or_too_long_ago_gives_no_forecast(days: Sequence[int]):
    assert forecast(days, 10) is None


@pytest.mark.parametrize(
    ("days", "words"),
    [(0.4, "less than a day"), (1.2, "about 1 day"), (2.5, "about 3 days"), (35, "about 5 weeks"), (400, "over a year")],
)
def test_days_are_said_as_people_say_them(days: float, words: str):
    assert days_in_words(days) == words
