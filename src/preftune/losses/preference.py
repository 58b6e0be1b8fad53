"""Losses straight from preferences: DPO and its kin, one function each.

Most take the log-ratios log π(y|x) − log ref(y|x) of the chosen and the rejected answer, nats, summed over an answer's tokens; those that
need means over the tokens, or no reference at all, say so. All are unreduced: one value a pair (or an answer, or a ranking).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.losses.reward import davidson, plackett_luce, rao_kupper
from preftune.tensors import check_shapes


def dpo(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Return −(1−ε) log σ(β D) − ε log σ(−β D), D = chosen − rejected log-ratio, one value a pair.

    chosen_logratios, rejected_logratios: float [P], log π(y|x) − log ref(y|x), *summed* over the answer's tokens, nats. Given as means
    over the tokens it is length-normalised DPO, whose β is 10 to 100 times as large.
    beta: strength of the pull to the reference. label_smoothing ε: the share of flipped labels (0 = DPO, above 0 = cDPO).
    Source: Rafailov et al. 2305.18290, eq. 7; cDPO: Mitchell's note of 2023. Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    margin = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def robust_dpo(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Return [−(1−ε) log σ(β D) + ε log σ(−β D)] / (1 − 2ε): unbiased for DPO on clean labels where a share ε is flipped, one value a pair.

    Log-ratios: float [P], summed, nats. label_smoothing ε: below ½. The value of a single pair may be below 0.
    Source: Chowdhury et al. 2403.00409 (robust DPO). Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    margin = beta * (chosen_logratios - rejected_logratios)
    return (-(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)) / (1 - 2 * label_smoothing)


def ipo(chosen_logratios: Tensor, rejected_logratios: Tensor, *, tau: float) -> Tensor:
    """Return (D − 1/(2τ))², one value a pair: it pulls the margin to a finite goal, so certain preferences do not run away.

    Log-ratios: float [P], nats. The paper writes sums over the tokens; its results come from *means* over them (as its authors told the
    makers of TRL). With means 1/(2τ) is a gap of nats a token, with sums of nats an answer: the τ that fits differs.
    Source: Azar et al. 2310.12036, eq. 17. Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return (chosen_logratios - rejected_logratios - 1 / (2 * tau)) ** 2


def hinge(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Return max(0, 1 − β D), one value a pair: a pair that is 1/β nats apart teaches nothing more.

    Log-ratios: float [P], summed, nats. Source: Zhao et al. 2305.10425 (SLiC-HF). Differs: on log-ratios to the reference, as Liu et al.
    2309.06657 (RSO) write it, where SLiC-HF compares the policy's log-probs alone.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return relu(1 - beta * (chosen_logratios - rejected_logratios))


def dpop(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, penalty: float) -> Tensor:
    """Return −log σ(β (D − λ max(0, −h_chosen))), one value a pair: DPO that pays where the chosen answer gets less likely.

    Log-ratios h: float [P], summed, nats. penalty λ: what a nat of that costs, in nats of margin.
    Source: Pal et al. 2402.13228 (Smaug). Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return -logsigmoid(beta * (chosen_logratios - rejected_logratios - penalty * relu(-chosen_logratios)))


def offset_dpo(chosen_logratios: Tensor, rejected_logratios: Tensor, strengths: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Return −log σ(β D − γ s), one value a pair: the clearer the preference, the wider the margin that is asked for.

    Log-ratios: float [P], summed, nats. strengths s: float [P], 0 = hardly any. gamma γ: margin a unit of strength.
    Source: Amini et al. 2402.10571 (ODPO). Differs: the offset is linear in the strength, which is a rater's word and no score.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios, strengths=strengths)
    return -logsigmoid(beta * (chosen_logratios - rejected_logratios) - gamma * strengths)


def bco(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, shift: float | Tensor) -> Tensor:
    """Return −log σ(β h_chosen − δ) − log σ(δ − β h_rejected), one value a pair: a classifier of good and bad answers.

    Log-ratios h: float [P], summed, nats. shift δ: the running mean of the rewards β h of both sides, without gradient.
    Source: Jung et al. 2404.04656. Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return -logsigmoid(beta * chosen_logratios - shift) - logsigmoid(shift - beta * rejected_logratios)


def exo(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Return KL((σ(βD), σ(−βD)) ‖ (1−ε, ε)), one value a pair: DPO's divergence the other way round.

    Log-ratios: float [P], summed, nats. label_smoothing ε: above 0, else the divergence is infinite.
    Source: Ji et al. 2402.00856 (EXO), eq. 16, for two answers. Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    margin = beta * (chosen_logratios - rejected_logratios)
    right = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-label_smoothing))
    return right + (-margin).sigmoid() * (logsigmoid(-margin) - math.log(label_smoothing))


