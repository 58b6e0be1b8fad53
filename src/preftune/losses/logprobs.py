"""Token log-probs from hidden states, without a [tokens × vocabulary] tensor, forward or backward.

The shift happens here and nowhere else, as a gather by `parent`: the place of the token that predicts token t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ShapeError
from preftune.tensors import check_shapes


def predicting(hidden: Tensor, parent: Tensor, mask: Tensor) -> Tensor:
    """Return the hidden states that predict the counted tokens, [N, H], in row-major order of mask.

    hidden: float [B, T, H]. parent: int64 [B, T]. mask: bool [B, T], True = counts; N = mask.sum().
    """
    check_shapes("B T", parent=parent, mask=mask, hidden=hidden[..., 0])
    rows, places = mask.nonzero(as_tuple=True)
    return hidden[rows, parent[rows, places]]


def _wide(dtype: torch.dtype) -> torch.dtype:
    # float32 for every narrower type: in bf16 the first ratio is off by 1 %. float64 stays, for finite differences.
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Head:
    """The output layer: logits = cap·tanh(scale·(h Wᵀ + b)/cap), cap and bias where the model has them.

    weight: float [V, H]. bias: float [V] or None. softcap: Gemma 2's `final_logit_softcapping`. scale: e.g. 1/`logits_scaling`.
    product: how x Wᵀ + b is computed.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = torch.nn.functional.linear

    def logits(self, hidden: Tensor, part: slice = slice(None)) -> Tensor:
        """Return logits [N, V] of hidden states [N, H], float32 at least. part: of the vocabulary, V of it."""
        logits = self.product(hidden, self.weight[part], None if self.bias is None else self.bias[part])
        return self.shaped(logits)

    def shaped(self, logits: Tensor) -> Tensor:
        """Return h Wᵀ + b [N, V] scaled and capped, float32 at least."""
        logits = logits.to(_wide(logits.dtype))
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


class _ChunkedLogProbs(torch.autograd.Function):
    # The vocabulary is taken a block at a time, all tokens at once: a block's logits stay in the processor's cache through all that is
    # done with them, and a block of the head's gradient is written once. The softmax over the blocks is the online one of Milakov &
    # Gimelshein 1805.02867: what was summed so far is scaled when a larger logit comes.
    #
    # The log-prob of a token is a number, so its gradient to the hidden state is one row [H]: with a frozen head the forward makes
    # that row while it has the block's logits, and backward only scales it. A trained head's gradient sums over tokens with weights
    # that only backward knows, so there each block's logits are made again: one more product with the head buys the memory of [N, V].

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        temperature: float,
        block: int,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        frozen = learns and not any(ctx.needs_input_grad[1:3])
        dtype = _wide(hidden.dtype)
        top = hidden.new_full((len(hidden),), -math.inf, dtype=dtype)
        total, moment, chosen = (torch.zeros_like(top) for _ in range(3))
        pull = torch.zeros_like(hidden, dtype=dtype) if frozen else None  # Σ of exp(logit − top) · d logit / d h
        for part in _blocks(len(weight), block):
            logits = _tempered(head, hidden, part, temperature)
            largest = torch.maximum(top, logits.amax(-1))
            shrink, top = (top - largest).exp_(), largest
            powers = (logits - top[:, None]).exp_()
            total = total.mul_(shrink).add_(powers.sum(-1))
            moment = moment.mul_(shrink).add_(torch.linalg.vecdot(powers, logits))
            rows, columns = _inside(targets, part)
            chosen[rows] = logits[rows, columns]
            if pull is not None:
                slopes = _through(powers, logits, head, temperature).to(weight.dtype)
                pull.mul_(shrink[:, None]).add_(head.product(slopes, weight[part].t(), None))
        lse = top + total.log()
        if pull is not None:
            own = _through(torch.ones_like(chosen), chosen, head, temperature)[:, None] * weight[targets]
            ctx.save_for_backward((own - pull / total[:, None]).to(hidden.dtype))
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.frozen, ctx.head, ctx.temperature, ctx.block = frozen, head, temperature, block
        entropy = lse - moment / total
        ctx.mark_non_differentiable(entropy)
        return chosen - lse, entropy

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.frozen:
            (rows,) = ctx.saved_tensors
            return (rows * grad_out[:, None].to(rows.dtype), *[None] * 7)
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        head, temperature = ctx.head, ctx.temperature
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=_wide(hidden.dtype)) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        for part in _blocks(len(weight), ctx.block):
            logits = _tempered(head, hidden, part, temperature)
            slopes = (logits - lse[:, None]).exp_().mul_(-grad_out[:, None])
            rows, columns = _inside(targets, part)
            slopes[rows, columns] += grad_out[rows]
            slopes = _through(slopes, logits, head, temperature).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden += head.product(slopes, weight[part].t(), None)
            if grad_weight is not None:
                torch.mm(slopes.T, hidden, out=grad_weight[part])
            if grad_bias is not None:
                grad_bias[part] = slopes.sum(0, dtype=_wide(slopes.dtype))
        return grad_hidden.to(hidden.dtype) if grad_hidden is not None else None, grad_weight, grad_bias, *[None] * 5


