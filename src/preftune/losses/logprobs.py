"""Token log-probs from hidden states, without a [tokens × vocabulary] tensor, forward or backward.

The shift happens here and nowhere else, as a gather by `parent`: the place of the token that predicts token t.
"""

from __future__ import annotations

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
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [N, V] of hidden states [N, H], float32 at least."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        logits = logits.to(_wide(logits.dtype)) * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


class _ChunkedLogProbs(torch.autograd.Function):
    # The log-prob of a token is a number, so its gradient to the hidden state is one row [H]: with a frozen head the forward makes
    # that row while it has the chunk's logits, and backward only scales it. A trained head's gradient sums over tokens with weights
    # that only backward knows, so there each chunk's logits are made again: one more product with the head buys the memory of [N, V].

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        temperature: float,
        chunk: int,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        out = hidden.new_empty(len(hidden), dtype=_wide(hidden.dtype))
        entropy, lse = torch.empty_like(out), torch.empty_like(out)
        frozen = learns and not any(ctx.needs_input_grad[1:3])
        rows = torch.empty_like(hidden) if frozen else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = head.logits(hidden[part]) / temperature
            top = logits.amax(-1)
            powers = (logits - top[:, None]).exp_()
            total = powers.sum(-1)
            lse[part] = top + total.log()
            out[part] = logits.gather(1, targets[part, None]).squeeze(1) - lse[part]
            entropy[part] = lse[part] - torch.linalg.vecdot(powers, logits) / total
            if rows is not None:
                slopes = _slopes(powers.div_(total[:, None]), logits, targets[part], head, temperature)
                rows[part] = (slopes.to(weight.dtype) @ weight).to(hidden.dtype)
        if frozen:
            ctx.save_for_backward(rows)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.frozen, ctx.head, ctx.temperature, ctx.chunk = frozen, head, temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return out, entropy

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.frozen:
            (rows,) = ctx.saved_tensors
            return (rows * grad_out[:, None].to(rows.dtype), *[None] * 7)
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        head, temperature, chunk = ctx.head, ctx.temperature, ctx.chunk
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if wants_bias else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = head.logits(hidden[part]) / temperature
            probs = (logits - lse[part, None]).exp_()
            slopes = _slopes(probs, logits, targets[part], head, temperature)
            grad_logits = slopes.mul_(grad_out[part, None]).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (grad_logits @ weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=grad_bias.dtype)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            *[None] * 5,
        )


def _slopes(probs: Tensor, logits: Tensor, targets: Tensor, head: Head, temperature: float) -> Tensor:
    """Return d log-prob / d (h Wᵀ + b), float [n, V], in the memory of probs. logits: [n, V], divided by the temperature."""
    slopes = probs.neg_()
    slopes.scatter_add_(1, targets[:, None], torch.ones_like(slopes[:, :1]))
    slopes *= head.scale / temperature
    if head.softcap:
        slopes *= 1 - (logits * (temperature / head.softcap)) ** 2
    return slopes


def token_logprobs(
    hidden: Tensor, head: Head, ids: Tensor, parent: Tensor, mask: Tensor, *, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return (logprobs, entropy) of the counted tokens, each [B, T], float32 at least, 0 where mask is False.

    hidden: float [B, T, H], the model's last hidden states. ids, parent: int64 [B, T]. mask: bool [B, T], True = counts.
    temperature: the logits are divided by it, as in sampling. chunk_tokens: rows of logits held at once. Nats. The entropy
    carries no gradient.
    Source: log-softmax; chunking as in Hsu et al. 2024 (Liger), here in plain PyTorch. Differs: none.
    """
    check_shapes("B T", ids=ids, parent=parent, mask=mask)
    if hidden.shape[:2] != ids.shape:
        raise ShapeError(f"hidden is {list(hidden.shape)} but ids is {list(ids.shape)}; the first two should be equal")
    rows = predicting(hidden, parent, mask)
    values, entropies = _ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        rows, head.weight, head.bias, ids[mask], head, temperature, chunk_tokens, torch.is_grad_enabled() and rows.requires_grad
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
