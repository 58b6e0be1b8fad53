"""What the checks found, as numbers, as lines for a person, and as sentences on what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from preftune.data.aggregate import all_undecided
from preftune.data.agreement import LabelNoise
from preftune.data.checks.bias import Bias
from preftune.data.checks.gather import Private
from preftune.data.checks.tokens import Tokens
from preftune.data.checks.votes import Votes
from preftune.data.cycles import Cycles
from preftune.data.intervals import Share
from preftune.progress import counted

FEW_PAIRS = 100
MANY_DUPLICATES = 0.05
MANY_NEAR_DUPLICATES = 0.2
LENGTH_BIAS = 0.1  # how far from one half the interval of an accuracy must lie to be a problem
LOOK_BIAS = 0.1  # and how far from 0 that of a difference between two shares
FOREIGN = 0.01
LOW_AGREEMENT = 0.65  # people agree on 63 to 80 % of such pairs (docs/check.md); one half is chance
MANY_CIRCLES = 0.1
LEAST_TRIPLES = 20
SHOWN_PLACES = 5
SHOWN_LANGUAGES = 5


@dataclass(frozen=True)
class DataReport:
    """What was found in pairs, and in the judgements of a store. Lengths are in characters; shares come with their interval at 95 %.

    duplicates: pairs beyond the first of the same prompt, chosen and rejected. near_duplicates: prompts that are nearly alike an earlier
    one. contradictions: twos of answers that are preferred both ways. contested: pairs with a weight under 1, as not all raters agreed.
    nearly_equal: pairs whose answers differ in one place of less than 5 %. longer_wins: equal lengths count as half. leaked: training
    prompts that are near-duplicates of a held-out one (None: there was nothing to compare with). foreign: answers in another language
    than the question, by a guess. bias: None where there are no pairs.
    Of a store alone: votes; raters (with a name); agreement of two raters, ties left out, and the label noise that it implies (None: no
    two judged the same two answers); cycles: three answers that the majority puts in a circle; demonstrations.
    """

    pairs: int = 0
    prompts: int = 0
    duplicates: int = 0
    duplicate_share: float = 0.0
    near_duplicates: int = 0
    contradictions: int = 0
    contested: int = 0
    empty: int = 0
    equal: int = 0
    nearly_equal: int = 0
    longer_wins: float = 0.5
    longer_wins_interval: tuple[float, float] = (0.0, 1.0)
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    leaked: int | None = None
    languages: dict[str, int] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)
    bias: Bias | None = None
    tokens: Tokens | None = None
    private: Private = field(default_factory=Private)
    votes: Votes | None = None
    raters: int = 0
    agreement: Share | None = None
    noise: LabelNoise | None = None
    cycles: Cycles = field(default_factory=Cycles)
    demonstrations: int | None = None
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines for a person, the problems last."""
        found = [*_counts(self), *_judging(self), *_biases(self), *_texts(self)]
        return [*found, *(f"Problem: {problem}" for problem in self.problems)] + ([] if self.problems else ["No problem was found."])


def _counts(report: DataReport) -> Iterator[str]:
    yield f"{counted(report.pairs, 'pairs')} on {counted(report.prompts, 'prompts')}"
    if report.demonstrations:
        yield counted(report.demonstrations, "demonstrations")
    contradictions = counted(report.contradictions, "contradictions")
    yield f"{counted(report.duplicates, 'duplicates')}, {contradictions}, {report.contested:,} contested between raters"
    yield f"{counted(report.near_duplicates, 'prompts are')} nearly alike an earlier one; a split keeps them together"
    yield f"{report.empty:,} with an empty answer, {report.equal:,} with two equal answers, {report.nearly_equal:,} with nearly equal ones"
    if report.leaked is not None:
        yield f"{counted(report.leaked, 'training prompts are')} nearly alike held-out ones"


