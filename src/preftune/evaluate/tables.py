"""The tables of a report: style by convention, retention, the reward model, and what went in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from preftune.code.style import CONVENTIONS
from preftune.data.calibration import ece, reliability_bins
from preftune.evaluate import plots
from preftune.evaluate.comparison import seconds_of
from preftune.evaluate.findings import change, longer_wins, size
from preftune.evaluate.sources import Sources
from preftune.evaluate.statistics import wilson
from preftune.evaluate.story import (
    LABELS,
    RUN_LABELS,
    RUN_ORDER,
    Flip,
    Measured,
    RetentionTask,
    Story,
    flips,
    measured,
    number,
    retention_tasks,
    verdict_of,
)
from preftune.evaluate.wording import NONE, Unit, duration, full, gib, interval, listed, plain

FEWEST_CALIBRATED = 20  # predictions below which a calibration plot is noise
TASK_NAMES = {"facts": "Python facts", "prose": "Neutral prose", "code": "Neutral code", "functions": "Functions against tests"}


@dataclass(frozen=True)
class ConventionRow:
    """One convention: its name, its rule in words, and a cell for each model."""

    name: str
    rule: str
    cells: tuple[Markup, ...]


def style_rows(story: Story, sources: Sources) -> list[ConventionRow]:
    """Return how often each convention is followed where it applies, by model."""
    names = [name for name in LABELS if name in story.evaluations]
    known = [story.evaluations[name].get("conventions") or {} for name in names]
    found = {convention for conventions in known for convention in conventions}
    ordered = [*(name for name in CONVENTIONS if name in found), *sorted(found - CONVENTIONS.keys())]
    return [
        ConventionRow(
            convention,
            CONVENTIONS.get(convention, ""),
            tuple(_followed(sources, name, convention, held.get(convention) or {}) for name, held in zip(names, known, strict=True)),
        )
        for convention in ordered
    ]


def _followed(sources: Sources, name: str, convention: str, counts: dict[str, Any]) -> Markup:
    followed, applies = number(counts.get("followed")), number(counts.get("applies"))
    if followed is None or not applies:
        return Markup('<span class="spread">never applies</span>')
    share = wilson(followed, applies)
    return sources.cell(Measured(share.value, share.low, share.high, share.n), "share", f"evaluation-{name}", f"conventions.{convention}")


@dataclass(frozen=True)
class TaskRow:
    """One retention task, each cell as HTML; verdict: "kept", "lost", "not proved" or "reported, not gated"."""

    name: str
    before: Markup
    after: Markup
    difference: Markup
    lower: Markup
    margin: Markup
    verdict: str
    n: str


@dataclass(frozen=True)
class KindRow:
    """The facts of one kind, as text: how many, and the shares that were right before and after."""

    kind: str
    n: str
    before: str
    after: str


@dataclass(frozen=True)
class RetentionTable:
    """What one tuned model kept; cite: the overall verdict as a link. lost, gained: the items that flipped."""

    name: str
    label: str
    verdict: str
    cite: Markup
    rows: tuple[TaskRow, ...]
    lost: tuple[Flip, ...]
    gained: tuple[Flip, ...]
    kinds: tuple[KindRow, ...]


def retention_tables(story: Story, sources: Sources) -> list[RetentionTable]:
    """Return a table for each tuned model whose retention was compared."""
    tables = []
    for name in story.methods:
        evaluation = story.evaluations[name]
        said = verdict_of(evaluation)
        if said is None:
            continue
        file = f"evaluation-{name}"
        flipped = flips(story.evaluations.get("before", {}), evaluation)
        tables.append(
            RetentionTable(
                name=name,
                label=LABELS[name],
                verdict=said,
                cite=sources.cite(said, file, "retention.overall"),
                rows=tuple(_task_row(task, sources, file) for task in retention_tasks(evaluation)),
                lost=tuple(flip for flip in flipped if not flip.gained),
                gained=tuple(flip for flip in flipped if flip.gained),
                kinds=_kind_rows(evaluation),
            )
        )
    return tables


def _kind_rows(evaluation: dict[str, Any]) -> tuple[KindRow, ...]:
    by_kind = evaluation["retention"]["verdict"].get("facts_by_kind") or {}
    return tuple(
        KindRow(str(kind), f"{n:,}", plain(number(before), "share"), plain(number(after), "share"))
        for kind, (n, before, after) in by_kind.items()
    )


def _task_row(task: RetentionTask, sources: Sources, file: str) -> TaskRow:
    def cell(text: str) -> Markup:
        return sources.cite(text, file, "retention.tasks")

    level: Unit = "bits" if task.bits else "share"
    difference = cell(change(task, task.difference))
    if task.low is not None and task.high is not None and task.difference is not None:
        between = interval(Measured(task.difference, task.low, task.high), "percent" if task.bits else "points")
        difference += Markup('<span class="spread">{}</span>').format(between)
    return TaskRow(
        name=TASK_NAMES.get(task.name, task.name),
        before=cell(plain(task.before, level)),
        after=cell(plain(task.after, level)),
        difference=difference,
        lower=cell(change(task, task.lower)),
        margin=cell(size(task, task.margin)),
        verdict=(task.verdict or NONE) if task.gated else "reported, not gated",
        n=f"{task.n:,}" if task.n is not None else NONE,
    )


@dataclass(frozen=True)
class RewardView:
    """How good the reward model is on held-out pairs, each number as HTML; drawing: its calibration, where there is enough to draw."""

    accuracy: Markup
    longer: Markup
    ece: Markup
    reading: str
    drawing: Markup


def reward_view(story: Story, sources: Sources) -> RewardView | None:
    """Return the reward model's held-out figures, from the summary or else from its run; None where there is no reward model."""
    facts = story.summary.get("reward_model", {})
    held_out = story.runs["reward"].manifest.get("held_out", {}) if "reward" in story.runs else {}
    margins = [margin for value in held_out.get("margins", []) if (margin := number(value)) is not None]
    accuracy, file, key = measured(facts.get("accuracy")), "summary", "reward_model.accuracy"
    if accuracy is None and margins:
        share = wilson(sum(_right(margin) for margin in margins), len(margins))
        accuracy, file, key = Measured(share.value, share.low, share.high, share.n), "run-reward", "held_out.accuracy"
    if accuracy is None:
        return None
    longer, longer_file, longer_key = longer_wins(story)
    sure = [1 / (1 + math.exp(-min(abs(margin), 700.0))) for margin in margins]
    right = [_right(margin) for margin in margins]
    gap, gap_file, gap_key = number(facts.get("ece")), "summary", "reward_model.ece"
    if gap is None and len(margins) >= FEWEST_CALIBRATED:
        gap, gap_file, gap_key = ece(sure, right, bins=5), "run-reward", "held_out.margins"
    return RewardView(
        accuracy=sources.value(accuracy, "share", file, key),
        longer=sources.value(longer, "share", longer_file, longer_key),
        ece=sources.cite(plain(gap, "points").lstrip("+"), gap_file, gap_key),
        reading=_reward_reading(accuracy, longer),
        drawing=_calibration(sure, right) if len(margins) >= FEWEST_CALIBRATED else Markup(),
    )


