"""The losses of `preftune train dpo` by name: the formula, the keys it takes with their defaults, and what it needs.

A new loss is a function in `losses/preference.py`, and a name and an entry here. docs/losses.md says which to take when.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.losses import preference as p
from preftune.stages.preference_data import Data

LossName = Literal[
    "dpo", "cdpo", "robust", "ipo", "ipo_sum", "hinge", "dpop", "rpo", "ln_dpo", "ld_dpo", "bco", "exo", "apo_zero", "apo_down", "aot",
    "simpo", "cpo", "orpo", "odpo", "rao_kupper", "davidson", "kto", "plackett_luce",
]  # fmt: skip
Two = tuple[Tensor, Tensor]
RAO_KUPPER_NU, DAVIDSON_NU = 3.0, 1.0  # either gives two equal answers an even chance of a tie, as in 2409.17431


@dataclass(frozen=True)
class Settings:
    """The numbers of a loss; one that it does not take is nan, so that a formula which reads it shows."""

    beta: float = math.nan
    label_smoothing: float = math.nan
    gamma: float = math.nan
    alpha: float = math.nan
    nll_weight: float = 0.0


@dataclass(frozen=True)
class Scored:
    """What a loss may look at: the answers of one micro-batch in their order, a pair as chosen, rejected.

    sums, ref_sums: float [S], log π and log ref summed over an answer's tokens, nats. lengths: int64 [S], tokens. moment: float [G], what
    was measured over the whole step's batch before it, for each row (see LossKind). Of each row, [G]: strengths, desirable (bool), and
    ranks, int64 [G, K], 1 = best, 0 = there is no answer. G is the number of rows: pairs, rankings or single answers.
    """

    sums: Tensor
    ref_sums: Tensor
    lengths: Tensor
    moment: Tensor
    strengths: Tensor
    desirable: Tensor
    ranks: Tensor

    @property
    def logratios(self) -> Tensor:
        """log π − log ref, [S]."""
        return self.sums - self.ref_sums

    @property
    def means(self) -> Tensor:
        """log π a token, [S]."""
        return self.sums / self.lengths

    @property
    def mean_logratios(self) -> Tensor:
        """log π − log ref a token, [S]."""
        return self.logratios / self.lengths

    @property
    def tied(self) -> Tensor:
        """Whether the two answers of each pair were called alike, bool [P]."""
        return self.ranks[:, 0] == self.ranks[:, 1]

    def rows(self, values: Tensor) -> Tensor:
        """Return the values of all answers as [G, K], 0 where there is no answer."""
        present = self.ranks > 0
        return torch.zeros(present.shape, dtype=values.dtype, device=values.device).masked_scatter(present, values)

    @property
    def pairs(self) -> Two:
        """The log-ratios of the chosen and of the rejected answers, each [P]."""
        return two(self.logratios)


def two(values: Tensor) -> Two:
    """Return what belongs to the chosen and what to the rejected answers."""
    return values[0::2], values[1::2]


def margins(values: Tensor) -> Tensor:
    """Return chosen − rejected, [P]."""
    return values[0::2] - values[1::2]


@dataclass(frozen=True)
class LossKind:
    """A loss as the stage sees it.

    values: the unreduced loss, one value a row, without the NLL term that losses of pairs may have beside it. keys: those it takes, with
    their defaults; nll_weight: the default of that one. start: the value where policy and reference are the same (None: it depends on the
    data). rewards: of each answer; their differences, times beta, are the margins that are logged. reference: whether there is one.
    moment: what is measured over the whole batch before a step: "shift", the mean reward of all steps before; "matched", reference
    margins by rank; "kl", the log-ratio of answers to other prompts. data: what it learns from (`preference_data.py`).
    """

    values: Callable[[Scored, Settings], Tensor]
    keys: dict[str, float]
    start: Callable[[Settings], float] | None = lambda k: math.log(2)
    rewards: Callable[[Scored], Tensor] = lambda s: s.logratios
    nll_weight: float = 0.0
    reference: bool = True
    moment: Literal["shift", "matched", "kl"] | None = None
    data: Data = "pairs"

    @property
    def defaults(self) -> dict[str, float]:
        """Every key that the loss takes, with its default. An NLL term needs a chosen answer in every row."""
        return {**self.keys, "nll_weight": self.nll_weight} if self.data in ("pairs", "strengths") else self.keys


def _dpo(s: Scored, k: Settings) -> Tensor:
    return p.dpo(*s.pairs, beta=k.beta, label_smoothing=k.label_smoothing)


def _nothing_apart(formula: Callable[..., Tensor], **settings: float) -> float:
    """Return a loss of two answers whose log-ratios are 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    return float(formula(zero, zero, **settings))


