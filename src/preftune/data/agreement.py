"""How far raters agree: with each other, with the consensus of the others, by kind of prompt; and how much noise that leaves in the labels.

All here are pure functions of judgements (or of the table that `comparisons` makes of them). `agreement` measures everything at once;
what it returns can print itself. Superseded, gold and settling judgements do not count; of several words of one rater on the same two
answers the first counts (`habits.retest` compares them). Intervals are at 95 % and take the prompts as independent, not the comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preftune.data.comparisons import NOT_SAID, Comparisons, Ints, by_rater, comparisons, kinds_of, rater_pairs
from preftune.data.cycles import CycleReport, find_cycles
from preftune.data.habits import Gold, Retest, TieRate, Times, gold_accuracy, retest, tie_rates, times
from preftune.data.intervals import Estimate, Share, Z, clustered_share, jackknife
from preftune.data.position import Position, position_bias
from preftune.progress import counted
from preftune.records import Judgement

MIN_TWOS = 30  # below this a coefficient corrected for chance says next to nothing
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairwise:
    """How often two raters say the same of two answers.

    with_ties: of {first, tie, second}; strict: where both preferred one. twos: answers compared by two raters or more.
    """

    with_ties: Share | None
    strict: Share | None
    twos: int


@dataclass(frozen=True)
class Coefficients:
    """Agreement corrected for chance (1 = full, 0 = as by chance); None where it cannot be told, and `why` says so.

    alpha: Krippendorff's, of {first, tie, second}. ac1: Gwet's, which does not fall when one verdict is much commoner than the others.
    alpha_strength: Krippendorff's ordinal alpha of the signed strength, where strengths were given. n: twos with two raters or more.
    """

    alpha: Estimate | None = None
    ac1: Estimate | None = None
    alpha_strength: Estimate | None = None
    why: str = ""


@dataclass(frozen=True)
class RaterAgreement:
    """One rater against what the majority of the others say of the same two answers (an even split among them counts for nothing)."""

    with_ties: Share | None
    strict: Share | None


@dataclass(frozen=True)
class LabelNoise:
    """The share of strict words that are wrong, if each rater errs alike and apart: error e where agreement is (1 − e)² + e².

    ceiling: the accuracy that a perfect reward model would reach against one rater's words, 1 − e. Honest differences of taste count
    as errors here.
    """

    error: float
    low: float
    high: float

    @property
    def ceiling(self) -> float:
        """The accuracy that a perfect model would reach against one rater's words."""
        return 1 - self.error