def apo_zero(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Return 1 − σ(β h_chosen) + σ(β h_rejected), one value a pair: chosen up and rejected down, each for itself.

    Log-ratios h: float [P], summed, nats. For chosen answers that are better than what the model writes.
    Source: D'Oosterlinck et al. 2408.06266, eq. 7. Differs: 1 is added, so that it is never below 0.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return (-beta * chosen_logratios).sigmoid() + (beta * rejected_logratios).sigmoid()


def apo_down(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Return 1 + σ(β h_chosen) − σ(β D), one value a pair: both down, the rejected one further.

    Log-ratios h: float [P], summed, nats. For chosen answers that are worse than what the model writes.
    Source: D'Oosterlinck et al. 2408.06266, eq. 8. Differs: 1 is added, so that it is never below 0.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    return (beta * chosen_logratios).sigmoid() + (-beta * (chosen_logratios - rejected_logratios)).sigmoid()


def matched_by_rank(margins: Tensor, others: Tensor) -> Tensor:
    """Return others in the order in which each stands beside the margin of its own rank: smallest by smallest, and so on, [P].

    AOT is DPO on margins and the others so matched: margins u = log π(chosen) − log π(rejected), others v the same under the reference,
    both of the *whole* batch. Ties keep their order. No gradient passes.
    Source: Melnyk et al. 2406.05882 (paired). Differs: none.
    """
    check_shapes("P", margins=margins, others=others)
    matched = torch.empty_like(others)
    matched[margins.detach().argsort(stable=True)] = others.detach().sort(stable=True).values
    return matched


def aot(margins: Tensor, matched_ref_margins: Tensor, *, beta: float) -> Tensor:
    """Return −log σ(β (u − v)), one value a pair: the distribution of margins shall lie above the reference's, rank by rank.

    margins u: float [P], log π(chosen) − log π(rejected), summed. matched_ref_margins v: what `matched_by_rank` gave for the whole batch.
    Source: Melnyk et al. 2406.05882, with the logistic loss. Differs: none.
    """
    check_shapes("P", margins=margins, matched_ref_margins=matched_ref_margins)
    return -logsigmoid(beta * (margins - matched_ref_margins))


def simpo(chosen_means: Tensor, rejected_means: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Return −log σ(β M_chosen − β M_rejected − γ), one value a pair; there is no reference.

    Means M: float [P], log π(y|x) divided by the number of the answer's tokens, its end token included. gamma γ: the gap asked for, in
    the unit of the reward β M (some code takes γ/β). Source: Meng et al. 2405.14734, eq. 6. Differs: none.
    """
    check_shapes("P", chosen_means=chosen_means, rejected_means=rejected_means)
    return -logsigmoid(beta * (chosen_means - rejected_means) - gamma)


def cpo(chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Return −(1−ε) log σ(β G) − ε log σ(−β G), G = S_chosen − S_rejected, one value a pair; there is no reference.

    Log-probs S: float [P], log π(y|x), summed over the answer's tokens, nats. The paper adds the chosen answer's `nll`.
    Source: Xu et al. 2401.08417, eq. 3. Differs: none.
    """
    check_shapes("P", chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    return dpo(chosen_logprobs, rejected_logprobs, beta=beta, label_smoothing=label_smoothing)


def orpo(chosen_means: Tensor, rejected_means: Tensor) -> Tensor:
    """Return −log σ(log odds(chosen) − log odds(rejected)), odds = p/(1−p) with p = e^M, one value a pair; there is no reference.

    Means M: float [P], log π(y|x) divided by the number of tokens, nats. The paper's loss is the chosen answer's `nll` plus λ times this.
    Source: Hong et al. 2403.07691, eq. 7. Differs: an answer that is all but certain (M above −ε of its dtype) has the odds of M = −ε.
    """
    check_shapes("P", chosen_means=chosen_means, rejected_means=rejected_means)
    return -logsigmoid(_log_odds(chosen_means) - _log_odds(rejected_means))


def _log_odds(means: Tensor) -> Tensor:
    wide = means.to(torch.promote_types(means.dtype, torch.float32))
    held = wide.clamp(max=-torch.finfo(wide.dtype).eps)  # at 0 the odds are infinite, and so is their slope
    return held - torch.log(-torch.expm1(held))


def nll(chosen_means: Tensor) -> Tensor:
    """Return −M_chosen, the chosen answer's negative log-likelihood, nats a token, one value a pair.

    Means M: float [P], log π(y|x) divided by the number of tokens. Added with a weight it keeps the chosen answer likely.
    Source: Pang et al. 2404.19733 (others call it RPO). Differs: none; TRL takes the mean over the batch's tokens instead.
    """
    check_shapes("P", chosen_means=chosen_means)
    return -chosen_means


def length_desensitised(logprobs: Tensor, mask: Tensor, shared: Tensor, *, tail_weight: float) -> Tensor:
    """Return Σ of each answer's first `shared` log-probs + a · Σ of the rest, [S]: what DPO then takes in place of plain sums.

    logprobs: float [S, N], left-aligned. mask: bool [S, N], True = counts. shared: int64 [S], the length of the shorter answer of the
    pair. tail_weight a: 1 = plain sums, 0 = the longer answer is cut to the shorter one's length.
    Source: Liu et al. 2409.06411 (LD-DPO). Differs: none.
    """
    check_shapes("S N", logprobs=logprobs, mask=mask)
    check_shapes("S", **{"logprobs[:, 0]": logprobs[:, 0], "shared": shared})
    place = torch.arange(logprobs.shape[1], device=logprobs.device)
    counted = torch.where(mask, logprobs, 0.0)
    return torch.where(place < shared[:, None], counted, tail_weight * counted).sum(1)


def kto(logratios: Tensor, desirable: Tensor, kl: float | Tensor, *, beta: float) -> Tensor:
    """Return 1 − σ(β(h − z)) of a desirable answer and 1 − σ(β(z − h)) of another, one value an answer; nothing is paired.

    logratios h: float [S], log π(y|x) − log ref(y|x), summed, nats. desirable: bool [S]. kl z: a number, or [S]; at least 0, without
    gradient, the same for all answers of a step: the mean h of prompts with answers to *other* prompts (`kto_kl`). λ_D and λ_U are the
    weights of the division.
    Source: Ethayarajh et al. 2402.01306, eq. 7. Differs: none.
    """
    check_shapes("S", logratios=logratios, desirable=desirable)
    return torch.where(desirable, (-beta * (logratios - kl)).sigmoid(), (-beta * (kl - logratios)).sigmoid())


def kto_kl(mismatched_logratios: Tensor) -> Tensor:
    """Return max(0, mean h) over prompts with answers to other prompts: KTO's point of reference, without gradient, a scalar.

    mismatched_logratios: float [S], summed, nats. Source: Ethayarajh et al. 2402.01306. Differs: none.
    """
    check_shapes("S", mismatched_logratios=mismatched_logratios)
    return mismatched_logratios.detach().mean().clamp(min=0)


def rao_kupper_dpo(chosen_logratios: Tensor, rejected_logratios: Tensor, tied: Tensor, *, beta: float, nu: float) -> Tensor:
    """Return −log P of what was said, win or tie, by Rao and Kupper's model with d = β D, one value a pair.

    P(win) = σ(d − log ν), P(tie) = (ν² − 1) σ(d − log ν) σ(−d − log ν). Log-ratios: float [P], summed, nats. tied: bool [P], True = the two
    answers were called alike. nu ν: above 1; at d = 0 a tie has the probability (ν − 1)/(ν + 1).
    Source: Chen et al. 2409.17431 (DPO-RK); Rao & Kupper 1967. Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios, tied=tied)
    return rao_kupper(beta * chosen_logratios, beta * rejected_logratios, tied, theta=nu)


def davidson_dpo(chosen_logratios: Tensor, rejected_logratios: Tensor, tied: Tensor, *, beta: float, nu: float) -> Tensor:
    """Return −log P of what was said, win or tie, by Davidson's model with d = β D, one value a pair.

    P(win) = 1/(1 + e^{−d} + 2ν e^{−d/2}), P(tie) = 2ν e^{−d/2} P(win). Log-ratios: float [P], summed, nats. tied: bool [P], True = the two
    answers were called alike. nu ν: above 0; at d = 0 a tie has the probability ν/(1 + ν).
    Source: Chen et al. 2409.17431 (DPO-D); Davidson 1970 writes ν for this 2ν. Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios, tied=tied)
    return davidson(beta * chosen_logratios, beta * rejected_logratios, tied, nu=2 * nu)


def plackett_luce_dpo(logratios: Tensor, ranks: Tensor, *, beta: float) -> Tensor:
    """Return −log P of each ranking by Plackett and Luce's model with the rewards β h, one value a ranking, [P].

    logratios h: float [P, K], summed, nats, in any order. ranks: int64 [P, K], 1 = best, tied answers share one, 0 = there is no answer.
    Each answer is chosen before all that are ranked below it; between tied ones nothing is said. Two answers: DPO.
    Source: Rafailov et al. 2305.18290, appendix A.3. Differs: ties, which the paper has not.
    """
    check_shapes("P K", logratios=logratios, ranks=ranks)
    return plackett_luce(beta * logratios, ranks)
