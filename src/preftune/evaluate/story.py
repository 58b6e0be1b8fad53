"""What a report tells of: the evaluations, runs and manifests of one project folder, read and named in one place.

A story is plain data. `story_of` reads it from a folder that the demo has left; anyone may build one by hand. What is missing stays
missing: no number is made up for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.data.snapshot_files import read_column
from preftune.errors import DataError, PreftuneError
from preftune.evaluate.json_lines import numbered_lines
from preftune.manifest import read_manifest

# In the order in which reports show them.
LABELS = {"before": "Base model", "sft": "SFT", "dpo": "DPO", "dpo_base": "DPO without SFT", "ppo": "PPO (RLHF)"}
RUN_ORDER = ("sft", "reward", "dpo", "dpo_base", "ppo")
RUN_LABELS = {name: (LABELS | {"reward": "Reward model"})[name] for name in RUN_ORDER}
RL = ("ppo", "rloo", "grpo")
NEEDS = {"dpo": ("sft",), "ppo": ("sft", "reward")}  # where manifests do not say it


@dataclass(frozen=True)
class RunView:
    """One training run: its manifest, the rows of metrics.jsonl, and for PPO those of samples.jsonl."""

    manifest: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of one metric, without what is not finite."""
        rows = [(number(row.get("step")), number(row.get(name))) for row in self.metrics]
        pairs = [(step, value) for step, value in rows if step is not None and value is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]


@dataclass(frozen=True)
class Story:
    """All that a report is printed from.

    evaluations: name → content of evaluation.json; that of the base is "before". runs: name → its view. A run and its evaluation have the
    same name; labels and run_labels say how the names are written, in the order of the report. snapshot, release, reports: the manifests
    of these folders, where known. trained_kinds: the kinds of requests that were trained on; None where that is not known.
    gates: name → what the gate says of it, question by question. results: other reports' files, by name; compared: of a
    comparison each prompt with its answers and verdicts. summarised: whether summary is
    a file. told: what else is known of
    the project (its store, the advice, what people said of two models), each a heading with its lines.
    """

    title: str
    folder: Path
    summary: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    runs: dict[str, RunView]
    snapshot: dict[str, Any] = field(default_factory=dict)
    release: dict[str, Any] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    trained_kinds: frozenset[str] | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: LABELS)
    run_labels: Mapping[str, str] = field(default_factory=lambda: RUN_LABELS)
    gates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    compared: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, list[str]] = field(default_factory=dict)
    summarised: bool = True

    @property
    def ordered_runs(self) -> list[str]:
        """The runs in the order of the report."""
        return [name for name in self.run_labels if name in self.runs]

    def kind(self, name: str) -> str:
        """Return the stage that made a model ("dpo"), or its name where that is not known."""
        made_by = self.runs[name].manifest.get("kind", name) if name in self.runs else name
        return "dpo" if made_by == "dpo_base" else str(made_by)

    @property
    def methods(self) -> list[str]:
        """The tuned models that were evaluated, in the order of the report."""
        return [name for name in self.labels if name != "before" and name in self.evaluations]

    @property
    def released(self) -> str | None:
        """The method whose run the release was made from, or None."""
        made_from = set(self.release.get("inputs", {}).values())
        return next((name for name in self.methods if name in self.runs and self.runs[name].manifest.get("id") in made_from), None)

    @property
    def headline(self) -> str | None:
        """The model that the report speaks of first: the released one, else of the kept ones, or else of all, the one that won most.

        Won is style, or, where that was not measured, the win rate against the base.
        """
        if self.released:
            return self.released

        def rank(name: str) -> tuple[bool, float]:
            gain = measured(self.evaluations[name].get("style_gain")) or measured(self.evaluations[name].get("win_rate"))
            return verdict_of(self.evaluations[name]) == "kept", gain.value if gain else -math.inf

        return max(self.methods, key=rank, default=None)

    def chain(self, name: str) -> list[str]:
        """Return the runs that a method needs, its own last: those whose ids are inputs of its manifest, and theirs."""
        if name not in self.runs:
            return []
        inputs = set(self.runs[name].manifest.get("inputs", {}).values())
        needed = [other for other in self.ordered_runs if other != name and self.runs[other].manifest.get("id") in inputs]
        if not needed:
            needed = [other for other in NEEDS.get(name, ()) if other in self.runs]
        earlier = [run for other in needed for run in self.chain(other)]
        return [*dict.fromkeys(earlier), name]


@dataclass(frozen=True)
class Measured:
    """A finite value, its 95 % interval and its number of observations, as far as they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def overlaps(self, other: Measured) -> bool:
        """Say whether the two intervals share a point; where an interval is unknown nothing is told apart."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def measured(value: Any) -> Measured | None:
    """Return an estimate ({"value", "low", "high", "n"}) or a bare number as Measured; None where there is no finite value."""
    parts = value if isinstance(value, dict) else {"value": value}
    middle = number(parts.get("value"))
    if middle is None:
        return None
    low, high, n = number(parts.get("low")), number(parts.get("high")), number(parts.get("n"))
    if low is None or high is None:
        low = high = None
    return Measured(middle, low, high, int(n) if n is not None else None)


