"""Which pair to ask about next: half of the pairs by chance, the others where the reward ensemble is unsure and where nobody has looked.

The scheme. N pairs can be asked, n are wanted. Three draws are made, independent of each other, each from all N:

    random        n/2 by simple random sampling                       inclusion probability of each: n_r / N
    disagreement  3n/10, probability proportional to the variance of   π = min(1, c · weight), c so that Σ π = n_d;
                  the members' margins, ten times less for pairs whose   drawn by systematic sampling in random order
                  mean margin is too plain or too close (not between
                  0.25 and 1.5 standard deviations)
    coverage      n/5: the prompts are cut into n_c cells by k-centre   1 / number of pairs in the cell
                  (farthest first, from the prompts judged before), and  (0 in the cells of prompts judged before)
                  one pair is drawn from each cell

A pair is in the batch if any draw took it, so its inclusion probability is exactly 1 − (1 − p_random)(1 − p_disagreement)(1 − p_coverage).
That is what is recorded (`picked_probability`); a mean over the batch with weights 1 / p estimates the mean over all pairs (Horvitz and
Thompson 1952). A pair that the random draw took is marked "random", also where another took it too: so the pairs marked "random" are a
simple random sample by themselves, on which evaluation needs no weights. A pair that two draws took is asked once: a batch may have a few
pairs less than wanted.

Sources: Christiano et al. 2017 §2.2.4 (ensemble disagreement); arXiv 2502.04354 (moderate gaps and diversity); Sener and Savarese 2018
(k-centre); Madow 1949 (systematic sampling).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from preftune.data.comparisons import comparisons
from preftune.data.probe import Floats, Ints, answer_features, fit_ensemble, hashed_ngrams
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.records import Candidate, Judgement, Prompt

RANDOM, DISAGREEMENT, COVERAGE = "random", "disagreement", "coverage"
SHARES = {RANDOM: 0.5, DISAGREEMENT: 0.3, COVERAGE: 0.2}
GAP = (0.25, 1.5)  # of the standard deviation of all margins: closer is a coin flip, plainer teaches nothing
OUTSIDE = 0.1  # weight of a pair outside the gap; not 0, so that each has a chance
ALIKE = 0.95
CHUNK = 256  # judged prompts whose distances are in memory at once
MIN_TO_LEARN = 50  # judgements on pairs before the ensemble's spread says more than its prior
Strings = NDArray[np.str_]
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Pick:
    """A pair to ask about: the candidates' ids, which draw took it, and its inclusion probability in the whole batch."""

    prompt_id: str
    candidates: tuple[str, str]
    picked_by: str
    probability: float


@dataclass(frozen=True)
class Draw:
    """What was drawn: places of items, which draw took each, the inclusion probability of each, and that of every item by draw."""

    places: Ints
    picked_by: Strings
    probability: Floats
    by_draw: dict[str, Floats]


def next_pairs(store: Store, n: int, *, seed: int, scores: Mapping[str, Floats] | None = None) -> list[Pick]:
    """Return about n pairs of candidates to ask about next, among those that no standing judgement compares.

    seed: the same store and seed give the same pairs. scores: of a reward ensemble, by candidate id, one number a member; a candidate
    without is not asked about by disagreement. Where none are given the `probe` is fitted to the judgements; with fewer than 50
    comparisons it is not, and its share goes to the random draw. Pairs of nearly identical candidates are never asked.
    Raises DataError where there is nothing to ask.
    """
    prompts = {prompt.id: prompt for prompt in store.prompts()}
    candidates = {candidate.id: candidate for candidate in store.candidates()}
    judgements = list(store.judgements())
    compared = set(comparisons(judgements, settled=True).twos)
    items = [two for two in _twos(candidates.values()) if two not in compared and not nearly_identical(*(candidates[c].text for c in two))]
    if not items:
        raise DataError("no two candidates of a prompt are left to compare", store.where, "Sample more answers first: preftune sample")
    if scores is None:
        scores = probe_scores(candidates, judgements, seed=seed)
    margins = None if scores is None else _margins(items, scores)
    prompt_of = [candidates[first].prompt_id for first, _ in items]
    judged = {candidates[first].prompt_id for first, _ in compared if first in candidates}
    names = list(dict.fromkeys([*prompt_of, *sorted(judged)]))
    place = {name: number for number, name in enumerate(names)}
    features = hashed_ngrams([_asked(prompts[name]) for name in names])
    drawn = draw(
        np.array([place[name] for name in prompt_of]),
        features,
        n,
        margins=margins,
        judged=np.array(sorted(place[j] for j in judged)),
        seed=seed,
    )
    taken = zip(drawn.places.tolist(), drawn.picked_by.tolist(), drawn.probability.tolist(), strict=True)
    return [Pick(prompt_of[item], items[item], by, probability) for item, by, probability in taken]


