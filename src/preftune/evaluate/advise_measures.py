"""The numbers that the advice rests on, each with its interval: agreement, what a probe learns, what the model can already say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from preftune.code.sandbox import run_checks
from preftune.code.style import extract_code
from preftune.data.agreement import label_noise
from preftune.errors import DataError
from preftune.evaluate.advise_team import Team, TeamPair
from preftune.evaluate.probe import (
    Curve,
    Floats,
    Matrix,
    Pairs,
    forecast,
    gain_from_doubling,
    learning_curve,
    sample_of,
    transfer,
    two_judges,
)
from preftune.evaluate.probe_features import Answer, Featurise
from preftune.evaluate.statistics import Estimate, bootstrap_mean, detectable_win_rate, required_n, win_rate

MIN_PROBE_PAIRS = 30  # below this five folds hold a handful of pairs each
MIN_PROMPTS = 20  # below this a share of prompts has an interval of ± 20 points
MAX_PAIRS = 3000  # the probe's curve is flat long before, and its time grows with them
MAX_SAMPLE_PROMPTS = 400

By = Literal["raters", "probe", "checks"]


@dataclass(frozen=True)
class Probe:
    """A quick reward probe on held-out prompts. pairs: how many it was measured on; features: what it sees.

    length: accuracy of "the longer (or the shorter) one wins". over_length: the probe's less that. curve: (training pairs, accuracy).
    doubled: the accuracy to expect with twice all pairs; gain: how much more that is than with all of them.
    """

    pairs: int
    features: str
    accuracy: Estimate
    length: Estimate
    longer_wins: Estimate
    over_length: Estimate
    curve: tuple[tuple[int, Estimate], ...]
    doubled: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Samples:
    """How good the model's own samples are. by: who says so. k: mean number of samples a prompt. n of the estimates: prompts.

    mean: share of good answers among single samples. best: share of prompts whose best of k is good. gain: best less mean.
    level: what `mean` would be if a sample were just like a good answer: 1, or 1/2 where it is compared with one.
    """

    by: By
    k: float
    mean: Estimate
    best: Estimate
    gain: Estimate
    level: float


@dataclass(frozen=True)
class Imitation:
    """Whether answers to imitate differ from the model's own in one consistent way, and whether that is what raters prefer.

    told_apart: how often an answer to imitate is told from the model's own on unseen prompts. preferred: how often the same direction tells
    chosen from rejected; below_probe: that less the probe's own accuracy.
    """

    told_apart: Estimate
    preferred: Estimate
    below_probe: Estimate


@dataclass(frozen=True)
class Prompting:
    """What the guidelines do as system prompt. by: what is measured. plain, guided: without and with; target: the answers to imitate.

    closed: how much of the way from plain to target the guidelines go. checks: share of answers that pass their check, without and with.
    """

    by: Literal["conventions", "probe"]
    plain: Estimate
    guided: Estimate
    target: float
    closed: Estimate
    checks: tuple[float, float] | None = None


@dataclass(frozen=True)
class Power:
    """What the planned evaluation can show. held_out: prompts. detectable: the smallest win rate found with 80 % power; None = none."""

    held_out: int
    detectable: float | None
    needed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measures:
    """All measurements; None where something could not be measured, and `missing` says why and what would help."""

    prompts: int
    judgements: int
    raters: int
    pairs: int
    demonstrations: int
    imitable: int
    model_name: str | None
    own_pairs: Estimate | None
    agreement: Estimate | None
    ceiling: Estimate | None
    probe: Probe | None
    samples: Samples | None
    imitation: Imitation | None
    prompting: Prompting | None
    power: Power
    missing: dict[str, str]


@dataclass(frozen=True)
class Learned:
    """The pairs as the probe sees them (at most so many), and its hits with all of the training side, [n]."""

    pairs: Pairs
    of: list[TeamPair]
    curve: Curve


def learn(
    team: Team, featurise: Featurise, *, seed: int, max_pairs: int = MAX_PAIRS, on_done: Callable[[int], None] = lambda n: None
) -> Learned | None:
    """Return the probe's learning curve on a team's pairs, or None where there are fewer than 30."""
    if len(team.pairs) < MIN_PROBE_PAIRS or len({team.group[p.prompt_id] for p in team.pairs}) < MIN_PROBE_PAIRS:
        return None
    groups = np.array([team.group[p.prompt_id] for p in team.pairs], dtype=np.intp)
    places = sample_of(groups, max_pairs, seed=seed)
    of = [team.pairs[place] for place in places]
    chosen = featurise([_answer(team, pair.prompt_id, pair.chosen) for pair in of])
    rejected = featurise([_answer(team, pair.prompt_id, pair.rejected) for pair in of])
    pairs = Pairs(Matrix(chosen - rejected), np.array([p.weight for p in of]), groups[places])
    return Learned(pairs, of, learning_curve(pairs, seed=seed, on_done=on_done))


def probe_of(team: Team, learned: Learned, *, features: str, seed: int) -> Probe:
    """Return what the probe's curve says, beside length alone."""
    clusters = learned.pairs.groups.tolist()
    longer = np.array([(len(p.chosen) > len(p.rejected)) + (len(p.chosen) == len(p.rejected)) / 2 for p in learned.of])
    by_length = longer if longer.mean() >= 0.5 else 1 - longer
    curve = learned.curve
    return Probe(
        pairs=len(learned.of),
        features=features,
        accuracy=curve.accuracy(),
        length=win_rate(by_length, clusters),
        longer_wins=win_rate(longer, clusters),
        over_length=bootstrap_mean(curve.hits[-1] - by_length, clusters, seed),
        curve=tuple((round(size), curve.accuracy(point)) for point, size in enumerate(curve.sizes)),
        doubled=forecast(curve, [2.0 * len(team.pairs)], seed=seed)[0],
        gain=gain_from_doubling(curve, len(team.pairs), seed=seed),
    )


