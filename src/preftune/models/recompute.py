"""Gradient checkpointing: each layer keeps its input alone, and is computed again in the backward pass.

A forward pass more for each backward buys the memory of everything in between; the gradient is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import ConfigError
from preftune.models.load import unwrap


def recompute_layers(model: nn.Module) -> None:
    """Let every layer of the model keep only its input for the backward pass. A layer that fills a cache is computed as before.

    transformers' own switch works in training mode alone, where dropout is on; here the model stays in eval mode.
    Raises ConfigError where the model does not say what its layers are.
    Source: Chen et al. 1604.06174.
    """
    if not can_recompute(model):
        raise ConfigError(
            f"{type(unwrap(model)).__name__} does not say what its layers are", 'key "gradient_checkpointing"', "Set it to false."
        )
    for layer in _layers(model):
        layer.forward = _Recomputed(layer.forward)


def can_recompute(model: nn.Module) -> bool:
    """Say whether the model tells which modules are its layers."""
    return bool(_layers(model))


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in unwrap(model).modules() if isinstance(module, GradientCheckpointingLayer)]


class _Recomputed:
    """A layer's forward pass, computed again in backward."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fills = any(isinstance(value, Cache) for value in (*args, *kwargs.values()))
        if fills or not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        # No layer draws at random (dropout is off), so there is no random state to keep.
        return checkpoint(self.plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@contextmanager
def one_layer_kept(model: nn.Module) -> Iterator[None]:
    """Let one layer keep what it computes, as each in its turn does in the backward pass: so much is held at the most.

    Nothing changes where layers are not computed again.
    """
    layer = next((layer for layer in _layers(model) if isinstance(layer.forward, _Recomputed)), None)
    if layer is None:
        yield
        return
    again: Any = layer.forward
    layer.forward = again.plain
    try:
        yield
    finally:
        layer.forward = again
