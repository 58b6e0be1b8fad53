"""What is in the data and what is wrong with it, in numbers and in sentences, before anything is trained on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from preftune.data.duplicates import linked
from preftune.data.store import Store, pairs_from
from preftune.records import Judgement, Message, Pair, content_id, pairs_of, standing

FEW_PAIRS = 100
MANY_DUPLICATES = 0.05
LENGTH_BIAS = 0.1  # how far from one half the interval of "the longer answer wins" must lie to be a problem
QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Votes:
    """How the raters' words on each two answers of a prompt add up.

    compared: twos of answers on which somebody said something. ties: all said tie. even_splits: as many for the one as for the other.
    contradictions: somebody preferred the one, somebody the other (whether a majority decided or not). superseded: judgements undone.
    """

    judgements: int = 0
    superseded: int = 0
    compared: int = 0
    ties: int = 0
    even_splits: int = 0
    contradictions: int = 0

    def __add__(self, other: Votes) -> Votes:
        return Votes(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def count_votes(judgements: Sequence[Judgement]) -> Votes:
    """Return how all judgements on one prompt add up."""
    valid = standing(judgements)
    strict = Counter(two for judgement in valid for two in pairs_of(judgement))
    tied = {(a, b) for j in valid for tier in j.ranking for a in tier for b in tier if a < b}
    compared = {(min(two), max(two)) for two in strict} | tied
    for_each = [(strict[a, b], strict[b, a]) for a, b in compared]
    return Votes(
        judgements=len(judgements),
        superseded=len(judgements) - len(valid),
        compared=len(compared),
        ties=sum(a == b == 0 for a, b in for_each),
        even_splits=sum(a == b > 0 for a, b in for_each),
        contradictions=sum(a > 0 and b > 0 for a, b in for_each),
    )


@dataclass(frozen=True)
class DataReport:
    """What `check_pairs` counted. Lengths are in characters; rates are shares of the pairs, the interval is at 95 %.

    duplicates: pairs beyond the first of the same prompt, chosen and rejected. contradictions: twos of answers that are preferred both
    ways. contested: pairs with a weight under 1, as not all raters agreed. longer_wins: equal lengths count as half. leaked: training
    prompts that are near-duplicates of a held-out one (None: there was nothing to compare with). votes: of a store alone.
    """

    pairs: int = 0
    prompts: int = 0
    duplicates: int = 0
    duplicate_share: float = 0.0
    contradictions: int = 0
    contested: int = 0
    empty: int = 0
    equal: int = 0
    longer_wins: float = 0.5
    longer_wins_interval: tuple[float, float] = (0.0, 1.0)
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    leaked: int | None = None
    votes: Votes | None = None
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines for a person, the problems last."""
        low, high = self.longer_wins_interval
        lines = [
            f"{self.pairs:,} pairs on {self.prompts:,} prompts",
            f"{self.duplicates:,} duplicates, {self.contradictions:,} contradictions, {self.contested:,} contested between raters",
            f"{self.empty:,} with an empty answer, {self.equal:,} with two equal answers",
        ]
        if self.votes:
            undecided = f"{self.votes.ties:,} ties, {self.votes.even_splits:,} even splits"
            lines.append(f"{self.votes.judgements:,} judgements compare {self.votes.compared:,} twos of answers: {undecided}")
        if self.pairs:
            lines.append(f"the longer answer wins in {self.longer_wins:.1%} of the pairs (95 % CI {low:.1%} to {high:.1%})")
        lines += [f"{name}: {', '.join(f'{q} {n:,}' for q, n in at.items())} characters" for name, at in self.lengths.items()]
        if self.leaked is not None:
            lines.append(f"{self.leaked:,} training prompts are near-duplicates of held-out ones")
        return lines + [f"Problem: {problem}" for problem in self.problems or ()] + ([] if self.problems else ["No problem was found."])


