"""Token rewards, GAE and whitening against the worked rows of a hand calculation, and against slow loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from preftune.errors import ShapeError
from preftune.losses.advantages import explained_variance, gae, last_token, scale_around_mean, token_rewards, whiten

LOGPROBS = torch.tensor([[-1.0, -0.5, -0.2]], dtype=torch.float64)
REF = torch.tensor([[-1.2, -0.4, -0.6]], dtype=torch.float64)
VALUES = torch.tensor([[0.3, 0.5, 0.7]], dtype=torch.float64)
REWARDS = torch.tensor([[-0.02, 0.01, 0.96]], dtype=torch.float64)
ALL = torch.ones(1, 3, dtype=torch.bool)
ONE = torch.ones(1, dtype=torch.float64)


def test_rewards_by_hand():
    rewards = token_rewards(LOGPROBS, REF, ONE, ALL, kl_coef=0.1)
    torch.testing.assert_close(rewards, REWARDS, rtol=0, atol=1e-12)
    assert float(rewards.sum()) == pytest.approx(0.95)


def test_the_score_lies_on_the_last_counted_token_and_padding_gets_none():
    mask = torch.tensor([[True, True, False], [False, True, True], [True, False, False], [False, False, False]])
    assert last_token(mask).tolist() == [[False, True, False], [False, False, True], [True, False, False], [False] * 3]
    zeros = torch.zeros(4, 3)
    rewards = token_rewards(zeros, zeros, torch.tensor([1.0, 2.0, 3.0, 4.0]), mask, kl_coef=0.1)
    assert rewards.tolist() == [[0, 1, 0], [0, 0, 2], [3, 0, 0], [0, 0, 0]]


def test_advantages_and_returns_by_hand():
    estimate = gae(REWARDS, VALUES, ALL, gamma=1.0, gae_lambda=0.95)
    assert estimate.advantages.tolist()[0] == pytest.approx([0.614150, 0.457, 0.26], abs=1e-6)
    assert estimate.returns.tolist()[0] == pytest.approx([0.914150, 0.957, 0.96], abs=1e-6)
    assert float(gae(REWARDS, VALUES, ALL, gamma=1.0, gae_lambda=1.0).advantages[0, 0]) == pytest.approx(0.65)


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_padding_on_either_side_leaves_what_a_slow_loop_gives(side, gamma, lam):
    generator = torch.Generator().manual_seed(4)
    lengths, width = [5, 1, 3, 0], 7
    rewards, values = (torch.randn(4, width, generator=generator, dtype=torch.float64) for _ in range(2))
    starts = [width - n if side == "left" else 0 for n in lengths]
    mask = torch.zeros(4, width, dtype=torch.bool)
    for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        mask[row, start : start + n] = True
    estimate = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for row in range(4):
        own_rewards, own_values = rewards[row][mask[row]].tolist(), values[row][mask[row]].tolist()
        expected = slow_gae(own_rewards, own_values, gamma, lam)
        assert estimate.advantages[row][mask[row]].tolist() == pytest.approx(expected, abs=1e-12)
        assert estimate.returns[row][mask[row]].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, own_values, strict=True)], abs=1e-12
        )
    assert float(estimate.advantages[mask.logical_not()].abs().sum() + estimate.returns[mask.logical_not()].abs().sum()) == 0


def test_whitening_by_hand_with_a_second_row_that_is_padded():
    advantages = torch.tensor([[0.61415, 0.457, 0.26], [0.5, -0.5, 123.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert float(advantages[mask].mean()) == pytest.approx(0.266230)
    assert float(advantages[mask].var(correction=0)) == pytest.approx(0.159847, abs=1e-6)
    white = whiten(advantages, mask)
    assert white[0].tolist() == pytest.approx([0.870215, 0.477153, -0.015582], abs=1e-6)
    assert white[1].tolist() == pytest.approx([0.584704, -1.916489, 0], abs=1e-6)


def test_whitened_values_are_centred_with_spread_one():
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 7 + 100
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(6)) > 0.4
    white = whiten(values, mask)[mask].tolist()
    assert statistics.fmean(white) == pytest.approx(0, abs=1e-9)
    assert statistics.pstdev(white) == pytest.approx(1, abs=1e-6)


def test_rewards_that_are_scaled_keep_their_mean():
    rewards = torch.tensor([[3.0, 5.0, 99.0], [7.0, 9.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    scaled = scale_around_mean(rewards, mask)  # mean 6, sd √5
    assert scaled[mask].tolist() == pytest.approx([6 - 3 / 5**0.5, 6 - 1 / 5**0.5, 6 + 1 / 5**0.5, 6 + 3 / 5**0.5], abs=1e-7)
    assert scaled[:, 2].tolist() == [0, 0]


def test_equal_advantages_and_a_batch_that_counts_nothing_whiten_to_zero():
    same = torch.full((2, 3), 5.0, dtype=torch.float64)
    assert float(whiten(same, torch.ones(2, 3, dtype=torch.bool)).abs().sum()) == 0
    assert float(whiten(same, torch.zeros(2, 3, dtype=torch.bool)).abs().sum()) == 0


def test_explained_variance_of_the_perfect_the_constant_and_the_contrary_critic():
    returns = torch.tensor([[1.0, 2.0, 3.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    for values, expected in ((returns, 1.0), (torch.full_like(returns, 2.0), 0.0), (-returns, -3.0)):
        assert float(explained_variance(values, returns, mask)) == pytest.approx(expected)


def test_tensors_shifted_by_hand_are_refused():
    with pytest.raises(ShapeError, match=r"rewards is \[1, 3\] but values is \[1, 2\].*shifted by hand"):
        gae(REWARDS, VALUES[:, 1:], ALL, gamma=1.0, gae_lambda=0.95)
    with pytest.raises(ShapeError, match=r"logprobs is \[1, 3\] but ref_logprobs is \[1, 2\]"):
        token_rewards(LOGPROBS, REF[:, 1:], ONE, ALL, kl_coef=0.1)
    with pytest.raises(ShapeError, match=r"values is \[1, 3\] but mask is \[1, 2\]"):
        whiten(VALUES, ALL[:, 1:])
    with pytest.raises(ShapeError, match=r"values is \[1, 3\] but returns is \[1, 2\]"):
        explained_variance(VALUES, VALUES[:, 1:], ALL)