def _blocks(vocabulary: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, vocabulary)) for start in range(0, vocabulary, block))


def _inside(targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Return which targets lie in this part of the vocabulary, and where in it."""
    rows = ((targets >= part.start) & (targets < part.stop)).nonzero().squeeze(1)
    return rows, targets[rows] - part.start


def _tempered(head: Head, hidden: Tensor, part: slice, temperature: float) -> Tensor:
    logits = head.logits(hidden, part)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _through(slopes: Tensor, logits: Tensor, head: Head, temperature: float) -> Tensor:
    """Return slopes · d logit / d (h Wᵀ + b), in the memory of slopes. logits: as slopes, divided by the temperature."""
    if head.scale != temperature:
        slopes *= head.scale / temperature
    if head.softcap:
        slopes *= 1 - (logits * (temperature / head.softcap)) ** 2
    return slopes


def token_logprobs(
    hidden: Tensor, head: Head, ids: Tensor, parent: Tensor, mask: Tensor, *, temperature: float, block: int
) -> tuple[Tensor, Tensor]:
    """Return (logprobs, entropy) of the counted tokens, each [B, T], float32 at least, 0 where mask is False.

    hidden: float [B, T, H], the model's last hidden states. ids, parent: int64 [B, T]. mask: bool [B, T], True = counts.
    temperature: the logits are divided by it, as in sampling. block: entries of the vocabulary whose logits are held at
    once, the same for any number of tokens, so that a token's company does not change its sum. Nats. The entropy carries no gradient.
    Source: log-softmax; chunking after Hsu et al. 2024 (Liger), here in plain PyTorch. Differs: by the vocabulary.
    """
    check_shapes("B T", ids=ids, parent=parent, mask=mask)
    if hidden.shape[:2] != ids.shape:
        raise ShapeError(f"hidden is {list(hidden.shape)} but ids is {list(ids.shape)}; the first two should be equal")
    rows = predicting(hidden, parent, mask)
    values, entropies = _ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        rows, head.weight, head.bias, ids[mask], head, temperature, block, torch.is_grad_enabled() and rows.requires_grad
    )
    zeros = torch.zeros(ids.shape, dtype=values.dtype, device=hidden.device)
    return zeros.masked_scatter(mask, values), zeros.masked_scatter(mask, entropies)


def logprobs_from_logits(logits: Tensor, ids: Tensor, parent: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """Return the same log-probs from whole logits [B, T, V]: the plain way, for comparison and small models.

    Source: `maths.md` 1.1. Differs: column 0 is there and masked (one index).
    """
    check_shapes("B T", ids=ids, parent=parent, mask=mask)
    rows = predicting(logits, parent, mask).to(_wide(logits.dtype)) / temperature
    values = rows.log_softmax(-1).gather(1, ids[mask][:, None]).squeeze(1)
    return torch.zeros(ids.shape, dtype=values.dtype, device=logits.device).masked_scatter(mask, values)
