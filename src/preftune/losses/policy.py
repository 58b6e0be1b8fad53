"""PPO's two losses, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.tensors import check_shapes


def policy_ratio(logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return exp(logprobs − behaviour_logprobs), 1 where mask is False; all [S, N]."""
    check_shapes("S N", logprobs=logprobs, behaviour_logprobs=behaviour_logprobs, mask=mask)
    return torch.where(mask, logprobs - behaviour_logprobs, 0.0).exp()


def clipped_surrogate(logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float) -> Tensor:
    """Return max(−A ρ, −A clip(ρ, 1−ε, 1+ε)), the loss of each token, [S, N].

    logprobs, behaviour_logprobs: float [S, N], nats; ρ = exp of their difference. advantages: float [S, N], detached.
    mask: bool [S, N], True = counts; 0 gradient where it is False. clip_range ε: half-width of the allowed ratio.
    Source: Schulman et al. 1707.06347, eq. 7. Differs: none.
    """
    check_shapes("S N", logprobs=logprobs, behaviour_logprobs=behaviour_logprobs, advantages=advantages, mask=mask)
    ratio = policy_ratio(logprobs, behaviour_logprobs, mask)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.where(mask, torch.maximum(-advantages * ratio, -advantages * clipped), 0.0)


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


def clip_fraction(ratio: Tensor, mask: Tensor, *, clip_range: float) -> Tensor:
    """Return the share of counted tokens whose ratio is outside [1−ε, 1+ε]."""
    outside = ((ratio - 1).abs() > clip_range) & mask
    return outside.sum() / mask.sum().clamp(min=1)
