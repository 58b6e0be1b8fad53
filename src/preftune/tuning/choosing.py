"""Which of several measured models to take: pure arithmetic on what was measured.

What lost knowledge is out. Of the rest the largest gain wins; where the gain is no larger than chance would make it, the model that
stayed nearest to its base does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preftune.errors import DataError
from preftune.evaluate.statistics import cluster_se


@dataclass(frozen=True)
class Candidate:
    """One measured model.

    gains: what was won on each held-out item, the same items in the same order for all candidates. kl: how far it went from the
    base, nats. allowed: False where its retention is lost.
    """

    gains: tuple[float, ...]
    kl: float
    allowed: bool


def choose(candidates: Sequence[Candidate]) -> int | None:
    """Return the place of the candidate to take, or None where none is allowed.

    Those whose mean gain is within one standard error (of the paired difference) of the best allowed one's count as tied with it, and
    of these the smallest KL wins. Raises DataError where they were not measured on the same two or more items.
    Source: the one-standard-error rule of Breiman et al. 1984, §3.4.3. Differs: the error is that of the paired difference, as all
    candidates are measured on the same items; "simplest" is nearest to the base.
    """
    if len({len(c.gains) for c in candidates}) > 1 or any(len(c.gains) < 2 for c in candidates):
        sizes = ", ".join(str(len(c.gains)) for c in candidates)
        raise DataError(f"the candidates were measured on {sizes} items", "choose", "Measure all on the same two or more items.")
    allowed = [place for place, candidate in enumerate(candidates) if candidate.allowed]
    if not allowed:
        return None
    # Of two that are equally good and near, the gains themselves decide, so that the order in which they stand does not.
    best = max(allowed, key=lambda place: (np.mean(candidates[place].gains), -candidates[place].kl, candidates[place].gains))
    tied = [place for place in allowed if _is_tied(candidates[best], candidates[place])]
    return min(tied, key=lambda place: (candidates[place].kl, -np.mean(candidates[place].gains)))


def _is_tied(best: Candidate, other: Candidate) -> bool:
    behind = np.subtract(best.gains, other.gains)
    return bool(behind.mean() <= cluster_se(behind))
