"""The only backward and the only division.

A loss gives a value and a weight for each token, pair or sequence. The step first counts the weights of all micro-batches,
then runs backward on weighted_sum / total: so the gradient depends neither on padding nor on how a batch is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from preftune.errors import PreftuneError
from preftune.losses.reduce import weighted_sum

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
    """loss: the mean over the whole batch. grad_norm: before clipping. metrics: means over the whole batch."""

    loss: float
    grad_norm: float
    metrics: dict[str, float]


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
    """Do one optimiser step over micro-batches `parts`.

    count: the total weight of a micro-batch, known before the forward pass. loss: its values and weights. where and
    name_batch: for the error. Raises PreftuneError on a non-finite loss or gradient, before anything is changed.
    """
    total = sum(count(part) for part in parts)
    if total <= 0:
        raise PreftuneError("no token of this batch is learned", where, "Look at the data with preftune check.")
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, tuple[float, float]] = {}
    loss_sum = 0.0
    for part in parts:
        result = loss(part)
        share = weighted_sum(result.values, result.weights) / total
        if not math.isfinite(share.item()):
            raise PreftuneError(
                f"the loss is {share.item()} on {name_batch(part) or 'this batch'}",
                where,
                NOT_FINITE,
            )
        share.backward()
        loss_sum += share.item()
        for name, (value, weight) in result.metrics.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + value, before[1] + weight)
    trained = [p for p in parameters if p.grad is not None]
    total_norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    norm = float(total_norm)
    if not math.isfinite(norm):
        names = "; ".join(filter(None, map(name_batch, parts))) or "this batch"
        raise PreftuneError(f"the gradient's norm is {norm} on {names}", where, NOT_FINITE)
    if max_grad_norm is not None and norm > max_grad_norm:  # else one pass over all gradients is saved
        torch.nn.utils.clip_grads_with_norm_(trained, max_grad_norm, total_norm)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return Step(loss_sum, norm, {name: value / weight for name, (value, weight) in sums.items() if weight})


def mean_metric(values: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    """Return (sum, count) of values, for Loss.metrics."""
    chosen = values if mask is None else values[mask]
    return float(chosen.detach().sum()), float(chosen.numel())
