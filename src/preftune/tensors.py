"""TokenBatch and the shape checks: the one form in which tokens travel to a model.

One index: `[:, t]` speaks of token t in every tensor. One polarity: a mask is bool and True where something counts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ShapeError


def check_shapes(letters: str, **tensors: Tensor) -> None:
    """Raise ShapeError unless every tensor has as many dimensions as there are letters and all agree in size.

    letters: e.g. "B T", only named in the message. tensors: by name, at least one.
    """
    wanted = len(letters.split())
    items = list(tensors.items())
    first_name, first = items[0]
    for name, tensor in items:
        if tensor.dim() != wanted:
            raise ShapeError(f"{name} is {list(tensor.shape)} but should be [{', '.join(letters.split())}]")
        if tensor.shape != first.shape:
            raise ShapeError(
                f"{first_name} is {list(first.shape)} but {name} is {list(tensor.shape)}. "
                f"Both are [{', '.join(letters.split())}] on the same index; one of them was shifted by hand"
            )


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens; a row is `[prompt | completion 1 | completion 2 …]` (the completions share the prompt) and padding.

    beginning: the P tokens with which every prompt of the batch starts, where they share any; they are in no row, but every token sees
    them. ids: int64 [B, T]. position_ids: int64 [B, T], from P on, restarted after the prompt for each completion.
    segment: int64 [B, T]: 0 = prompt, 1.. = the completion it belongs to, −1 = padding.
    completion_mask: bool [B, T], True on the completion's tokens, its end token included.
    parent: int64 [B, T]: the place of the token that predicts token t (t − 1, but the prompt's last token for the first token
    of each completion; the place itself where nothing predicts it).
    sequence: int64 [B, T]: which sequence of the batch (0 … num_sequences − 1) a completion token belongs to, −1 elsewhere.
    num_sequences: completions in the batch. plain: no row has more than one completion, so an ordinary causal mask is enough.
    """

    ids: Tensor
    position_ids: Tensor
    segment: Tensor
    completion_mask: Tensor
    parent: Tensor
    sequence: Tensor
    num_sequences: int
    plain: bool
    beginning: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_shapes("B T", **{f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)})

    @property
    def attention_mask(self) -> Tensor:
        """bool [B, T], True on real tokens."""
        return self.segment >= 0

    @property
    def num_tokens(self) -> int:
        """Real tokens in the batch."""
        return len(self.beginning) + int(self.attention_mask.sum())

    def tree_mask(self, window: int | None = None) -> Tensor:
        """bool [B, 1, T, P + T], True where query token (dim 2) may look at key token (dim 3; the shared beginning stands first).

        A token sees itself and what came before it in the prompt or in its own completion; with a window, only the last
        `window` positions of that. A padding token sees itself, so that its softmax is defined; nothing real ever looks at it.
        """
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        query, key = self.segment[:, :, None], self.segment[:, None, :]
        same = (query == key) | (key == 0)
        seen = causal[None] & same & (query >= 0) & (key >= 0)
        if window is not None:
            seen &= self.position_ids[:, :, None] - self.position_ids[:, None, :] < window
        rows = seen | torch.eye(length, dtype=torch.bool, device=self.ids.device)[None]
        begun = torch.arange(len(self.beginning), device=self.ids.device)
        reach = length + len(begun) if window is None else window
        return torch.cat([self.position_ids[:, :, None] - begun < reach, rows], dim=2)[:, None]

    def with_beginning_in_rows(self) -> TokenBatch:
        """Return the batch with its shared beginning in front of every row, [B, P + T]: the same tokens, computed once a row."""
        count, begun = self.ids.shape[0], len(self.beginning)
        device = self.ids.device

        def before(values: Tensor, rows: Tensor) -> Tensor:
            return torch.cat([values.expand(count, begun).to(rows.dtype), rows], dim=1)

        places = torch.arange(begun, device=device)
        zero = torch.zeros(1, dtype=torch.long, device=device)
        return TokenBatch(
            before(torch.tensor(self.beginning, device=device), self.ids),
            before(places, self.position_ids),
            before(zero, self.segment),
            before(zero, self.completion_mask),
            before((places - 1).clamp(min=0), self.parent + begun),
            before(zero - 1, self.sequence),
            self.num_sequences,
            self.plain,
        )

    def packed_mask(self, window: int | None = None) -> Tensor:
        """bool [1, 1, P + N, P + T]: `tree_mask` of the N real tokens row after row, after that of the beginning, which sees itself."""
        rows, places = self.attention_mask.nonzero(as_tuple=True)
        trees = self.tree_mask(window)[rows, :, places].transpose(0, 1)[None]
        begun = len(self.beginning)
        beginning = torch.ones(begun, begun, dtype=torch.bool, device=self.ids.device).tril()
        if window is not None:
            beginning = beginning.triu(1 - window)
        return torch.cat([torch.nn.functional.pad(beginning, (0, self.ids.shape[1]))[None, None], trees], dim=2)

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            moved[name] = value.to(device) if isinstance(value, Tensor) else value
        return TokenBatch(**moved)