def samples_of(team: Team, learned: Learned | None, featurise: Featurise, *, seed: int) -> Samples | None:
    """Return how good the model's own samples are, by the first of these that covers 20 prompts: raters' marks, the probe, checks."""
    marked = {name: [s.mark for s in own if s.mark is not None] for name, own in team.own.items()}
    judged = {name: [float(mark >= 0.5) for mark in marks] for name, marks in marked.items() if len(marks) > 1}
    if len(judged) >= MIN_PROMPTS:
        return _samples("raters", list(judged.values()), [max(values) for values in judged.values()], level=1.0, seed=seed)
    compared = [name for name, own in team.own.items() if len(own) > 1 and name in team.targets][:MAX_SAMPLE_PROMPTS]
    if learned is not None and len(compared) >= MIN_PROMPTS:
        values, best = _against_targets(team, learned.pairs, featurise, compared, seed)
        return _samples("probe", values, best, level=0.5, seed=seed)
    checked = [name for name, own in team.own.items() if len(own) > 1 and team.prompts[name].check][:MAX_SAMPLE_PROMPTS]
    if len(checked) >= MIN_PROMPTS:
        passed = passes([(s.text, team.prompts[name].check) for name in checked for s in team.own[name]])
        values = _split(passed, [len(team.own[name]) for name in checked])
        return _samples("checks", values, [max(own) for own in values], level=1.0, seed=seed)
    return None


def _samples(by: By, values: list[list[float]], best: list[float], *, level: float, seed: int) -> Samples:
    means = [float(np.mean(own)) for own in values]
    gain = bootstrap_mean(np.array(best) - np.array(means), None, seed)
    return Samples(by, float(np.mean([len(own) for own in values])), bootstrap_mean(means, None, seed), win_rate(best), gain, level)


def _against_targets(team: Team, pairs: Pairs, featurise: Featurise, names: list[str], seed: int) -> tuple[list[list[float]], list[float]]:
    """Return for each prompt whether each sample is at least as good as the answer to imitate, and whether the best of them is.

    The best is picked by a probe from one half of the pairs and judged by one from the other half, each way.
    """
    answers: list[Answer] = []
    for name in names:
        answers += [_answer(team, name, text) for text in (team.targets[name], *(s.text for s in team.own[name]))]
    sizes = [1 + len(team.own[name]) for name in names]
    groups = np.repeat([team.group[name] for name in names], sizes).astype(np.intp)
    scores = two_judges(pairs, featurise(answers), groups, seed=seed)
    values: list[list[float]] = []
    best: list[float] = []
    for own in np.split(scores, np.cumsum(sizes)[:-1], axis=1):
        wished, samples = np.split(own, [1], axis=1)
        good = (samples >= wished).astype(np.float64)  # [2 judges, k]
        picked = samples.argmax(axis=1)
        values.append(good.mean(axis=0).tolist())
        best.append(float((good[1, picked[0]] + good[0, picked[1]]) / 2))
    return values, best


