"""The rules of the advice: one table, each rule with its thresholds and why, and the sentence with the number that decided.

Rules are looked at in order; the first that holds gives the answer. A rule may also be unsure: where an interval spans its threshold, or a
count lies within a quarter of a threshold that is but a rule of thumb. If rules that are unsure stand before the one that holds, and would
answer otherwise, the advice is that it cannot be told, between which, and what would settle it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from preftune.evaluate.advise_measures import Measures, Samples
from preftune.evaluate.statistics import Estimate
from preftune.progress import counted

Answer = Literal["prompt first", "SFT", "DPO", "RLHF", "collect more"]

FEW_PAIRS = 100
FEW_DEMONSTRATIONS = 50
DPO_PAIRS = 500
RLHF_PAIRS = 2000
NEAR_A_COUNT = 1.25  # within this factor of a rule of thumb, both sides of it are plausible
DISAGREE = 0.6
TOLD = 0.6  # accuracy under which a preference is hardly told at all
USABLE_REWARD = 0.65
FLAT = 0.02  # accuracy that twice the pairs would add
OVER_LENGTH = 0.05
OUT_OF_REACH = 0.25
WITHIN_REACH = 0.5
WORTH_SEARCHING = 0.1
ALREADY_GOOD = 0.8
CLOSED = 0.5
TOLD_APART = 0.9
LITTLE_LESS = -0.05
OWN = 0.5


@dataclass(frozen=True)
class Condition:
    """One thing that a rule asks: a sentence with the number found, and whether it holds; None = it cannot be told."""

    text: str
    holds: bool | None


@dataclass(frozen=True)
class Rule:
    """when: all that must hold, in words. why: where its thresholds come from. test: the conditions on what was measured."""

    answer: Answer
    when: str
    why: str
    test: Callable[[Measures], Sequence[Condition]]


@dataclass(frozen=True)
class Outcome:
    """What came of one rule: holds is None where one of its conditions is unsure and none fails."""

    answer: Answer
    when: str
    why: str
    holds: bool | None
    conditions: tuple[Condition, ...]


def rate(value: float, *, digits: int = 1) -> str:
    """Return a share as percent: "61.2 %"."""
    return f"{100 * value:.{digits}f} %"


def percent(estimate: Estimate) -> str:
    """Return a share with its interval: "61.2 % (95 % CI 55.0 to 67.1, n = 240)"."""
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.1f} % (95 % CI {low:.1f} to {high:.1f}, n = {estimate.n:,})"


def points(estimate: Estimate) -> str:
    """Return a difference of shares with its interval: "+6.1 points (95 % CI +2.0 to +9.9, n = 240)"."""
    value, low, high = (
        f"{100 * x:+.1f}".replace("-", "−") if round(100 * x, 1) else "0.0" for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} points (95 % CI {low} to {high}, n = {estimate.n:,})"


def _line(threshold: float) -> str:
    return f"the line is at {rate(threshold, digits=0)}"


def _above(estimate: Estimate, threshold: float) -> bool | None:
    return True if estimate.low > threshold else False if estimate.high < threshold else None


def _enough(count: int, least: int) -> bool | None:
    return True if count >= least * NEAR_A_COUNT else False if count <= least / NEAR_A_COUNT else None


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _any(conditions: Sequence[bool | None]) -> bool | None:
    return True if any(conditions) else None if None in conditions else False


def _pairs(m: Measures, least: int, *, fewer: bool = False) -> Condition:
    enough = _enough(m.pairs, least)
    return Condition(f"there are {m.pairs:,} pairs (the line is at about {least:,})", _not(enough) if fewer else enough)


def _demonstrations(m: Measures, *, fewer: bool = False) -> Condition:
    enough = _enough(m.demonstrations, FEW_DEMONSTRATIONS)
    text = f"there are {m.demonstrations:,} demonstrations (the line is at about {FEW_DEMONSTRATIONS})"
    return Condition(text, _not(enough) if fewer else enough)


def _imitable(m: Measures) -> Condition:
    prompts = counted(m.imitable, "prompts have")
    text = f"{prompts} an answer to imitate: a demonstration, a rewrite, or a chosen answer that is not the model's own"
    return Condition(f"{text} (the line is at about {FEW_DEMONSTRATIONS})", _enough(m.imitable, FEW_DEMONSTRATIONS))


def who_says(samples: Samples) -> str:
    """Return what "good" means in a measurement of samples."""
    return {
        "raters": "marked as acceptable by the raters",
        "probe": "at least as good as the answer to imitate, by the reward probe",
        "checks": "passing its check",
    }[samples.by]


def _already_good(m: Measures) -> list[Condition]:
    if m.samples is None or m.samples.by == "checks":  # a check says that an answer is right, not that it is liked
        return [Condition("how good the model's own answers are was not measured by raters or the probe", False)]
    line = ALREADY_GOOD * m.samples.level
    text = f"a single sample of the model is {who_says(m.samples)} in {percent(m.samples.mean)} of cases; {_line(line)}"
    return [Condition(text, _above(m.samples.mean, line))]


def _guidelines_do_it(m: Measures) -> list[Condition]:
    if m.prompting is None:
        return [Condition("what the guidelines do as system prompt was not measured", False)]
    p = m.prompting
    what = "conventions followed" if p.by == "conventions" else "at least as good as the answer to imitate"
    text = f"with the guidelines as system prompt: {what} {percent(p.guided)}, without {percent(p.plain)}"
    closed = f"that closes {percent(p.closed)} of the way to {rate(p.target)}; {_line(CLOSED)}"
    return [Condition(f"{text}; {closed}", _above(p.closed, CLOSED))]


def _too_little(m: Measures) -> list[Condition]:
    return [_pairs(m, FEW_PAIRS, fewer=True), _demonstrations(m, fewer=True)]


def _raters_disagree(m: Measures) -> list[Condition]:
    if m.agreement is None:
        return [Condition("how far raters agree was not measured", False)]
    text = f"two raters agree in {percent(m.agreement)} of their strict preferences; {_line(DISAGREE)}"
    return [Condition(text, m.agreement.high < DISAGREE)]  # only where it is shown; the probe has the next word


def _nothing_told(m: Measures) -> Condition:
    """Whether the pairs do not show what raters prefer: not above chance, or no better than length alone."""
    if m.probe is None:
        return Condition(f"the {m.pairs:,} pairs are too few, or of too few different prompts, for a reward probe", True)
    accuracy, over = m.probe.accuracy, m.probe.over_length
    chance = True if accuracy.high < TOLD else None if accuracy.low <= 0.5 else False
    length = True if over.high < OVER_LENGTH else None if over.low <= 0 else False
    text = f"a quick reward probe tells the preferred answer in {percent(accuracy)} of unseen pairs, {points(over)} against length alone"
    return Condition(text, _any([chance, length]))


def _demonstrations_alone(m: Measures) -> list[Condition]:
    few, untold = _pairs(m, FEW_PAIRS, fewer=True), _nothing_told(m)
    return [_demonstrations(m), Condition(f"{few.text}; {untold.text}", _any([few.holds, untold.holds]))]


def _out_of_reach(m: Measures) -> list[Condition]:
    if m.samples is None:
        return [Condition("the model's own samples were not measured", False)]
    s = m.samples
    text = f"the best of {s.k:.3g} samples is {who_says(s)} in {percent(s.best)} of prompts; {_line(OUT_OF_REACH)}"
    return [_imitable(m), Condition(text, _not(_above(s.best, OUT_OF_REACH)))]


def _nothing_learned(m: Measures) -> list[Condition]:
    return [_nothing_told(m)]


def _imitating_does_it(m: Measures) -> list[Condition]:
    if m.imitation is None or m.own_pairs is None:
        return [Condition("how the answers to imitate differ from the model's own was not measured", False)]
    i = m.imitation
    return [
        _imitable(m),
        Condition(
            f"both answers are the model's own in {percent(m.own_pairs)} of pairs; {_line(OWN)}",
            _not(_above(m.own_pairs, OWN)),
        ),
        Condition(
            f"answers to imitate are told from its own in {percent(i.told_apart)} of unseen prompts; {_line(TOLD_APART)}",
            _above(i.told_apart, TOLD_APART),
        ),
        Condition(
            f"the same direction tells chosen from rejected in {percent(i.preferred)} of pairs, {points(i.below_probe)} against the probe",
            _above(i.below_probe, LITTLE_LESS),
        ),
    ]


def _almost_right(m: Measures) -> list[Condition]:
    if m.samples is None or m.probe is None:
        return [Condition("the model's own samples, or a reward probe, were not measured", False)]
    s = m.samples
    return [
        _pairs(m, RLHF_PAIRS),
        Condition(
            f"the probe tells the preferred answer in {percent(m.probe.accuracy)} of unseen pairs; {_line(USABLE_REWARD)}",
            _above(m.probe.accuracy, USABLE_REWARD),
        ),
        Condition(
            f"the best of {s.k:.3g} samples is {who_says(s)} in {percent(s.best)} of prompts; {_line(WITHIN_REACH)}",
            _above(s.best, WITHIN_REACH),
        ),
        Condition(
            f"that is {points(s.gain)} over a single sample; the line is at {100 * WORTH_SEARCHING:.0f} points",
            _above(s.gain, WORTH_SEARCHING),
        ),
    ]


def _pairs_will_do(m: Measures) -> list[Condition]:
    pairs = _pairs(m, DPO_PAIRS)
    if m.probe is None or pairs.holds:
        return [pairs]
    gain = m.probe.gain
    flat = m.pairs >= FEW_PAIRS and gain.high < FLAT and m.probe.accuracy.low > USABLE_REWARD
    text = f"twice the pairs are expected to add {points(gain)} of accuracy"
    return [Condition(f"{pairs.text}; {text}", True if flat else pairs.holds)]


def _otherwise(m: Measures) -> list[Condition]:
    text = f"none of the other answers is supported by {counted(m.pairs, 'pairs')} and {counted(m.demonstrations, 'demonstrations')} yet"
    return [Condition(text, True)]


RULES: tuple[Rule, ...] = (
    Rule(
        "prompt first",
        "a single sample of the model is already good in 80 % of cases (against a good answer: in 40 %, as an equal would be in 50 %)",
        "Tuning could win a fifth at most, and any tuning risks what the model knows. Our choice of line.",
        _already_good,
    ),
    Rule(
        "prompt first",
        "the raters' guidelines as system prompt close at least half of the way to the answers to imitate",
        "A prompt costs nothing to change and loses no knowledge; what it leaves can be tuned later. Our choice of line.",
        _guidelines_do_it,
    ),
    Rule(
        "collect more",
        "there are fewer than about 100 pairs and fewer than about 50 demonstrations",
        "A share of 100 has an interval of ± 9.8 points, so no effect could be shown. OpenAI's guide to supervised fine-tuning sees gains "
        "from 50 to 100 examples on.",
        _too_little,
    ),
    Rule(
        "collect more",
        "two raters are shown to agree in less than 60 % of their strict preferences: settle the guidelines first",
        "Published data that models were tuned on had 63 % (Anthropic HH), 73 % (InstructGPT) or 77 % (Stiennon et al. 2009.01325).",
        _raters_disagree,
    ),
    Rule(
        "SFT",
        "there are about 50 demonstrations or more, and the pairs are fewer than about 100 or show no preference beyond length",
        "Demonstrations teach by themselves; pairs that say nothing teach nothing.",
        _demonstrations_alone,
    ),
    Rule(
        "SFT",
        "about 50 prompts or more have an answer to imitate, and good answers are among the model's k samples in less than 25 % of prompts",
        "Preference methods shift weight among what the model can already say; what it never says has to be shown. Our choice of line.",
        _out_of_reach,
    ),
    Rule(
        "collect more",
        "a quick reward probe is not shown to tell the preferred answer on unseen prompts, or to do so better than length alone",
        "What no probe can tell on unseen prompts, training would memorise; a preference for length is better said in the prompt.",
        _nothing_learned,
    ),
    Rule(
        "SFT",
        "most pairs are not between the model's own answers, answers to imitate are told from its own in 90 % of unseen prompts, and that "
        "one direction tells chosen from rejected at most 5 points worse than the probe",
        "Then imitating moves the way that raters prefer. On the built-in sample SFT on the chosen answers won 65 points of style, DPO "
        "from the base 11.5 (docs/decisions/0008).",
        _imitating_does_it,
    ),
    Rule(
        "RLHF",
        "there are about 2,000 pairs or more, the probe is above 65 % on unseen pairs, the best of k samples is good in more than half of "
        "the prompts, and that is at least 10 points over a single one: almost right",
        "A reward model takes about 2,000 pairs to be worth optimising (Gao et al. 2210.10760). In 2403.17031 one at 62.8 % was "
        "over-optimised; with one at 66.9 % PPO beat the earlier released model. The search can amplify only what sampling finds.",
        _almost_right,
    ),
    Rule(
        "DPO",
        "about 500 pairs or more show a preference; or fewer, if twice as many would add under 2 points to a probe above 65 %",
        "Small teams report use from 500 to 2,000 pairs on (OpenPipe asks for 500). The measured curve overrides the rule of thumb.",
        _pairs_will_do,
    ),
    Rule(
        "collect more",
        "nothing above holds",
        "The forecast says what more pairs would bring.",
        _otherwise,
    ),
)


def outcomes(measures: Measures) -> list[Outcome]:
    """Return what came of every rule."""
    found = []
    for rule in RULES:
        conditions = tuple(rule.test(measures))
        said = [condition.holds for condition in conditions]
        holds = False if False in said else None if None in said else True
        found.append(Outcome(rule.answer, rule.when, rule.why, holds, conditions))
    return found


def decide(found: Sequence[Outcome]) -> tuple[tuple[Answer, ...], list[Outcome]]:
    """Return (the answers that are possible, most likely one if it is one alone; the rules that speak for them)."""
    first = next(place for place, outcome in enumerate(found) if outcome.holds)
    speaking = [outcome for outcome in found[: first + 1] if outcome.holds is not False]
    return tuple(dict.fromkeys(outcome.answer for outcome in speaking)), speaking