@dataclass(frozen=True)
class RetentionTask:
    """One retention task before and after; a difference above 0 is better. bits: whether the numbers are bits per byte."""

    name: str
    before: float | None
    after: float | None
    difference: float | None
    lower: float | None
    margin: float | None
    low: float | None
    high: float | None
    n: int | None
    verdict: str | None
    gated: bool
    bits: bool


def verdict_of(evaluation: dict[str, Any]) -> str | None:
    """Return "kept", "lost" or "not proved"; None where retention was not compared."""
    verdict = (evaluation.get("retention") or {}).get("verdict") or {}
    return str(verdict["overall"]) if verdict.get("overall") else None


def retention_tasks(evaluation: dict[str, Any]) -> list[RetentionTask]:
    """Return the tasks of an evaluation's retention verdict."""
    rows = ((evaluation.get("retention") or {}).get("verdict") or {}).get("tasks", [])
    return [
        RetentionTask(
            name=str(row.get("name")),
            **{key: number(row.get(key)) for key in ("before", "after", "difference", "lower", "margin", "low", "high")},
            n=int(n) if (n := number(row.get("n"))) is not None else None,
            verdict=row.get("verdict"),
            gated=bool(row.get("gated")),
            bits="bits" in str(row.get("unit", "")),
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Flip:
    """An item of a retention task that was right on one side alone. detail: its right answer, where known."""

    task: str
    item: str
    kind: str
    detail: str
    gained: bool


def flips(before: dict[str, Any], after: dict[str, Any]) -> list[Flip]:
    """Return the items that flipped between two evaluations, lost ones first, from what each measured item by item."""
    return sorted(_flips(before, after), key=lambda flip: (flip.gained, flip.task, flip.kind, flip.item))


def _flips(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Flip]:
    for task, key in (("facts", "correct"), ("functions", "passed")):
        first, second = (_measure(evaluation, task) for evaluation in (before, after))
        for item in first.keys() & second.keys():
            was, became = bool(first[item].get(key)), bool(second[item].get(key))
            if was != became:
                detail = str(first[item].get("cluster", "")).partition(": ")[2]
                yield Flip(task, item, str(first[item].get("kind", "")), detail, became)
    own = [{task["name"]: task for task in _retention_measure(evaluation).get("own", ())} for evaluation in (before, after)]
    for task in own[0].keys() & own[1].keys():
        then = {item["id"]: item["score"] for item in own[1][task]["items"]}
        for item in own[0][task]["items"]:
            if then.get(item["id"], item["score"]) != item["score"]:
                yield Flip(task, item["id"], own[0][task]["kind"], item["right"], then[item["id"]] > item["score"])


def _measure(evaluation: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    return {str(row.get("id")): row for row in _retention_measure(evaluation).get(task, [])}


def _retention_measure(evaluation: dict[str, Any]) -> dict[str, Any]:
    return (evaluation.get("retention") or {}).get("measure") or {}


def story_of(folder: Path) -> Story:
    """Read the story of a folder that the demo has left, from its summary.json on.

    Raises PreftuneError where the summary or a folder that it names is missing, DataError where a file is broken.
    """
    summary = read_json(folder / "summary.json")
    folders = summary.get("folders", {})
    reports = {name: folder / path for name, path in folders.get("evaluations", {}).items() if path}
    runs = {name: folder / path for name, path in folders.get("runs", {}).items() if path}
    snapshot, release = folders.get("snapshot"), folders.get("release")
    return Story(
        title=str(summary.get("title") or f"What {_model_name(summary)} learned, and what it kept"),
        folder=folder,
        summary=summary,
        evaluations={name: read_json(path / "evaluation.json") for name, path in reports.items()},
        runs={
            name: RunView(read_manifest(path), read_json_lines(path / "metrics.jsonl"), read_json_lines(path / "samples.jsonl"))
            for name, path in runs.items()
        },
        snapshot=read_manifest(folder / snapshot) if snapshot else {},
        release=read_manifest(folder / release) if release else {},
        reports={name: read_manifest(path) for name, path in reports.items() if (path / "manifest.json").exists()},
        trained_kinds=trained_kinds(folder / snapshot) if snapshot else None,
    )


def trained_kinds(snapshot: Path) -> frozenset[str]:
    """Return the kinds of the requests that a snapshot trains on."""
    return frozenset(map(str, read_column(snapshot, read_manifest(snapshot), "prompts", "kind")))


def _model_name(summary: dict[str, Any]) -> str:
    name = Path(str(summary.get("model") or "")).name
    return "the model" if name in ("", "base") else name  # the demo's folder of the base model tells no name


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises PreftuneError where the file is missing, DataError where it is broken."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PreftuneError(
            "this file of the report's sources is missing", str(path), "Give a run, a report, the folder of a project, or that of a demo."
        ) from None
    except ValueError as error:
        raise DataError(f"the file is broken ({error})", str(path), "Make its folder anew.") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; none where there is no file."""
    if not path.exists():
        return []
    rows = []
    for place, line in numbered_lines(path.read_text(encoding="utf-8")):
        try:
            rows.append(dict(json.loads(line)))
        except ValueError as error:
            raise DataError(f"the line is broken ({error})", f"{path} line {place}", "Make the run anew.") from error
    return rows
