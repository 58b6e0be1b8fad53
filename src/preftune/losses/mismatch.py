"""How far the policy that drew the samples is from the one that learns from them, and the weight that makes up for it.

The two differ where samples are drawn with older weights, or by an engine whose arithmetic is another. μ is the policy that drew, π the
trainer's before it learns from the step. PPO's ratio stays that of the learning policy to π; the weight π/μ stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.losses.kl import k3
from preftune.tensors import check_shapes

TOO_LARGE = 1e12  # of a ratio in a sum: its square is still a number


def truncated_weights(ratio: Tensor, mask: Tensor, *, cap: float | None) -> Tensor:
    """Return min(ρ, cap) without a gradient, 1 where mask is False; all [S, N].

    ratio ρ = π/μ: of each token (`policy_ratio`), or of the whole completion where that is one action (`sequence_ratio`), which alone is
    unbiased for what a token does to later ones. cap: at least 1; None = nothing is weighed, 1 everywhere.
    Source: truncated importance sampling, Ionides 2008; for token ratios of an engine to its trainer, Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training"; before PPO's own ratio, decoupled PPO, Hilton et al. 2110.00641, eq. 3.
    Differs: none.
    """
    check_shapes("S N", ratio=ratio, mask=mask)
    return torch.where(mask, ratio.detach().clamp(max=cap), 1.0) if cap is not None else torch.ones_like(ratio)


@dataclass(frozen=True)
class Mismatch:
    """Sums over tokens, so that those of parts add up to those of the whole. largest: nats; the others as `told` divides them."""

    tokens: float = 0.0
    largest: float = 0.0
    absolute: float = 0.0
    kl: float = 0.0
    weight: float = 0.0
    squared: float = 0.0
    cut: float = 0.0

    def __add__(self, other: Mismatch) -> Mismatch:
        return Mismatch(
            self.tokens + other.tokens,
            max(self.largest, other.largest),
            self.absolute + other.absolute,
            self.kl + other.kl,
            self.weight + other.weight,
            self.squared + other.squared,
            self.cut + other.cut,
        )

    @property
    def mean(self) -> float:
        """By how much a token's two log-probs differ in the mean, nats."""
        return self.absolute / max(self.tokens, 1.0)

    def told(self) -> dict[str, float]:
        """Return the numbers for the run's metrics; see `training/metrics.py`."""
        count = max(self.tokens, 1.0)
        share = self.weight**2 / (count * self.squared) if self.squared else 1.0
        return {"mismatch/mean": self.mean, "mismatch/kl": self.kl / count, "mismatch/ess": share, "mismatch/cut": self.cut / count}


def together(found: Sequence[Mapping[tuple[int, ...], Mismatch]]) -> Mismatch:
    """Return the sum of what each process found of its micro-batches, known by their groups' places; one that two computed counts once."""
    return sum({part: one for own in found for part, one in own.items()}.values(), Mismatch())


def mismatch(logprobs: Tensor, sampled: Tensor, ratio: Tensor, mask: Tensor, *, cap: float | None) -> Mismatch:
    """Return how far π is from μ over these tokens.

    logprobs: log π, sampled: log μ, float [S, N], nats. ratio: π/μ before it is cut, as for `truncated_weights`. mask: bool [S, N], True =
    counts. The KL is μ's to π by k3, nats a token. The effective share of the samples is (Σρ)²/(n Σρ²), with ρ before it is cut: 1 where
    all weigh alike, 1/n where one weighs all (Kong 1992).
    """
    check_shapes("S N", logprobs=logprobs, sampled=sampled, ratio=ratio, mask=mask)
    gap = torch.where(mask, logprobs - sampled, 0.0).abs()
    weights = torch.where(mask, ratio, 0.0).double().clamp(max=TOO_LARGE)
    return Mismatch(
        tokens=float(mask.sum()),
        largest=float(gap.max()) if gap.numel() else 0.0,
        absolute=float(gap.double().sum()),
        kl=float(k3(sampled, logprobs, mask).double().sum()),
        weight=float(weights.sum()),
        squared=float((weights**2).sum()),
        cut=float((weights > cap).sum()) if cap is not None else 0.0,
    )
