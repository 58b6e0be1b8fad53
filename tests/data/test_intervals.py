"""Intervals, against scipy's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from preftune.data.intervals import clustered_share, even_chance_p, exact_share, jackknife, wilson

COUNTS = [(0, 5), (3, 7), (10, 10), (77, 100), (1, 1)]


@pytest.mark.parametrize("counts", COUNTS)
def test_the_interval_is_wilsons(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(method="wilson")
    assert wilson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("counts", COUNTS)
def test_the_exact_interval_and_p_are_the_binomials(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts)
    share = exact_share(*counts)
    assert share
    assert (share.low, share.high) == pytest.approx(tuple(expected.proportion_ci(method="exact")), abs=1e-9)
    assert even_chance_p(*counts) == pytest.approx(expected.pvalue, abs=1e-9)


def test_nothing_observed_is_no_share() -> None:
    assert exact_share(0, 0) is None
    assert clustered_share([], []) is None
    assert even_chance_p(0, 0) == 1.0


def test_one_observation_a_cluster_is_plain_wilson() -> None:
    share = clustered_share([1, 1, 0, 1], [5, 3, 9, 0])
    assert share
    assert (share.value, share.n) == (0.75, 4)
    assert (share.low, share.high) == pytest.approx(wilson(3, 4))


def test_copies_in_a_cluster_count_once() -> None:
    # Each of G clusters says the same three times: the variance between clusters, p (1 − p) / (G − 1), is that of G − 1 observations.
    hits = np.repeat([1, 1, 0, 1, 0, 1, 1, 0], 3)
    share = clustered_share(hits, np.repeat(np.arange(8), 3))
    assert share
    assert share.n == 24
    assert (share.low, share.high) == pytest.approx(wilson(5 / 8 * 7, 7))


def test_where_all_are_hits_the_clusters_are_counted() -> None:
    share = clustered_share([1] * 6, [0, 0, 0, 1, 1, 1])
    assert share
    assert (share.low, share.high) == pytest.approx(wilson(2, 2))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.array([0.1, 0.4, 0.2, 0.7, 0.3])
    left_out = (values.sum() - values) / 4
    found = jackknife(float(values.mean()), left_out, 5)
    se = values.std(ddof=1) / 5**0.5
    assert (found.low, found.high) == pytest.approx((values.mean() - 1.959964 * se, values.mean() + 1.959964 * se), abs=1e-6)
    assert jackknife(0.5, np.array([0.5]), 1).low == -1.0


def test_a_share_reads_as_a_sentence() -> None:
    assert str(exact_share(3, 4)) == "75.0% (95 % CI 19.4 to 99.4, n = 4)"
