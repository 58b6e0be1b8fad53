"""Where each number of a report comes from: every entry of every manifest, with an anchor that numbers link to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from preftune.evaluate.story import Measured, RunView, Story
from preftune.evaluate.wording import NONE, Unit, full, interval, plain, spread

SHOWN_ITEMS = 12  # of a list in a manifest; the rest is counted


@dataclass(frozen=True)
class Entry:
    """One line of a manifest: the anchor that numbers link to, its key and its value as text."""

    anchor: str
    key: str
    value: str


@dataclass(frozen=True)
class Source:
    """One file that numbers come from."""

    anchor: str
    title: str
    file: str
    entries: tuple[Entry, ...]


class Sources:
    """All files behind a story, and links into them."""

    def __init__(self, story: Story, prefix: str = "") -> None:
        """Read a story's files. prefix: of every anchor, where two stories stand on one page."""
        self._prefix = prefix
        self.files = [_prefixed(file, prefix) for file in _files(story)]
        self._anchors = {entry.anchor for file in self.files for entry in file.entries}

    def anchor(self, file: str, key: str) -> str | None:
        """Return the anchor of an entry such as ("evaluation-dpo", "style"), or None where the file lacks it."""
        anchor = self._prefix + _anchor(file, key)
        return anchor if anchor in self._anchors else None

    def cite(self, text: str, file: str, key: str) -> Markup:
        """Return the text, escaped, as a link to the entry that it was read from; plain where there is no such entry."""
        anchor = self.anchor(file, key)
        if anchor is None or text == NONE:
            return Markup("{}").format(text)
        return Markup('<a class="cite" href="#{}">{}</a>').format(anchor, text)

    def value(self, estimate: Measured | None, unit: Unit, file: str, key: str) -> Markup:
        """Return a number with its unit as a link; its spread follows without one."""
        if estimate is None:
            return Markup(NONE)
        between = spread(estimate, unit)
        shown = self.cite(plain(estimate.value, unit), file, key)
        return Markup("{} ({})").format(shown, between) if between else shown

    def cell(self, estimate: Measured | None, unit: Unit, file: str, key: str) -> Markup:
        """Return a number with its 95 % interval and n in small print below, for a table whose caption says so."""
        if estimate is None:
            return Markup(NONE)
        small = [interval(estimate, unit), f"n\u00a0=\u00a0{estimate.n:,}" if estimate.n is not None else ""]
        lines = [Markup('<span class="spread">{}</span>').format(line) for line in small if line]
        return Markup("").join([self.cite(plain(estimate.value, unit), file, key), *lines])

    def whole(self, estimate: Measured | None, unit: Unit, file: str, key: str) -> Markup:
        """Return number, unit and spread as one link, for a sentence where the bracket stands within another."""
        return self.cite(full(estimate, unit, count=False), file, key)


def _prefixed(file: Source, prefix: str) -> Source:
    entries = tuple(replace(entry, anchor=prefix + entry.anchor) for entry in file.entries)
    return replace(file, anchor=prefix + file.anchor, entries=entries)


def _anchor(file: str, key: str) -> str:
    return "from-" + re.sub(r"[^a-z0-9]+", "-", f"{file}-{key}".lower()).strip("-")


def _files(story: Story) -> Iterator[Source]:
    if story.summarised:
        yield _source("summary", "Summary of the whole", "summary.json", story.summary)
    folders = story.summary.get("folders", {})
    for name in (name for name in story.labels if name in story.evaluations):
        path = folders.get("evaluations", {}).get(name, name)
        evaluation = story.evaluations[name]
        content = {key: value for key, value in evaluation.items() if key not in ("answers", "retention")}
        content["answers"] = f"{len(evaluation.get('answers', []))} answers, shown above"
        content["retention"] = (evaluation.get("retention") or {}).get("verdict")
        yield _source(f"evaluation-{name}", f"Evaluation of {story.labels[name]}", f"{path}/evaluation.json", content)
        if name in story.reports:
            yield _source(f"report-{name}", f"How {story.labels[name]} was evaluated", f"{path}/manifest.json", story.reports[name])
    for name in story.ordered_runs:
        path = folders.get("runs", {}).get(name, name)
        content = {**story.runs[name].manifest, "metrics.jsonl": _rows(story.runs[name])}
        yield _source(f"run-{name}", f"Training: {story.run_labels[name]}", f"{path}/manifest.json", content)
    for name, result in story.results.items():
        yield _source(f"result-{name}", f"What was measured: {name}", name, result)
    if "result" in story.reports:
        yield _source("report-result", "How it was measured", "manifest.json", story.reports["result"])
    if story.snapshot:
        yield _source("snapshot", "The data, frozen", f"{folders.get('snapshot', 'snapshot')}/manifest.json", story.snapshot)
    if story.release:
        yield _source("release", "The release", f"{folders.get('release', 'release')}/manifest.json", story.release)


def _rows(run: RunView) -> str:
    if not run.metrics:
        return "no rows"
    return f"{len(run.metrics)} rows, steps {run.metrics[0].get('step', '?')} to {run.metrics[-1].get('step', '?')}"


def _source(anchor: str, title: str, file: str, content: dict[str, Any]) -> Source:
    entries: dict[str, Entry] = {}
    for key, value in _flat(content):
        name = _anchor(anchor, key)
        while name in entries:  # two keys that differ only in signs
            name += "-2"
        entries[name] = Entry(name, key, as_text(value))
    return Source(f"file-{anchor}", title, file, tuple(entries.values()))


def _flat(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each key; of a dict among the values its keys one level down, unless it is an estimate or empty."""
    for key, value in content.items():
        if isinstance(value, dict) and value and "value" not in value:
            yield from ((f"{key}.{inner}", inner_value) for inner, inner_value in value.items())
        else:
            yield key, value


def as_text(value: Any) -> str:
    """Return a value of a manifest as compact JSON; long lists are cut and counted, what is not finite is a dash."""
    return json.dumps(_shortened(value), ensure_ascii=False, default=str)


def _shortened(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else NONE  # nan compares false too
    if isinstance(value, dict):
        return {str(key): _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        shown = [_shortened(item) for item in value[:SHOWN_ITEMS]]
        return shown if len(value) <= SHOWN_ITEMS else [*shown, f"… {len(value)} in all"]
    return value
