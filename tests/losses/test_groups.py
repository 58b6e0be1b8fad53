"""Group advantages, sequence ratios, two-sided clips and token weights against numbers worked by hand, and their laws."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import ShapeError
from preftune.losses.advantages import equal_groups, gae, group_relative, leave_one_out, rewards_to_go, token_rewards, whiten
from preftune.losses.kl import k3
from preftune.losses.policy import clip_fraction, clipped_surrogate, policy_ratio, sequence_ratio, surrogate
from preftune.losses.reduce import token_weights, weighted_sum

SCORES = torch.tensor([[1.0, 0.5, 0.0, -0.5]], dtype=torch.float64)
groups_of_scores = st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5)


def table(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Advantages.


def test_leave_one_out_by_hand():
    assert leave_one_out(SCORES).tolist()[0] == pytest.approx([1, 0.333333, -0.333333, -1], abs=1e-6)


def test_group_advantages_by_hand():
    assert float(group_relative(SCORES, scale=True)[0, 0]) == pytest.approx(1.161715, abs=1e-6)
    assert float(group_relative(table([[1, 0]]), scale=True)[0, 0]) == pytest.approx(0.707007, abs=1e-6)
    assert float(group_relative(SCORES, scale=False)[0, 0]) == pytest.approx(0.75)


@settings(deadline=None, max_examples=50)
@given(groups_of_scores)
def test_leave_one_out_is_what_a_slow_loop_gives_and_the_centred_score_times_k_over_k_less_1(rows):
    found = leave_one_out(table(rows))
    for row, own in zip(rows, found.tolist(), strict=True):
        slow = [score - statistics.fmean(row[:i] + row[i + 1 :]) for i, score in enumerate(row)]
        assert own == pytest.approx(slow, abs=1e-9)
    torch.testing.assert_close(group_relative(table(rows), scale=False), found * 3 / 4, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(groups_of_scores, st.floats(-100, 100), st.permutations(range(4)))
def test_a_constant_added_changes_no_advantage_and_order_is_nothing(rows, constant, order):
    scores = table(rows)
    for advantage in (leave_one_out, lambda s: group_relative(s, scale=False)):
        torch.testing.assert_close(advantage(scores + constant), advantage(scores), rtol=0, atol=1e-9)
        torch.testing.assert_close(advantage(scores[:, order]), advantage(scores)[:, order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, -2.0, 1e8, 1 / 3])
def test_a_group_all_equal_has_advantage_exactly_0_and_is_found(value):
    # Three times 0.1 has a mean that is not 0.1 in floating point; divided by 1e-4 the rest would be learned from.
    scores = torch.tensor([[value] * 3, [0.0, 1.0, 2.0]])
    assert equal_groups(scores).tolist() == [True, False]
    for found in (leave_one_out(scores), group_relative(scores, scale=True), group_relative(scores, scale=False)):
        assert found[0].tolist() == [0, 0, 0]
        assert found[1].abs().sum() > 1


def test_a_group_of_one_has_no_others_to_be_judged_by():
    for advantage in (leave_one_out, equal_groups, lambda s: group_relative(s, scale=True)):
        with pytest.raises(ShapeError, match=r"scores is \[3, 1\]: a group needs 2 completions"):
            advantage(torch.zeros(3, 1))


def test_rewards_to_go_by_hand_and_as_gae_gives_them_whatever_the_values():
    logprobs, ref = table([[-1, -0.5, -0.2]]), table([[-1.2, -0.4, -0.6]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    rewards = token_rewards(logprobs, ref, torch.ones(1, dtype=torch.float64), mask, kl_coef=0.1)
    found = rewards_to_go(rewards, mask)
    assert found.tolist()[0] == pytest.approx([0.95, 0.97, 0.96])
    values = table([[3.0, -1.0, 0.4]])
    torch.testing.assert_close(gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0).returns, found)


def test_rewards_to_go_stop_at_padding_even_if_nan_stands_there():
    rewards = table([[1, 2, math.nan], [math.inf, 3, 4]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert rewards_to_go(rewards, mask).tolist() == [[3, 2, 0], [0, 7, 4]]


def test_the_groups_mean_first_and_then_the_batchs_sd_by_hand():
    scores = group_relative(table([[1, 0], [0.5, 0.3]]), scale=False).flatten()[:, None]
    white = whiten(scores, torch.ones(4, 1, dtype=torch.bool)).flatten().tolist()
    assert white == pytest.approx([1.386750, -1.386750, 0.277350, -0.277350], abs=1e-6)


# Ratios and clips.


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "pulls"),
    [(1.3, 1.0, -1.28, False), (1.1, 1.0, -1.1, True), (0.7, -1.0, 0.8, False), (1.3, -1.0, 1.3, True), (1.25, 1.0, -1.25, True)],
)
def test_the_clip_of_two_sides_by_hand(ratio, advantage, loss, pulls):
    new = table([[math.log(ratio)]]).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    value = surrogate(policy_ratio(new, torch.zeros_like(new), mask), table([[advantage]]), mask, clip=(0.2, 0.28))
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert float(new.grad) == pytest.approx(-advantage * ratio if pulls else 0)


def test_the_share_that_is_clipped_knows_two_sides():
    ratio = table([[0.75, 0.85, 1.25, 1.3]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert float(clip_fraction(ratio, mask, clip_range=0.2, above=0.28)) == 0.5
    assert float(clip_fraction(ratio, mask, clip_range=0.2)) == 0.75


def test_a_sequences_ratio_is_the_product_or_its_geometric_mean_on_each_of_its_tokens():
    new, old = table([[-0.8, -0.7, -9.0], [-1.0, -1.0, -1.0]]), table([[-1.0, -0.5, 7.0], [-1.1, -1.2, -1.3]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert sequence_ratio(new, old, mask, mean=False).tolist() == [
        pytest.approx([1, 1, 1]),  # e^{0.2 − 0.2}; the third counts nothing
        pytest.approx([math.exp(0.6)] * 3),
    ]
    assert sequence_ratio(new, old, mask, mean=True)[1].tolist() == pytest.approx([math.exp(0.2)] * 3)


@pytest.mark.parametrize("ratio", ["token", "sum", "mean"])
@pytest.mark.parametrize("clip", [None, (0.2, 0.28), (3e-4, 4e-4)])
def test_on_policy_the_gradient_is_the_policy_gradient_whatever_the_ratio_and_the_clip(ratio, clip):
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.arange(5)[None] < torch.tensor([[5], [2], [3]])
    by_sequence = torch.randn(3, 1, generator=generator, dtype=torch.float64).expand(3, 5)
    old = new.detach()
    ratios = policy_ratio(new, old, mask) if ratio == "token" else sequence_ratio(new, old, mask, mean=ratio == "mean")
    weights = token_weights(mask, "tokens" if ratio == "token" else "sequences", longest=5).double()
    weighted_sum(surrogate(ratios, by_sequence, mask, clip=clip), weights).backward()
    # The whole completion as one action: −A · Σ log π (RLOO), or −A · mean log π (GSPO).
    share = torch.where(mask, 1.0, 0.0).double()
    expected = -by_sequence * (share / share.sum(1, keepdim=True) if ratio == "mean" else share)
    torch.testing.assert_close(new.grad, expected, rtol=0, atol=1e-6)  # the weights are float32: 3 · ⅓ is not quite 1


@pytest.mark.parametrize("mean", [False, True])
def test_the_slope_through_a_sequences_ratio_is_that_of_central_differences(mean):
    generator = torch.Generator().manual_seed(1)
    new, old = (0.1 * torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(4)[None] < torch.tensor([[4], [2], [1]])
    advantages = torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def loss(x):
        return surrogate(sequence_ratio(x, old, mask, mean=mean), advantages, mask, clip=(0.05, 0.1)) + 0.3 * k3(x, old, mask)

    assert torch.autograd.gradcheck(loss, [new.requires_grad_()])


def test_what_is_masked_has_no_slope_even_if_nan_stands_there():
    new = table([[-1.0, math.nan], [math.inf, -1.0]]).requires_grad_()
    mask = torch.tensor([[True, False], [False, True]])
    advantages = table([[1.0, math.nan], [math.nan, -1.0]])
    for mean in (False, True):
        surrogate(sequence_ratio(new, -torch.ones_like(new), mask, mean=mean), advantages, mask, clip=None).sum().backward()
    assert new.grad.tolist() == [[-2, 0], [0, 2]]


def test_ppos_loss_is_the_surrogate_of_each_tokens_ratio():
    new, old, advantages = table([[-0.8, -0.7, -0.2]]), table([[-1, -0.5, -0.2]]), table([[1, -1, 0.5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    ours = surrogate(policy_ratio(new, old, mask), advantages, mask, clip=(0.2, 0.2))
    torch.testing.assert_close(clipped_surrogate(new, old, advantages, mask, clip_range=0.2), ours)


def test_the_kl_in_the_loss_by_hand():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert k3(table([[-1, -1]]), table([[-1.2, -0.8]]), mask).tolist()[0] == pytest.approx([0.018731, 0.021403], abs=1e-6)


# Weights.


def test_the_three_averages_by_hand():
    losses = table([[0.2, 0.4, math.nan, math.nan], [-0.1, 0.1, 0.3, 0.5]])
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    expected = {"sequences": (0.25, 2), "tokens": (0.233333, 6), "constant": (0.0875, 2)}
    for average, (value, total) in expected.items():
        weights = token_weights(mask, average, longest=8).double()
        assert float(weighted_sum(losses, weights)) / total == pytest.approx(value, abs=1e-6)
        assert token_weights(torch.zeros(1, 2, dtype=torch.bool), average, longest=8).tolist() == [[0, 0]]


def test_shapes_that_do_not_fit_are_refused():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"ratio is \[1, 3\] but advantages is \[1, 2\]"):
        surrogate(table([[1, 1, 1]]), table([[1, 1]]), mask, clip=None)
    with pytest.raises(ShapeError, match=r"logprobs is \[1, 3\] but behaviour_logprobs is \[1, 2\]"):
        sequence_ratio(table([[1, 1, 1]]), table([[1, 1]]), mask, mean=True)
    with pytest.raises(ShapeError, match=r"rewards is \[1, 3\] but mask is \[1, 2\]"):
        rewards_to_go(table([[1, 1, 1]]), mask)
