"""What was kept: two retention measures of the same items, one before and one after, and a verdict on each task and on all.

A task is "kept" when a paired one-sided 95 % test proves that the loss is within its margin, "lost" when such a test proves that it
is beyond, and "not proved" otherwise. With several tasks the tests are corrected:

- all tasks kept: each may be tested at the full 5 %, as the claim is that all of them hold (an intersection–union test; Berger 1982);
- where that fails, what is said of a single task stands only if it survives Holm's correction over all of them;
- a task is lost only if that survives Holm's correction too, so that twenty harmless tasks do not lose one by chance.

A claim that passes the first rule or the second passes Hochberg's (1988), so the chance of any false "kept" stays within 5 % for tests
that are independent or rise and fall together; a simulation in the tests holds it to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from preftune.errors import DataError
from preftune.evaluate.retention_scores import FactScore, FunctionScore, ItemScore, RetentionMeasure, TaskMeasure, TextScore
from preftune.evaluate.statistics import Estimate, NonInferiority, holm, non_inferiority, paired_difference, required_values
from preftune.evaluate.tango import required_items
from preftune.evaluate.texts import KINDS

Verdict = Literal["kept", "lost", "not proved"]
ALPHA = 0.05


@dataclass(frozen=True)
class TaskVerdict:
    """One task before and after.

    difference: after − before, in `unit`, signed so that positive is better; low, high: its two-sided 95 % interval.
    lower: the one-sided bound that the gate reads; margin, verdict: None where the task is reported, not gated.
    p_kept, p_lost: of "it fell by the margin or more" and of "it fell by less", before any correction. needed: how many items would
    prove it at this rate of changes, where the verdict is "not proved" and the fall is within the margin.
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
    p_kept: float | None = None
    p_lost: float | None = None
    needed: int | None = None


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
        """Return one task by its name: facts, prose, code, functions, or one of the team's own."""
        return next(task for task in self.tasks if task.task == name)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)


def compare(
    before: RetentionMeasure, after: RetentionMeasure, *, facts_margin: float = 0.03, bits_margin: float = 0.01
) -> RetentionVerdict:
    """Return what was kept: facts within facts_margin (a share), bits per byte of prose and of code each within bits_margin (relative),
    and each of the team's own tasks within the margin that it was measured with.

    Overall "kept" only if every gated task is kept, "lost" if any is, else "not proved".
    Raises DataError where the two did not measure the same items.
    """
    for name in ("facts", "texts", "functions"):
        _check_same_items(name, getattr(before, name), getattr(after, name))
    items = [[ItemScore(f.id, float(f.correct), f.cluster) for f in measure.facts] for measure in (before, after)]
    tasks = [_compare_items("facts", "share of right answers", items[0], items[1], facts_margin)]
    for kind in KINDS:
        pairs = [(b, a) for b, a in zip(before.texts, after.texts, strict=True) if b.kind == kind]
        tasks.append(_compare_bits(kind, pairs, bits_margin))
    if before.functions:
        tasks.append(_compare_functions(before.functions, after.functions))
    tasks += _compare_own(before.own, after.own)
    tasks = judged(tasks)
    verdicts = {task.verdict for task in tasks if task.verdict}
    overall: Verdict = "lost" if "lost" in verdicts else "kept" if verdicts == {"kept"} else "not proved"
    drift = paired_difference([f.margin for f in before.facts], [f.margin for f in after.facts], [f.cluster for f in before.facts])
    return RetentionVerdict(overall, tuple(tasks), _by_kind(before.facts, after.facts), drift)


def judged(tasks: Sequence[TaskVerdict]) -> list[TaskVerdict]:
    """Return the tasks, each gated one with its verdict: corrected for their number, as the module says."""
    gated = [task for task in tasks if task.p_kept is not None and task.p_lost is not None]
    kept = holm([task.p_kept for task in gated if task.p_kept is not None]) if gated else []
    lost = holm([task.p_lost for task in gated if task.p_lost is not None]) if gated else []
    all_kept = all(task.p_kept is not None and task.p_kept < ALPHA for task in gated)
    corrected = {task.task: (p_kept, p_lost) for task, p_kept, p_lost in zip(gated, kept, lost, strict=True)}
    return [_judge(task, *corrected[task.task], all_kept=all_kept) if task.task in corrected else task for task in tasks]


def _judge(task: TaskVerdict, p_kept: float, p_lost: float, *, all_kept: bool) -> TaskVerdict:
    assert task.margin is not None
    if all_kept or p_kept < ALPHA:
        return replace(task, verdict="kept", needed=None)
    if p_lost < ALPHA and task.difference < -task.margin:
        return replace(task, verdict="lost", needed=None)
    return replace(task, verdict="not proved")


