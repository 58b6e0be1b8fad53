"""AdamW with decay where it belongs, and the learning rate's schedule as a function."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from preftune.models.adapter import trainable
from preftune.parallel.shard import by_kind, settle

Schedule = Literal["constant", "linear", "cosine"]


def adamw(model: nn.Module, *, eps: float = 1e-8, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters. The step sets the learning rate.

    Decayed are matrices, embeddings among them; vectors (norms, biases, the magnitudes of DoRA) are not.
    Source: Loshchilov & Hutter 1711.05101; the groups are those of transformers' Trainer, so that its settings carry over.
    """
    parameters = list(trainable(model).values())
    matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": alike, "weight_decay": decay}
        for several, decay in ((matrices, weight_decay), (vectors, 0.0))
        for alike in by_kind(several)  # one fused step takes either sharded weights or whole ones
    ]
    # Fused: weights, gradients and moments are each read once; the plain loop goes over them a dozen times.
    optimiser = torch.optim.AdamW(groups, lr=0.0, eps=eps, fused=True)
    optimiser.register_step_pre_hook(lambda *_: settle(model))
    optimiser.register_step_post_hook(lambda *_: settle(model))  # what was gathered whole is out of date now
    return optimiser


def lr_at(step: int, *, total: int, lr: float, warmup: float, schedule: Schedule = "linear") -> float:
    """Return the learning rate of optimiser step `step` (from 0): linear up over `warmup` (share of all), then as `schedule` says.

    constant stays at lr; linear and cosine (half a wave, Loshchilov & Hutter 1608.03983, eq. 5 without restarts) fall to 0, which
    they would reach one step after the last.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return lr * (step + 1) / rising
    left = (total - step) / max(1, total - rising)
    match schedule:
        case "constant":
            return lr
        case "linear":
            return lr * left
        case "cosine":
            return lr * (1 - math.cos(math.pi * left)) / 2
