"""One order of many models from comparisons of two each: Bradley–Terry with ties, its intervals by resampling prompts.

P(i beats j) = π_i / (π_i + π_j + ν √(π_i π_j)),  P(tie) = ν √(π_i π_j) / (same),  r = log π, η = log ν        Davidson 1970
Pure functions of numbers (numpy and scipy alone).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from preftune.errors import DataError
from preftune.evaluate.statistics import Estimate

Floats = NDArray[np.float64]
ELO = 400 / math.log(10)
PRIOR = 0.5  # wins and losses of each model against one of strength 0: so a model that won everything stays finite
RESAMPLES = 1000


@dataclass(frozen=True)
class Match:
    """One comparison. score: 1 where a won, 0.5 tie, 0 where b won. cluster: its prompt."""

    a: str
    b: str
    score: float
    cluster: Hashable


@dataclass(frozen=True)
class Standing:
    """One model's place. strength: log π, mean 0 over the models. elo: 1000 + 400/ln 10 · strength, with its interval.

    rank_low, rank_high: the places that cannot be ruled out, from how many others lie wholly above and below it.
    """

    name: str
    strength: float
    elo: Estimate
    rank_low: int
    rank_high: int


def leaderboard(matches: Sequence[Match], *, seed: int = 0) -> list[Standing]:
    """Return the models, best first.

    Two are told apart where the 95 % interval of their difference leaves out 0. Raises DataError where two models are joined by no chain
    of comparisons, which leaves their order open.
    """
    names = sorted({name for match in matches for name in (match.a, match.b)})
    place = {name: number for number, name in enumerate(names)}
    pairs = np.array(list(combinations(range(len(names)), 2)), dtype=np.intp).reshape(-1, 2)
    counts = _counts(matches, place, pairs)
    _insist_on_chains(counts.sum(0), pairs, names)
    strength = davidson(counts.sum(0)[None], pairs, len(names))[0][0]
    clusters, random = len(counts), np.random.default_rng(seed)
    times = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES).astype(np.float64)
    drawn = davidson(np.einsum("rc,cpk->rpk", times, counts, optimize=True), pairs, len(names))[0]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    gaps_low, gaps_high = np.quantile(drawn[:, :, None] - drawn[:, None, :], [0.025, 0.975], axis=0)
    seen = [sum(name in (m.a, m.b) for m in matches) for name in names]

    def elo(log_odds: float) -> float:
        return 1000 + ELO * float(log_odds)

    found = [
        Standing(
            name,
            float(strength[i]),
            Estimate(elo(strength[i]), elo(low[i]), elo(high[i]), seen[i]),
            1 + int((gaps_high[i] < 0).sum()),
            len(names) - int((gaps_low[i] > 0).sum()),
        )
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda s: (-s.strength, s.name))


def davidson(counts: Floats, pairs: NDArray[np.intp], models: int, *, prior: float = PRIOR) -> tuple[Floats, Floats]:
    """Return (r [R, M] with mean 0, ν [R]) of R fits, by Newton's method on the log-likelihood, which is concave.

    counts: wins of the pair's first, ties, wins of its second, [R, P, 3]. pairs: their two models, [P, 2]. prior: see PRIOR; ν has as much,
    half a tie and half a decision between equals. Where no pair ever tied, ν is 0 and the model is Bradley and Terry's.
    Source: Davidson 1970, "On extending the Bradley–Terry model to accommodate ties". Differs: the prior.
    """
    with_ties = bool(counts[:, :, 1].any())  # without a tie η has no finite value and drops out
    design, offset, observed = _design(counts, pairs, models, prior, with_ties=with_ties)
    total = observed.sum(2)
    free = models + with_ties
    x = np.zeros((len(counts), models + 1))
    for _ in range(100):
        logits = np.einsum("qkf,rf->rqk", design, x) + offset
        p = np.exp(logits - logits.max(2, keepdims=True))
        p /= p.sum(2, keepdims=True)
        gradient = np.einsum("rqk,qkf->rf", observed - total[:, :, None] * p, design)[:, :free]
        mean = np.einsum("rqk,qkf->rqf", p, design)[:, :, :free]
        square = np.einsum("rq,rqk,qkf,qkg->rfg", total, p, design[:, :, :free], design[:, :, :free], optimize=True)
        hessian = square - np.einsum("rq,rqf,rqg->rfg", total, mean, mean, optimize=True)
        # Only differences of strengths matter: the flat direction is held by its own ridge, which moves no difference.
        flat = np.zeros(free)
        flat[:models] = 1.0
        step = np.linalg.solve(hessian + np.outer(flat, flat) + 1e-10 * np.eye(free), gradient[:, :, None])[:, :, 0]
        x[:, :free] += step / np.maximum(1.0, abs(step).max(1, keepdims=True) / 2)
        if abs(step).max() < 1e-9:
            break
    strengths = x[:, :models] - x[:, :models].mean(1, keepdims=True)
    return strengths, np.exp(x[:, models]) if with_ties else np.zeros(len(x))


def _design(counts: Floats, pairs: NDArray[np.intp], models: int, prior: float, *, with_ties: bool) -> tuple[Floats, Floats, Floats]:
    """Return (exponents of each outcome as weights of r and η, [Q, 3, M + 1]; what is added to them, [Q, 3]; outcomes, [R, Q, 3]).

    After the pairs come the prior's matches: of each model against one of strength 0, and one between equals, which holds ν.
    """
    extra = models + with_ties if prior else 0
    design = np.zeros((len(pairs) + extra, 3, models + 1))
    offset = np.zeros((len(pairs) + extra, 3))
    observed = np.concatenate([counts, np.zeros((len(counts), extra, 3))], axis=1)
    rows = np.arange(len(pairs))
    for outcome, side in ((0, 0), (2, 1)):
        design[rows, outcome, pairs[:, side]] = 1.0
        design[rows, 1, pairs[:, side]] = 0.5
    design[rows, 1, models] = 1.0
    if prior:
        alone = len(pairs) + np.arange(models)
        design[alone, 0, np.arange(models)] = 1.0
        observed[:, alone, 0] = observed[:, alone, 2] = prior
        offset[alone, 1] = -np.inf
        if with_ties:
            design[-1, 1, models] = 1.0
            observed[:, -1] = [prior / 2, prior, prior / 2]
    if not with_ties:
        offset[:, 1] = -np.inf
    return design, offset, observed


def _counts(matches: Sequence[Match], place: dict[str, int], pairs: NDArray[np.intp]) -> Floats:
    """Return how often each pair ended each way for each cluster, [clusters, pairs, 3]."""
    number = {(int(i), int(j)): p for p, (i, j) in enumerate(pairs)}
    clusters: dict[Hashable, int] = {}
    for match in matches:
        clusters.setdefault(match.cluster, len(clusters))
    counts = np.zeros((len(clusters), len(pairs), 3))
    for match in matches:
        if match.a == match.b or match.score not in (0.0, 0.5, 1.0):
            what = f"{match.a} against {match.b} ended {match.score:g}"
            raise DataError(what, "leaderboard", "Give 1, 0.5 or 0, and two different models.")
        i, j = place[match.a], place[match.b]
        outcome = round(2 * (1 - match.score))
        counts[clusters[match.cluster], number[min(i, j), max(i, j)], outcome if i < j else 2 - outcome] += 1
    return counts


def _insist_on_chains(counts: Floats, pairs: NDArray[np.intp], names: Sequence[str]) -> None:
    if len(names) < 2:
        raise DataError("there are no two models to compare", "leaderboard", "Give comparisons.")
    graph = np.zeros((len(names), len(names)))
    graph[pairs[:, 0], pairs[:, 1]] = counts.sum(1)
    parts, part = connected_components(graph, directed=False)
    if parts > 1:
        lone = next(name for name, number in zip(names, part, strict=True) if number != part[0])
        raise DataError(f"{names[0]} and {lone} are joined by no chain of comparisons", "leaderboard", "Compare them, or leave one out.")
