"""`preftune report`: which story a folder tells, and what else is known of it: the gate, the store, the advice, people's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, type_coerce

from preftune.data import tables
from preftune.data.store import Store
from preftune.errors import PreftuneError
from preftune.evaluate.projects import (
    EVALUATION,
    RELEASE,
    STAGES,
    evaluation_story,
    project_story,
    release_story,
    result_story,
    run_story,
)
from preftune.evaluate.report import Story, story_of, write_beside, write_report
from preftune.manifest import MANIFEST, read_manifest
from preftune.progress import counted
from preftune.release.gate import judge
from preftune.web.comparing import comparisons

SUMMARY = "summary.json"


def report(path: Path, other: Path | None = None, *, out: Path | None = None, store: str | None = None) -> Path:
    """Write the report of a run, an evaluation, a release, a project or a demo, or of two of them beside each other, and return its file.

    store: the project's store, for a project's report; None = none is read. out: by default `report.html` in a project's or demo's own
    folder, beside the folder of a run or report (`runs/ID.html`), since these are written once.
    Raises PreftuneError where a folder is none of these.
    """
    story = _with_gates(story_at(path))
    if other is not None:
        target = out or _beside(path, f"{path.resolve().name}-{other.resolve().name}")
        return write_beside(story, _with_gates(story_at(other)), target)
    if store is not None and not (path / MANIFEST).exists():
        story = replace(story, told={**_told_by(store), **story.told})
    return write_report(story, out or _beside(path, path.resolve().name))


def story_at(path: Path) -> Story:
    """Return the story that a folder tells. Raises PreftuneError where it tells none."""
    if not path.is_dir():
        raise PreftuneError("there is no such folder", str(path), "Give a run, a report, the folder of a project, or that of a demo.")
    if (path / SUMMARY).exists():
        return story_of(path)
    if not (path / MANIFEST).exists():
        return project_story(path)
    kind = read_manifest(path).get("kind")
    if kind in STAGES:
        return run_story(path)
    if kind == RELEASE:
        return release_story(path)
    return evaluation_story(path) if kind == EVALUATION else result_story(path)


def _beside(path: Path, name: str) -> Path:
    """Return where a report goes: into a project or demo, else beside a folder that is written once."""
    return path.resolve().parent / f"{name}.html" if (path / MANIFEST).exists() else path / "report.html"


def _with_gates(story: Story) -> Story:
    return replace(story, gates={name: _gate(story.evaluations[name]) for name in story.methods})


def _gate(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        return [asdict(check) for check in judge(evaluation).checks]
    except PreftuneError as error:  # an evaluation of another version of ours: it says so instead of being left out
        return [{"name": "the evaluation can be judged", "passed": False, "text": str(error)}]


def _told_by(store: str) -> dict[str, list[str]]:
    """Return what a project's store tells: how much is in it and from where, the advice, and what people said of two models."""
    from preftune.evaluate.advise import advise

    try:
        with Store.open(store) as opened:
            counts = opened.counts()
            raters, last, picked_by = _words(opened)
            blind = [f"{one.a} (A) against {one.b} (B), {counted(one.items, 'prompts')}: {one.verdict}" for one in comparisons(opened)]
    except PreftuneError as error:
        return {"The store": [str(error)]}
    told = {"The store": [", ".join(f"{count:,} {name}" for name, count in counts.items())]}
    if last is not None:
        told["The store"].append(f"{counted(raters, 'raters')}; last word of {last:%Y-%m-%d}")
        told["Where judgements come from"] = [f"{picked}: {count:,}" for picked, count in picked_by]
    if blind:
        told["What people said, blind"] = blind
    try:
        told["Advice, as of now"] = advise(store).lines()
    except PreftuneError as error:
        told["Advice, as of now"] = [str(error)]
    return told


def _words(store: Store) -> tuple[int, datetime | None, list[tuple[str, int]]]:
    """Return how many raters a store has judgements of, when the last was given, and how many were picked in which way, most first.

    The database counts, so that no judgement is read.
    """
    columns = tables.judgements.c
    count = func.count()
    with store.reading() as connection:
        raters = connection.execute(select(func.count(columns.rater.distinct()))).scalar_one()
        last: datetime | None = connection.execute(select(type_coerce(func.max(columns.created), tables.Moment))).scalar()
        ways = select(columns.picked_by, count).group_by(columns.picked_by).order_by(count.desc(), func.min(columns.number))
        return int(raters), last, [(picked, n) for picked, n in connection.execute(ways)]
