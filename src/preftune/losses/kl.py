"""Estimators of KL(policy‖reference) from sampled tokens (Schulman's note "Approximating KL divergence", 2020).

As a *reward* (detached) k1 is the right one: its policy gradient is that of the KL; k2 and k3 there aim at something else. As a *loss*
k1's expected gradient is 0, k2's is that of the KL and k3's that of the other direction, KL(reference‖policy). Token by token even k2
forgets what a token does to the later ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from preftune.tensors import check_shapes


def k1(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return log π − log ref of each token, nats, [S, N]: unbiased, of any sign; 0 where mask is False."""
    check_shapes("S N", logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    return torch.where(mask, logprobs - ref_logprobs, 0.0)


def k2(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return u²/2 with u = log π − log ref of each token, nats, [S, N]: never negative and biased, but its slope is the KL's."""
    return 0.5 * k1(logprobs, ref_logprobs, mask) ** 2


def k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return e^{−u} − 1 + u with u = log π − log ref of each token, nats, [S, N]: unbiased and never negative.

    u is held within ±20, since e^{−u} explodes where the reference is far above the policy.
    """
    u = k1(logprobs, ref_logprobs, mask).clamp(-20, 20)
    return torch.expm1(-u) + u


def adapt_kl_coef(kl_coef: float, kl: float, *, target: float, num_episodes: int, horizon: int) -> float:
    """Return kl_coef · (1 + clip(kl/target − 1, −0.2, 0.2) · num_episodes/horizon).

    kl: mean over answers of the summed KL, nats. Source: Ziegler et al. 1909.08593 §2.2 and code. Differs: none.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_episodes / horizon)
