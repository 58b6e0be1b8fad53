"""The same adapter at several strengths, measured: what each wins, what it keeps, how far it went; the best allowed one chosen.

    for s in 0.25, 0.5, 0.75, 1, 1.25, 1.5:
        run(s) = base + s · what the run's adapter adds       (models/scale.py: nothing is trained)
        evaluate run(s) against the base: style, score, KL, retention; and its preference on held-out pairs
    out goes each s whose retention is lost; of the rest the largest gain wins, and smaller KL among ties (choosing.py)

Each strength is an ordinary run folder with an evaluation of its own, so any of them can be released. Start it with

    preftune scale runs/ID
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from preftune.data.snapshot import load_snapshot
from preftune.errors import ConfigError
from preftune.evaluate.code_wanted import asks_for_code
from preftune.evaluate.preference import measure_preference, read_preference
from preftune.evaluate.run import evaluate, read_evaluation
from preftune.evaluate.statistics import bootstrap_mean
from preftune.manifest import begin, hash_folder, read_manifest, write_json
from preftune.models.load import base_of, name_in, project_of, template_for_base
from preftune.models.scale import write_scaled
from preftune.progress import Progress, Silent
from preftune.tuning.choosing import Candidate, choose
from preftune.tuning.page import write_page

By = Literal["style", "score", "preference"]
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SCALE = "scale.json"
PAGE = "scale.html"
HELD_OUT_PAIRS = {"small": 24, "full": None}  # beside `evaluate.run.SIZES`; None = all
# What a run says of its training, which holds for it at any strength.
INHERITED = ("data", "trained_parameters", "tree_rows", "steps")


def scaled_run(run: Path, strength: float) -> Path:
    """Return the run folder, beside `run`, of its adapter at another strength; strength 1 is the run itself.

    The new run is of the same kind, on the same base, and its manifest points to the run that it came from. Raises ConfigError where
    `run` is no run with an adapter, or is itself a scaled one.
    """
    manifest = read_manifest(run)
    if not (run / "adapter").exists():
        raise ConfigError("this run has no adapter", str(run), "Train one with an adapter: only its strength can be changed afterwards.")
    if "strength" in manifest["config"]:
        source = manifest["config"]["run"]
        raise ConfigError(f"this run is {source} at strength {manifest['config']['strength']}", str(run), f"Scale {source}.")
    if strength == 1:
        return run
    project = project_of(run)
    inputs = {**manifest["inputs"], "run": manifest["id"]}
    config = {**manifest["config"], "run": name_in(run, project), "strength": strength}
    final, work = begin(run.parent, manifest["kind"], inputs, config)
    if work is None:
        return final
    shutil.rmtree(work.path / "adapter", ignore_errors=True)  # half a copy, where this was killed before
    write_scaled(run / "adapter", work.path / "adapter", strength=strength)
    return work.finish(final, **{key: manifest[key] for key in INHERITED if key in manifest}, training_seconds=0.0)


def scale(
    run: Path,
    snapshot: Path,
    *,
    base: Path,
    reward_model: Path | None = None,
    strengths: Sequence[float] = STRENGTHS,
    by: By = "style",
    out: Path = Path("reports"),
    size: str = "small",
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Measure a run's adapter at each strength, choose one, and return the report's folder (`scale.json` and `scale.html` inside).

    snapshot, base, reward_model, size, seed: as for `evaluate`. by: what counts as won: "style" (the house conventions), "score" (the
    reward model's, of greedy answers), or "preference" (the share of held-out pairs on which the policy has come to prefer the chosen
    answer more than its reference does). The chosen run's folder is in scale.json under "chosen", None where every strength lost
    knowledge. Interrupted, it goes on when called again.
    Raises ConfigError where a strength or `by` cannot be, `by` is "style" and the data ask for no code, or where the run has no adapter.
    """
    progress = progress or Silent()
    strengths = _checked(strengths, by, reward_model)
    if by == "style" and not asks_for_code(load_snapshot(snapshot)):
        told = "its wished-for answers hold no code, so there is no style to win"
        raise ConfigError(told, str(snapshot), 'Choose by "preference", or by "score" with a reward model.')
    runs = {strength: scaled_run(run, strength) for strength in strengths}
    folders = {"run": run, "snapshot": snapshot, "base": base} | ({"reward_model": reward_model} if reward_model else {})
    project = out.resolve().parent
    config = {"strengths": strengths, "by": by, "size": size, "seed": seed}
    final, work = begin(out, "scale", {k: hash_folder(v) for k, v in folders.items()}, config)
    if work is None:
        return final
    began = time.monotonic()
    settings: dict[str, Any] = {"out": out, "seed": seed, "progress": progress}
    with_pairs = by == "preference" or len(load_snapshot(snapshot).held_out) > 1
    measured = [
        _measure(scaled, strength, snapshot, base, reward_model, size=size, with_pairs=with_pairs, **settings)
        for strength, scaled in runs.items()
    ]
    before = read_evaluation(
        evaluate(base, snapshot, base=base, reward_model=reward_model, size=size, chat_template=template_for_base(base, run), **settings)
    )
    points = [_point(one, before, by, project) for one in measured]
    place = choose([Candidate(tuple(p["gains"]), p["kl"]["value"], p["retention"]["overall"] != "lost") for p in points])
    result: dict[str, Any] = {k: name_in(v, project) for k, v in folders.items()}
    result |= {"by": by, "size": size, "seed": seed, "chosen": None if place is None else points[place]["run"]}
    result |= {"points": points, "seconds": round(time.monotonic() - began, 1)}
    write_json(work.path / SCALE, result)
    write_page(result, work.path / PAGE)
    return work.finish(final, paths={k: name_in(v, project) for k, v in folders.items()})


