"""The sequential test: by hand, its level under peeking at every judgement, its power, its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.data.sequential import STAKES, log_wealth, verdict


def test_money_after_two_outcomes_is_the_mean_over_the_stakes_by_a_slow_loop():
    mean, total = 0.4, 0.0
    for part in STAKES:
        for stake in (part / mean, -part / (1 - mean)):
            total += (1 + stake * (1 - mean)) * (1 + stake * (0.5 - mean))
    assert log_wealth(1, 1, 0, mean)[0] == pytest.approx(math.log(total / (2 * len(STAKES))), abs=1e-12)


def test_money_is_a_fair_game_one_step_ahead():
    # At the mean 0.5 with a quarter of ties: a win, a loss and a tie, weighted, leave the money as it was.
    before = math.exp(log_wealth(7, 3, 4, 0.5)[0])
    after = [math.exp(log_wealth(7 + w, 3 + t, 4 + k, 0.5)[0]) for w, t, k in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert 0.375 * after[0] + 0.25 * after[1] + 0.375 * after[2] == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_the_level_is_kept_when_one_looks_after_every_judgement(ties):
    rng = np.random.default_rng(3)
    runs, judgements = 2000, 200
    outcome = rng.choice([1, 0, -1], p=[(1 - ties) / 2, ties, (1 - ties) / 2], size=(runs, judgements))
    wins, losses = np.cumsum(outcome == 1, 1), np.cumsum(outcome == -1, 1)
    # At ½ a tie leaves the money as it is, so the money is a table of wins and losses alone.
    table = np.array([[log_wealth(w, 0, k, 0.5)[0] >= math.log(20) for k in range(losses.max() + 1)] for w in range(wins.max() + 1)])
    wrong = table[wins, losses].any(axis=1).mean()
    assert 0.002 < wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_a_real_difference_is_found_and_named_the_right_way_round():
    assert verdict(40, 10, 10).preferred == "A"
    assert verdict(10, 10, 40).preferred == "B"
    assert str(verdict(40, 10, 10)) == "stop: A is preferred (40 for A, 10 for B, 10 ties)"


def test_what_cannot_be_told_says_how_many_more_and_that_many_tell():
    seen = verdict(18, 4, 12)
    assert seen.preferred == ""
    assert seen.more
    factor = (seen.n + seen.more) / seen.n
    assert verdict(math.ceil(18 * factor), 4, math.floor(12 * factor)).preferred == "A"
    assert verdict(10, 5, 10).more is None
    assert verdict(0, 0, 0).preferred == ""
    assert (verdict(0, 0, 0).low, verdict(0, 0, 0).high) == (0, 1)


def test_the_interval_holds_the_rate_and_agrees_with_the_verdict():
    for counts in ((40, 10, 10), (18, 4, 12), (0, 0, 30), (30, 0, 0)):
        seen = verdict(*counts)
        assert seen.low <= seen.rate <= seen.high
        assert (seen.low > 0.5 or seen.high < 0.5) == bool(seen.preferred)


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="-1 wins"):
        verdict(-1, 0, 0)
