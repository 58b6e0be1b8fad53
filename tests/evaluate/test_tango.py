"""The power and the number of items are held to an enumeration of all tables, each judged by the test that gives the verdict."""

import math

import numpy as np
import pytest
from scipy import stats

from preftune.errors import DataError
from preftune.evaluate.statistics import non_inferiority
from preftune.evaluate.tango import power_of_kept, required_items


def enumerated(n: int, margin: float, lost: float, gained: float) -> float:
    """Return the power from every table of n items that has any weight."""
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            weight = stats.multinomial.pmf([b, c, n - b - c], n, [lost, gained, 1 - lost - gained])
            if weight > 1e-9:
                change = np.repeat([-1.0, 1.0, 0.0], [b, c, n - b - c])
                total += weight * (non_inferiority(np.zeros(n), change, margin=margin).verdict == "kept")
    return total


@pytest.mark.parametrize(("margin", "lost", "gained"), [(0.15, 0.05, 0.05), (0.2, 0.1, 0.04), (0.15, 0.0, 0.1)])
def test_the_power_is_that_of_all_tables_judged_one_by_one(margin: float, lost: float, gained: float) -> None:
    assert power_of_kept(40, margin, lost, gained) == pytest.approx(enumerated(40, margin, lost, gained), abs=1e-5)


def test_the_number_of_items_is_the_smallest_whose_power_is_reached() -> None:
    n = required_items(0.15, 0.1)
    assert enumerated(n, 0.15, 0.05, 0.05) >= 0.8 > enumerated(n - 1, 0.15, 0.05, 0.05)


@pytest.mark.parametrize(
    ("margin", "discordance", "difference"), [(0.03, 0.08, 0.0), (0.02, 0.1, 0.0), (0.05, 0.2, -0.02), (0.1, 0.1, 0.1)]
)
def test_the_power_holds_from_the_number_on(margin: float, discordance: float, difference: float) -> None:
    n, (lost, gained) = (
        required_items(margin, discordance, difference=difference),
        ((discordance - difference) / 2, (discordance + difference) / 2),
    )
    assert power_of_kept(n - 1, margin, lost, gained) < 0.8 <= min(power_of_kept(n + more, margin, lost, gained) for more in range(5))


def test_two_points_cannot_be_certified_by_200_items() -> None:
    assert 1546 < required_items(0.02, 0.1) < 1.03 * 1546  # the normal bound's number, which has less power than it says


def test_no_change_at_all_takes_as_many_items_as_show_that_there_is_none() -> None:
    assert required_items(0.02, 0.0) == math.ceil(1.644854**2 * 0.98 / 0.02)  # Tango's bound is −z² / (n + z²)


def test_many_items_are_within_one_per_cent() -> None:
    n = required_items(0.005, 0.05)
    assert n > 10_000
    assert 0.8 <= power_of_kept(n, 0.005, 0.025, 0.025) < 0.805


def test_a_loss_of_the_margin_cannot_be_proved_harmless() -> None:
    with pytest.raises(DataError, match="difference of -0.03"):
        required_items(0.03, 0.1, difference=-0.03)
