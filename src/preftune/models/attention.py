"""Attention of the lean layers (float32 on a CPU): some queries at a time, rows without padding, and single queries that decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

QUERIES = 128  # queries that attend at once: keys after the last of them are not looked at
ROWS_TOGETHER = 16  # rows that decode whose keys are read from the same column on
Span = tuple[int, int, int]  # a row's first query, the one after its last, and how many keys stand before its own


class Part(NamedTuple):
    """Rows that decode and read their keys from column `first` on. mask: float [rows, 1, 1, S - first], what is added, or None."""

    rows: slice
    first: int
    mask: Tensor | None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, spans: Sequence[Span] | None = None) -> Tensor:
    """Return the attention's output [B, T, heads, D].

    q: [B, heads, T, D]. k, v: [B, fewer heads, P + T, D]. mask: [B or 1, 1, T, P + T], or None for causal rows without a beginning.
    spans: the rows that one row (B = 1, P = 0) is made of, as (start, stop, front): its queries see the first `front` keys, which are
    the beginning of all rows, and those of the row itself; the columns of the mask, [1, 1, T, front + longest], are these keys.
    """
    tokens = q.shape[2]
    if tokens == 1:
        return attend_once(q[:, :, 0], k, v, _parts_of_mask(mask, len(q)), scale)[:, None]
    if mask is None:  # as transformers has it: the row begins here, and what lies after it is a cache's empty room
        k, v = k[:, :, :tokens], v[:, :, :tokens]
    elif mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    whole = [(0, tokens, k.shape[2] - tokens)]
    attended: Tensor = _Attended.apply(q, k, v, mask, scale, spans or whole)  # type: ignore[no-untyped-call]
    return attended


class _Attended(torch.autograd.Function):
    # torch's own attention on a CPU (Dao et al. 2205.14135), piece by piece. A token never looks at what comes after it, so some queries
    # at a time need only the keys up to their last. Queries of several heads share a head of keys without a copy of it. The
    # gradients of keys and values are added up in place: autograd would make a tensor of all of them for each piece.

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, spans: Sequence[Span]) -> Tensor:
        batch, heads, tokens, _ = q.shape
        out = q.new_empty(batch, tokens, heads, v.shape[3])
        lse = q.new_empty(batch, heads, tokens)
        for span in spans:
            keys, values = (_of_row(part, tokens, span) for part in (k, v))
            for first, last, seen in _pieces(span):
                out[:, first:last], lse[:, :, first:last] = _piece(
                    q[:, :, first:last], keys[:, :, :seen], values[:, :, :seen], _part(mask, first, last, seen), scale
                )
        ctx.save_for_backward(q, k, v, mask, out, lse)
        ctx.scale, ctx.spans = scale, spans
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, lse = ctx.saved_tensors
        tokens = q.shape[2]
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for span in ctx.spans:
            keys, values = (_of_row(part, tokens, span) for part in (k, v))
            own, front = k.shape[2] - tokens + span[0], span[2]
            for first, last, seen in _pieces(span):
                grad_q[:, :, first:last], *slopes = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad[:, first:last].transpose(1, 2),
                    q[:, :, first:last],
                    keys[:, :, :seen],
                    values[:, :, :seen],
                    out[:, first:last].transpose(1, 2),
                    lse[:, :, first:last],
                    0.0,
                    False,
                    attn_mask=_part(mask, first, last, seen),
                    scale=ctx.scale,
                )
                for whole, slope in zip((grad_k, grad_v), slopes, strict=True):
                    whole[:, :, :front] += slope[:, :, :front]
                    whole[:, :, own : own + seen - front] += slope[:, :, front:]
        return grad_q, grad_k, grad_v, None, None, None


def _of_row(part: Tensor, tokens: int, span: Span) -> Tensor:
    """Return the keys or values that a row may see: those of the beginning, and its own."""
    start, stop, front = span
    before = part.shape[2] - tokens
    own = part[:, :, before + start : before + stop]
    if not front:
        return own
    return part[:, :, : before + stop] if front == before + start else torch.cat([part[:, :, :front], own], dim=2)


def _pieces(span: Span) -> list[tuple[int, int, int]]:
    """Return (first query, the one after the last, keys seen) of each piece of a row."""
    start, stop, front = span
    firsts = range(start, stop, QUERIES)
    lasts = [min(first + QUERIES, stop) for first in firsts]
    return [(first, last, front + last - start) for first, last in zip(firsts, lasts, strict=True)]


def _part(mask: Tensor | None, first: int, last: int, seen: int) -> Tensor:
    if mask is not None:
        return mask[:, :, first:last, :seen]
    return torch.full((1, 1, last - first, seen), float("-inf")).triu_(1 + seen - (last - first))


def _piece(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
    return out.transpose(1, 2), lse


def attend_once(q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    """Return the attention's output [B, heads, D] of one query a row, as in decoding, where reading the keys takes the time.

    q: [B, heads, D]. k, v: [B, fewer heads, S, D]. parts: the rows whose keys are read from the same column on (see `parts_of`).
    The queries that share a head of keys go through it together.
    """
    together = q.unflatten(1, (k.shape[1], -1))  # [B, fewer heads, queries a head, D]
    attended = [
        nn.functional.scaled_dot_product_attention(
            together[part.rows], k[part.rows, :, part.first :], v[part.rows, :, part.first :], attn_mask=part.mask, scale=scale
        )
        for part in parts
    ]
    return (attended[0] if len(attended) == 1 else torch.cat(attended)).flatten(1, 2)


def parts_of(starts: Sequence[int], width: int) -> list[Part]:
    """Return some rows at a time of those that decode; their keys end together, at column `width`, and begin at `starts`."""
    parts = []
    for rows in _together(len(starts)):
        own = starts[rows]
        first, mask = min(own), None
        if max(own) > first:
            before = torch.arange(first, width) < torch.tensor(own)[:, None]
            mask = torch.zeros(before.shape).masked_fill_(before, float("-inf"))[:, None, None]
        parts.append(Part(rows, first, mask))
    return parts


def _parts_of_mask(mask: Tensor | None, count: int) -> list[Part]:
    # mask: [B or 1, 1, 1, S], as transformers makes it.
    if mask is None:
        return [Part(rows, 0, None) for rows in _together(count)]
    mask = mask.expand(count, -1, -1, -1)
    starts = (mask if mask.dtype == torch.bool else mask == 0)[:, 0, 0].int().argmax(-1).tolist()
    firsts = [(rows, min(starts[rows])) for rows in _together(count)]
    return [Part(rows, first, mask[rows, :, :, first:]) for rows, first in firsts]


def _together(count: int) -> list[slice]:
    return [slice(start, start + ROWS_TOGETHER) for start in range(0, count, ROWS_TOGETHER)]
