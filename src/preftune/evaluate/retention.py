"""Retention: what did a tuned model lose? Three tasks, before and after, on the same items, with a verdict.

- facts: short questions about Python whose truth the interpreter gives (`facts.py`); is the right choice the likeliest?
- texts: bits per byte on neutral prose and on neutral code (`texts.py`).
- functions: small functions to complete, judged by running them (`functions.py`); reported with an interval, not gated.

A task is "kept" when a paired one-sided 95 % test proves that the loss is within its margin, "lost" when such a test proves that it
is beyond, and "not proved" otherwise. The margins are set before anything is trained.

    before = measure(base, num_facts=1000, num_functions=60)
    after = measure(tuned, num_facts=1000, num_functions=60)
    compare(before, after).verdict
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from preftune.errors import DataError
from preftune.evaluate.facts import Fact, facts
from preftune.evaluate.functions import FunctionTask, function_tasks, judge_functions
from preftune.evaluate.language_model import LanguageModel
from preftune.evaluate.statistics import Estimate, non_inferiority, paired_difference
from preftune.evaluate.texts import KINDS, Text, texts
from preftune.progress import Progress, Silent
from preftune.records import Message

Item = TypeVar("Item")
Score = TypeVar("Score")
Verdict = Literal["kept", "lost", "not proved"]
BLOCK = 64  # items a call to the model, so that progress is seen
# A choice is worth log p(choice | question) − share × log p(choice | a question that says nothing): else short and common answers win
# whatever is asked, and a tuned model that came to like or avoid them would seem to have learned or forgotten facts.
# SmolLM2-135M-Instruct answered 39 % of 312 facts rightly with share 0, 47 % with 0.5 and 40 % with 1, where chance is 26 %.
PRIOR_QUESTION = "Say something about Python."
PRIOR_SHARE = 0.5
PRIOR_GROUP = 16  # choices that share one such prompt
FUNCTION_TOKENS = 160  # answers of SmolLM2-135M-Instruct to the built-in tasks took 44 to 141


@dataclass(frozen=True)
class FactScore:
    """How one fact was answered; margin: by how many nats the right choice is worth more than the best wrong one."""

    id: str
    kind: str
    cluster: str
    correct: bool
    margin: float


@dataclass(frozen=True)
class TextScore:
    """How many bits the tokens of a passage take (all but the first), and how many bytes these cover."""

    id: str
    kind: str
    bits: float
    bytes: int


@dataclass(frozen=True)
class FunctionScore:
    """Whether the code of an answer passed the task's test, and whether the answer ended by itself."""

    id: str
    passed: bool
    finished: bool


@dataclass(frozen=True)
class RetentionMeasure:
    """What a model knows, item by item; two of them are compared. python: the minor version that gave the facts."""

    facts: tuple[FactScore, ...]
    texts: tuple[TextScore, ...]
    functions: tuple[FunctionScore, ...]
    seed: int
    python: str

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RetentionMeasure:
        """Return the measure that `to_json` wrote. Raises DataError where it is something else."""
        try:
            return cls(
                facts=tuple(FactScore(**row) for row in value["facts"]),
                texts=tuple(TextScore(**row) for row in value["texts"]),
                functions=tuple(FunctionScore(**row) for row in value["functions"]),
                seed=value["seed"],
                python=value["python"],
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"this is no retention measure ({error!r})", "retention", "Measure the model anew.") from error


@dataclass(frozen=True)
class TaskVerdict:
    """One task before and after.

    difference: after − before, in `unit`, signed so that positive is better; low, high: its two-sided 95 % interval.
    lower: the one-sided bound that the gate reads; margin, verdict: None where the task is reported, not gated.
    gained, lost: ids of the items that flipped, for the tasks that are right or wrong.
    """

    task: str
    unit: str
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    lower: float | None = None
    margin: float | None = None
    verdict: Verdict | None = None
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetentionVerdict:
    """The verdict over all tasks, each task's own, facts by kind (n, share before, share after), and the drift of the margins.

    fact_margin_change: mean change of the nats by which right answers win; it sees a drift that accuracy hides.
    """

    verdict: Verdict
    tasks: tuple[TaskVerdict, ...]
    facts_by_kind: dict[str, tuple[int, float, float]]
    fact_margin_change: Estimate

    def task(self, name: str) -> TaskVerdict:
        """Return one task by its name: facts, prose, code or functions."""
        return next(task for task in self.tasks if task.task == name)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)


