"""The keys and values of the rows that run: all rows end at the same column, so that a new one can begin beside others.

    column      0 1 2 3 4 5 6 7 8 9
    row 0           p p p p a a a       a prompt of 4 tokens and 3 answered ones
    row 1                 p p p a       one that began later
                   ^first           ^used

transformers' own layer copies all that it holds for every new token, and for every row that ends; this one writes into room made ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

GROW = 64  # columns made ahead, at least


@dataclass(frozen=True)
class Prefilled:
    """A prompt that was computed. keys, values: of each layer, [heads, tokens, D]. hidden: [H], what predicts the first new token."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    hidden: Tensor

    @property
    def tokens(self) -> int:
        """The prompt's length."""
        return int(self.keys[0].shape[1])


@dataclass
class _Span:
    rows: int = 0
    first: int = 0
    used: int = 0


class _Layer(DynamicLayer):
    keys: Tensor  # [places, heads, room, D]
    values: Tensor

    def __init__(self, span: _Span, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.span = span
        self.keys, self.values = (x.new_zeros(0, x.shape[0], 0, x.shape[2]) for x in (keys, values))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        at = self.span
        self.keys[: at.rows, :, at.used : at.used + 1] = key_states
        self.values[: at.rows, :, at.used : at.used + 1] = value_states
        return self.keys[: at.rows, :, at.first : at.used + 1], self.values[: at.rows, :, at.first : at.used + 1]

    def get_seq_length(self) -> int:
        return self.span.used - self.span.first


class RunningCache(Cache):
    """Keys and values of the running rows, in the form that a transformers model takes."""

    layers: list[_Layer]

    def __init__(self) -> None:
        self._span = _Span()
        super().__init__(layers=[])

    @property
    def width(self) -> int:
        """How many columns hold something of some row."""
        return self._span.used - self._span.first

    def write(self, arriving: Sequence[tuple[Prefilled, int]]) -> None:
        """Add rows behind the others: of each prompt so many copies."""
        span = self._span
        if not self.layers:
            prompt = arriving[0][0]
            self.layers = [_Layer(span, keys, values) for keys, values in zip(prompt.keys, prompt.values, strict=True)]
        longest = max(prompt.tokens for prompt, _ in arriving)
        self._make_room(span.rows + sum(copies for _, copies in arriving), longest)
        span.first = min(span.first, span.used - longest)
        for prompt, copies in arriving:
            places, columns = slice(span.rows, span.rows + copies), slice(span.used - prompt.tokens, span.used)
            for layer, keys, values in zip(self.layers, prompt.keys, prompt.values, strict=True):
                layer.keys[places, :, columns] = keys
                layer.values[places, :, columns] = values
            span.rows += copies

    def expect_token(self) -> None:
        """Make sure that each row has room for a token more."""
        self._make_room(self._span.rows, 0)

    def took_token(self) -> None:
        """Count the column that a forward pass has just filled."""
        self._span.used += 1

    def keep(self, moved: Sequence[tuple[int, int]], lengths: Sequence[int]) -> None:
        """Let only the first len(lengths) places count, after copying rows: (place, source). lengths: tokens of each row that stays."""
        self._span.rows = len(lengths)
        if not lengths:  # the memory goes back, and the next row starts at the first column
            self.layers, self._span.first, self._span.used = [], 0, 0
            return
        if moved:
            columns = slice(self._span.first, self._span.used)
            places, sources = (torch.tensor(side, device=self.layers[0].keys.device) for side in zip(*moved, strict=True))
            for layer in self.layers:
                layer.keys[places, :, columns] = layer.keys[sources, :, columns]
                layer.values[places, :, columns] = layer.values[sources, :, columns]
        self._span.first = self._span.used - max(lengths)

    def prompt_of(self, place: int, length: int, tokens: int, hidden: Tensor) -> Prefilled:
        """Return a copy of the first `tokens` tokens of a row of `length`: its prompt, for a further sample of it."""
        start = self._span.used - length
        columns = slice(start, start + tokens)
        keys = [layer.keys[place, :, columns].clone() for layer in self.layers]
        return Prefilled(keys, [layer.values[place, :, columns].clone() for layer in self.layers], hidden)

    def _make_room(self, rows: int, left: int) -> None:
        # Lay all out anew where `rows` rows, `left` columns before this one, or this one do not fit; columns that no row uses any more go.
        span, width = self._span, self.width
        places, _, room, _ = self.layers[0].keys.shape
        if rows <= places and left <= span.used < room:
            return
        if rows > places:
            places = max(rows, places + places // 2)
        used = max(width, left)
        for layer in self.layers:
            for name in ("keys", "values"):
                old: Tensor = getattr(layer, name)
                # Zeros: what is masked is multiplied by 0, and 0 times what lies in fresh memory may be nan.
                fresh = old.new_zeros(places, old.shape[1], used + max(GROW, used // 4), old.shape[3])
                fresh[: span.rows, :, used - width : used] = old[: span.rows, :, span.first : span.used]
                setattr(layer, name, fresh)
        span.first, span.used = used - width, used
