"""The only backward and the only division.

A loss gives a value and a weight for each token, pair or sequence. The step first counts the weights of all micro-batches,
then runs backward on weighted_sum / total: so the gradient depends neither on padding nor on how a batch is cut, nor on how many
processes share its micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from preftune.data.batches import Group, split_by_budget
from preftune.errors import PreftuneError
from preftune.losses.reduce import weighted_sum
from preftune.parallel import world
from preftune.parallel.shard import clip_gradients, gradient_norm, sum_gradients

T = TypeVar("T")

NOT_FINITE = "The last good checkpoint stands; lower lr, or see the rows."


@dataclass(frozen=True)
class Loss:
    """What one micro-batch says: unreduced `values`, their `weights`, and metrics as (sum, count)."""

    values: Tensor
    weights: Tensor
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """loss: the mean over the whole batch. grad_norm: before clipping. metrics: means over the whole batch; sums: what they are made of."""

    loss: float
    grad_norm: float
    metrics: dict[str, float]
    sums: dict[str, tuple[float, float]]


def train_step(
    parts: Sequence[T],
    *,
    count: Callable[[T], float],
    loss: Callable[[T], Loss],
    parameters: Iterable[nn.Parameter],
    optimiser: Optimizer,
    lr: float,
    max_grad_norm: float | None,
    where: str,
    name_batch: Callable[[T], str] = lambda part: "",
) -> Step:
    """Do one optimiser step over micro-batches `parts`, the same in every process; each computes its share of them.

    count: the total weight of a micro-batch, known before the forward pass. loss: its values and weights. where and
    name_batch: for the error. Raises PreftuneError on a non-finite loss or gradient, before anything is changed.
    """
    total = sum(count(part) for part in parts)
    if total <= 0:
        raise PreftuneError("no token of this batch is learned", where, "Look at the data with preftune check.")
    optimiser.zero_grad(set_to_none=True)
    sums = _Sums()
    for part, counts in world.mine(parts):
        result = loss(part)
        share = weighted_sum(result.values, result.weights if counts else torch.zeros_like(result.weights)) / total
        if not math.isfinite(share.item()):
            raise PreftuneError(
                f"the loss is {share.item()} on {name_batch(part) or 'this batch'}",
                where,
                NOT_FINITE,
            )
        share.backward()
        if counts:
            sums.add(share.item(), result.metrics)
    trained = [p for p in parameters if p.grad is not None]
    sum_gradients(trained)
    total_norm = gradient_norm(trained)
    norm = float(total_norm)
    if not math.isfinite(norm):
        names = "; ".join(filter(None, map(name_batch, parts))) or "this batch"
        raise PreftuneError(f"the gradient's norm is {norm} on {names}", where, NOT_FINITE)
    if max_grad_norm is not None and norm > max_grad_norm:  # else one pass over all gradients is saved
        clip_gradients(trained, max_grad_norm, total_norm)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    done = sums.over_all()
    metrics = {name: value / weight for name, (value, weight) in done.metrics.items() if weight}
    return Step(done.loss, norm, metrics, done.metrics)


class _Sums:
    """The loss and the metrics of the micro-batches that this process has computed."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.metrics: dict[str, tuple[float, float]] = {}

    def add(self, loss: float, metrics: dict[str, tuple[float, float]]) -> None:
        self.loss += loss
        for name, (value, weight) in metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = (before[0] + value, before[1] + weight)

    def over_all(self) -> _Sums:
        """Return the same over the micro-batches of all processes."""
        first, *others = world.of_all(self)
        for other in others:
            first.add(other.loss, other.metrics)
        return first


def micro_batches(groups: Sequence[Group], token_budget: int) -> list[list[Group]]:
    """Return groups cut by the token budget, for `train_step`: as many micro-batches as the processes can share evenly."""
    return split_by_budget(groups, token_budget, shares=world.size())


def mean_metric(values: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    """Return (sum, count) of values, for Loss.metrics."""
    chosen = values if mask is None else values[mask]
    return float(chosen.detach().sum()), float(chosen.numel())
