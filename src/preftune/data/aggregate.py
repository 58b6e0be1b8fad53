"""From what several raters say to one preference for each two answers: by majority, by weights of raters, or by Dawid and Skene's model.

Each way gives, for each two answers that are not evenly split, the chosen and the rejected one, a weight and a confidence:

    weight      how far the evidence leans to the chosen one: share for − share against, a tie half a vote each way (1 = all one way)
    confidence  the probability that the direction is right, as far as the votes tell

By votes the confidence is (votes for + 1) / (votes + 2), Laplace's rule of succession: one rater alone gives 2/3, three of one mind 4/5.
By Dawid and Skene it is the model's posterior, P(better) + P(tie) / 2. What an owner has settled decides in all three.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from preftune.data.comparisons import Comparisons
from preftune.errors import DataError
from preftune.records import Judgement, KWise, Prompt, Thumb, Tie, is_settled, ranked_by, standing, votes_of

MIN_RATERS_AN_ITEM = 3.0
MIN_ITEMS_A_RATER = 50
ONE_WORD = 2 / 3  # the confidence that one rater's word alone gives
LABELS = ("first", "tie", "second")
EM_STEPS = 100  # at most; it stops where the likelihood hardly grows, before rare labels run to the edge
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Preference:
    """One of two candidates (by id) is preferred; the module says what weight and confidence are."""

    chosen: str
    rejected: str
    weight: float
    confidence: float


@dataclass(frozen=True)
class DawidSkene:
    """What the model made of all raters' words.

    posterior: [twos, 3], P(the first is better, tie, the second is better), in the order of `table.twos`; nan where nobody spoke.
    confusion: for each rater P(said | true), [said, true], each over LABELS. accuracy: for each rater the expected share of words that
    are the true one. expected_error: the share of all words that are not.
    """

    twos: tuple[tuple[str, str], ...]
    posterior: Floats
    confusion: dict[str, Floats]
    accuracy: dict[str, float]
    expected_error: float

    def preferences(self) -> dict[frozenset[str], Preference]:
        """Return the preference on each two candidates; none where a tie is the likeliest, or both are equally likely to be better."""
        found = {}
        for (first, second), (better, tie, worse) in zip(self.twos, self.posterior.tolist(), strict=True):
            lead = better - worse
            if lead and max(better, worse) > tie:
                chosen, rejected = (first, second) if lead > 0 else (second, first)
                found[frozenset((first, second))] = Preference(chosen, rejected, abs(lead), (1 + abs(lead)) / 2)
        return found


def all_undecided(compared: int) -> str:
    """Return what is said where so many comparisons show no preference."""
    return f"all {compared:,} comparisons are ties or even splits" if compared > 1 else "the one comparison is a tie or an even split"


def by_votes(judgements: Iterable[Judgement], weights: Mapping[str, float] | None = None) -> list[Preference]:
    """Return the preferences that the judgements on one prompt give by majority.

    weights: what one vote of a rater counts (1 where none is given). Without them, the chosen, the rejected and the weight are those of
    `records.majority_pairs`.
    """
    votes = votes_of(judgements, weights)
    found = []
    for (a, b), for_a in sorted(votes.items()):
        for_b = votes.get((b, a), 0.0)
        if for_a > for_b:
            total = for_a + for_b
            found.append(Preference(a, b, (for_a - for_b) / total, (for_a + 1) / (total + 2)))
    return found


def by_model(judgements: Iterable[Judgement], model: Mapping[frozenset[str], Preference]) -> list[Preference]:
    """Return the preferences that Dawid and Skene's model gives on what these judgements (on one prompt) compare.

    model: what `DawidSkene.preferences` returned. What was settled comes from the settling judgements instead.
    """
    valid = standing(judgements)
    decided = by_votes(j for j in valid if is_settled(j))
    settled = {two for j in valid if is_settled(j) for two in _twos(j)}
    twos = {two for j in valid for two in _twos(j)} - settled
    found = [model[two] for two in twos if two in model] + decided
    return sorted(found, key=lambda preference: (preference.chosen, preference.rejected))


def kwise_from(
    prompt: Prompt, judgements: Iterable[Judgement], texts: Mapping[str, str], weights: Mapping[str, float] | None = None
) -> Iterator[KWise]:
    """Yield the orders over three and more answers that the judgements on one prompt give, one for each ranking with a strict preference.

    texts: the text of each candidate by id. weights: of raters, as for `by_votes`. An order that ranks two answers which an owner has
    settled is left out, but for the owner's own.
    """
    valid = standing(judgements)
    settled = {two for j in valid if is_settled(j) for two in _twos(j)}
    for judgement in valid:
        weight = 1.0 if weights is None else weights.get(judgement.rater, 1.0)
        overruled = not is_settled(judgement) and bool(settled & _twos(judgement)) if settled else False
        if len(ranked_by(judgement)) < 3 or len(judgement.ranking) < 2 or weight == 0 or overruled:
            continue
        ranks = tuple(rank for rank, tier in enumerate(judgement.ranking, 1) for _ in tier)
        completions = tuple(texts[candidate] for candidate in ranked_by(judgement))
        about = {"messages": prompt.messages, "group": prompt.id, "kind": prompt.kind, "check": prompt.check}
        yield KWise(completions=completions, ranks=ranks, weight=weight, **about)


def ties_from(
    prompt: Prompt,
    judgements: Iterable[Judgement],
    texts: Mapping[str, str],
    preferences: Iterable[Preference],
    weights: Mapping[str, float] | None = None,
) -> Iterator[Tie]:
    """Yield each two answers that a rater called alike and of which the raters together prefer neither.

    texts: the text of each candidate by id. preferences: what the raters together prefer. weights: of raters, as for `by_votes`; the word
    of one who counts 0 makes no tie.
    """
    decided = {frozenset((p.chosen, p.rejected)) for p in preferences}
    alike = {
        (first, second)
        for judgement in standing(judgements)
        if weights is None or weights.get(judgement.rater, 1.0)
        for tier in judgement.ranking
        for first in tier
        for second in tier
        if first < second
    }
    about = {"messages": prompt.messages, "group": prompt.id, "kind": prompt.kind, "check": prompt.check}
    for first, second in sorted(alike):
        if frozenset((first, second)) not in decided:
            yield Tie(completions=(texts[first], texts[second]), **about)


def thumbs_from(
    prompt: Prompt, judgements: Iterable[Judgement], texts: Mapping[str, str], weights: Mapping[str, float] | None = None
) -> Iterator[Thumb]:
    """Yield each answer that most raters who were asked call good enough, or not; an even split gives none.

    texts: the text of each candidate by id. weights: of raters, as for `by_votes`. What an owner has settled decides.
    """
    votes: dict[str, list[tuple[bool, float, bool]]] = {}
    for judgement in standing(judgements):
        if judgement.acceptable is None:
            continue
        weight = 1.0 if weights is None else weights.get(judgement.rater, 1.0)
        for candidate in dict.fromkeys([*ranked_by(judgement), *judgement.acceptable]):
            votes.setdefault(candidate, []).append((candidate in judgement.acceptable, weight, is_settled(judgement)))
    about = {"messages": prompt.messages, "group": prompt.id, "kind": prompt.kind, "check": prompt.check}
    for candidate, said in sorted(votes.items()):
        counted = [one for one in said if one[2]] or said
        good = sum(weight for up, weight, _ in counted if up)
        bad = sum(weight for up, weight, _ in counted if not up)
        if good != bad:
            yield Thumb(completion=texts[candidate], desirable=good > bad, weight=abs(good - bad) / (good + bad), **about)


def dawid_skene(table: Comparisons) -> DawidSkene:
    """Return what Dawid and Skene's model (1979) makes of all words: how each rater errs, and what is true of each two answers.

    table: without settled words. Each rater's first word on each two counts. Fitted by crowd-kit, on the table and its mirror image (the
    two answers named the other way round), so that which of them has the smaller hash cannot matter.
    Twos from one ranking are taken as independent, which they are not: with rankings of many the posterior is too sure of itself.
    Raises DataError with the reason where there are under 3 raters an item on average, or a rater has under 50 items.
    """
    words = table.first_words()
    _refuse_too_few(words)
    pandas, model = _crowdkit()
    here, n = words.two, len(words.twos)
    frame = pandas.DataFrame(
        {
            "task": np.concatenate((here, here + n)),
            "worker": np.tile(words.rater, 2),
            "label": np.concatenate((1 - words.verdict, 1 + words.verdict)),
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # crowd-kit is older than pandas 3
        warnings.simplefilter("ignore", RuntimeWarning)  # it takes 0 · log 0, and drops the nan
        fitted = model(n_iter=EM_STEPS).fit(frame)
    probabilities = fitted.probas_.reindex(columns=[0, 1, 2], fill_value=0.0)
    posterior = probabilities.reindex(range(n)).to_numpy(dtype=np.float64)
    true = posterior[here, 1 - words.verdict]
    errors = fitted.errors_.reindex(columns=[0, 1, 2], fill_value=0.0)
    present = np.unique(words.rater).tolist()
    confusion = {words.raters[r]: errors.loc[r].reindex([0, 1, 2], fill_value=0.0).to_numpy(dtype=np.float64) for r in present}
    accuracy = {words.raters[r]: float(true[words.rater == r].mean()) for r in present}
    return DawidSkene(words.twos, posterior, confusion, accuracy, float(1 - true.mean()))


def read_weights(path: Path) -> dict[str, float]:
    """Return rater weights from a YAML or JSON file: one mapping of raters to numbers from 0 up, e.g. `ann: 2` and `bob: 0.5`.

    Raises DataError where the file is something else.
    """
    fix = "Write one rater a line, as in: ann: 2"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("there is no such file", str(path), "Give the file with the raters' weights.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the weights cannot be read ({' '.join(str(error).split())})", str(path), fix) from error
    if not isinstance(found, dict) or not found:
        raise DataError("this is no list of raters with their weights", str(path), fix)
    for rater, weight in found.items():
        fits = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) and weight >= 0
        if not fits:
            raise DataError(f'the weight of rater "{rater}" is {weight!r}', str(path), "Give a number from 0 up; 0 leaves the rater out.")
    return {str(rater): float(weight) for rater, weight in found.items()}


def _twos(judgement: Judgement) -> set[frozenset[str]]:
    ranked = ranked_by(judgement)
    return {frozenset((a, b)) for a in ranked for b in ranked if a < b}


def _refuse_too_few(words: Comparisons) -> None:
    fix = "Aggregate by majority, or by weights of raters, or leave out those with few items."
    items, each = np.unique(words.two, return_counts=True)
    if not items.size:
        raise DataError("there are no comparisons", "Dawid and Skene", "Collect some first.")
    mean = len(words) / items.size
    if mean < MIN_RATERS_AN_ITEM:
        once = int((each == 1).sum())
        raise DataError(
            f"there are {mean:.2f} raters an item on average ({once:,} of {items.size:,} have one), it needs {MIN_RATERS_AN_ITEM:.0f}",
            "Dawid and Skene",
            fix,
        )
    raters, done = np.unique(words.rater, return_counts=True)
    few = [f"{words.raters[r]} ({n})" for r, n in zip(raters.tolist(), done.tolist(), strict=True) if n < MIN_ITEMS_A_RATER]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        what = f"the model needs {MIN_ITEMS_A_RATER} items of each rater, too few have: {', '.join(few[:5])}{more}"
        raise DataError(what, "Dawid and Skene", fix)


def _crowdkit() -> tuple[Any, Any]:
    try:
        import pandas
        from crowdkit.aggregation import DawidSkene as Model
    except ImportError:
        raise DataError("the package crowd-kit is not installed", "Dawid and Skene", "Install it: pip install 'preftune[crowd]'") from None
    return pandas, Model