def measure(
    model: LanguageModel,
    *,
    num_facts: int,
    num_functions: int,
    seed: int = 0,
    progress: Progress | None = None,
    max_texts: int | None = None,
    name: str = "retention",
) -> RetentionMeasure:
    """Return what a model knows: num_facts facts, the texts (at most max_texts of each kind), and num_functions functions.

    A choice counts by how much likelier the question makes it (see PRIOR_SHARE). Answers to the functions are greedy, so that before
    and after differ by the weights alone. seed: which facts; the same before and after.
    """
    progress = progress or Silent()
    asked = facts(num_facts, seed)
    choices = list(dict.fromkeys(choice for fact in asked for choice in fact.choices))
    prior = dict(
        zip(
            choices,
            _in_blocks(lambda block: _score_priors(model, block), choices, f"{name}: choices", progress, size=4 * BLOCK),
            strict=True,
        )
    )
    passages = texts(max_texts)
    tasks = function_tasks()[:num_functions]
    return RetentionMeasure(
        facts=tuple(_in_blocks(lambda block: _score_facts(model, prior, block), asked, f"{name}: facts", progress)),
        texts=tuple(_in_blocks(lambda block: _score_texts(model, block), passages, f"{name}: texts", progress, size=BLOCK // 4)),
        functions=tuple(_in_blocks(lambda block: _try_functions(model, block, seed), tasks, f"{name}: functions", progress)),
        seed=seed,
        python=".".join(platform.python_version_tuple()[:2]),
    )


def _in_blocks(
    work: Callable[[list[Item]], list[Score]], items: list[Item], name: str, progress: Progress, *, size: int = BLOCK
) -> list[Score]:
    scores: list[Score] = []
    if items:
        with progress.stage(name, total=len(items), unit="items") as task:
            for start in range(0, len(items), size):
                block = items[start : start + size]
                scores += work(block)
                task.advance(len(block))
    return scores


def _score_priors(model: LanguageModel, block: Sequence[str]) -> list[float]:
    groups = [block[i : i + PRIOR_GROUP] for i in range(0, len(block), PRIOR_GROUP)]
    answered = model.score_completions([(Message(role="user", content=PRIOR_QUESTION),)] * len(groups), groups)
    return [logprob for scores in answered for logprob, _ in scores]


def _score_facts(model: LanguageModel, prior: dict[str, float], block: Sequence[Fact]) -> list[FactScore]:
    prompts = [(Message(role="user", content=fact.question),) for fact in block]
    answered = model.score_completions(prompts, [fact.choices for fact in block])
    scores = []
    for fact, choices in zip(block, answered, strict=True):
        worth = [logprob - PRIOR_SHARE * prior[text] for text, (logprob, _) in zip(fact.choices, choices, strict=True)]
        right = worth.pop(fact.answer)
        margin = right - max(worth)
        cluster = f"{fact.kind}: {fact.choices[fact.answer]}"
        scores.append(FactScore(fact.id, fact.kind, cluster, margin > 0, margin))
    return scores


def _score_texts(model: LanguageModel, block: Sequence[Text]) -> list[TextScore]:
    counted = model.bits([text.text for text in block])
    return [TextScore(text.id, text.kind, bits, size) for text, (bits, size) in zip(block, counted, strict=True)]


def _try_functions(model: LanguageModel, block: Sequence[FunctionTask], seed: int) -> list[FunctionScore]:
    answers = model.generate([task.messages for task in block], max_new_tokens=FUNCTION_TOKENS, temperature=0.0, seed=seed)
    passed = judge_functions(block, [answer.text for answer in answers])
    return [FunctionScore(task.id, ok, answer.finished) for task, ok, answer in zip(block, passed, answers, strict=True)]


def compare(
    before: RetentionMeasure, after: RetentionMeasure, *, facts_margin: float = 0.03, bits_margin: float = 0.01
) -> RetentionVerdict:
    """Return what was kept: facts within facts_margin (a share), bits per byte of prose and of code each within bits_margin (relative).

    Overall "kept" only if every gated task is kept, "lost" if any is, else "not proved". No correction for several tests is needed:
    the claim is that all of them hold, so each may be tested at the full 5 % and the chance of a false "kept" stays at most 5 %
    (an intersection–union test; Berger 1982). Raises DataError where the two did not measure the same items.
    """
    for name in ("facts", "texts", "functions"):
        _check_same_items(name, getattr(before, name), getattr(after, name))
    tasks = [_compare_facts(before.facts, after.facts, facts_margin)]
    for kind in KINDS:
        pairs = [(b, a) for b, a in zip(before.texts, after.texts, strict=True) if b.kind == kind]
        tasks.append(_compare_bits(kind, pairs, bits_margin))
    if before.functions:
        tasks.append(_compare_functions(before.functions, after.functions))
    verdicts = {task.verdict for task in tasks if task.verdict}
    overall: Verdict = "lost" if "lost" in verdicts else "kept" if verdicts == {"kept"} else "not proved"
    drift = paired_difference([f.margin for f in before.facts], [f.margin for f in after.facts], [f.cluster for f in before.facts])
    return RetentionVerdict(overall, tuple(tasks), _by_kind(before.facts, after.facts), drift)


def _check_same_items(name: str, before: Sequence[Any], after: Sequence[Any]) -> None:
    if [item.id for item in before] != [item.id for item in after]:
        raise DataError(
            f"before and after did not measure the same {name} ({len(before):,} and {len(after):,})",
            "retention",
            "Measure both with the same settings and the same minor version of Python.",
        )
    if name != "functions" and len(before) < 2:
        raise DataError(f"{len(before)} {name} prove nothing", "retention", f"Measure at least 2 {name}, better some hundred.")


def _compare_facts(before: Sequence[FactScore], after: Sequence[FactScore], margin: float) -> TaskVerdict:
    # Facts of one kind with the same right answer stand or fall together when a model comes to favour or avoid that answer.
    clusters = [fact.cluster for fact in before]
    first, second = [float(f.correct) for f in before], [float(f.correct) for f in after]
    # The clustered test has no uncertainty where nothing flipped; the plain one (Tango's bound) has.
    # The more cautious of the two counts.
    tests = [non_inferiority(first, second, margin=margin, clusters=c) for c in (clusters, None)]
    verdicts = {test.verdict for test in tests}
    verdict: Verdict = verdicts.pop() if len(verdicts) == 1 else "not proved"
    interval = paired_difference(first, second, clusters)
    gained, lost = _flips([f.id for f in before], first, second)
    return TaskVerdict(
        "facts", "share of right answers", len(before), float(np.mean(first)), float(np.mean(second)), tests[0].difference,
        interval.low, interval.high, min(test.lower for test in tests), margin, verdict, gained, lost,
    )  # fmt: skip


def _compare_bits(kind: str, pairs: Sequence[tuple[TextScore, TextScore]], margin: float) -> TaskVerdict:
    """Compare bits per byte of all passages of a kind, as the ratio after / before − 1, negated so that positive is better.

    The rate of a kind is all its bits over all its bytes. By the delta method, the ratio r of two such rates has the uncertainty of
    a mean over passages of r (1 + a/ā − A/Ā − b/b̄ + B/B̄), with bits a and bytes A of a passage after, b and B before.
    """
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} passages of {kind} prove nothing", "retention", "Measure at least 2 passages of each kind.")
    bits_before, bits_after = (np.array([pair[i].bits for pair in pairs]) for i in (0, 1))
    bytes_before, bytes_after = (np.array([pair[i].bytes for pair in pairs], dtype=float) for i in (0, 1))
    rate_before = float(bits_before.sum() / bytes_before.sum())
    rate_after = float(bits_after.sum() / bytes_after.sum())
    terms = [x / x.mean() for x in (bits_after, bytes_after, bits_before, bytes_before)]
    ratios = rate_after / rate_before * (1 + terms[0] - terms[1] - terms[2] + terms[3])
    # Clusters of one each: these are amounts, and must not be taken for right-or-wrong items where all changes happen to be 0.
    test = non_inferiority(np.ones(len(pairs)), ratios, margin=margin, higher_is_better=False, clusters=range(len(pairs)))
    interval = paired_difference(ratios, np.ones(len(pairs)))
    return TaskVerdict(
        kind, "relative change of bits per byte", test.n, rate_before, rate_after, test.difference,
        interval.low, interval.high, test.lower, margin, test.verdict,
    )  # fmt: skip


def _compare_functions(before: Sequence[FunctionScore], after: Sequence[FunctionScore]) -> TaskVerdict:
    first, second = [float(f.passed) for f in before], [float(f.passed) for f in after]
    gained, lost = _flips([f.id for f in before], first, second)
    low, high = _few_pairs_interval(len(lost), len(gained), len(before))
    difference = (len(gained) - len(lost)) / len(before)
    means = float(np.mean(first)), float(np.mean(second))
    return TaskVerdict("functions", "share of functions that pass", len(before), *means, difference, low, high, gained=gained, lost=lost)


def _few_pairs_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of (gained − lost) / n that stays honest for few items, even when none flipped.

    Source: Agresti and Min 2005 (half a pair is added to each of the four cells). Differs: none.
    """
    b, c, total = lost + 0.5, gained + 0.5, n + 2
    centre = (c - b) / total
    reach = 1.959964 * float(np.sqrt(b + c - (c - b) ** 2 / total)) / total
    return max(-1.0, centre - reach), min(1.0, centre + reach)


def _flips(ids: Sequence[str], before: Sequence[float], after: Sequence[float]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rows = list(zip(ids, before, after, strict=True))
    return tuple(i for i, b, a in rows if a > b), tuple(i for i, b, a in rows if a < b)


def _by_kind(before: Sequence[FactScore], after: Sequence[FactScore]) -> dict[str, tuple[int, float, float]]:
    pairs = list(zip(before, after, strict=True))
    return {
        kind: (len(rows), float(np.mean([b.correct for b, _ in rows])), float(np.mean([a.correct for _, a in rows])))
        for kind in sorted({b.kind for b in before})
        if (rows := [(b, a) for b, a in pairs if b.kind == kind])
    }
