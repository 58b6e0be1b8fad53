"""A reference that follows the policy (TR-DPO): a second copy of what is trained, put in place where log-probs under it are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from preftune.models.adapter import trainable
from preftune.parallel.shard import fill, local, settle, spread_like

WEIGHTS, UPDATES = "reference_weights", "reference_updates"


class MovingReference:
    """The reference of Gorbatovski et al. 2404.09656: every so many steps, reference ← mix · policy + (1 − mix) · reference.

    Of an adapter its two factors are mixed, not their product. model: as training starts, or goes on. state: what the run saves with each
    checkpoint; the weights and the number of updates are kept there, so that a resumed run has the same reference.
    """

    def __init__(self, model: nn.Module, state: dict[str, Any]) -> None:
        self._model, self._policy, self._state = model, trainable(model), state
        kept = state.get(WEIGHTS) or self._policy
        state[WEIGHTS] = {name: spread_like(p, kept[name].detach().to(p.device, copy=True)) for name, p in self._policy.items()}
        state.setdefault(UPDATES, 0)

    @property
    def updates(self) -> int:
        """How often it has moved; while that is 0 it is the start."""
        return int(self._state[UPDATES])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model be the reference; no gradient is kept. No graph of the policy may be waiting for its backward."""
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    @torch.no_grad()
    def follow(self, mix: float) -> None:
        """Move towards the policy: all the way at mix 1."""
        for name, parameter in self._policy.items():
            local(self._state[WEIGHTS][name]).lerp_(local(parameter.detach()), mix)
        self._state[UPDATES] += 1

    @torch.no_grad()
    def _swap(self) -> None:
        weights = self._state[WEIGHTS]
        for name, parameter in trainable(self._model).items():
            if local(parameter) is parameter:
                parameter.data, weights[name] = weights[name], parameter.data
            else:  # what is sharded is gathered from the memory that it lies in
                policy = local(parameter).clone()
                fill(parameter, weights[name])
                local(weights[name]).copy_(policy)
        settle(self._model)
