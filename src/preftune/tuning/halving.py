"""Successive halving, the bookkeeping alone: how many trials on which share of the data, and which go on.

    trials 27, eta 3:   27 on 1/9 of the pairs  →  the best 9 on 1/3  →  the best 3 on all

Each rung costs about as much as three whole trainings, so 27 settings are tried for the price of nine.
Source: Jamieson & Talwalkar 1502.07943; Li et al. 1603.06560 (one bracket of Hyperband). Differs: the last rung keeps up to eta
trials instead of one, since the choice among them needs measures that are too dear for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preftune.errors import ConfigError

ETA = 3


@dataclass(frozen=True)
class Rung:
    """How many trials are trained, and on which share of the pairs."""

    trials: int
    share: float


def rungs(trials: int, *, smallest_share: float) -> tuple[Rung, ...]:
    """Return the rungs for so many trials: three times fewer on each, on three times the share, the last of at most three on all.

    smallest_share: below it a training says nothing; rungs that would lie there are left out. Raises ConfigError for fewer than one.
    """
    if trials < 1 or not 0 < smallest_share <= 1:
        raise ConfigError(f"{trials} trials from a share of {smallest_share:g}", "tune", "Give 1 or more trials.")
    counts = [trials]
    while counts[-1] > ETA:
        counts.append(-(-counts[-1] // ETA))
    shares = [max(smallest_share, ETA ** -(len(counts) - 1 - place)) for place in range(len(counts))]
    # Of rungs on the same share the last alone would learn nothing new from training again: the first is kept, with all its trials.
    return tuple(Rung(n, share) for place, (n, share) in enumerate(zip(counts, shares, strict=True)) if share not in shares[:place])


def cost(ladder: Sequence[Rung]) -> float:
    """Return what the rungs cost, in trainings on all pairs."""
    return sum(rung.trials * rung.share for rung in ladder)


def affordable(most: int, whole_trainings: float, *, smallest_share: float) -> int:
    """Return how many of at most `most` trials a budget of so many whole trainings pays for; at least one is always tried."""
    fitting = [n for n in range(1, most + 1) if cost(rungs(n, smallest_share=smallest_share)) <= whole_trainings]
    return max(fitting, default=1)


def survivors(scores: Sequence[tuple[float, ...]], keep: int) -> list[int]:
    """Return the places of the `keep` best scores (larger is better, compared part by part), in their order; ties go to the first."""
    ranked = sorted(range(len(scores)), key=lambda place: ([-part for part in scores[place]], place))
    return sorted(ranked[:keep])