def draw(prompt_of: Ints, features: Floats, n: int, *, margins: Floats | None, judged: Ints, seed: int) -> Draw:
    """Draw about n items by the scheme above.

    prompt_of: the prompt of each item, a row of features. features: [prompts, dimensions]. margins: score of the first candidate less that
    of the second by each member, [members, items]; nan = not known; None = no ensemble. judged: the prompts that were judged before.
    """
    size = len(prompt_of)
    wanted = {name: round(share * min(n, size)) for name, share in SHARES.items()}
    if margins is None:
        wanted[RANDOM], wanted[DISAGREEMENT] = wanted[RANDOM] + wanted[DISAGREEMENT], 0
    wanted[RANDOM] = min(size, max(1, wanted[RANDOM]))
    by_chance, by_spread, by_cell = (np.random.default_rng([seed, number]) for number in range(3))
    chosen: dict[str, Ints] = {}
    probability = {name: np.zeros(size) for name in SHARES}
    chosen[RANDOM] = by_chance.choice(size, wanted[RANDOM], replace=False)
    probability[RANDOM][:] = wanted[RANDOM] / size
    chosen[DISAGREEMENT] = chosen[COVERAGE] = np.zeros(0, dtype=np.int64)
    if margins is not None and wanted[DISAGREEMENT]:
        probability[DISAGREEMENT] = inclusion_probabilities(disagreement_weights(margins), wanted[DISAGREEMENT])
        chosen[DISAGREEMENT] = systematic_sample(probability[DISAGREEMENT], by_spread)
    if wanted[COVERAGE]:
        cell = k_centre_cells(features, np.unique(prompt_of), judged, wanted[COVERAGE])[prompt_of]
        chosen[COVERAGE], probability[COVERAGE] = _one_of_each_cell(cell, by_cell)
    total = 1 - np.prod([1 - p for p in probability.values()], axis=0)
    taken: dict[int, str] = {}
    for name in (RANDOM, DISAGREEMENT, COVERAGE):
        for item in chosen[name].tolist():
            taken.setdefault(item, name)
    places = np.array(sorted(taken), dtype=np.int64)
    return Draw(places, np.array([taken[item] for item in places.tolist()]), total[places], probability)


def disagreement_weights(margins: Floats) -> Floats:
    """Return what each item weighs in the draw by disagreement: the variance of its margins over members, less outside a moderate gap.

    margins: [members, items]; an item with nan weighs nothing. Where all members agree on everything, all known items weigh the same.
    """
    known = np.isfinite(margins).all(axis=0)
    safe = np.where(known, margins, 0.0)
    variance, mean = safe.var(axis=0), safe.mean(axis=0)
    scale = float(mean[known].std()) if known.any() else 0.0
    gap = np.abs(mean) / scale if scale > 0 else np.full(len(mean), GAP[0])
    moderate = (gap >= GAP[0]) & (gap <= GAP[1])
    weights: Floats = np.asarray(np.where(known, variance * np.where(moderate, 1.0, OUTSIDE), 0.0))
    return weights if weights.any() else np.asarray(known, dtype=np.float64)


def inclusion_probabilities(weights: Floats, n: int) -> Floats:
    """Return probabilities proportional to weights that sum to n, none over 1 (those that would be are certain, the others share the rest).

    Where fewer than n items have a weight, all of those are certain.
    """
    positive = weights > 0
    if positive.sum() <= n:
        return positive.astype(np.float64)
    found = np.zeros(len(weights))
    certain = np.zeros(len(weights), dtype=np.bool_)
    while True:
        others = positive & np.logical_not(certain)
        found[others] = weights[others] * (n - certain.sum()) / weights[others].sum()
        found[certain] = 1.0
        over = found > 1
        if not over.any():
            return found
        certain |= over


