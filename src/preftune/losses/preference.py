"""Losses straight from pairs: DPO. (Its kin join here, one function each.)"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.tensors import check_shapes


def dpo(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Return −(1−ε) log σ(β D) − ε log σ(−β D), D = chosen − rejected log-ratio, one value a pair.

    chosen_logratios, rejected_logratios: float [P], log π(y|x) − log ref(y|x), *summed* over the answer's tokens, nats.
    beta: strength of the pull to the reference. label_smoothing ε: the share of flipped labels (0 = DPO, above 0 = cDPO).
    Source: Rafailov et al. 2305.18290, eq. 7; cDPO: Mitchell's note of 2023. Differs: none.
    """
    check_shapes("P", chosen_logratios=chosen_logratios, rejected_logratios=rejected_logratios)
    margin = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