def imitation_of(team: Team, learned: Learned | None, featurise: Featurise, *, seed: int) -> Imitation | None:
    """Return how answers to imitate differ from the model's own; None with fewer than 20 prompts that have both, or without a probe."""
    names = [name for name, own in team.own.items() if own and name in team.targets][:MAX_SAMPLE_PROMPTS]
    if learned is None or len(names) < MIN_PROMPTS:
        return None
    targets = featurise([_answer(team, name, team.targets[name]) for name in names])
    own = featurise([_answer(team, name, team.own[name][0].text) for name in names])
    groups = np.array([team.group[name] for name in names], dtype=np.intp)
    differences = Pairs(Matrix(targets - own), np.ones(len(names)), groups)
    told = transfer(differences, differences, seed=seed)
    hits = transfer(differences, learned.pairs, seed=seed)
    clusters = learned.pairs.groups.tolist()
    return Imitation(
        told_apart=win_rate(told, groups.tolist()),
        preferred=win_rate(hits, clusters),
        below_probe=bootstrap_mean(hits - learned.curve.hits[-1], clusters, seed),
    )


def own_pairs_of(team: Team) -> Estimate | None:
    """Return the share of pairs whose both answers are the model's own; None where no pair or no sample is there."""
    if not team.pairs or not team.own:
        return None
    return win_rate([float(all(pair.own)) for pair in team.pairs], [pair.prompt_id for pair in team.pairs])


def ceiling_of(team: Team) -> tuple[Estimate | None, Estimate | None]:
    """Return (how often two raters agree, ties left out; the accuracy that a perfect model would have against one rater's word)."""
    strict, noise = team.agreement.strict, label_noise(team.agreement)
    if strict is None or noise is None:
        return None, None
    agreed = Estimate(strict.value, strict.low, strict.high, strict.n)
    return agreed, Estimate(1 - noise.error, 1 - noise.high, 1 - noise.low, strict.n)


def power_of(held_out: int) -> Power:
    """Return what a comparison on so many held-out prompts can show."""
    needed = {f"{100 * rate:.0f} %": required_n(rate) for rate in (0.55, 0.6, 0.65)}
    try:
        return Power(held_out, detectable_win_rate(held_out), needed)
    except DataError:
        return Power(held_out, None, needed)


def passes(items: Sequence[tuple[str, str]]) -> list[float]:
    """Return 1 for each (answer, check) whose code passes its check in the sandbox, else 0."""
    codes = [(extract_code(answer), check) for answer, check in items]
    runnable = [(place, code, check) for place, (code, check) in enumerate(codes) if code is not None]
    results = run_checks([(code, check) for _, code, check in runnable])
    passed = {place for (place, _, _), result in zip(runnable, results, strict=True) if result.ok}
    return [float(place in passed) for place in range(len(items))]


def closed_share(plain: Sequence[float], guided: Sequence[float], target: float, *, seed: int = 0) -> Estimate:
    """Return (guided − plain) / (target − plain) of the means with a 95 % bootstrap interval over items.

    Where plain is within 0.05 of the target there is nothing to close, and all of it counts as closed.
    """
    before, after = np.asarray(plain, dtype=np.float64), np.asarray(guided, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(before.size, size=(2000, before.size))

    def share(plain_mean: Floats, guided_mean: Floats) -> Floats:
        gap = target - plain_mean
        return np.where(gap > 0.05, (guided_mean - plain_mean) / np.maximum(gap, 0.05), 1.0)

    value = share(before.mean()[None], after.mean()[None])[0]
    low, high = np.quantile(share(before[drawn].mean(axis=1), after[drawn].mean(axis=1)), [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), before.size)


def _answer(team: Team, prompt_id: str, text: str) -> Answer:
    return team.prompts[prompt_id].messages, text


def _split(values: list[float], sizes: list[int]) -> list[list[float]]:
    return [part.tolist() for part in np.split(np.array(values), np.cumsum(sizes)[:-1])]
