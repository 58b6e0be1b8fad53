"""Stories of one run, of one evaluation, and of a whole project, read from its folders by their manifests.

A project is `snapshots/`, `runs/`, `reports/` and `releases/` beside each other. What belongs together is found by ids: a folder's manifest
names the ids of what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preftune.errors import PreftuneError
from preftune.evaluate.story import (
    RunView,
    Story,
    read_json,
    read_json_lines,
    trained_kinds,
)
from preftune.manifest import MANIFEST, read_manifest

STAGES = {"sft": "SFT", "reward": "Reward model", "dpo": "DPO", "ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO"}
EVALUATION = "evaluation"
RELEASE = "release"
MOST_RUNS = 12  # on one page
Folders = dict[Path, dict[str, Any]]


def run_story(run: Path) -> Story:
    """Return the story of one training: its curves, what it warned of, its samples, and what it was made from."""
    manifest = read_manifest(run)
    if manifest.get("kind") not in STAGES:
        raise PreftuneError(f'this folder is a "{manifest.get("kind")}", not a training', str(run), "Give a run of preftune train.")
    return _story(f"{STAGES[manifest['kind']]} {manifest['id']}", run.parent.parent, {run: manifest}, {})


def evaluation_story(report: Path) -> Story:
    """Return the story of one evaluation: the model against its base, with the trainings and the release where these are still there."""
    manifest = read_manifest(report)
    runs, evaluations = _behind(report, manifest)
    run = str(manifest["inputs"].get("model"))
    project = report.resolve().parent.parent
    releases = {path: other for path, other in _folders(project / "releases").items() if str(other["inputs"].get("run")) == run}
    return _story(f"Evaluation {manifest['id']}", project, runs, evaluations, releases)


def release_story(release: Path) -> Story:
    """Return the story of one release: its evaluation, and the trainings that led to it, where these are still there."""
    manifest, project = read_manifest(release), release.resolve().parent.parent
    report = project / "reports" / str(manifest["inputs"].get("evaluation"))
    if (report / MANIFEST).exists():
        runs, evaluations = _behind(report, read_manifest(report))
    else:
        runs, evaluations = _ancestors(_folders(project / "runs"), [str(manifest["inputs"].get("run"))]), {}
    return _story(f"Release {manifest['id']}", project, runs, evaluations, {release.resolve(): manifest})


def _behind(report: Path, manifest: Mapping[str, Any]) -> tuple[Folders, Folders]:
    """Return the runs that led to the model of an evaluation, and that evaluation with its base's."""
    report = report.resolve()
    project = report.parent.parent
    evaluations: Folders = {report: dict(manifest)}
    base = manifest["inputs"].get("base")
    if base != manifest["inputs"].get("model"):
        alike = _alike(_folders(report.parent), manifest)
        evaluations |= {path: other for path, other in alike.items() if other["inputs"].get("model") == base}
    runs = _ancestors(_folders(project / "runs"), [str(manifest["inputs"].get("model"))])
    return runs, evaluations


def result_story(report: Path) -> Story:
    """Return the story of any other report of ours: the figures that its files hold, each with its interval."""
    manifest = read_manifest(report)
    return Story(
        title=f"{str(manifest.get('kind', 'report')).capitalize()} {manifest['id']}",
        folder=report.parent.parent,
        summary={"folders": {}},
        evaluations={},
        runs={},
        reports={"result": manifest},
        labels={"result": str(manifest.get("kind", "report"))},
        run_labels={},
        results={path.name: read_json(path) for path in sorted(report.glob("*.json")) if path.name != MANIFEST},
        compared=read_json_lines(report / "answers.jsonl"),
        summarised=False,
    )


def project_story(project: Path) -> Story:
    """Return the story of a whole project. Raises PreftuneError where the folder holds no snapshot, run, report or release of ours."""
    runs, reports = (_folders(project / name) for name in ("runs", "reports"))
    runs = {path: manifest for path, manifest in runs.items() if manifest.get("kind") in STAGES}
    evaluations = _newest_alike(reports)
    releases = _folders(project / "releases")
    if not (runs or evaluations or releases or (project / "snapshots").is_dir() or (project / "preftune.yaml").exists()):
        what = "there is no run, evaluation or release of preftune here"
        raise PreftuneError(what, str(project), "Give a run, a report, the folder of a project, or that of a demo.")
    told: dict[str, list[str]] = {}
    wanted = [str(manifest["inputs"].get("model")) for manifest in evaluations.values()]
    wanted += [str(manifest["inputs"].get("run")) for manifest in releases.values()]
    shown = _ancestors(runs, wanted)
    for path, manifest in sorted(runs.items(), key=lambda item: str(item[1].get("started")), reverse=True):
        if len(shown) < MOST_RUNS:
            shown.setdefault(path, manifest)
    left = len(runs) - len(shown)
    if left > 0:
        told["Not shown"] = [f"{left} further runs, which were not evaluated. preftune report runs/ID shows one."]
    ordered = sorted(shown, key=lambda path: (list(STAGES).index(shown[path]["kind"]), str(shown[path].get("started")), path.name))
    story = _story(f"The project {project.resolve().name}", project, {path: shown[path] for path in ordered}, evaluations, releases)
    story.told.update(told)
    return story


