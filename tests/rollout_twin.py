"""A backend elsewhere that needs no cluster: a model of its own in this process, which is given weights and draws by our generator."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from tests.processes import READY

from preftune.models.adapter import add_adapter
from preftune.models.load import load_whole
from preftune.rollout.client import Start, Weights, draw_here, named_weights


class Twin:
    """A `Client`. asked: (version, seed) of each draw, in their order. before: called with the draw's number before it is made."""

    def __init__(self, start: Start, before: Callable[[int], None] = lambda number: None) -> None:
        whole = load_whole(start.base, torch.device("cpu"), torch.float32)  # whole in the first of several processes, which alone has it
        self.model: Any = whole if start.adapter is None else add_adapter(whole, start.adapter, seed=0)
        self.before, self.held, self.closed = before, None, False
        self.asked: list[tuple[int | None, int]] = []

    def push_weights(self, weights: Weights) -> None:
        """Take them."""
        named = named_weights(self.model)
        with torch.no_grad():
            for name, tensor in weights.tensors.items():
                named[name].copy_(tensor)
        self.held = weights.version

    def generate(self, prompts, keys, sampling, *, seed):
        """Draw."""
        self.asked.append((self.held, seed))
        self.before(len(self.asked))
        return [replace(sample, version=self.held) for sample in draw_here(self.model, prompts, keys, sampling, seed=seed)]

    def version(self) -> int | None:
        """Return what is held."""
        return self.held

    def health(self) -> dict[str, float]:
        """Return how many draw."""
        return {"rollout/workers": 1.0}

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Apart:
    """A Twin in a process of its own, as an actor is: it draws alone, however many processes the trainer has."""

    def __init__(self, start: Start) -> None:
        self.pool = ProcessPoolExecutor(1, READY, _begin, (start,))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *values, **named: self.pool.submit(_do, name, *values, **named).result()

    def close(self) -> None:
        """End the process."""
        self.pool.shutdown()


_twins: list[Twin] = []


def _begin(start: Start) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    _twins.append(Twin(start))


def _do(name: str, *values: Any, **named: Any) -> Any:
    return getattr(_twins[0], name)(*values, **named)