@dataclass(frozen=True)
class Agreement:
    """All that `agreement` measures; an empty field was not measurable. Mappings are by rater, per_kind by kind of prompt."""

    judgements: int
    raters: int
    twos: int
    pairwise: Pairwise
    coefficients: Coefficients
    kendall: Estimate | None
    noise: LabelNoise | None
    per_rater: dict[str, RaterAgreement]
    per_kind: dict[str, Pairwise]
    position: Position
    retest: Retest
    times: Times | None
    ties: dict[str, TieRate]
    gold: dict[str, Gold] = field(default_factory=dict)
    cycles: CycleReport = field(default_factory=CycleReport)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return what was measured as lines for a person."""
        shared = f"{self.pairwise.twos:,} of them by two raters or more"
        twos = counted(self.twos, "twos of answers")
        found = [f"{counted(self.judgements, 'judgements')} by {counted(self.raters, 'raters')} on {twos}, {shared}"]
        if self.pairwise.strict:
            found.append(f"two raters agree, ties left out: {self.pairwise.strict}")
        if self.pairwise.with_ties:
            found.append(f"two raters agree, ties as a third word: {self.pairwise.with_ties}")
        for name, value in (
            ("Krippendorff's alpha", self.coefficients.alpha),
            ("Gwet's AC1", self.coefficients.ac1),
            ("Krippendorff's alpha of strengths", self.coefficients.alpha_strength),
            ("Kendall's tau-b of rankings", self.kendall),
        ):
            if value:
                found.append(f"{name}: {value}")
        if self.coefficients.why:
            found.append(f"corrected for chance: not told, {self.coefficients.why}")
        if self.noise:
            between = f"95 % CI {100 * self.noise.low:.1f} to {100 * self.noise.high:.1f}"
            best = f"{self.noise.ceiling:.1%} is the best that a model can reach against one rater"
            found.append(f"label noise: {self.noise.error:.1%} of strict words are wrong ({between}), so {best}")
        if len(self.per_kind) > 1:
            found += [f"{name or 'no kind'}: two raters agree in {kind.strict}" for name, kind in self.per_kind.items() if kind.strict]
        found += [f"{name} agrees with the others' majority in {a.strict}" for name, a in self.per_rater.items() if a.strict]
        found += self.position.lines() + self.retest.lines() + self.cycles.lines()
        found += self.times.lines() if self.times else []
        found += [f"{name}: {rate.words()}" for name, rate in self.ties.items() if rate.suspicious]
        found += [f"{name} on gold items: {gold.words()}" for name, gold in self.gold.items()]
        return found


def agreement(
    judgements: Iterable[Judgement],
    *,
    kinds: Mapping[str, str] | None = None,
    expected: Iterable[tuple[tuple[str, ...], ...]] = (),
    lengths: Mapping[str, int] | None = None,
    sources: Mapping[str, str] | None = None,
) -> Agreement:
    """Measure how far raters agree, and their habits, over all judgements (of any prompts, oldest first).

    kinds: kind by prompt id. expected: the right ranking of each gold item. lengths: characters by candidate id, for the reading floor.
    sources: model by candidate id, so that the order effect is told apart from one model being better.
    """
    rows = list(judgements)
    every_word = comparisons(rows)
    table = every_word.first_words()
    pairwise = pairwise_agreement(table)
    return Agreement(
        judgements=len(np.unique(every_word.judgement)),
        raters=len(np.unique(every_word.rater)),
        twos=len(np.unique(every_word.two)),
        pairwise=pairwise,
        coefficients=coefficients(table),
        kendall=kendall_tau_b(table),
        noise=label_noise(pairwise),
        per_rater=per_rater(table),
        per_kind=per_kind(table, kinds) if kinds is not None else {},
        position=position_bias(every_word, sources),
        retest=retest(every_word),
        times=times(rows, lengths),
        ties=tie_rates(every_word),
        gold=gold_accuracy(rows, expected),
        cycles=find_cycles(every_word),
    )


def pairwise_agreement(table: Comparisons) -> Pairwise:
    """Return how often two raters say the same, over all pairs of raters on all twos. table: each rater's first words."""
    left, right = rater_pairs(table)
    first, second = table.verdict[left], table.verdict[right]
    cluster = table.cluster[left]
    strict = (first != 0) & (second != 0)
    return Pairwise(
        with_ties=clustered_share(first == second, cluster),
        strict=clustered_share((first == second)[strict], cluster[strict]),
        twos=len(np.unique(table.two[left])),
    )


def per_kind(table: Comparisons, kinds: Mapping[str, str]) -> dict[str, Pairwise]:
    """Return the pairwise agreement on the prompts of each kind. kinds: kind by prompt id."""
    return {kind: pairwise_agreement(table.where(rows)) for kind, rows in kinds_of(table, kinds).items()}


