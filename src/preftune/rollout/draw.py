"""Draw the next tokens: one uniform number a row, so that a row's choice depends on nothing but its own logits."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.errors import ModelError

BLOCK = 256  # tokens whose weights are summed before the search goes into one block: a sum over all of a vocabulary is slow in order


def uniforms(seed: int, count: int) -> list[float]:
    """Return the first `count` numbers in [0, 1) of a seed; a longer list begins with the shorter one."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()


def draw(logits: Tensor, uniforms: Tensor, temperatures: Tensor, top_p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (tokens [R], their log-probs [R] float64, nats), both on the CPU, by the inverse of the cumulative distribution.

    logits: float [R, V], overwritten. uniforms: float64 [R] in [0, 1). temperatures: [R]; 0 = the likeliest token, whose log-prob is that
    at temperature 1. top_p: [R] or None; draws from the fewest tokens that hold so much of the probability, and leaves the
    log-probs those of the whole distribution.
    Raises ModelError where a row's logits hold nan or +inf, or nothing but -inf.
    """
    greedy = temperatures == 0
    likeliest = logits.argmax(-1) if bool(greedy.any()) else None
    if not bool(((temperatures == 1) | greedy).all()):
        logits /= torch.where(greedy, 1.0, temperatures)[:, None].to(logits)
    logits -= logits.amax(-1, keepdim=True)
    weights = _padded(logits.exp_())
    sums = _block_sums(weights)
    totals = sums[:, -1]
    if not bool(torch.isfinite(totals).all()):
        raise ModelError("the logits of the next token are no numbers", "sampling", "Are the weights whole, and the dtype wide enough?")
    if top_p is not None and bool((top_p < 1).any()):
        fewer = _nucleus(weights, top_p.to(weights.device))
        tokens = _search(fewer, _block_sums(fewer), uniforms)
    else:
        tokens = _search(weights, sums, uniforms)
    if likeliest is not None:
        tokens = torch.where(greedy, likeliest.cpu(), tokens)
    drawn = weights.flatten(1).gather(1, tokens[:, None].to(weights.device)).squeeze(1)
    return tokens, drawn.cpu().double().log() - totals.log()


def likeliest(logits: Tensor, temperatures: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """Return of each row the `count` likeliest tokens with their log-probs in nats, as `draw` would count them, the likeliest first.

    logits: float [R, V], left as they are. temperatures: [R]; 0 counts as 1.
    """
    scaled = logits.float() / torch.where(temperatures == 0, 1.0, temperatures)[:, None].to(logits.device)
    values, tokens = scaled.log_softmax(-1).topk(min(count, logits.shape[1]), dim=-1)
    return [list(zip(*row, strict=True)) for row in zip(tokens.tolist(), values.tolist(), strict=True)]


def _padded(weights: Tensor) -> Tensor:
    # [R, V] → [R, blocks, BLOCK], without a copy where the vocabulary fills its last block.
    missing = -weights.shape[1] % BLOCK
    whole = torch.nn.functional.pad(weights, (0, missing)) if missing else weights
    blocks: Tensor = whole.unflatten(1, (-1, BLOCK))
    return blocks


def _block_sums(weights: Tensor) -> Tensor:
    return weights.sum(-1).cpu().double().cumsum(-1)  # float64 on the CPU: not every accelerator has it


def _search(weights: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    # The target lies below the last cumulative sum, so that rounding never leads to a token of weight 0.
    block = torch.searchsorted(sums, _below(uniforms * sums[:, -1], sums[:, -1])[:, None], right=True)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0).squeeze(1)
    inner = weights[torch.arange(len(weights), device=weights.device), block.squeeze(1).to(weights.device)].cpu().double().cumsum(-1)
    place = torch.searchsorted(inner, _below(uniforms * sums[:, -1] - before, inner[:, -1])[:, None], right=True)
    return (block * BLOCK + place).squeeze(1)


def _below(target: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(target, torch.nextafter(limit, torch.zeros_like(limit)))


def _nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    # A token is kept where those before it, in falling order, hold less than top_p: the fewest tokens, one at least.
    flat = weights.flatten(1)
    ordered, index = flat.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < top_p[:, None] * ordered.sum(-1, keepdim=True), ordered, 0.0)
    return torch.where(top_p[:, None] < 1, flat.scatter(1, index, kept), flat).view_as(weights)
