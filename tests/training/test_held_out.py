"""The held-out loss is the mean over all examples, the best weights come back, and a run without gain is told to stop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preftune.training.held_out import BEST, Best, measure
from preftune.training.step import Loss, mean_metric


def model_at(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_the_held_out_loss_is_the_mean_over_all_examples_and_learns_nothing():
    weight = nn.Parameter(torch.ones(()))

    def loss(part: list[float]) -> Loss:
        values = weight * torch.tensor(part)
        told = {"accuracy/train": mean_metric((values > 1).float()), "logprobs/chosen": mean_metric(values)}
        return Loss(values, torch.tensor([2.0] * len(part)), told)

    # The mean of the parts' means would be 2.25. Weighted alike, it is (1 + 2 + 3 + 0) / 4.
    told = measure([[1.0, 2.0, 3.0], [0.0]], count=lambda part: 2.0 * len(part), loss=loss)
    assert told == pytest.approx({"loss/held_out": 1.5, "accuracy/held_out": 0.5})
    assert weight.grad is None


@pytest.mark.parametrize(("every", "due"), [(None, []), (1, [0, 1, 2, 3, 4, 5, 6]), (3, [2, 5, 6]), (7, [6]), (50, [6])])
def test_a_measurement_comes_every_so_many_steps_and_after_the_last(tmp_path, every, due):
    best = Best(tmp_path, model_at(0), {}, every=every, patience=None)
    assert [step for step in range(7) if best.due(step, 7)] == due


def test_the_best_weights_come_back_and_patience_counts_from_them(tmp_path):
    state: dict = {}
    model = model_at(0)
    best = Best(tmp_path, model, state, every=1, patience=2)
    stopped = []
    for step, loss in enumerate([3.0, 1.0, 1.0, 0.5, 0.7, float("nan")]):
        nn.init.constant_(model.weight, step)
        best.see(loss, step)
        stopped.append(best.gains_no_more)
    assert stopped == [False, False, False, False, False, True]  # equal is no gain, and neither is what is no number
    again = Best(tmp_path, other := model_at(9), state, every=1, patience=2)  # as after a kill
    assert again.gains_no_more
    assert again.restore() == {"best": {"step": 4, "held_out_loss": 0.5}}
    assert other.weight.item() == 3


def test_without_a_measurement_the_weights_stay_and_nothing_is_written(tmp_path):
    best = Best(tmp_path, model := model_at(2), {}, every=None, patience=None)
    assert best.restore() == {}
    assert model.weight.item() == 2
    assert not (tmp_path / BEST).exists()
    assert not best.gains_no_more