def _story(title: str, project: Path, runs: Folders, evaluations: Folders, releases: Folders | None = None) -> Story:
    names = _names(runs)
    of_id = {manifest["id"]: names[path] for path, manifest in runs.items()}
    run_labels = {names[path]: _label(manifest, runs) for path, manifest in runs.items()}
    labels, found, reports, paths = {"before": "Base model"} | run_labels, {}, {}, {}
    for path, manifest in evaluations.items():
        made = manifest["inputs"]
        model = str(made.get("model"))
        name = "before" if model == made.get("base") else of_id.get(model, f"model-{model[:8]}")
        found[name], reports[name], paths[name] = read_json(path / "evaluation.json"), manifest, path
        labels.setdefault(name, Path(str(found[name].get("model", model))).name)
    snapshot = _snapshot(project, [*runs.values(), *evaluations.values()])
    release, released = _newest(releases or {}, of_id)
    folders: dict[str, Any] = {
        "evaluations": {name: _inside(path, project) for name, path in paths.items()},
        "runs": {names[path]: _inside(path, project) for path in runs},
        "snapshot": _inside(snapshot, project) if snapshot else None,
        "release": _inside(released, project) if released else None,
    }
    return Story(
        title=title,
        folder=project,
        summary={"folders": folders, "release": folders["release"]},
        evaluations={name: found[name] for name in labels if name in found},
        runs={names[path]: _view(path, manifest) for path, manifest in runs.items()},
        snapshot=read_manifest(snapshot) if snapshot else {},
        release=release,
        reports=reports,
        trained_kinds=trained_kinds(snapshot) if snapshot else None,
        labels=labels,
        run_labels=run_labels,
        summarised=False,
    )


def _view(path: Path, manifest: dict[str, Any]) -> RunView:
    return RunView(manifest, read_json_lines(path / "metrics.jsonl"), read_json_lines(path / "samples.jsonl"))


def _names(runs: Folders) -> dict[Path, str]:
    return {path: f"{manifest['kind']}-{str(manifest['id'])[:8]}" for path, manifest in runs.items()}


def _label(manifest: Mapping[str, Any], runs: Folders) -> str:
    """Return how a run is called: by its stage, with the start of its id where there are several of it."""
    stage = STAGES[manifest["kind"]]
    alone = sum(other["kind"] == manifest["kind"] for other in runs.values()) == 1
    return stage if alone else f"{stage} {str(manifest['id'])[:6]}"


def _inside(path: Path, project: Path) -> str:
    return str(path.relative_to(project)) if path.is_relative_to(project) else str(path)


def _folders(room: Path) -> Folders:
    """Return the manifests of the finished folders in a room, oldest first."""
    found = {path.parent: read_manifest(path.parent) for path in sorted(room.glob(f"*/{MANIFEST}")) if not path.parent.name.startswith(".")}
    return dict(sorted(found.items(), key=lambda item: (str(item[1].get("started")), item[0].name)))


def _ancestors(runs: Folders, ids: Iterable[str]) -> Folders:
    """Return the runs of these ids and all that they were made from."""
    by_id = {str(manifest["id"]): path for path, manifest in runs.items()}
    found: Folders = {}
    todo = list(ids)
    while todo:
        path = by_id.get(todo.pop())
        if path is not None and path not in found:
            found[path] = runs[path]
            todo += [str(value) for value in runs[path]["inputs"].values()]
    return found


def _alike(reports: Folders, like: Mapping[str, Any]) -> Folders:
    """Return the evaluations that measured the same: base, snapshot and everything of the config but what names the model."""

    def measured(manifest: Mapping[str, Any]) -> tuple[Any, ...]:
        made, config = manifest["inputs"], {key: value for key, value in manifest["config"].items() if key != "chat_template"}
        return made.get("base"), made.get("snapshot"), sorted(config.items(), key=lambda item: item[0])

    return {path: m for path, m in reports.items() if m.get("kind") == EVALUATION and measured(m) == measured(like)}


def _newest_alike(reports: Folders) -> Folders:
    """Return the evaluations that can be set beside each other: the newest one of a tuned model, and those that measured the same."""
    tuned = [m for m in reports.values() if m.get("kind") == EVALUATION and m["inputs"].get("model") != m["inputs"].get("base")]
    if not tuned:
        return {}
    alike = _alike(reports, tuned[-1])
    by_model = {(m["inputs"].get("model"), m["inputs"].get("reward_model") is not None): path for path, m in alike.items()}
    scored = {model for model, with_reward in by_model if with_reward}
    kept = {path for (model, with_reward), path in by_model.items() if with_reward or model not in scored}
    return {path: manifest for path, manifest in alike.items() if path in kept}


def _snapshot(project: Path, made: Iterable[Mapping[str, Any]]) -> Path | None:
    ids = {str(value) for manifest in made for value in manifest["inputs"].values()}
    there = _folders(project / "snapshots")
    used = [path for path, manifest in there.items() if str(manifest["id"]) in ids] or list(there)
    return used[-1] if used else None


def _newest(releases: Folders, of_id: Mapping[str, str]) -> tuple[dict[str, Any], Path | None]:
    known = [path for path, manifest in releases.items() if str(manifest["inputs"].get("run")) in of_id] or list(releases)
    return (releases[known[-1]], known[-1]) if known else ({}, None)
