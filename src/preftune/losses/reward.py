"""Losses of the reward model."""

from __future__ import annotations

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


def centring(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Return (r_chosen + r_rejected)², which fixes the constant that Bradley–Terry leaves free, one value a pair.

    Source: Eisenstein et al. 2312.09244. Weighted by a small coefficient (0.01) in the stage.
    """
    check_shapes("P", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return (chosen_scores + rejected_scores) ** 2


def accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Return 1 where chosen scores higher, 0.5 for an exact tie, 0 otherwise: one value a pair, no gradient."""
    check_shapes("P", chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return (torch.sign(chosen_scores - rejected_scores).detach() + 1) / 2
