"""A comparison of two that may be looked at after every judgement, and stopped, without its error rate going up.

The test is by betting (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", § 4): under the
hypothesis that A's mean outcome is m, a gambler who stakes a part of the money on each outcome owns in the mean no more than at the
start, whenever one looks; the probability that it ever grows to 1/alpha times as much is at most alpha (Ville 1939).
Differs: the stakes are a mixture fixed beforehand, not adaptive; so only the counts matter, not the order of the judgements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preftune.progress import counted

ALPHA = 0.05
STAKES = (np.arange(32) + 0.5) / 32  # parts of the largest stake that cannot ruin, all alike likely, in both directions
GRID = np.linspace(0.0005, 0.9995, 1000)
MOST = 100_000  # judgements beyond which nobody is sent

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What wins, ties and losses of A say so far. rate: (wins + ties / 2) / n, with an interval that holds at every look at once.

    preferred: "A", "B", or "" where it cannot be told yet. evidence: the gambler's money, 1 at the start, against "alike".
    more: about how many further judgements it takes if all goes on as it has, None where no number up to 100,000 would do.
    """

    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float
    evidence: float
    preferred: str
    more: int | None

    @property
    def n(self) -> int:
        """The judgements counted."""
        return self.wins + self.ties + self.losses

    def __str__(self) -> str:
        seen = f"{self.wins} for A, {self.losses} for B, {counted(self.ties, 'ties')}"
        if self.preferred:
            return f"stop: {self.preferred} is preferred ({seen})"
        if not self.n:
            return "cannot tell yet: nothing has been judged"
        if self.more is None:
            return f"cannot tell ({seen}): as it goes, no number of judgements that one could ask for would tell"
        return f"cannot tell yet ({seen}): about {counted(self.more, 'more judgements')} if it goes on so"


def log_wealth(wins: float, ties: float, losses: float, mean: Floats | float) -> Floats:
    """Return log of the gambler's money [M] against each mean [M] in (0, 1), after outcomes 1 (wins), ½ (ties) and 0 (losses)."""
    m = np.atleast_1d(np.asarray(mean, dtype=np.float64))[:, None]
    stakes = np.concatenate([STAKES / m, -STAKES / (1 - m)], axis=1)
    logs = wins * np.log1p(stakes * (1 - m)) + ties * np.log1p(stakes * (0.5 - m)) + losses * np.log1p(-stakes * m)
    top = logs.max(axis=1, keepdims=True)
    result: Floats = top[:, 0] + np.log(np.exp(logs - top).mean(axis=1))
    return result


def verdict(wins: int, ties: int, losses: int, *, alpha: float = ALPHA) -> Verdict:
    """Return what may be said now, if one outcome was counted for each independent item (prompt).

    Raises ValueError where a count is negative or alpha is no probability.
    """
    if min(wins, ties, losses) < 0 or not 0 < alpha < 1:
        raise ValueError(f"{wins} wins, {ties} ties, {losses} losses at alpha = {alpha} cannot be")
    n = wins + ties + losses
    rate = (wins + ties / 2) / n if n else 0.5
    even = float(log_wealth(wins, ties, losses, 0.5)[0])
    kept = GRID[log_wealth(wins, ties, losses, GRID) < -math.log(alpha)]
    step = float(GRID[1] - GRID[0])
    low, high = (max(0.0, float(kept[0]) - step), min(1.0, float(kept[-1]) + step)) if kept.size else (rate, rate)
    told = even >= -math.log(alpha)
    preferred = ("A" if wins > losses else "B") if told else ""
    more = None if told or not n else _more(wins, ties, losses, alpha)
    return Verdict(wins, ties, losses, rate, low, high, math.exp(min(even, 700.0)), preferred, more)


def _more(wins: int, ties: int, losses: int, alpha: float) -> int | None:
    n = wins + ties + losses

    def tells(total: int) -> bool:
        factor = total / n
        return bool(log_wealth(wins * factor, ties * factor, losses * factor, 0.5)[0] >= -math.log(alpha))

    short, long = n, n
    while not tells(long):
        short, long = long, 2 * long
        if short > MOST:
            return None
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (short, middle) if tells(middle) else (middle, long)
    return long - n