def check_pairs(pairs: Iterable[Pair], held_out: Iterable[Pair] | None = None) -> DataReport:
    """Return what is in these pairs and what is wrong with them.

    held_out: other pairs that must share no prompt, nearly alike ones included, with them.
    """
    prompts: dict[str, tuple[Message, ...]] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    counts: Counter[str] = Counter()
    lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    longer = 0.0
    for pair in pairs:
        prompt = content_id([(m.role, m.content) for m in pair.messages])
        prompts.setdefault(prompt, pair.messages)
        seen[prompt, content_id(pair.chosen), content_id(pair.rejected)] += 1
        counts["empty"] += not pair.chosen.strip() or not pair.rejected.strip()
        counts["equal"] += pair.chosen == pair.rejected
        counts["contested"] += pair.weight < 1
        longer += (len(pair.chosen) > len(pair.rejected)) + (len(pair.chosen) == len(pair.rejected)) / 2
        for name, length in (
            ("prompt", sum(len(m.content) for m in pair.messages)),
            ("chosen", len(pair.chosen)),
            ("rejected", len(pair.rejected)),
        ):
            lengths[name].append(length)
    total = seen.total()
    report = DataReport(
        pairs=total,
        prompts=len(prompts),
        duplicates=total - len(seen),
        duplicate_share=(total - len(seen)) / total if total else 0.0,
        contradictions=sum((prompt, worse, better) in seen for prompt, better, worse in seen if better < worse),
        contested=counts["contested"],
        empty=counts["empty"],
        equal=counts["equal"],
        longer_wins=longer / total if total else 0.5,
        longer_wins_interval=wilson(longer, total),
        lengths={name: _quantiles(values) for name, values in lengths.items() if values},
        leaked=None if held_out is None else len(linked(prompts, {content_id(p.messages): p.messages for p in held_out})),
    )
    return replace(report, problems=tuple(_problems(report)))


def check_store(store: Store) -> DataReport:
    """Return what is in a store's judgements: `check_pairs` of its pairs, and how the raters' votes add up."""
    votes = Votes()
    pairs: list[Pair] = []
    for prompt, judgements, texts in store.judged():
        votes += count_votes(judgements)
        pairs += pairs_from(prompt, judgements, texts)
    report = replace(check_pairs(pairs), votes=votes, contradictions=votes.contradictions)
    return replace(report, problems=tuple(_problems(report)))


def wilson(successes: float, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share; halves may be counted among the successes.

    Source: Wilson 1927. Differs: takes each pair as independent, so it is too narrow where many pairs share a prompt.
    """
    if not total:
        return 0.0, 1.0
    z = 1.959963984540054
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def _quantiles(values: list[int]) -> dict[str, int]:
    ordered = sorted(values)
    return {name: ordered[max(0, math.ceil(share * len(ordered)) - 1)] for name, share in QUANTILES.items()}


def _problems(report: DataReport) -> list[str]:
    problems = []
    low, high = report.longer_wins_interval
    if not report.pairs:
        undecided = report.votes is not None and report.votes.compared > 0
        why = f"all {report.votes.compared:,} comparisons are ties or even splits" if report.votes and undecided else "there are no pairs"
        return [f"{why}, so there is nothing to learn. Collect strict preferences."]
    if report.pairs < FEW_PAIRS:
        problems.append(f"{report.pairs} pairs are few: expect wide intervals and little effect under {FEW_PAIRS}.")
    if report.duplicate_share > MANY_DUPLICATES:
        problems.append(f"{report.duplicate_share:.1%} of the pairs are exact duplicates, which count more than once in training.")
    if report.contradictions:
        problems.append(
            f"{report.contradictions:,} twos of answers are preferred both ways. See whether your raters read the guidelines alike."
        )
    if report.empty:
        problems.append(f"{report.empty:,} pairs have an empty answer. Take them out.")
    if report.equal:
        problems.append(f"{report.equal:,} pairs have two equal answers, from which nothing can be learned. Take them out.")
    if low > 0.5 + LENGTH_BIAS or high < 0.5 - LENGTH_BIAS:
        which, share = ("longer", report.longer_wins) if low > 0.5 else ("shorter", 1 - report.longer_wins)
        problems.append(
            f"the {which} answer wins in {share:.1%} of the pairs, so a model may learn length alone. "
            "Compare a reward model's accuracy with this share, not with one half."
        )
    if report.leaked:
        problems.append(f"{report.leaked:,} training prompts are near-duplicates of held-out ones, so the evaluation would flatter.")
    return problems