def per_rater(table: Comparisons) -> dict[str, RaterAgreement]:
    """Return for each rater how often they say what the majority of the others says of the same two answers.

    The others' majority: the sign of their votes; a tie where all of them said tie; none where they are evenly split. So with one other
    rater it is that one's word. table: each rater's first words.
    """
    size = len(table.twos)
    votes = np.bincount(table.two, weights=table.verdict, minlength=size)[table.two] - table.verdict
    strict = np.bincount(table.two, weights=table.verdict != 0, minlength=size)[table.two] - (table.verdict != 0)
    others = np.bincount(table.two, minlength=size)[table.two] - 1
    told = (others > 0) & ((votes != 0) | (strict == 0))
    agrees = np.sign(votes) == table.verdict
    found = {}
    for name, rows in by_rater(table).items():
        all_words = rows & told
        both_strict = all_words & (votes != 0) & (table.verdict != 0)
        if all_words.any():
            found[name] = RaterAgreement(
                with_ties=clustered_share(agrees[all_words], table.cluster[all_words]),
                strict=clustered_share(agrees[both_strict], table.cluster[both_strict]),
            )
    return found


def coefficients(table: Comparisons) -> Coefficients:
    """Return agreement corrected for chance. table: each rater's first words; fewer than 30 twos with two raters tell nothing."""
    counts = table.counts()
    shared = int((counts.sum(axis=1) >= 2).sum())
    if shared < MIN_TWOS:
        return Coefficients(why=f"{shared} twos of answers were judged by two raters or more, and under {MIN_TWOS} say nothing")
    # A tie in a judgement of two is 0; the sign is which is better, and a strict word of strength 0 still is no tie.
    asked = (table.among == 2) & ((table.strength != NOT_SAID) | (table.verdict == 0))
    signed = table.verdict[asked] * (table.strength[asked] + 1)
    strengths = np.bincount(table.two[asked] * 9 + signed + 4, minlength=9 * len(table.twos)).reshape(-1, 9)
    told = asked.any() and bool((table.strength != NOT_SAID).any()) and int((strengths.sum(axis=1) >= 2).sum()) >= MIN_TWOS
    return Coefficients(
        alpha=krippendorff_alpha(counts, table.prompt, "nominal"),
        ac1=gwet_ac1(counts, table.prompt),
        alpha_strength=krippendorff_alpha(strengths, table.prompt, "ordinal") if told else None,
    )


def krippendorff_alpha(counts: Ints, clusters: Ints, level: Literal["nominal", "ordinal"]) -> Estimate | None:
    """Return Krippendorff's alpha with a jackknife interval over clusters; None where all words are the same, or none can be paired.

    counts: how many raters gave each value to each unit, [units, values]. clusters: the cluster of each unit. n: units with two words.
    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability"; the value comes from the package krippendorff.
    """
    paired = counts.sum(axis=1) >= 2
    units, groups = counts[paired].astype(np.float64), clusters[paired]
    if (units.sum(axis=0) > 0).sum() < 2:
        return None
    import krippendorff

    value = float(krippendorff.alpha(value_counts=counts[paired], level_of_measurement=level))
    values = units.shape[1]
    together = units[:, :, None] * units[:, None, :] - units[:, :, None] * np.eye(values)
    sums = _by_cluster((together / (units.sum(axis=1) - 1)[:, None, None]).reshape(len(units), -1), groups)
    left_out = _alpha((sums.sum(axis=0) - sums).reshape(-1, values, values), level)
    return jackknife(value, left_out, len(units))


def gwet_ac1(counts: Ints, clusters: Ints) -> Estimate | None:
    """Return Gwet's AC1 with a jackknife interval over clusters; None where no two words can be paired.

    counts, clusters: as for `krippendorff_alpha`. n: units with two words or more; units with one help to tell how common a value is.
    A value that nobody gave does not count as one of the scale's (where ties were not asked for, it has two), but for the second.
    Source: Gwet 2008, "Computing inter-rater reliability and its variance in the presence of high agreement", eq. 17, 19.
    """
    words = counts.sum(axis=1)
    units, groups = counts[words > 0].astype(np.float64), clusters[words > 0]
    size = words[words > 0].astype(np.float64)
    paired = size >= 2
    if not paired.any():
        return None
    agreed = np.where(paired, (units * (units - 1)).sum(axis=1) / np.where(paired, size * (size - 1), 1), 0.0)
    columns = np.column_stack((agreed, paired, np.ones(len(units)), units / size[:, None]))
    sums = _by_cluster(columns, groups)
    total = sums.sum(axis=0)
    values = max(2, int((units.sum(axis=0) > 0).sum()))
    return jackknife(float(_ac1(total[None], values)[0]), _ac1(total - sums, values), int(paired.sum()))


