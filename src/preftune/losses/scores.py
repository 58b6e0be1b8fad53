"""From a reward's raw scores to those that are learned from: their unit, their bounds, and what an answer without an end gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.tensors import check_shapes


@dataclass(frozen=True)
class Moments:
    """count of values, their mean, and the sum of their squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """The sample's sd (divided by count − 1); 0 of fewer than two."""
        return float((self.squares / (self.count - 1)) ** 0.5) if self.count > 1 else 0.0


def with_values(before: Moments, values: Tensor) -> Moments:
    """Return the moments of all values seen before and of these, float [S].

    Source: Chan, Golub & LeVeque 1983, eqs. 1.5a and b. Differs: none.
    """
    new = values.double()
    if not len(new):
        return before
    mean, count = float(new.mean()), before.count + len(new)
    apart = mean - before.mean
    squares = before.squares + float(((new - mean) ** 2).sum()) + apart**2 * before.count * len(new) / count
    return Moments(count, before.mean + apart * len(new) / count, squares)


def replace_missing_end(scores: Tensor, finished: Tensor, *, no_eos_score: float) -> Tensor:
    """Return the scores [S] with no_eos_score in place of those of completions that did not end by themselves.

    Source: Huang et al. 2403.17031, detail 16 (they set −1). Differs: none.
    """
    check_shapes("S", scores=scores, finished=finished)
    return torch.where(finished, scores, no_eos_score)


def add_missing_end(scores: Tensor, finished: Tensor, *, no_eos_score: float) -> Tensor:
    """Return the scores [S] with no_eos_score added where a completion did not end by itself: the better of them stay the better."""
    check_shapes("S", scores=scores, finished=finished)
    return torch.where(finished, scores, scores + no_eos_score)
