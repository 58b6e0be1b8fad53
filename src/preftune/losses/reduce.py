"""From tokens to sequences, and the weighted sum that the one division divides."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from preftune.errors import ShapeError
from preftune.tensors import check_shapes


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Return Σ values·weights as a scalar; a value whose weight is 0 counts nothing, even if it is nan or inf."""
    if values.shape != weights.shape:
        raise ShapeError(f"values is {list(values.shape)} but weights is {list(weights.shape)}")
    counted = weights != 0
    return torch.where(counted, torch.where(counted, values, 0.0) * weights, 0.0).sum()


Average = Literal["tokens", "sequences", "constant"]


def token_weights(mask: Tensor, average: Average, *, longest: int) -> Tensor:
    """Return what each token counts, float [S, N]: 1 (tokens), 1 over its sequence's length (sequences), 1/longest (constant).

    Divide the weighted sum by the number of tokens in the first case, else by that of sequences. mask: bool [S, N].
    Source: DAPO, 2503.14476; GRPO, 2402.03300; Dr. GRPO, 2503.20783 (longest: the most tokens that are sampled).
    """
    check_shapes("S N", mask=mask)
    counted = mask.float()
    match average:
        case "tokens":
            return counted
        case "sequences":
            return counted / counted.sum(1, keepdim=True).clamp(min=1)
        case "constant":
            return counted / longest


def sequence_sum(values: Tensor, sequence: Tensor, num_sequences: int) -> Tensor:
    """Return the sum of each sequence's token values, [num_sequences].

    values: float [B, T]. sequence: int64 [B, T], the sequence of each token, −1 = counts nothing.
    """
    check_shapes("B T", values=values, sequence=sequence)
    counted = sequence >= 0
    return torch.zeros(num_sequences, dtype=values.dtype, device=values.device).index_add(0, sequence[counted], values[counted])


def sequence_length(sequence: Tensor, num_sequences: int) -> Tensor:
    """Return the number of tokens of each sequence, int64 [num_sequences]."""
    return torch.bincount(sequence[sequence >= 0], minlength=num_sequences)


def to_sequences(values: Tensor, sequence: Tensor, num_sequences: int) -> tuple[Tensor, Tensor]:
    """Return (values as [num_sequences, N] left-aligned and filled with 0, mask bool of the same shape).

    N is the longest sequence. The tokens of a sequence keep their order. Differentiable in values.
    """
    check_shapes("B T", values=values, sequence=sequence)
    counted = sequence >= 0
    which = sequence[counted]
    lengths = torch.bincount(which, minlength=num_sequences)
    mask = torch.arange(int(lengths.max()) if num_sequences else 0, device=values.device)[None] < lengths[:, None]
    # A stable sort by sequence keeps the order within each; mask is filled row by row in that same order.
    flat = values[counted][torch.argsort(which, stable=True)]
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, flat), mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over counted places, for metrics (never for a loss); 0 where nothing counts."""
    check_shapes("…", **{"values": values.flatten(), "mask": mask.flatten()})
    total = mask.sum()
    return torch.where(mask, values, 0.0).sum() / total.clamp(min=1)
