"""PPO's two losses, token by token, and the ratios that the group methods put into the first of them."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.tensors import check_shapes


def policy_ratio(logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return exp(logprobs − behaviour_logprobs), 1 where mask is False; all [S, N]."""
    check_shapes("S N", logprobs=logprobs, behaviour_logprobs=behaviour_logprobs, mask=mask)
    return torch.where(mask, logprobs - behaviour_logprobs, 0.0).exp()


def sequence_ratio(logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, *, mean: bool) -> Tensor:
    """Return the ratio of each whole sequence, the same on all its tokens, 1 where mask is False; all [S, N].

    mean: False = exp of the sum of the tokens' log-ratios, the sequence as one action (RLOO, Ahmadian et al. 2402.14740 §3);
    True = exp of their mean (GSPO, 2507.18071, eq. 7).
    """
    check_shapes("S N", logprobs=logprobs, behaviour_logprobs=behaviour_logprobs, mask=mask)
    total = torch.where(mask, logprobs - behaviour_logprobs, 0.0).sum(1, keepdim=True)
    if mean:
        total = total / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, total, 0.0).exp()


def surrogate(ratio: Tensor, advantages: Tensor, mask: Tensor, *, clip: tuple[float, float] | None) -> Tensor:
    """Return max(−A ρ, −A clip(ρ, 1−below, 1+above)) of each token, [S, N]; with clip None, −A ρ.

    ratio ρ: of tokens or of their sequences. advantages: float [S, N], detached. mask: bool [S, N], True = counts; 0 gradient
    where it is False. clip: (below, above), how far ρ may go under and over 1.
    Source: Schulman et al. 1707.06347, eq. 7; with two sides of their own, DAPO (2503.14476, eq. 10). Differs: none.
    """
    check_shapes("S N", ratio=ratio, advantages=advantages, mask=mask)
    losses = -advantages * ratio
    if clip is not None:
        losses = torch.maximum(losses, -advantages * ratio.clamp(1 - clip[0], 1 + clip[1]))
    return torch.where(mask, losses, 0.0)


def clipped_surrogate(logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float) -> Tensor:
    """Return PPO's loss of each token, [S, N]: `surrogate` with each token's own ratio and one range for both sides.

    logprobs, behaviour_logprobs: float [S, N], nats; ρ = exp of their difference. clip_range ε: half-width of the allowed ratio.
    Source: Schulman et al. 1707.06347, eq. 7. Differs: none.
    """
    check_shapes("S N", logprobs=logprobs, behaviour_logprobs=behaviour_logprobs, advantages=advantages, mask=mask)
    return surrogate(policy_ratio(logprobs, behaviour_logprobs, mask), advantages, mask, clip=(clip_range, clip_range))


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return ½ (V−R)², the loss of each token, [S, N]: `clipped_value_loss` without a clip.

    Source: Schulman et al. 1707.06347, eq. 9, with c₁ = ½. Differs: none.
    """
    check_shapes("S N", values=values, returns=returns, mask=mask)
    return 0.5 * torch.where(mask, values - returns, 0.0) ** 2


def clipped_value_loss(values: Tensor, behaviour_values: Tensor, returns: Tensor, mask: Tensor, *, clip_range: float) -> Tensor:
    """Return ½ max((V−R)², (clip(V, V_old ± ε) − R)²), the loss of each token, [S, N].

    values: float [S, N], the critic now. behaviour_values: the critic when the answers were sampled. returns: unwhitened
    advantages + behaviour_values. mask: bool [S, N], True = counts.
    Source: Ziegler et al. 1909.08593, code; `maths.md` 4.1. Differs: none.
    """
    check_shapes("S N", values=values, behaviour_values=behaviour_values, returns=returns, mask=mask)
    near = torch.clamp(values, behaviour_values - clip_range, behaviour_values + clip_range)
    # Masked before the square: its gradient at a nan would be 0 · nan.
    error, near_error = (torch.where(mask, v - returns, 0.0) for v in (values, near))
    return 0.5 * torch.maximum(error**2, near_error**2)


def clip_fraction(ratio: Tensor, mask: Tensor, *, clip_range: float, above: float | None = None) -> Tensor:
    """Return the share of counted tokens whose ratio is outside [1−ε, 1+ε]; above: another ε for the upper side."""
    outside = ((ratio < 1 - clip_range) | (ratio > 1 + (clip_range if above is None else above))) & mask
    return outside.sum() / mask.sum().clamp(min=1)