def kendall_tau_b(table: Comparisons) -> Estimate | None:
    """Return the mean of Kendall's τ-b over every two raters who both ranked the same three or more answers of a prompt.

    A pair of raters of whom one put all in one place has no τ-b and is left out. The interval takes prompts as independent. n: pairs of
    rankings. table: each rater's first words. Source: Kendall 1945; on common pairs τ-b = Σ v w / √(Σ v² Σ w²) for verdicts −1, 0, 1.
    """
    left, right = rater_pairs(table)
    raters = max(1, len(table.raters))
    key = (table.cluster[left] * raters + table.rater[left]) * raters + table.rater[right]
    names, place = np.unique(key, return_inverse=True)
    v, w = table.verdict[left].astype(np.float64), table.verdict[right].astype(np.float64)
    common = np.bincount(place, minlength=names.size)
    product, left_squares, right_squares = (np.bincount(place, weights=x, minlength=names.size) for x in (v * w, v * v, w * w))
    usable = (common >= 3) & (left_squares > 0) & (right_squares > 0)
    if not usable.any():
        return None
    tau = product[usable] / np.sqrt(left_squares[usable] * right_squares[usable])
    prompts, inside = np.unique(names[usable] // raters**2, return_inverse=True)
    value, groups = float(tau.mean()), prompts.size
    if groups < 2:
        return Estimate(value, -1.0, 1.0, tau.size)
    residuals = np.bincount(inside, weights=tau - value)
    se = math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / tau.size
    return Estimate(value, max(-1.0, value - Z * se), min(1.0, value + Z * se), tau.size)


def label_noise(pairwise: Pairwise) -> LabelNoise | None:
    """Return the error of one rater's strict words that the agreement of two implies; None where nothing was judged twice.

    From a = (1 − e)² + e² follows e = (1 − √(2a − 1)) / 2; where two raters agree in half the cases or less, e = 1/2.
    """
    if pairwise.strict is None:
        return None
    error, high, low = (_error(a) for a in (pairwise.strict.value, pairwise.strict.low, pairwise.strict.high))
    return LabelNoise(error, low, high)


def _error(agreed: float) -> float:
    return (1 - math.sqrt(max(0.0, 2 * agreed - 1))) / 2


def _by_cluster(rows: Floats, clusters: Ints) -> Floats:
    numbers, places = np.unique(clusters, return_inverse=True)
    return np.column_stack([np.bincount(places, weights=column, minlength=numbers.size) for column in rows.T])


def _alpha(coincidences: Floats, level: Literal["nominal", "ordinal"]) -> Floats:
    """Return alpha of each matrix of coincidences, [clusters, values, values]; the package gives it for a whole table alone."""
    margins = coincidences.sum(axis=2)
    total = margins.sum(axis=1)
    middle = np.cumsum(margins, axis=1) - margins / 2
    if level == "nominal":
        distance = np.broadcast_to(1 - np.eye(margins.shape[1]), coincidences.shape)
    else:
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    seen = (coincidences * distance).sum(axis=(1, 2))
    by_chance = (margins[:, :, None] * margins[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (total - 1) * seen / by_chance)


def _ac1(sums: Floats, values: int) -> Floats:
    """Return AC1 of each row, which holds sums: of agreement, of units with two words, of units, and of the share of each value."""
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed = sums[:, 0] / sums[:, 1]
        share = sums[:, 3:] / sums[:, 2:3]
        by_chance = (share * (1 - share)).sum(axis=1) / (values - 1)
        return np.asarray((agreed - by_chance) / (1 - by_chance))