def systematic_sample(probabilities: Floats, random: np.random.Generator) -> Ints:
    """Return items drawn so that each is in with exactly its probability, as many as the probabilities sum to (rounded up or down).

    The items are put in random order, their probabilities end to end, and every place u, u + 1, u + 2 … hits one. Source: Madow 1949.
    """
    order = random.permutation(len(probabilities))
    ends = np.cumsum(probabilities[order])
    places = np.arange(random.random(), ends[-1], 1.0)
    hit = np.searchsorted(ends, places, side="right")
    return np.unique(order[np.minimum(hit, len(order) - 1)])


def k_centre_cells(features: Floats, open_prompts: Ints, judged: Ints, k: int) -> Ints:
    """Return the cell of each prompt, 0 to k − 1, or −1 for one that is nearest to a prompt judged before, or has nothing to ask.

    Centres are chosen farthest first among open_prompts, as far as possible from the prompts judged and from each other, until k are
    there or no prompt is off its centre any more; each prompt belongs to its nearest centre. Where nothing was judged the first centre is
    the prompt nearest to the mean. Source: Gonzalez 1985; Sener and Savarese 2018.
    """
    points = features[open_prompts]
    cell = np.full(len(open_prompts), -1, dtype=np.int64)
    squares = (points**2).sum(axis=1)

    def distances(centre: Floats) -> Floats:
        return np.asarray(squares - 2 * points @ centre + centre @ centre)

    nearest = np.full(len(open_prompts), np.inf)
    for some in np.array_split(judged, len(judged) // CHUNK + 1):
        if len(some):
            theirs = features[some]
            apart = squares[:, None] - 2 * points @ theirs.T + (theirs**2).sum(axis=1)
            nearest = np.minimum(nearest, apart.min(axis=1))
    for number in range(k):
        first = not np.isfinite(nearest).all()
        farthest = int(distances(points.mean(axis=0)).argmin() if first else nearest.argmax())
        if not first and nearest[farthest] <= 1e-9:
            break
        off = distances(points[farthest])
        closer = off < nearest
        closer[farthest] = True
        cell[closer] = number
        nearest = np.minimum(nearest, off)
    cells = np.full(len(features), -1, dtype=np.int64)
    cells[open_prompts] = cell
    return cells


def nearly_identical(a: str, b: str) -> bool:
    """Return whether two texts differ in hardly a word: more than 95 % of their words and marks in common, in order."""
    left, right = _TOKEN.findall(a), _TOKEN.findall(b)
    if left == right:
        return True
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    return matcher.real_quick_ratio() > ALIKE and matcher.quick_ratio() > ALIKE and matcher.ratio() > ALIKE


def probe_scores(candidates: Mapping[str, Candidate], judgements: Iterable[Judgement], *, seed: int) -> dict[str, Floats] | None:
    """Return the scores of the `probe` ensemble by candidate id; None where there are fewer than 50 comparisons to fit it to."""
    table = comparisons(judgements, settled=True)
    if len(table) < MIN_TO_LEARN:
        return None
    place = {name: number for number, name in enumerate(candidates)}
    features = answer_features([candidate.text for candidate in candidates.values()])
    first = features[[place[a] for a, _ in table.twos]]
    second = features[[place[b] for _, b in table.twos]]
    differences = (first - second)[table.two]
    members = fit_ensemble(differences, (1 + table.verdict) / 2, table.cluster, seed=seed)
    return dict(zip(candidates, features @ members.T, strict=True))


def _one_of_each_cell(cell: Ints, random: np.random.Generator) -> tuple[Ints, Floats]:
    """Return one item of each cell from 0, drawn by chance, and the probability of each item."""
    inside = np.flatnonzero(cell >= 0)
    shuffled = random.permutation(inside)
    _, first = np.unique(cell[shuffled], return_index=True)
    sizes = np.bincount(cell[inside])
    probability = np.zeros(len(cell))
    probability[inside] = 1 / sizes[cell[inside]]
    return shuffled[first], probability


def _twos(candidates: Iterable[Candidate]) -> list[tuple[str, str]]:
    of_prompt: dict[str, list[str]] = {}
    for candidate in candidates:
        of_prompt.setdefault(candidate.prompt_id, []).append(candidate.id)
    return [(a, b) for ids in of_prompt.values() for a in sorted(ids) for b in sorted(ids) if a < b]


def _margins(items: list[tuple[str, str]], scores: Mapping[str, Floats]) -> Floats:
    members = len(next(iter(scores.values())))
    unknown = np.full(members, np.nan)
    return np.array([scores.get(first, unknown) - scores.get(second, unknown) for first, second in items]).T


def _asked(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt.messages if message.role != "system")
