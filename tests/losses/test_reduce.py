"""From tokens to sequences, and the sum that the one division divides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import ShapeError
from preftune.losses.reduce import masked_mean, sequence_length, sequence_sum, to_sequences, weighted_sum

# Two rows; sequence 1 stands before sequence 0, sequence 2 has no token.
SEQUENCE = torch.tensor([[-1, 1, 1, 0], [0, 0, -1, -1]])
VALUES = torch.tensor([[9.0, 1, 2, 3], [4, 5, 9, 9]], dtype=torch.float64)


def test_sequences_are_summed_and_counted_by_hand():
    assert sequence_sum(VALUES, SEQUENCE, 3).tolist() == [12, 3, 0]
    assert sequence_length(SEQUENCE, 3).tolist() == [3, 2, 0]


def test_sequences_become_left_aligned_rows_in_the_order_of_their_tokens():
    rows, mask = to_sequences(VALUES, SEQUENCE, 3)
    assert rows.tolist() == [[3, 4, 5], [1, 2, 0], [0, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, True, False], [False, False, False]]


def test_no_sequence_at_all_gives_an_empty_table():
    rows, mask = to_sequences(VALUES, torch.full_like(SEQUENCE, -1), 0)
    assert rows.shape == mask.shape == (0, 0)


@given(st.lists(st.lists(st.integers(-1, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_any_table_of_sequences_equals_a_slow_loop(table, seed):
    sequence = torch.tensor(table)
    values = torch.randn(sequence.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slow = {k: [float(v) for v, s in zip(values.flatten(), sequence.flatten(), strict=True) if s == k] for k in range(4)}
    rows, mask = to_sequences(values, sequence, 4)
    for k in range(4):
        assert rows[k][mask[k]].tolist() == slow[k]
        assert float(sequence_sum(values, sequence, 4)[k]) == pytest.approx(math.fsum(slow[k]), abs=1e-12)
    assert float(rows.sum()) == pytest.approx(float(values[sequence >= 0].sum()), abs=1e-12)


def test_both_forms_are_differentiable():
    values = VALUES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: to_sequences(v, SEQUENCE, 3)[0], [values])
    assert torch.autograd.gradcheck(lambda v: sequence_sum(v, SEQUENCE, 3), [values])


def test_a_weighted_sum_by_hand():
    values, weights = torch.tensor([1.0, 2, 3]), torch.tensor([0.5, 0, 2])
    assert float(weighted_sum(values, weights)) == 6.5


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_what_weighs_nothing_counts_nothing_whatever_it_is(hole):
    values = torch.tensor([1.0, hole], requires_grad=True)
    total = weighted_sum(values, torch.tensor([2.0, 0.0]))
    total.backward()
    assert total.item() == 2
    assert values.grad.tolist() == [2, 0]


def test_the_mean_for_metrics_is_over_what_counts():
    assert float(masked_mean(torch.tensor([[1.0, math.nan], [3.0, 5.0]]), torch.tensor([[True, False], [True, False]]))) == 2
    assert float(masked_mean(torch.tensor([math.nan]), torch.tensor([False]))) == 0


def test_tensors_of_different_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"values is \[2\] but weights is \[3\]"):
        weighted_sum(torch.zeros(2), torch.ones(3))
    with pytest.raises(ShapeError, match=r"values is \[2, 3\] but sequence is \[2, 4\]"):
        sequence_sum(VALUES[:, 1:], SEQUENCE, 3)
    with pytest.raises(ShapeError, match=r"values is \[2, 3\] but sequence is \[2, 4\]"):
        to_sequences(VALUES[:, 1:], SEQUENCE, 3)
    with pytest.raises(ShapeError, match=r"values is \[8\] but mask is \[6\]"):
        masked_mean(VALUES, SEQUENCE[:, 1:] >= 0)