def _judging(report: DataReport) -> Iterator[str]:
    if report.votes:
        undecided = f"{counted(report.votes.ties, 'ties')}, {counted(report.votes.even_splits, 'even splits')}"
        yield f"{counted(report.votes.judgements, 'judgements compare')} {counted(report.votes.compared, 'twos of answers')}: {undecided}"
        if report.agreement and report.noise:
            noise = report.noise
            yield f"two of {report.raters:,} raters agree in {report.agreement} of the cases, ties left out"
            yield (
                f"label noise: {noise.error:.1%} of the single judgements are wrong (95 % CI {noise.low:.1%} to {noise.high:.1%}), "
                "if all raters err alike and independently"
            )
        else:
            yield "no two raters that are named judged the same two answers, so how far they agree is unknown"
            if report.contradictions:
                yield f"at least {counted(report.contradictions, 'judgements')} must be wrong, one in each contradiction"
    if report.cycles.triples:
        yield f"{report.cycles.cyclic:,} of {report.cycles.triples:,} triples of answers go in a circle (a over b over c over a)"


def _biases(report: DataReport) -> Iterator[str]:
    bias = report.bias
    if bias is None:
        return
    low, high = report.longer_wins_interval
    yield f"the longer answer wins in {report.longer_wins:.1%} of the pairs (95 % CI {low:.1%} to {high:.1%})"
    if bias.by_length and bias.by_looks and bias.by_both:
        yield f"held out, length alone ({length_rule(bias)}) tells the chosen answer in {bias.by_length}"
        yield f"held out, looks alone tell it in {bias.by_looks}, length and looks together in {bias.by_both}"
    for look in sorted(bias.looks, key=lambda look: -abs(look.difference.value)):
        if look.difference.low > 0 or look.difference.high < 0:
            yield f"  {look.feature}: in {look.chosen:.1%} of the chosen, in {look.rejected:.1%} of the rejected answers"


def _texts(report: DataReport) -> Iterator[str]:
    for name, at in report.lengths.items():
        yield f"{name}: {', '.join(f'{q} {n:,}' for q, n in at.items())} characters"
    if report.tokens:
        tokens = report.tokens
        yield f"{counted(tokens.over, 'pairs are')} longer than {tokens.context:,} tokens ({tokens.by}, chat template not counted)"
    if report.languages:
        most = sorted(report.languages.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count / report.prompts:.1%}" for name, count in most[:SHOWN_LANGUAGES])
        yield f"languages of the prompts, by a guess: {shown}{', …' if len(most) > SHOWN_LANGUAGES else ''}"
    for kind, count in sorted(report.private.counts.items(), key=lambda item: -item[1]):
        yield f"{counted(count, 'lines seem')} to hold: {kind}"
    for place in report.private.places[:SHOWN_PLACES]:
        yield f"  {place}"
    if len(report.private.places) > SHOWN_PLACES:
        yield f"  and more: --json lists the first {len(report.private.places):,}"


def length_rule(bias: Bias) -> str:
    """Return the best rule by length in words."""
    if bias.best_length is None:
        return "the longer wins"
    return "the shorter wins" if bias.best_length < 1 else f"the one nearer to {bias.best_length:,.0f} characters wins"


def problems_of(report: DataReport) -> tuple[str, ...]:
    """Return a sentence for each thing that is wrong with the data: what, how much, and what to do."""
    if not report.pairs:
        undecided = report.votes.compared if report.votes else 0
        why = all_undecided(undecided) if undecided else "there are no pairs"
        left = (
            f"no preference to learn, only {counted(report.demonstrations, 'demonstrations')}"
            if report.demonstrations
            else "nothing to learn"
        )
        return (f"{why}, so there is {left}. Collect strict preferences.", *_private_problems(report))
    return (*_pair_problems(report), *_bias_problems(report), *_text_problems(report), *_private_problems(report), *_leaks(report))