LOSSES: dict[str, LossKind] = {
    "dpo": LossKind(_dpo, {"beta": 0.1, "label_smoothing": 0.0}),
    "cdpo": LossKind(_dpo, {"beta": 0.1, "label_smoothing": 0.1}),
    "robust": LossKind(
        lambda s, k: p.robust_dpo(*s.pairs, beta=k.beta, label_smoothing=k.label_smoothing), {"beta": 0.1, "label_smoothing": 0.1}
    ),
    "ipo": LossKind(
        lambda s, k: p.ipo(*two(s.mean_logratios), tau=k.beta),
        {"beta": 1.0},
        start=lambda k: 0.25 / k.beta**2,
        rewards=lambda s: s.mean_logratios,
    ),
    "ipo_sum": LossKind(lambda s, k: p.ipo(*s.pairs, tau=k.beta), {"beta": 0.1}, start=lambda k: 0.25 / k.beta**2),
    "hinge": LossKind(lambda s, k: p.hinge(*s.pairs, beta=k.beta), {"beta": 0.1}, start=lambda k: 1.0),
    "dpop": LossKind(lambda s, k: p.dpop(*s.pairs, beta=k.beta, penalty=k.alpha), {"beta": 0.3, "alpha": 50.0}),
    "rpo": LossKind(_dpo, {"beta": 0.1, "label_smoothing": 0.0}, nll_weight=1.0),
    "ln_dpo": LossKind(
        lambda s, k: p.dpo(*two(s.mean_logratios), beta=k.beta, label_smoothing=k.label_smoothing),
        {"beta": 5.0, "label_smoothing": 0.0},
        rewards=lambda s: s.mean_logratios,
    ),
    "ld_dpo": LossKind(_dpo, {"beta": 0.1, "label_smoothing": 0.0, "alpha": 0.5}),
    "bco": LossKind(
        lambda s, k: p.bco(*s.pairs, beta=k.beta, shift=s.moment), {"beta": 0.1}, start=lambda k: 2 * math.log(2), moment="shift"
    ),
    "exo": LossKind(
        lambda s, k: p.exo(*s.pairs, beta=k.beta, label_smoothing=k.label_smoothing),
        {"beta": 0.1, "label_smoothing": 0.01},
        start=lambda k: _nothing_apart(p.exo, beta=k.beta, label_smoothing=k.label_smoothing),
    ),
    "apo_zero": LossKind(lambda s, k: p.apo_zero(*s.pairs, beta=k.beta), {"beta": 0.1}, start=lambda k: 1.0),
    "apo_down": LossKind(lambda s, k: p.apo_down(*s.pairs, beta=k.beta), {"beta": 0.1}, start=lambda k: 1.0),
    "aot": LossKind(lambda s, k: p.aot(margins(s.sums), s.moment, beta=k.beta), {"beta": 0.1}, moment="matched"),
    "simpo": LossKind(
        lambda s, k: p.simpo(*two(s.means), beta=k.beta, gamma=k.gamma),
        {"beta": 2.0, "gamma": 1.0},
        rewards=lambda s: s.means,
        reference=False,
    ),
    "cpo": LossKind(
        lambda s, k: p.cpo(*two(s.sums), beta=k.beta, label_smoothing=k.label_smoothing),
        {"beta": 0.1, "label_smoothing": 0.0},
        rewards=lambda s: s.sums,
        nll_weight=1.0,
        reference=False,
    ),
    "orpo": LossKind(
        lambda s, k: k.beta * p.orpo(*two(s.means)), {"beta": 0.1}, rewards=lambda s: s.means, nll_weight=1.0, reference=False
    ),
    "odpo": LossKind(
        lambda s, k: p.offset_dpo(*s.pairs, s.strengths, beta=k.beta, gamma=k.gamma),
        {"beta": 0.1, "gamma": 0.3},
        start=None,
        data="strengths",
    ),
    "rao_kupper": LossKind(
        lambda s, k: p.rao_kupper_dpo(*s.pairs, s.tied, beta=k.beta, nu=RAO_KUPPER_NU), {"beta": 0.1}, start=None, data="ties"
    ),
    "davidson": LossKind(
        lambda s, k: p.davidson_dpo(*s.pairs, s.tied, beta=k.beta, nu=DAVIDSON_NU), {"beta": 0.1}, start=None, data="ties"
    ),
    "kto": LossKind(
        lambda s, k: p.kto(s.logratios, s.desirable, s.moment, beta=k.beta), {"beta": 0.1}, start=lambda k: 0.5, moment="kl", data="answers"
    ),
    "plackett_luce": LossKind(
        lambda s, k: p.plackett_luce_dpo(s.rows(s.logratios), s.ranks, beta=k.beta), {"beta": 0.1}, start=None, data="rankings"
    ),
}
# What the same is called elsewhere.
ALSO_CALLED = {
    "sigmoid": "dpo", "exo_pair": "exo", "bco_pair": "bco", "sigmoid_norm": "ln_dpo", "sft": "rpo", "slic": "hinge", "smaug": "dpop",
}  # fmt: skip
