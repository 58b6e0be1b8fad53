"""AdamW with decay where it belongs, and the learning rate's schedule as a function."""

from __future__ import annotations

import torch
from torch import nn

from preftune.models.adapter import trainable


def adamw(model: nn.Module, *, eps: float = 1e-8, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters; vectors (norms, biases) are never decayed. The step sets the learning rate."""
    parameters = list(trainable(model).values())
    matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, eps=eps)


def lr_at(step: int, *, total: int, lr: float, warmup: float) -> float:
    """Return the learning rate of optimiser step `step` (from 0): linear up over `warmup` (share of all), then linear to 0."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return lr * (step + 1) / rising
    return lr * (total - step) / max(1, total - rising)