def _pair_problems(report: DataReport) -> Iterator[str]:
    if report.pairs < FEW_PAIRS:
        yield f"{counted(report.pairs, 'pairs are')} few: expect wide intervals and little effect under {FEW_PAIRS}."
    if report.duplicate_share > MANY_DUPLICATES:
        yield f"{report.duplicate_share:.1%} of the pairs are exact duplicates, which count more than once in training."
    if report.near_duplicates > MANY_NEAR_DUPLICATES * report.prompts:
        yield f"{report.near_duplicates / report.prompts:.1%} of the prompts are nearly alike an earlier one: ask more different things."
    if report.contradictions:
        twos = counted(report.contradictions, "twos of answers are")
        yield f"{twos} preferred both ways. See whether your raters read the guidelines alike."
    if report.agreement and report.agreement.high < LOW_AGREEMENT:
        yield f"raters agree in only {report.agreement}, little more than by chance. Sharpen the guidelines before you collect more."
    circles = report.cycles
    if circles.triples >= LEAST_TRIPLES and circles.cyclic > MANY_CIRCLES * circles.triples:
        yield f"{circles.cyclic / circles.triples:.1%} of the triples of answers go in a circle, so there is no one order to learn."
    if report.empty:
        yield f"{counted(report.empty, 'pairs have')} an empty answer. Take them out."
    if report.equal:
        yield f"{counted(report.equal, 'pairs have')} two equal answers, from which nothing can be learned. Take them out."


def _bias_problems(report: DataReport) -> Iterator[str]:
    low, high = report.longer_wins_interval
    bias = report.bias
    if low > 0.5 + LENGTH_BIAS or high < 0.5 - LENGTH_BIAS:
        which, share = ("longer", report.longer_wins) if low > 0.5 else ("shorter", 1 - report.longer_wins)
        yield (
            f"the {which} answer wins in {share:.1%} of the pairs, so a model may learn length alone. "
            "Compare a reward model's accuracy with this share, not with one half."
        )
    elif bias and bias.by_length and bias.by_length.low > 0.5 + LENGTH_BIAS:
        yield (
            f"length alone ({length_rule(bias)}) tells the chosen answer in {bias.by_length}, so a model may learn length alone. "
            "Compare a reward model's accuracy with this share, not with one half."
        )
    if bias is None or bias.by_looks is None:  # too few prompts to accuse anything
        return
    biased = [look for look in bias.looks if look.difference.low > LOOK_BIAS or look.difference.high < -LOOK_BIAS]
    for look in sorted(biased, key=lambda look: -abs(look.difference.value)):
        yield (
            f"{look.feature}: in {look.chosen:.1%} of the chosen and {look.rejected:.1%} of the rejected answers. "
            "If that is not what you want to teach, balance it or judge without it."
        )
    if bias.by_looks.low > 0.5 + LENGTH_BIAS:
        yield (
            f"the look of the answers alone (lists, code blocks, refusals and the like) tells the chosen one in {bias.by_looks}, "
            "so a model may learn the look alone. Compare a reward model's accuracy with this share."
        )


def _text_problems(report: DataReport) -> Iterator[str]:
    foreign = report.foreign.get("chosen", 0)
    if foreign >= 3 and foreign > FOREIGN * report.pairs:
        yield f"{foreign:,} chosen answers seem to be in another language than the question ({foreign / report.pairs:.1%})."
    if report.tokens and report.tokens.over:
        yield (
            f"{counted(report.tokens.over, 'pairs are')} longer than {report.tokens.context:,} tokens ({report.tokens.by}). "
            "In training they lose the prompt's oldest turns, or are left out."
        )


def _private_problems(report: DataReport) -> Iterator[str]:
    total = sum(report.private.counts.values())
    if total:
        kinds = ", ".join(f"{count:,} × {kind}" for kind, count in sorted(report.private.counts.items(), key=lambda item: -item[1]))
        yield f"{counted(total, 'lines seem')} to hold what should not be trained on ({kinds}). Look at them, and take out what is real."


def _leaks(report: DataReport) -> Iterator[str]:
    if report.leaked:
        yield f"{counted(report.leaked, 'training prompts are')} nearly alike held-out ones, so the evaluation would flatter."
