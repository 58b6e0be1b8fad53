"""PPO's two losses against numbers worked by hand, and their slopes at and beside every kink."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.errors import ShapeError
from preftune.losses.kl import k3
from preftune.losses.policy import clip_fraction, clipped_surrogate, clipped_value_loss, policy_ratio, value_loss
from preftune.losses.reduce import masked_mean
from preftune.training.step import mean_metric


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


OLD, NEW, ADVANTAGES, ALL = row(-1, -0.5, -0.2), row(-0.8, -0.7, -0.2), row(1, -1, 0.5), torch.ones(1, 3, dtype=torch.bool)


def test_the_surrogate_by_hand():
    assert policy_ratio(NEW, OLD, ALL).tolist()[0] == pytest.approx([1.221403, 0.818731, 1], abs=1e-6)
    losses = clipped_surrogate(NEW, OLD, ADVANTAGES, ALL, clip_range=0.2)
    assert losses.tolist()[0] == pytest.approx([-1.2, 0.818731, -0.5], abs=1e-6)
    assert float(masked_mean(losses, ALL)) == pytest.approx(-0.293756, abs=1e-6)


def test_the_share_that_is_clipped_by_hand():
    ratio = policy_ratio(NEW, OLD, ALL)
    assert float(clip_fraction(ratio, ALL, clip_range=0.2)) == pytest.approx(1 / 3)
    some = torch.tensor([[True, True, False]])
    assert float(clip_fraction(ratio, some, clip_range=0.2)) == pytest.approx(1 / 2)
    assert float(clip_fraction(ratio, torch.zeros_like(some), clip_range=0.2)) == 0


def test_the_approximate_kl_by_hand():
    total, count = mean_metric(0.5 * (NEW - OLD) ** 2, ALL)
    assert total / count == pytest.approx(0.013333, abs=1e-6)
    # Its other form, mean of ρ − 1 − log ρ, is k3 of the sampling policy against the new one.
    assert float(masked_mean(k3(OLD, NEW, ALL), ALL)) == pytest.approx(0.013378, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "pulls"),
    [
        (1.3, 1.0, -1.2, False),  # gone far enough the right way
        (1.3, -1.0, 1.3, True),  # far the wrong way: pulled back with all its strength
        (0.7, 1.0, -0.7, True),
        (0.7, -1.0, 0.8, False),
        (1.1, 1.0, -1.1, True),
    ],
)
def test_the_clip_takes_the_pull_only_where_it_went_the_right_way(ratio, advantage, loss, pulls):
    new = row(math.log(ratio)).requires_grad_()
    value = clipped_surrogate(new, row(0), row(advantage), torch.ones(1, 1, dtype=torch.bool), clip_range=0.2)
    value.sum().backward()
    assert value.item() == pytest.approx(loss)
    assert float(new.grad) == pytest.approx(-advantage * ratio if pulls else 0)


def test_the_value_loss_by_hand():
    values, old, returns = row(0.7, 0.45, 0.6), row(0.3, 0.5, 0.7), row(1, 0.4, 0.9)
    losses = clipped_value_loss(values, old, returns, ALL, clip_range=0.2)
    assert losses.tolist()[0] == pytest.approx([0.125, 0.00125, 0.045], abs=1e-9)
    assert float(masked_mean(losses, ALL)) == pytest.approx(0.057083, abs=1e-6)


def test_the_value_loss_without_a_clip_is_half_the_squared_error_and_never_more_than_with_one():
    values, old, returns = row(0.7, 0.45, 0.6), row(0.3, 0.5, 0.7), row(1, 0.4, 0.9)
    losses = value_loss(values, returns, ALL)
    assert losses.tolist()[0] == pytest.approx([0.045, 0.00125, 0.045], abs=1e-9)
    assert bool((losses <= clipped_value_loss(values, old, returns, ALL, clip_range=0.2)).all())
    assert value_loss(values, returns, torch.tensor([[True, False, True]]))[0, 1] == 0
    assert torch.equal(clipped_value_loss(values, old, returns, ALL, clip_range=1e9), losses)


def test_the_slope_of_the_surrogate_is_that_of_central_differences_beside_each_kink():
    # Ratios at random, and a thousandth to either side of 1 − ε, 1 and 1 + ε; both signs of the advantage.
    edges = torch.tensor([math.log(k) + side for k in (0.8, 1.0, 1.2) for side in (-1e-3, 1e-3)], dtype=torch.float64)
    new = torch.cat([edges, torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)])[None].requires_grad_()
    mask = torch.ones(1, 12, dtype=torch.bool)
    for sign in (1.0, -1.0):
        advantages = sign * torch.linspace(0.5, 2, 12, dtype=torch.float64)[None]
        assert torch.autograd.gradcheck(lambda n, a=advantages: clipped_surrogate(n, 0 * n, a, mask, clip_range=0.2), [new])


def test_the_slope_of_the_value_loss_is_that_of_central_differences_beside_each_kink():
    # Values beside V_old ± ε and at random; returns far above, far below and inside the range.
    offsets = torch.tensor([-0.201, -0.199, 0.0, 0.199, 0.201, 0.7, -0.9], dtype=torch.float64)
    old = torch.linspace(-1, 1, 7, dtype=torch.float64)[None]
    mask = torch.ones(1, 7, dtype=torch.bool)
    for returns in (old + 2, old - 2, old + 0.05):
        values = (old + offsets).requires_grad_()
        assert torch.autograd.gradcheck(lambda v, r=returns: clipped_value_loss(v, old, r, mask, clip_range=0.2), [values])


def test_a_row_that_counts_nothing_is_zero_with_zero_slope():
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    new, values = NEW.clone().requires_grad_(), NEW.clone().requires_grad_()
    (
        clipped_surrogate(new, OLD, ADVANTAGES, nothing, clip_range=0.2) + clipped_value_loss(values, OLD, OLD, nothing, clip_range=0.2)
    ).sum().backward()
    assert new.grad.tolist() == values.grad.tolist() == [[0, 0, 0]]


def test_tensors_shifted_by_hand_are_refused():
    short = ALL[:, 1:]
    with pytest.raises(ShapeError, match=r"logprobs is \[1, 3\] but mask is \[1, 2\].*one of them was shifted by hand"):
        clipped_surrogate(NEW, OLD, ADVANTAGES, short, clip_range=0.2)
    with pytest.raises(ShapeError, match=r"values is \[1, 3\] but mask is \[1, 2\]"):
        clipped_value_loss(NEW, OLD, OLD, short, clip_range=0.2)
    with pytest.raises(ShapeError, match=r"logprobs is \[1, 3\] but mask is \[1, 2\]"):
        policy_ratio(NEW, OLD, short)