def _right(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def _reward_reading(accuracy: Measured, longer: Measured | None) -> str:
    if accuracy.low is not None and accuracy.low <= 0.5:
        return "The interval reaches down to a coin toss, so it is not shown that the reward model learned anything; PPO cannot rest on it."
    if longer is None:
        return "How far length alone would tell the answers apart was not measured."
    best = max(longer.value, 1 - longer.value)
    more = accuracy.low is not None and accuracy.low > best
    told = "the reward model knows more than length" if more else "it is not shown that the reward model knows more than length"
    return f"Always taking the longer, or always the shorter, answer would be right in {plain(best, 'share')}: {told}."


def _calibration(sure: list[float], right: list[float]) -> Markup:
    bins = [(b.confidence, b.accuracy, b.count) for b in reliability_bins(sure, right, bins=5)]
    told = " ".join(f"{100 * b[0]:.0f} % sure: right in {100 * b[1]:.0f} % of {b[2]} pairs." for b in bins)
    return plots.calibration("calibration", "Reward model: how sure and how often right", told, bins)


@dataclass(frozen=True)
class Fact:
    """One line of what went in: a name and its value as HTML."""

    name: str
    value: Markup


def data_facts(story: Story, sources: Sources) -> list[Fact]:
    """Return pairs, what was left out and why, duplicates, seeds, versions and hardware, as far as the manifests tell."""
    return [*_snapshot_facts(story, sources), *_run_facts(story, sources), *_machine_facts(story, sources)]


def _snapshot_facts(story: Story, sources: Sources) -> Iterator[Fact]:
    counts = story.snapshot.get("counts", {})
    for side, label in (("train", "Learned from"), ("held_out", "Held out"), ("dropped", "Left out")):
        parts = [f"{value:,} {part}" for part, value in counts.get(side, {}).items() if isinstance(value, int)]
        reason = counts.get(side, {}).get("reason")
        if parts:
            text = listed(parts) + (
                f" ({reason})" if reason and any(counts[side].get(p) for p in ("pairs", "demonstrations", "prompts")) else ""
            )
            yield Fact(label, sources.cite(text, "snapshot", f"counts.{side}"))
    if "groups" in story.snapshot:
        alike = number(story.snapshot.get("grouped_prompts")) or 0
        text = (
            f"{alike:,.0f} prompts are nearly alike another; {story.snapshot['groups']:,} groups, none split between training and held-out"
        )
        yield Fact("Near-duplicates", sources.cite(text, "snapshot", "groups"))
    votes = story.snapshot.get("votes", {})
    if votes:
        names = {
            "judgements": "judgements",
            "ties": "ties",
            "even_splits": "even splits",
            "contradictions": "contradictions",
            "superseded": "undone",
        }
        parts = [f"{votes[key]:,} {label}" for key, label in names.items() if isinstance(votes.get(key), int)]
        yield Fact("Judgements", sources.cite(listed(parts), "snapshot", "votes.judgements"))


def _run_facts(story: Story, sources: Sources) -> Iterator[Fact]:
    for name in (name for name in RUN_ORDER if name in story.runs):
        manifest = story.runs[name].manifest
        data = manifest.get("data", {})
        left_out = data.get("left_out") or {}
        parts = [f"{value:,} left out: {reason}" for reason, value in left_out.items()] or (["nothing left out"] if data else [])
        if data.get("turns_dropped"):
            parts.append(f"{data['turns_dropped']:,} oldest turns dropped from prompts")
        text = Markup("{}").format(sources.cite("; ".join(parts) or "no counts", f"run-{name}", "data.left_out"))
        seed = manifest.get("config", {}).get("seed")
        if seed is not None:
            text += Markup("; seed {}").format(sources.cite(str(seed), f"run-{name}", "config.seed"))
        if seconds_of(story, name) is not None:
            text += Markup("; {}").format(sources.cite(duration(seconds_of(story, name)), f"run-{name}", "seconds"))
        if number(manifest.get("peak_memory_gib")) is not None:
            text += Markup("; peak {}").format(sources.cite(gib(number(manifest["peak_memory_gib"])), f"run-{name}", "peak_memory_gib"))
        yield Fact(f"Training: {RUN_LABELS[name]}", text)


def _machine_facts(story: Story, sources: Sources) -> Iterator[Fact]:
    files = [(f"run-{name}", run.manifest) for name, run in story.runs.items()] + [
        (f"report-{name}", m) for name, m in story.reports.items()
    ]
    for field, label in (("versions", "Versions"), ("hardware", "Hardware")):
        variants: dict[str, tuple[str, str]] = {}
        for file, manifest in files:
            if manifest.get(field):
                text = ", ".join(f"{key.replace('_gib', ', GiB').replace('_', ' ')} {value}" for key, value in manifest[field].items())
                variants.setdefault(text, (file, f"{field}.{next(iter(manifest[field]))}"))
        for text, (file, key) in variants.items():
            yield Fact(label, sources.cite(text, file, key))
    total = number(story.summary.get("seconds", {}).get("total"))
    if total is not None:
        yield Fact("Time in all", sources.cite(duration(total), "summary", "seconds.total"))
    peak = number(story.summary.get("peak_memory_gib"))
    if peak is not None:
        yield Fact("Peak memory", sources.cite(gib(peak), "summary", "peak_memory_gib"))


def overview(story: Story) -> tuple[Markup, Markup]:
    """Return two drawings: style by model, and style won against KL spent; empty where there is nothing to draw."""
    marks = [plots.Mark(LABELS[n], style) for n in LABELS if (style := measured(story.evaluations.get(n, {}).get("style")))]
    points = [
        plots.Point(LABELS[name], kl.value, gain)
        for name in story.methods
        if (kl := measured(story.evaluations[name].get("kl"))) and (gain := measured(story.evaluations[name].get("style_gain")))
    ]
    won = cost = Markup()
    if marks:
        told = " ".join(f"{mark.label}: {full(mark.estimate, 'share')}." for mark in marks)
        won = plots.estimates("plot-style", "House conventions followed, by model", told, marks, unit="conventions followed", percent=True)
    if points:
        told = " ".join(f"{p.label}: {plain(p.x, 'nats')} an answer, {full(p.estimate, 'points', count=False)}." for p in points)
        cost = plots.trade_off("plot-cost", "Style won against KL spent", told, points, x_unit="KL from the base, nats an answer")
    return won, cost
