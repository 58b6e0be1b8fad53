"""The loss on held-out examples while training: measured now and then, the best weights kept, a run that no longer gains stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from preftune.losses.reduce import weighted_sum
from preftune.models.checkpoint import load_training, save_training
from preftune.parallel import world
from preftune.training.step import Loss

T = TypeVar("T")

BEST = "best.pt"
NAMES = {"accuracy/train": "accuracy/held_out", "margin/train": "margin/held_out"}


@torch.no_grad()
def measure(parts: Sequence[T], *, count: Callable[[T], float], loss: Callable[[T], Loss]) -> dict[str, float]:
    """Return the mean loss over held-out micro-batches, as "loss/held_out", and what else of NAMES the loss tells.

    count, loss: as for `train_step`; nothing is learned.
    """
    total = sum(map(count, parts))
    loss_sum, sums = 0.0, dict.fromkeys(NAMES, (0.0, 0.0))

    def told(part: T) -> tuple[float, dict[str, tuple[float, float]]]:
        result = loss(part)
        return float(weighted_sum(result.values, result.weights)), result.metrics

    for summed, metrics in world.spread(parts, told):
        loss_sum += summed / total
        for name in NAMES.keys() & metrics.keys():
            value, weight = metrics[name]
            sums[name] = (sums[name][0] + value, sums[name][1] + weight)
    return {"loss/held_out": loss_sum, **{NAMES[name]: value / weight for name, (value, weight) in sums.items() if weight}}


class Best:
    """The weights with the lowest held-out loss so far, kept on disk in the unfinished run.

    every: steps between measurements, None = none is made. patience: how many measurements in a row may bring nothing, None = any.
    state: the loop's, where what was seen is kept over a kill.
    """

    def __init__(self, folder: Path, model: nn.Module, state: dict[str, Any], *, every: int | None, patience: int | None) -> None:
        self.model, self.every, self.patience = model, every, patience
        self._path = folder / BEST
        self._seen: dict[str, Any] = state.setdefault("held_out", {"loss": None, "step": 0, "without_gain": 0})

    def due(self, step: int, total: int) -> bool:
        """Say whether a measurement comes after optimiser step `step` (from 0); the last step always has one."""
        return self.every is not None and ((step + 1) % self.every == 0 or step + 1 == total)

    def see(self, loss: float, step: int) -> None:
        """Take note of the loss after optimiser step `step` (from 0), and keep the weights where it is the lowest."""
        if self._seen["loss"] is None or loss < self._seen["loss"]:
            self._seen.update(loss=loss, step=step + 1, without_gain=0)
            save_training(self._path, models={"best": self.model}, optimisers={}, step=step + 1, state={})
        else:
            self._seen["without_gain"] += 1

    @property
    def gains_no_more(self) -> bool:
        """True once `patience` measurements in a row were no better than the best."""
        return self.patience is not None and self._seen["without_gain"] >= self.patience

    def restore(self) -> dict[str, Any]:
        """Put the best weights back, and return which they are for the manifest; without a measurement nothing happens."""
        if self._seen["loss"] is None:
            return {}
        load_training(self._path, models={"best": self.model}, optimisers={})
        return {"best": {"step": self._seen["step"], "held_out_loss": self._seen["loss"]}}
