"""The two KL estimators on a hand-worked distribution, what they do as a loss, and the coefficient that follows a target."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.errors import ShapeError
from preftune.losses.kl import adapt_kl_coef, k1, k2, k3

POLICY = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
REFERENCE = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64)
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_both_estimators_by_hand():
    first, third = k1(POLICY.log(), REFERENCE.log(), ALL), k3(POLICY.log(), REFERENCE.log(), ALL)
    assert first.tolist()[0] == pytest.approx([0.223144, -0.287682, 0], abs=1e-6)
    assert third.tolist()[0] == pytest.approx([0.023144, 0.045651, 0], abs=1e-6)
    for estimator, spread in ((first, 0.221554), (third, 0.015956)):
        mean = (POLICY * estimator).sum()
        assert float(mean) == pytest.approx(0.025267, abs=1e-6)  # the KL itself
        assert float((POLICY * (estimator - mean) ** 2).sum().sqrt()) == pytest.approx(spread, abs=1e-6)


def test_k2_by_hand_is_biased_and_never_negative():
    second = k2(POLICY.log(), REFERENCE.log(), ALL)
    assert second.tolist()[0] == pytest.approx([0.024896, 0.041380, 0], abs=1e-6)
    assert float((POLICY * second).sum()) == pytest.approx(0.024862, abs=1e-6)  # the KL is 0.025267


def expected_slope(weigh) -> list[float]:
    """The gradient of the policy's logits of E[…] with the tokens drawn from the policy, all three enumerated."""
    logits = POLICY.log().clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    (POLICY * weigh(logprobs)).sum().backward()  # the drawing itself carries no gradient
    return logits.grad.tolist()[0]


def test_detached_in_the_reward_k1_gives_the_gradient_of_the_kl():
    slope = expected_slope(lambda logprobs: k1(logprobs, REFERENCE.log(), ALL).detach() * logprobs)
    assert slope == pytest.approx([0.098938, -0.093885, -0.005053], abs=1e-6)


def test_detached_in_the_reward_k2_and_k3_aim_at_something_else():
    right = expected_slope(lambda logprobs: k1(logprobs, REFERENCE.log(), ALL).detach() * logprobs)
    for estimator in (k2, k3):
        slope = expected_slope(lambda logprobs, f=estimator: f(logprobs, REFERENCE.log(), ALL).detach() * logprobs)
        assert sum(a * b for a, b in zip(slope, right, strict=True)) < 0  # the other way, here


def test_as_a_loss_k2_gives_the_gradient_of_the_kl():
    assert expected_slope(lambda logprobs: k2(logprobs, REFERENCE.log(), ALL)) == pytest.approx([0.098938, -0.093885, -0.005053], abs=1e-6)


def test_as_a_loss_neither_of_the_unbiased_ones_gives_it_which_is_why_they_are_detached():
    assert expected_slope(lambda logprobs: k1(logprobs, REFERENCE.log(), ALL)) == pytest.approx([0, 0, 0], abs=1e-9)
    assert expected_slope(lambda logprobs: k3(logprobs, REFERENCE.log(), ALL)) == pytest.approx([0.1, -0.1, 0], abs=1e-9)


def test_a_reference_far_above_the_policy_does_not_overflow():
    value = k3(torch.tensor([[-500.0]]), torch.tensor([[-0.1]]), torch.tensor([[True]]))
    assert float(value) == pytest.approx(math.exp(20) - 21, rel=1e-6)


def test_the_slopes_are_those_of_central_differences():
    logprobs = torch.randn(2, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64).requires_grad_()
    reference = torch.randn(2, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True], [False] * 4])
    for estimator in (k1, k2, k3):
        assert torch.autograd.gradcheck(lambda x, f=estimator: f(x, reference, mask), [logprobs])


@pytest.mark.parametrize(("kl", "expected"), [(9.0, 0.151536), (5.4, 0.149232), (6.6, 0.150768), (6.0, 0.15)])
def test_the_coefficient_follows_its_target_by_hand(kl, expected):
    assert adapt_kl_coef(0.15, kl, target=6.0, num_episodes=512, horizon=10_000) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kl", [-50.0, 0.0, 1e9])
def test_no_kl_however_wild_moves_the_coefficient_by_more_than_a_fifth_or_below_zero(kl):
    coefficient = 0.15
    for _ in range(100):
        after = adapt_kl_coef(coefficient, kl, target=6.0, num_episodes=10_000, horizon=10_000)
        assert after > 0
        assert abs(after / coefficient - 1) <= 0.2 + 1e-9
        coefficient = after


def test_tensors_shifted_by_hand_are_refused():
    for estimator in (k1, k3):
        with pytest.raises(ShapeError, match=r"logprobs is \[1, 3\] but ref_logprobs is \[1, 2\]"):
            estimator(POLICY, REFERENCE[:, 1:], ALL)
