"""The tables of a report: style by convention, retention, the reward model, and what went in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from preftune.code.style import CONVENTIONS
from preftune.evaluate import plots
from preftune.evaluate.comparison import seconds_of
from preftune.evaluate.findings import change, size
from preftune.evaluate.sources import Sources
from preftune.evaluate.statistics import wilson
from preftune.evaluate.story import (
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
from preftune.progress import counted

TASK_NAMES = {"facts": "Python facts", "prose": "Neutral prose", "code": "Neutral code", "functions": "Functions against tests"}


@dataclass(frozen=True)
class ConventionRow:
    """One convention: its name, its rule in words, and a cell for each model."""

    name: str
    rule: str
    cells: tuple[Markup, ...]


def style_rows(story: Story, sources: Sources) -> list[ConventionRow]:
    """Return how often each convention is followed where it applies, by model; nothing where none ever applies, as in no code."""
    names = [name for name in story.labels if name in story.evaluations]
    known = [story.evaluations[name].get("conventions") or {} for name in names]
    found = {convention for conventions in known for convention in conventions}
    if not any(number(counts.get("applies")) for conventions in known for counts in conventions.values()):
        return []
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
                label=story.labels[name],
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
        parts = [
            counted(value, "orders of three and more" if part == "kwise" else part)
            for part, value in counts.get(side, {}).items()
            if isinstance(value, int)
        ]
        reason = counts.get(side, {}).get("reason")
        if parts:
            text = listed(parts) + (
                f" ({reason})" if reason and any(counts[side].get(p) for p in ("pairs", "demonstrations", "prompts")) else ""
            )
            yield Fact(label, sources.cite(text, "snapshot", f"counts.{side}"))
    if "groups" in story.snapshot:
        alike = number(story.snapshot.get("grouped_prompts")) or 0
        groups = counted(story.snapshot["groups"], "groups")
        text = f"{counted(round(alike), 'prompts are')} nearly alike another; {groups}, none split between training and held-out"
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
        parts = [counted(votes[key], label) for key, label in names.items() if isinstance(votes.get(key), int)]
        yield Fact("Judgements", sources.cite(listed(parts), "snapshot", "votes.judgements"))


def _run_facts(story: Story, sources: Sources) -> Iterator[Fact]:
    for name in story.ordered_runs:
        manifest = story.runs[name].manifest
        data = manifest.get("data", {})
        left_out = data.get("left_out") or {}
        parts = [f"{value:,} left out: {reason}" for reason, value in left_out.items()] or (["nothing left out"] if data else [])
        if data.get("turns_dropped"):
            parts.append(f"{counted(data['turns_dropped'], 'oldest turns')} dropped from prompts")
        text = Markup("{}").format(sources.cite("; ".join(parts) or "no counts", f"run-{name}", "data.left_out"))
        seed = manifest.get("config", {}).get("seed")
        if seed is not None:
            text += Markup("; seed {}").format(sources.cite(str(seed), f"run-{name}", "config.seed"))
        if seconds_of(story, name) is not None:
            text += Markup("; {}").format(sources.cite(duration(seconds_of(story, name)), f"run-{name}", "seconds"))
        if number(manifest.get("peak_memory_gib")) is not None:
            text += Markup("; peak {}").format(sources.cite(gib(number(manifest["peak_memory_gib"])), f"run-{name}", "peak_memory_gib"))
        yield Fact(f"Training: {story.run_labels[name]}", text)


def _fact(key: str, value: Any) -> str:
    return f"{key.removesuffix('_gib').replace('_', ' ')} {value}{' GiB' if key.endswith('_gib') else ''}"


def _machine_facts(story: Story, sources: Sources) -> Iterator[Fact]:
    files = [(f"run-{name}", run.manifest) for name, run in story.runs.items()] + [
        (f"report-{name}", m) for name, m in story.reports.items()
    ]
    for field, label in (("versions", "Versions"), ("hardware", "Hardware")):
        variants: dict[str, tuple[str, str]] = {}
        for file, manifest in files:
            if manifest.get(field):
                text = ", ".join(_fact(key, value) for key, value in manifest[field].items())
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
    marks = [plots.Mark(story.labels[n], style) for n in story.labels if (style := measured(story.evaluations.get(n, {}).get("style")))]
    points = [
        plots.Point(story.labels[name], kl.value, gain)
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


@dataclass(frozen=True)
class ResultRow:
    """One figure of another report than an evaluation: its name, and its value with interval and n as HTML."""

    name: str
    value: Markup


def result_rows(story: Story, sources: Sources) -> list[ResultRow]:
    """Return every estimate ({"value", "low", "high", "n"}) that the files of a report hold, by the keys that lead to it."""
    return [row for name, content in story.results.items() for row in _estimates(content, (), f"result-{name}", sources)]


def _called(content: Any) -> str:
    """Return what a figure in a list is of: its name, or the two that it sets beside each other; "" where it does not say."""
    if not isinstance(content, dict):
        return ""
    names = [Path(str(content[key])).name for key in ("name", "a", "b") if key in content]
    return " against ".join(names)


def _estimates(content: Any, keys: tuple[str, ...], file: str, sources: Sources) -> Iterator[ResultRow]:
    if isinstance(content, list):
        for place, inner in enumerate(content, 1):
            yield from _estimates(inner, (*keys, _called(inner) or str(place)), file, sources)
    if not isinstance(content, dict):
        return
    value = measured(content) if "value" in content else None
    if value is None or not keys:
        for key, inner in content.items():
            yield from _estimates(inner, (*keys, str(key)), file, sources)
        return
    unit: Unit = "share" if 0 <= value.value <= 1 and (value.high or 1) <= 1 and (value.low or 0) >= 0 else "score"
    unit = "elo" if keys[-1] == "elo" else unit
    entry = ".".join(keys[:2])
    entry = entry if sources.anchor(file, entry) else keys[0]  # a list is one entry of its file
    yield ResultRow(" · ".join(keys).replace("_", " "), sources.value(value, unit, file, entry))
