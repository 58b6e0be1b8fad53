"""The arithmetic of the checks against hand work, another library and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from preftune.data.checks.shares import (
    FOLDS,
    bradley_terry,
    folds_of,
    held_out_hits,
    mean_difference,
    nearer_length_wins,
)


def test_a_mean_difference_by_hand() -> None:
    share = mean_difference(np.array([1.0, 0, -1, 1]), np.arange(4))
    # mean 1/4; residuals 3/4, −1/4, −5/4, 3/4: squares add to 11/4; times 4/3, root, by 4
    error = math.sqrt(11 / 4 * 4 / 3) / 4
    assert share.value == 0.25
    assert (share.low, share.high) == pytest.approx((0.25 - norm.ppf(0.975) * error, 0.25 + norm.ppf(0.975) * error))
    wider = mean_difference(np.array([1.0, 0, -1, 1]), np.arange(4), comparisons=10)
    assert wider.high == pytest.approx(0.25 + norm.ppf(0.9975) * error)
    assert mean_difference(np.array([]), np.array([], int)).low == -1


def test_a_fold_holds_whole_prompts_and_all_folds_are_used() -> None:
    groups = np.repeat(np.arange(50), 3)
    folds = folds_of(groups)
    assert set(folds) == set(range(FOLDS))
    assert all(len(set(folds[groups == group])) == 1 for group in range(50))
    assert np.array_equal(folds, folds_of(groups))


def test_bradley_terry_weights_are_where_a_general_minimiser_finds_them() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(size=(80, 3))

    def loss(weights: np.ndarray) -> float:
        return float(np.log1p(np.exp(-differences @ weights)).sum() + 0.5 * weights @ weights)

    assert bradley_terry(differences) == pytest.approx(minimize(loss, np.zeros(3), tol=1e-12).x, abs=1e-5)


def test_features_that_tell_all_or_nothing_or_never_differ() -> None:
    folds = np.arange(100) % FOLDS
    assert held_out_hits(np.ones((100, 2)), folds).mean() == 1
    assert held_out_hits(np.zeros((100, 2)), folds).mean() == 0.5
    assert held_out_hits(np.zeros((100, 0)), folds).mean() == 0.5


def test_held_out_hits_do_not_flatter_noise() -> None:
    rng = np.random.default_rng(2)
    means = [held_out_hits(rng.choice([-1.0, 0, 1], size=(200, 12)), np.arange(200) % FOLDS).mean() for _ in range(60)]
    assert abs(np.mean(means) - 0.5) < 0.015


@pytest.mark.parametrize(("chosen", "rejected", "best"), [([50, 80], [20, 30], math.inf), ([20, 30], [50, 80], 0.0)])
def test_the_longer_or_the_shorter_one_wins(chosen: list[int], rejected: list[int], best: float) -> None:
    hits, found = nearer_length_wins(np.log(np.repeat(chosen, 20)), np.log(np.repeat(rejected, 20)), np.arange(40) % FOLDS)
    assert (hits.mean(), found) == (1.0, best)


def test_a_length_in_the_middle_is_found_where_neither_longer_nor_shorter_wins() -> None:
    rng = np.random.default_rng(3)
    chosen = rng.integers(90, 110, 200)
    rejected = np.where(rng.random(200) < 0.5, rng.integers(10, 40, 200), rng.integers(300, 900, 200))
    hits, best = nearer_length_wins(np.log(chosen), np.log(rejected), np.arange(200) % FOLDS)
    assert hits.mean() > 0.98
    assert 60 < best < 200


def test_equal_lengths_tell_nothing() -> None:
    logs = np.log(np.full(20, 7.0))
    assert nearer_length_wins(logs, logs, np.arange(20) % FOLDS)[0].mean() == 0.5