def read_scale(folder: Path) -> dict[str, Any]:
    """Return what a folder of `scale` holds."""
    return dict(json.loads((folder / SCALE).read_text(encoding="utf-8")))


def _checked(strengths: Sequence[float], by: str, reward_model: Path | None) -> list[float]:
    if not strengths or min(strengths) < 0 or len(set(strengths)) < len(strengths):
        raise ConfigError(f"the strengths are {', '.join(map(str, strengths))}", "scale", "Give different ones of 0 or more.")
    if by not in get_args(By):
        raise ConfigError(f'"{by}" is nothing that can be won', "scale", f"Use one of: {', '.join(get_args(By))}.")
    if by == "score" and reward_model is None:
        raise ConfigError("no reward model is given, so there is no score", "scale", "Give one, or choose by style or preference.")
    return sorted(float(strength) for strength in strengths)


def _measure(
    run: Path,
    strength: float,
    snapshot: Path,
    base: Path,
    reward_model: Path | None,
    *,
    size: str,
    with_pairs: bool,
    out: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Return the folders of one strength: its run, its evaluation, and its preference where pairs are held out."""
    name = f"strength {strength:g}"
    settings: dict[str, Any] = {"out": out, "seed": seed, "name": name, "progress": progress}
    evaluation = evaluate(run, snapshot, base=base, reward_model=reward_model, size=size, **settings)
    preference = None
    if with_pairs:
        preference = measure_preference(run, snapshot, reference=base_of(run), pairs=HELD_OUT_PAIRS[size], **settings)
    return {"strength": strength, "run": run, "evaluation": evaluation, "preference": preference}


def _point(folders: dict[str, Any], before: dict[str, Any], by: By, project: Path) -> dict[str, Any]:
    """Return one strength as the report holds it. gains: what was won on each item; gain: their mean."""
    evaluation = read_evaluation(folders["evaluation"])
    preference = read_preference(folders["preference"]) if folders["preference"] else None
    names = {key: name_in(path, project) for key, path in folders.items() if isinstance(path, Path)}
    gains = _gains(evaluation, before, preference, by)
    verdict = evaluation["retention"]["verdict"]
    return {
        "strength": folders["strength"],
        **names,
        "gain": asdict(bootstrap_mean(gains)),
        "gains": gains,
        **{key: evaluation[key] for key in ("style", "style_gain", "win_rate", "kl", "ends_by_itself", "mean_tokens")},
        "accuracy": preference["accuracy"] if preference else None,
        "retention": {"overall": verdict["overall"], "tasks": [_without_items(task) for task in verdict["tasks"]]},
    }


def _gains(evaluation: dict[str, Any], before: dict[str, Any], preference: dict[str, Any] | None, by: By) -> list[float]:
    if by == "preference":
        assert preference is not None  # measured wherever it decides
        return [row["right"] - 0.5 for row in preference["rows"]]  # the reference itself is right in half: all its margins are 0
    key = {"style": "adherence", "score": "reward"}[by]
    return [after[key] - row[key] for after, row in zip(evaluation["answers"], before["answers"], strict=True)]


def _without_items(task: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in task.items() if key not in ("gained", "lost")}  # their ids stand in the evaluation
