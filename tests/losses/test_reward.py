"""Bradley-Terry with its margin, smoothing and centring, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.errors import ShapeError
from preftune.losses.reward import accuracy, bradley_terry, centring

CHOSEN, REJECTED = torch.tensor([1.2], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    ("margin", "smoothing", "expected"),
    [(0.0, 0.0, 0.403186), (0.3, 0.0, 0.513015), (0.0, 0.1, 0.473186)],
)
def test_the_hand_cases(margin, smoothing, expected):
    assert float(bradley_terry(CHOSEN, REJECTED, margin=margin, label_smoothing=smoothing)) == pytest.approx(expected, abs=1e-6)


def test_the_slope_of_the_hand_case():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    bradley_terry(chosen, rejected, margin=0.0, label_smoothing=0.0).sum().backward()
    assert float(chosen.grad) == pytest.approx(-0.331812, abs=1e-6)
    assert float(rejected.grad) == pytest.approx(0.331812, abs=1e-6)


def test_centring_by_hand():
    loss = bradley_terry(CHOSEN, REJECTED, margin=0.0, label_smoothing=0.0) + 0.01 * centring(CHOSEN, REJECTED)
    assert float(loss) == pytest.approx(0.432086, abs=1e-6)


def test_smoothing_adds_its_share_of_the_gap():
    gaps = torch.linspace(-8, 8, 33, dtype=torch.float64)
    zero = torch.zeros_like(gaps)
    plain, smooth = (bradley_terry(gaps, zero, margin=0.0, label_smoothing=e) for e in (0.0, 0.2))
    torch.testing.assert_close(smooth, plain + 0.2 * gaps, rtol=0, atol=1e-12)


def test_a_margin_for_each_pair_is_taken_pair_by_pair():
    chosen, rejected = torch.tensor([1.2, 1.2], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    loss = bradley_terry(chosen, rejected, margin=torch.tensor([0.0, 0.3], dtype=torch.float64), label_smoothing=0.0)
    assert loss.tolist() == pytest.approx([0.403186, 0.513015], abs=1e-6)


@pytest.mark.parametrize("gap", [-1000.0, 1000.0])
def test_a_huge_gap_neither_overflows_nor_loses_its_slope(gap):
    chosen = torch.tensor([gap], requires_grad=True)
    loss = bradley_terry(chosen, torch.zeros(1), margin=0.0, label_smoothing=0.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(max(0.0, -gap))
    assert float(chosen.grad) == pytest.approx(-1.0 if gap < 0 else 0.0)


@pytest.mark.parametrize(("margin", "smoothing"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.15)])
def test_the_gradient_is_that_of_central_differences(margin, smoothing):
    generator = torch.Generator().manual_seed(1)
    pair = [torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, margin=margin, label_smoothing=smoothing), pair)
    assert torch.autograd.gradcheck(centring, pair)


def test_an_exact_tie_is_half_right():
    scores = torch.tensor([2.0, 1.0, 1.0], requires_grad=True)
    right = accuracy(scores, torch.tensor([1.0, 2.0, 1.0]))
    assert right.tolist() == [1, 0, 0.5]
    assert not right.requires_grad


def test_no_pair_gives_no_value():
    nothing = torch.zeros(0)
    assert bradley_terry(nothing, nothing, margin=0.0, label_smoothing=0.0).shape == (0,)


def test_a_tie_costs_log_two_whatever_the_smoothing():
    tie = bradley_terry(torch.ones(2), torch.ones(2), margin=0.0, label_smoothing=0.3)
    assert tie.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)


def test_tensors_of_different_lengths_are_refused():
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ShapeError, match=r"chosen_scores is \[2\] but rejected_scores is \[3\]"):
        bradley_terry(two, three, margin=0.0, label_smoothing=0.0)
    with pytest.raises(ShapeError, match=r"margin is \[2, 1\] but should be \[P\]"):  # it would broadcast to 2 × 2
        bradley_terry(two, two, margin=torch.zeros(2, 1), label_smoothing=0.0)
    for function in (centring, accuracy):
        with pytest.raises(ShapeError, match=r"chosen_scores is \[2\] but rejected_scores is \[3\]"):
            function(two, three)
