"""Losses of the reward model, and how the scores of an ensemble become one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.tensors import check_shapes


def bradley_terry(chosen_scores: Tensor, rejected_scores: Tensor, *, margin: float | Tensor, label_smoothing: float) -> Tensor:
    """Return −(1−ε) log σ(d) − ε log σ(−d) with d = chosen − rejected − margin, one value a pair.

    chosen_scores, rejected_scores: float [P]. margin: the least gap wished for (0 = plain), or float [P]. label_smoothing ε: the measured
    share of judgements that are wrong. P(chosen preferred) = σ(d).
    Source: Bradley & Terry 1952; Christiano et al. 2017; margin: Llama 2 (2307.09288) §3.2.2. Differs: none.
    """
    check_shapes("P", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    if isinstance(margin, Tensor):
        check_shapes("P", chosen_scores=chosen_scores, margin=margin)
    gap = chosen_scores - rejected_scores - margin
    return -(1 - label_smoothing) * logsigmoid(gap) - label_smoothing * logsigmoid(-gap)


def robust_bradley_terry(chosen_scores: Tensor, rejected_scores: Tensor, *, margin: float | Tensor, label_smoothing: float) -> Tensor:
    """Return [−(1−ε) log σ(d) + ε log σ(−d)] / (1−2ε), one value a pair: on average over flips, the loss of the labels without them.

    As `bradley_terry` otherwise. label_smoothing ε: the measured share of flipped judgements, below 1/2. Not bounded below: one pass.
    Source: Chowdhury et al. 2403.00409, eq. 12, for a reward model. Differs: none.
    """
    right = bradley_terry(chosen_scores, rejected_scores, margin=margin, label_smoothing=0.0)
    wrong = bradley_terry(rejected_scores, chosen_scores, margin=-margin, label_smoothing=0.0)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def rao_kupper(chosen_scores: Tensor, rejected_scores: Tensor, tied: Tensor, *, theta: float) -> Tensor:
    """Return −log P of what was said, win or tie, by Rao and Kupper's model, one value a pair.

    P(win) = σ(d − log θ), P(tie) = (θ² − 1) σ(d − log θ) σ(−d − log θ), d = chosen − rejected. Scores: float [P]. tied: bool [P], True =
    the two answers were called alike. theta θ: above 1; at d = 0 a tie has the probability (θ − 1)/(θ + 1).
    Source: Rao & Kupper 1967. Differs: none.
    """
    check_shapes("P", chosen_scores=chosen_scores, rejected_scores=rejected_scores, tied=tied)
    gap, alpha = chosen_scores - rejected_scores, math.log(theta)
    win = -logsigmoid(gap - alpha)
    return torch.where(tied, win - logsigmoid(-gap - alpha) - math.log(theta**2 - 1), win)


def davidson(chosen_scores: Tensor, rejected_scores: Tensor, tied: Tensor, *, nu: float) -> Tensor:
    """Return −log P of what was said, win or tie, by Davidson's model, one value a pair.

    P(win) = 1/(1 + e^{−d} + ν e^{−d/2}), P(tie) = ν e^{−d/2} P(win), d = chosen − rejected. Scores: float [P]. tied: bool [P], True = the
    two answers were called alike. nu ν: above 0; at d = 0 a tie has the probability ν/(2 + ν).
    Source: Davidson 1970. Differs: none.
    """
    check_shapes("P", chosen_scores=chosen_scores, rejected_scores=rejected_scores, tied=tied)
    gap = chosen_scores - rejected_scores
    half = math.log(nu) - gap / 2
    win = torch.stack([torch.zeros_like(gap), -gap, half]).logsumexp(0)
    return torch.where(tied, win - half, win)


def plackett_luce(scores: Tensor, ranks: Tensor) -> Tensor:
    """Return −log P of each ranking by Plackett and Luce's model, one value a ranking, [P].

    scores: float [P, K], in any order. ranks: int64 [P, K], 1 = best, tied answers share one, 0 = there is no answer. Each answer is
    chosen before all that are ranked below it; between tied ones nothing is said. Two answers: Bradley–Terry.
    Source: Plackett 1975; for reward models Zhu et al. 2301.11270. Differs: ties, which the papers have not.
    """
    check_shapes("P K", scores=scores, ranks=ranks)
    below = ranks[:, None, :] > ranks[:, :, None]  # [P, answer, those ranked below it]
    itself = torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    present = torch.where(ranks > 0, scores, 0.0)
    rivals = torch.where(below | itself, present[:, None, :], -math.inf).logsumexp(2)
    chosen = (ranks > 0) & below.any(2)
    return torch.where(chosen, rivals - present, 0.0).sum(1)


def centring(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Return (r_chosen + r_rejected)², which fixes the constant that Bradley–Terry leaves free, one value a pair.

    Source: Eisenstein et al. 2312.09244. Weighted by a small coefficient (0.01) in the stage.
    """
    check_shapes("P", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return (chosen_scores + rejected_scores) ** 2


def ranking_centring(scores: Tensor, ranks: Tensor) -> Tensor:
    """Return (2 · mean score)² of each ranking, [P]: `centring` for K answers, and the same for two.

    scores: float [P, K]. ranks: int64 [P, K], 0 = there is no answer.
    """
    check_shapes("P K", scores=scores, ranks=ranks)
    present = ranks > 0
    return (2 * torch.where(present, scores, 0.0).sum(1) / present.sum(1)) ** 2


def accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Return 1 where chosen scores higher, 0.5 for an exact tie, 0 otherwise: one value a pair, no gradient."""
    check_shapes("P", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return (torch.sign(chosen_scores - rejected_scores).detach() + 1) / 2


def ensemble_mean(scores: Tensor, deviations: Tensor) -> Tensor:
    """Return the mean of an ensemble's scores, each member in its own sd and all in their mean sd: one score an answer, [S].

    scores: float [S, N], raw. deviations: float [N], the sd of each member's scores. A member that speaks louder counts no more.
    """
    check_shapes("S N", scores=scores)
    return (scores / deviations).mean(1) * deviations.mean()
