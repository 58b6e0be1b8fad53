"""The one division: no cut into parts changes the gradient, and nothing changes where a loss is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from preftune.errors import PreftuneError
from preftune.training.step import Loss, mean_metric, train_step

Part = list[float]


class Slope:
    """One weight w = 1; the loss of token i is w · values[i], so the gradient is the mean of the values."""

    def __init__(self, optimiser=torch.optim.SGD) -> None:
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.optimiser = optimiser([self.weight], lr=0.0)

    def loss(self, part: Part) -> Loss:
        values = torch.tensor(part, dtype=torch.float64)
        counted = values.isnan().logical_not()  # nan stands for a place that does not count
        return Loss(self.weight * values.nan_to_num(), counted.double(), {"value": mean_metric(values, counted)})

    def step(self, parts: list[Part], *, max_grad_norm: float | None = None, lr: float = 1.0):
        return train_step(
            parts,
            count=lambda part: float(sum(not math.isnan(v) for v in part)),
            loss=self.loss,
            parameters=[self.weight],
            optimiser=self.optimiser,
            lr=lr,
            max_grad_norm=max_grad_norm,
            where="SFT step 7",
            name_batch=lambda part: "rows " + ", ".join(map(str, part)),
        )


@pytest.mark.parametrize(
    ("parts", "mean"),
    [
        ([[1.0, 2, 0.5, 0.5, 1, 1]], 1.0),
        ([[1.0, 2], [0.5, 0.5, 1, 1]], 1.0),  # the mean of the parts' means would be 1.125
        ([[0.5, 0.5, 1, 1], [1.0, 2]], 1.0),
        ([[1.0], [2.0], [0.5], [0.5], [1.0], [1.0]], 1.0),
        ([[1.0, 2], [0.5, 0.5, 1, 1, 4, 4]], 1.75),
    ],
)
def test_the_mean_is_over_all_tokens_however_they_are_cut(parts, mean):
    slope = Slope()
    done = slope.step(parts)
    assert done.loss == pytest.approx(mean)
    assert done.grad_norm == pytest.approx(mean)
    assert slope.weight.item() == pytest.approx(1 - mean)
    assert done.metrics == {"value": pytest.approx(mean)}


def test_a_part_in_which_nothing_counts_adds_nothing():
    done = Slope().step([[1.0, 2], [math.nan, math.nan], [0.5, 0.5, 1, 1], []])
    assert (done.loss, done.grad_norm, done.metrics["value"]) == pytest.approx((1.0, 1.0, 1.0))


def test_a_metric_that_no_part_counts_is_left_out():
    slope = Slope()
    done = train_step(
        [0],
        count=lambda _: 1.0,
        loss=lambda _: Loss(slope.weight[None], torch.ones(1), {"seldom": (0.0, 0.0), "often": (6.0, 2.0)}),
        parameters=[slope.weight],
        optimiser=slope.optimiser,
        lr=0.1,
        max_grad_norm=None,
        where="",
    )
    assert done.metrics == {"often": 3.0}


def test_the_gradient_is_cut_to_its_longest_and_told_as_it_was():
    slope = Slope()
    done = slope.step([[3.0]], max_grad_norm=0.5)
    assert done.grad_norm == 3
    assert slope.weight.item() == pytest.approx(0.5, abs=1e-5)


def test_gradients_of_a_step_before_do_not_stay():
    slope = Slope()
    slope.weight.grad = torch.tensor(100.0, dtype=torch.float64)
    assert slope.step([[2.0]]).grad_norm == 2
    assert slope.weight.grad is None


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_before_anything_changes_and_names_the_batch(bad):
    slope = Slope(torch.optim.AdamW)
    slope.step([[1.0]], lr=0.1)
    before, state = slope.weight.item(), {k: v.clone() for k, v in slope.optimiser.state[slope.weight].items()}

    def loss(part: Part) -> Loss:
        result = slope.loss(part)
        return Loss(result.values * bad, result.weights) if 5.0 in part else result

    with pytest.raises(PreftuneError, match=rf"SFT step 8: the loss is {bad} on rows 4\.0, 5\.0\. The last good checkpoint stands"):
        train_step(
            [[1.0, 2.0], [4.0, 5.0], [3.0]],
            count=lambda part: float(len(part)),
            loss=loss,
            parameters=[slope.weight],
            optimiser=slope.optimiser,
            lr=0.1,
            max_grad_norm=1.0,
            where="SFT step 8",
            name_batch=lambda part: "rows " + ", ".join(map(str, part)),
        )
    assert slope.weight.item() == before
    assert all(torch.equal(v, state[k]) for k, v in slope.optimiser.state[slope.weight].items())


def test_a_gradient_that_is_not_finite_stops_before_anything_changes():
    weight = nn.Parameter(torch.zeros(()))
    with pytest.raises(PreftuneError, match=r"step 1: the gradient's norm is (inf|nan) on rows 7; rows 8\. The last good"):
        train_step(
            [7, 8],
            count=lambda _: 1.0,
            loss=lambda _: Loss(weight.sqrt()[None], torch.ones(1)),  # finite at 0, its slope is not
            parameters=[weight],
            optimiser=torch.optim.SGD([weight], lr=0.0),
            lr=0.1,
            max_grad_norm=1.0,
            where="step 1",
            name_batch=lambda part: f"rows {part}",
        )
    assert weight.item() == 0


def test_a_batch_of_which_nothing_is_learned_is_a_sentence():
    with pytest.raises(PreftuneError, match=r"SFT step 7: no token of this batch is learned\. Look at the data"):
        Slope().step([[math.nan], []])


def test_a_metric_is_a_sum_and_a_count():
    values = torch.tensor([1.0, 2.0, 30.0], requires_grad=True)
    assert mean_metric(values) == (33, 3)
    assert mean_metric(values, torch.tensor([True, True, False])) == (3, 2)
