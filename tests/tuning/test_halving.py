"""Successive halving: by hand, and the laws that hold for any number of trials."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import ConfigError
from preftune.tuning.halving import ETA, Rung, affordable, cost, rungs, survivors

TRIALS = st.integers(1, 200)
SHARES = st.floats(0.001, 1.0)


def test_27_trials_take_three_rungs_and_cost_nine_trainings():
    ladder = rungs(27, smallest_share=0.01)
    assert ladder == (Rung(27, 1 / 9), Rung(9, 1 / 3), Rung(3, 1.0))
    assert cost(ladder) == pytest.approx(9)


def test_three_trials_are_all_trained_on_all_pairs():
    assert rungs(3, smallest_share=0.01) == (Rung(3, 1.0),)


def test_too_small_shares_are_raised_and_no_share_is_trained_twice():
    assert rungs(27, smallest_share=0.5) == (Rung(27, 0.5), Rung(3, 1.0))
    assert rungs(27, smallest_share=1.0) == (Rung(27, 1.0),)


def test_no_trials_are_refused():
    with pytest.raises(ConfigError, match="0 trials from a share of 0.1"):
        rungs(0, smallest_share=0.1)


def test_the_best_go_on_in_their_order_and_of_equal_ones_the_first():
    assert survivors([(0.5, 1.0), (0.9, 0.0), (0.5, 2.0), (0.9, 0.0)], 3) == [1, 2, 3]
    assert survivors([(1.0,), (1.0,), (1.0,)], 2) == [0, 1]


def test_a_trial_that_failed_never_goes_before_one_that_did_not():
    assert survivors([(-math.inf, 0.0), (0.1, -5.0)], 1) == [1]


@given(TRIALS, SHARES)
def test_trials_fall_and_shares_rise_to_the_whole(trials, smallest_share):
    ladder = rungs(trials, smallest_share=smallest_share)
    assert ladder[0].trials == trials
    assert ladder[-1].share == 1
    assert all(a.trials > b.trials and a.share < b.share for a, b in itertools.pairwise(ladder))
    assert all(rung.share >= smallest_share for rung in ladder)
    assert ladder[-1].trials <= ETA or len(ladder) == 1


@given(TRIALS)
def test_with_enough_pairs_it_costs_at_most_three_trainings_a_rung_and_one_more(trials):
    ladder = rungs(trials, smallest_share=1e-9)
    assert cost(ladder) <= ETA * len(ladder) + 1


@given(st.integers(1, 60), st.floats(0, 50), SHARES)
def test_the_affordable_trials_fit_the_budget_and_one_is_always_tried(most, budget, smallest_share):
    trials = affordable(most, budget, smallest_share=smallest_share)
    assert 1 <= trials <= most
    assert trials == 1 or cost(rungs(trials, smallest_share=smallest_share)) <= budget


@given(st.lists(st.tuples(st.integers(0, 4).map(float), st.integers(0, 4).map(float)), min_size=1, max_size=30), st.integers(1, 30))
def test_no_survivor_is_worse_than_one_that_was_dropped(scores, keep):
    kept = survivors(scores, keep)
    assert kept == sorted(set(kept))
    assert len(kept) == min(keep, len(scores))
    dropped = [scores[place] for place in range(len(scores)) if place not in kept]
    assert all(scores[place] >= other for place in kept for other in dropped)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40, unique=True))
def test_what_is_best_on_every_rung_is_left_at_the_end(quality):
    standing = list(range(len(quality)))
    for rung in rungs(len(quality), smallest_share=0.01):
        standing = [standing[place] for place in survivors([(quality[one],) for one in standing], rung.trials)]
    assert quality.index(max(quality)) in standing