def _needed(margin: float, tests: Sequence[NonInferiority], changes: Sequence[float]) -> int | None:
    # To prove it with a power of 80 % if the change and its spread stay as they are: as many as each of the tests would take.
    difference, room = tests[0].difference, margin + tests[0].difference
    if room <= 0:
        return None
    by_spread = max(required_values(room, test.se**2 * test.n) for test in tests)
    if not all(change in (-1, 0, 1) for change in changes):
        return by_spread or None
    changed = sum(map(abs, changes)) / len(changes)
    return max(by_spread, required_items(margin, changed, difference=difference))


def _check_same_items(name: str, before: Sequence[Any], after: Sequence[Any]) -> None:
    if [item.id for item in before] != [item.id for item in after]:
        raise DataError(
            f"before and after did not measure the same {name} ({len(before):,} and {len(after):,})",
            "retention",
            "Measure both with the same settings and the same minor version of Python.",
        )
    if name != "functions" and len(before) < 2:
        raise DataError(f"{len(before)} {name} prove nothing", "retention", f"Measure at least 2 {name}, better some hundred.")


def _compare_items(task: str, unit: str, before: Sequence[ItemScore], after: Sequence[ItemScore], margin: float) -> TaskVerdict:
    """Compare scores from 0 to 1 of the same items."""
    # Items of one cluster stand or fall together: facts with the same right answer do when a model comes to favour or avoid it.
    clusters = [item.cluster or item.id for item in before]
    first, second = [item.score for item in before], [item.score for item in after]
    # The clustered test has no uncertainty where nothing flipped; the plain one (Tango's bound) has.
    # The more cautious of the two counts.
    tests = [non_inferiority(first, second, margin=margin, clusters=c) for c in (clusters, None)]
    interval = paired_difference(first, second, clusters)
    gained, lost = _flips([item.id for item in before], first, second)
    return TaskVerdict(
        task, unit, len(before), float(np.mean(first)), float(np.mean(second)), tests[0].difference, interval.low, interval.high,
        min(test.lower for test in tests), margin, None, gained, lost, max(test.p_value for test in tests),
        max(_p_lost(test) for test in tests), _needed(margin, tests, [b - a for a, b in zip(first, second, strict=True)]),
    )  # fmt: skip


def _p_lost(test: NonInferiority) -> float:
    # The same statistic read from its other side. Where nothing varies, a fall of the margin itself is not beyond it.
    return float(test.difference >= -test.margin) if test.se == 0 and test.p_value in (0, 1) else 1 - test.p_value


def _compare_own(before: Sequence[TaskMeasure], after: Sequence[TaskMeasure]) -> list[TaskVerdict]:
    if [task.name for task in before] != [task.name for task in after]:
        names = [", ".join(task.name for task in side) or "none" for side in (before, after)]
        raise DataError(f"before and after did not measure the same tasks ({names[0]}; {names[1]})", "retention", "Measure both alike.")
    found = []
    for own, then in zip(before, after, strict=True):
        _check_same_items(own.name, own.items, then.items)
        if own.gated:
            found.append(_compare_items(own.name, own.unit, own.items, then.items, own.margin))
        else:
            found.append(_compare_reported(own.name, own.unit, own.items, then.items))
    return found


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
        kind, "relative change of bits per byte", test.n, rate_before, rate_after, test.difference, interval.low, interval.high,
        test.lower, margin, p_kept=test.p_value, p_lost=_p_lost(test), needed=_needed_passages(margin, test),
    )  # fmt: skip


def _needed_passages(margin: float, test: NonInferiority) -> int | None:
    room = margin + test.difference
    return required_values(room, test.se**2 * test.n) if room > 0 and test.se > 0 else None


def _compare_functions(before: Sequence[FunctionScore], after: Sequence[FunctionScore]) -> TaskVerdict:
    items = [[ItemScore(f.id, float(f.passed)) for f in side] for side in (before, after)]
    return _compare_reported("functions", "share of functions that pass", items[0], items[1])


def _compare_reported(task: str, unit: str, before: Sequence[ItemScore], after: Sequence[ItemScore]) -> TaskVerdict:
    """Compare items that are reported with their interval and do not gate."""
    first, second = [item.score for item in before], [item.score for item in after]
    gained, lost = _flips([item.id for item in before], first, second)
    difference = float(np.mean(second) - np.mean(first))
    if set(first) | set(second) <= {0.0, 1.0}:
        low, high = _few_pairs_interval(len(lost), len(gained), len(before))
    else:
        interval = paired_difference(first, second)
        low, high = interval.low, interval.high
    means = float(np.mean(first)), float(np.mean(second))
    return TaskVerdict(task, unit, len(before), *means, difference, low, high, gained=gained, lost=lost)


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
