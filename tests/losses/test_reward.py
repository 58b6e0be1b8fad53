"""Bradley-Terry with its margin, smoothing and centring, against numbers worked by hand."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import ShapeError
from preftune.losses.reward import (
    accuracy,
    bradley_terry,
    centring,
    davidson,
    ensemble_mean,
    plackett_luce,
    ranking_centring,
    rao_kupper,
    robust_bradley_terry,
)

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


GAP_07 = (CHOSEN, REJECTED)  # 1.2 − 0.5


def test_the_robust_loss_by_hand_and_without_flips():
    plain = bradley_terry(*GAP_07, margin=0.0, label_smoothing=0.0)
    assert float(robust_bradley_terry(*GAP_07, margin=0.0, label_smoothing=0.0)) == pytest.approx(float(plain), abs=1e-12)
    # 0.9 · 0.403186 − 0.1 · 1.103186, over 0.8
    assert float(robust_bradley_terry(*GAP_07, margin=0.0, label_smoothing=0.1)) == pytest.approx(0.315686, abs=1e-6)


def test_over_flips_the_robust_loss_is_that_of_the_true_labels():
    chosen, rejected = torch.randn(2, 9, dtype=torch.float64)
    kept, flipped = (robust_bradley_terry(*two, margin=0.0, label_smoothing=0.2) for two in ((chosen, rejected), (rejected, chosen)))
    truth = bradley_terry(chosen, rejected, margin=0.0, label_smoothing=0.0)
    torch.testing.assert_close(0.8 * kept + 0.2 * flipped, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "win", "loss", "tie"),
    [
        (partial(rao_kupper, theta=2.0), 0.501713, 0.198906, 0.299381),
        (partial(davidson, nu=1.0), 0.454283, 0.225590, 0.320127),
    ],
    ids=["Rao-Kupper", "Davidson"],
)
def test_ties_by_hand(model, win, loss, tie):
    yes, no = torch.tensor([True]), torch.tensor([False])
    found = [float((-model(*two, tied)).exp()) for two, tied in ((GAP_07, no), (GAP_07[::-1], no), (GAP_07, yes))]
    assert found == pytest.approx([win, loss, tie], abs=1e-6)
    assert sum(found) == pytest.approx(1.0, abs=1e-12)


RANKED = torch.tensor([[1.0, 0.5, -0.2, 0.3]], dtype=torch.float64)


def test_a_ranking_of_four_by_hand():
    ranks = torch.tensor([[1, 2, 3, 4]])
    assert float(plackett_luce(RANKED, ranks)) == pytest.approx(2.690886, abs=1e-6)
    better, worse = zip(*combinations(RANKED[0].tolist(), 2), strict=True)
    pairs = bradley_terry(torch.tensor(better), torch.tensor(worse), margin=0.0, label_smoothing=0.0)
    assert float(pairs.mean()) == pytest.approx(0.519325, abs=1e-6)
    assert float(plackett_luce(RANKED, torch.tensor([[1, 2, 2, 2]]))) == pytest.approx(0.877263, abs=1e-6)  # the best of four


def test_a_ranking_of_two_is_a_pair_and_its_centring_a_pairs():
    scores, ranks = torch.tensor([[1.2, 0.5, 9.0]], dtype=torch.float64), torch.tensor([[1, 2, 0]])
    assert float(plackett_luce(scores, ranks)) == pytest.approx(0.403186, abs=1e-6)
    assert float(ranking_centring(scores, ranks)) == pytest.approx(float(centring(*GAP_07)), abs=1e-12)


@given(st.permutations(range(4)), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_the_order_of_the_answers_is_nothing(order, ranks):
    found = [float(plackett_luce(RANKED[:, places], torch.tensor([ranks])[:, places])) for places in (list(range(4)), list(order))]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_new_gradients_are_those_of_central_differences():
    generator = torch.Generator().manual_seed(2)
    pair = [torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    tied = torch.tensor([True, False, True, False, False])
    assert torch.autograd.gradcheck(lambda c, r: robust_bradley_terry(c, r, margin=0.3, label_smoothing=0.1), pair)
    assert torch.autograd.gradcheck(lambda c, r: rao_kupper(c, r, tied, theta=3.0), pair)
    assert torch.autograd.gradcheck(lambda c, r: davidson(c, r, tied, nu=2.0), pair)
    table = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    ranks = torch.tensor([[2, 1, 2, 0], [1, 2, 3, 4]])
    assert torch.autograd.gradcheck(lambda s: plackett_luce(s, ranks) + ranking_centring(s, ranks), table)


def test_a_member_that_speaks_louder_counts_no_more():
    scores = torch.tensor([[1.0, 30.0], [-1.0, -30.0]])
    one = ensemble_mean(scores, torch.tensor([1.0, 30.0]))
    assert one.tolist() == pytest.approx([15.5, -15.5])
    torch.testing.assert_close(ensemble_mean(scores[:, :1], torch.tensor([1.0])), scores[:, 0])
