"""Whether an answer wins because of where it was shown.

Where the order is drawn at random for each rater, the first shown should win half of the strict pairs. A rater who prefers the first
whatever it says adds noise; a whole team that does adds a bias to everything that was not shown in both orders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from preftune.data.comparisons import Comparisons, Ints, by_rater
from preftune.data.intervals import Estimate, Share, Z, clustered_share, even_chance_p, exact_share

PRIOR_SD = 10.0
SURE = 0.05
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Davidson:
    """P(first), P(second), P(tie) go as exp(s_i + order / 2), exp(s_j − order / 2), tie · exp((s_i + s_j) / 2).

    strengths: of each item, log scale, mean 0. order: the log odds by which the first shown is favoured (0 = none). tie: how easily a
    tie is said (0 = never).
    """

    strengths: tuple[float, ...]
    order: Estimate
    tie: float

    @property
    def first_wins(self) -> float:
        """How often the first shown of two equal answers wins, where no tie is said."""
        return float(special.expit(self.order.value))


@dataclass(frozen=True)
class RaterPosition:
    """How often the first shown wins with one rater; biased where even chance is out, with as many raters tested as there are."""

    share: Share
    p_value: float
    biased: bool


@dataclass(frozen=True)
class Position:
    """The bias by place; None or empty where no order was recorded.

    first_wins: strict words on pairs, exact binomial interval; p_value: of "even chance". earlier_wins: each two answers of rankings of
    three and more. model: order effect with ties and, where sources are known, with each source's strength.
    """

    first_wins: Share | None = None
    p_value: float | None = None
    earlier_wins: Share | None = None
    model: Davidson | None = None
    per_rater: dict[str, RaterPosition] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return what was found as lines for a person."""
        found = []
        if self.first_wins:
            found.append(f"the answer shown first wins {self.first_wins} (p = {self.p_value:.2g} of even chance)")
        if self.earlier_wins:
            found.append(f"in rankings the answer shown earlier wins {self.earlier_wins}")
        if self.model and self.first_wins:
            low, high = (100 * float(special.expit(end)) for end in (self.model.order.low, self.model.order.high))
            between = f"95 % CI {low:.1f} to {high:.1f}"
            found.append(f"with ties and sources allowed for, the first of two equals wins {self.model.first_wins:.1%} ({between})")
        for name, one in self.per_rater.items():
            if one.biased:
                found.append(f"{name} prefers the {'first' if one.share.value > 0.5 else 'second'} shown: it is {one.share} first")
        return found


def position_bias(table: Comparisons, sources: Mapping[str, str] | None = None) -> Position:
    """Return the bias by place, overall and per rater. sources: model by candidate id; one that is not in it counts as unknown."""
    seen = table.where(table.shown != 0)
    strict = seen.where(seen.verdict != 0)
    wins = strict.verdict == strict.shown
    pairs = strict.among == 2
    earlier = clustered_share(wins[~pairs], strict.cluster[~pairs])
    first = exact_share(int(wins[pairs].sum()), int(pairs.sum()))
    if first is None:
        return Position(earlier_wins=earlier)
    each = {}
    mine = by_rater(strict)
    for name, rows in mine.items():
        own, total = int(wins[rows & pairs].sum()), int((rows & pairs).sum())
        share = exact_share(own, total)
        if share:
            p_value = even_chance_p(own, total)
            each[name] = RaterPosition(share, p_value, p_value < SURE / len(mine))
    return Position(
        first_wins=first,
        p_value=even_chance_p(int(wins[pairs].sum()), int(pairs.sum())),
        earlier_wins=earlier,
        model=_model(seen.where(seen.among == 2), sources or {}),
        per_rater=each,
    )


def davidson(first: Ints, second: Ints, outcome: Ints, items: int, weights: Floats | None = None) -> Davidson:
    """Fit Davidson's model with an order effect to comparisons, by penalised maximum likelihood.

    first, second: the item shown first and second, from 0. outcome: +1 the first wins, −1 the second, 0 a tie. items: how many there are.
    weights: how often each comparison was seen.
    Source: Davidson 1970; Davidson and Beaver 1977 (their γ is exp(−order)). Differs: the order effect is split over both sides, so that
    `tie` does not hang on it; and every parameter has a normal prior of sd 10 on the log scale, so that items that always win, or groups
    that never met, get finite values.
    """
    seen = np.ones(len(outcome)) if weights is None else np.asarray(weights, dtype=np.float64)
    cells, place = np.unique(np.column_stack((first, second)), axis=0, return_inverse=True)
    counts = np.bincount(place.reshape(-1) * 3 + (1 - outcome), weights=seen, minlength=3 * len(cells)).reshape(-1, 3)
    with_ties = bool((counts[:, 1] > 0).any())
    size = items + 1 + with_ties
    design = np.zeros((len(cells), 3, size))  # what each outcome (first, tie, second) takes from each parameter
    rows = np.arange(len(cells))
    for item, shares in ((cells[:, 0], (1.0, 0.5, 0.0)), (cells[:, 1], (0.0, 0.5, 1.0))):
        for kind, share in enumerate(shares):
            design[rows, kind, item] += share
    design[:, 0, items], design[:, 2, items] = 0.5, -0.5
    if with_ties:
        design[:, 1, items + 1] = 1.0
    allowed = np.array([0.0, 0.0 if with_ties else -np.inf, 0.0])

    def loss(beta: Floats) -> tuple[float, Floats]:
        probabilities = special.log_softmax(design @ beta + allowed, axis=1)
        total = counts.sum(axis=1, keepdims=True)
        gradient = np.einsum("mk,mkp->p", np.exp(probabilities) * total - counts, design)
        said = np.where(counts > 0, counts * np.where(counts > 0, probabilities, 0.0), 0.0).sum()
        return float(beta @ beta / (2 * PRIOR_SD**2) - said), np.asarray(gradient + beta / PRIOR_SD**2)

    def curvature(beta: Floats) -> Floats:
        probabilities = special.softmax(design @ beta + allowed, axis=1)
        mean = np.einsum("mk,mkp->mp", probabilities, design)
        centred = design - mean[:, None, :]
        weight = probabilities * counts.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("mk,mkp,mkq->pq", weight, centred, centred) + np.eye(size) / PRIOR_SD**2)

    fitted = optimize.minimize(loss, np.zeros(size), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-8})
    # The search stops where the loss no longer tells two points apart; one more Newton step goes by the slope.
    beta = fitted.x - np.linalg.solve(curvature(fitted.x), loss(fitted.x)[1])
    strengths = beta[:items] - beta[:items].mean()
    se = math.sqrt(np.linalg.inv(curvature(beta))[items, items])
    order = Estimate(float(beta[items]), float(beta[items] - Z * se), float(beta[items] + Z * se), round(float(seen.sum())))
    return Davidson(tuple(strengths.tolist()), order, float(np.exp(beta[items + 1])) if with_ties else 0.0)


def _model(pairs: Comparisons, sources: Mapping[str, str]) -> Davidson:
    names: dict[str, int] = {}
    items = np.array([[names.setdefault(sources.get(c, ""), len(names)) for c in two] for two in pairs.twos], dtype=np.int64)
    canonical = items[pairs.two]
    forward = pairs.shown > 0
    first = np.where(forward, canonical[:, 0], canonical[:, 1])
    second = np.where(forward, canonical[:, 1], canonical[:, 0])
    return davidson(first, second, pairs.verdict * pairs.shown, len(names))
