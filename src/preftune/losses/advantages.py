"""From scores to advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.errors import ShapeError
from preftune.losses.kl import k1
from preftune.tensors import check_shapes


def last_token(mask: Tensor) -> Tensor:
    """Return bool [S, N], True on the last counted token of each sequence (nowhere in a row that counts nothing)."""
    after = torch.flip(torch.cumsum(torch.flip(mask.long(), [1]), 1), [1])
    return mask & (after == 1)


def token_rewards(logprobs: Tensor, ref_logprobs: Tensor, scores: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Return −kl_coef · k1 of each token, the score added on the last counted token, [S, N].

    scores: float [S], the reward model's word on each whole completion. The sum over a row is
    score − kl_coef · (log π − log ref of the completion). Source: Ziegler et al. 1909.08593, eq. 2. Differs: the score lies on the
    end token itself, not one after it.
    """
    return with_score(-kl_coef * k1(logprobs, ref_logprobs, mask), scores, mask)


def with_score(penalties: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Return the token rewards [S, N] with each completion's score added on its last counted token. scores: float [S]."""
    return penalties + torch.where(last_token(mask), scores[:, None], 0.0)


@dataclass(frozen=True)
class Estimate:
    """advantages and returns, both float [S, N] and 0 where the mask is False."""

    advantages: Tensor
    returns: Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float) -> Estimate:
    """Return generalised advantage estimates: A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t, V after the end = 0.

    rewards, values: float [S, N]; values[:, t] is the worth of the state in which token t is about to be chosen. mask: bool
    [S, N], True = counts; the counted tokens of a row lie side by side. returns = advantages + values.
    Source: Schulman et al. 1506.02438, eq. 16. Differs: none.
    """
    check_shapes("S N", rewards=rewards, values=values, mask=mask)
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(carried)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = torch.where(mask[:, t], delta + gamma * gae_lambda * carried, 0.0)
        advantages[:, t] = carried
        next_value = values[:, t]
    return Estimate(advantages, torch.where(mask, advantages + values, 0.0))


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Return (x − mean)/√(var + 1e-8) over the counted places of the whole batch, 0 elsewhere; biased variance.

    Source: `maths.md` 4.3 (Ziegler et al., code). Differs: none. The mean is not added back.
    """
    check_shapes("S N", values=values, mask=mask)
    count = mask.sum().clamp(min=1)
    mean = torch.where(mask, values, 0.0).sum() / count
    centred = torch.where(mask, values - mean, 0.0)
    return centred / (((centred**2).sum() / count) + 1e-8).sqrt()


def scale_around_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return (x − mean)/√(var + 1e-8) + mean over the counted places, 0 elsewhere: rewards keep what they are on average.

    Source: Ziegler et al. 1909.08593, code; Huang et al. 2403.17031, detail 20. Differs: none.
    """
    white = whiten(values, mask)
    mean = torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
    return torch.where(mask, white + mean, 0.0)


SD_FLOOR = 1e-4  # added to a group's sd before dividing (GRPO's code): a group that hardly differs is not blown up


def equal_groups(scores: Tensor) -> Tensor:
    """Return bool [P], True where all completions of a prompt scored the same: nothing is learned from such a group.

    scores: float [P, K], the K completions of each prompt.
    """
    _check_groups(scores)
    return scores.amax(1) == scores.amin(1)


def leave_one_out(scores: Tensor) -> Tensor:
    """Return each score less the mean of the other ones of its prompt, [P, K]: K/(K−1) · (score − mean of all K).

    scores: float [P, K], K ≥ 2. Exactly 0 in a group all equal. Raises ShapeError for K = 1, which has no others.
    Source: Ahmadian et al. 2402.14740, eq. 8. Differs: none.
    """
    _check_groups(scores)
    k = scores.shape[1]
    return torch.where(equal_groups(scores)[:, None], 0.0, (scores - scores.mean(1, keepdim=True)) * (k / (k - 1)))


def group_relative(scores: Tensor, *, scale: bool) -> Tensor:
    """Return each score less the mean of its prompt's, [P, K]; scale: divided by their sd (K−1) + 1e-4 besides.

    scores: float [P, K], K ≥ 2. Exactly 0 in a group all equal.
    Source: GRPO, Shao et al. 2402.03300 §4.1.2; without the division Dr. GRPO, 2503.20783 §3.2. Differs: none (the paper does not say
    which sd; its readers' code takes K−1).
    """
    _check_groups(scores)
    centred = torch.where(equal_groups(scores)[:, None], 0.0, scores - scores.mean(1, keepdim=True))
    return centred / (scores.std(1, keepdim=True, correction=1) + SD_FLOOR) if scale else centred


def rewards_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of each token's reward and of all later ones, [S, N], 0 where mask is False: GAE's returns at γ = λ = 1.

    Source: REINFORCE++, 2501.03262 §3. Differs: none.
    """
    check_shapes("S N", rewards=rewards, mask=mask)
    counted = torch.where(mask, rewards, 0.0)
    return torch.where(mask, torch.flip(torch.cumsum(torch.flip(counted, [1]), 1), [1]), 0.0)


def _check_groups(scores: Tensor) -> None:
    check_shapes("P K", scores=scores)
    if scores.shape[1] < 2:
        raise ShapeError(f"scores is {list(scores.shape)}: a group needs 2 completions of a prompt at least")


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return 1 − Var(returns − values)/Var(returns) over the counted places; below 0 = worse than the mean."""
    check_shapes("S N", values=values, returns=returns, mask=mask)
    target, error = returns[mask], (returns - values)[mask]
    return 1 - error.var(correction=0) / target.var(correction=0).clamp(min=1e-12)
