"""A small search over a stage's settings that spends the least: successive halving, judged on held-out pairs.

    draw the settings to try from the grid, in an order that the seed gives
    for each rung (trials, share of the pairs):
        train each trial on that share; read the held-out pairs; the best third goes on
    evaluate those left after the rung with all pairs: KL, retention
    out goes each whose retention is lost; of the rest the best preference wins, and smaller KL among ties (choosing.py)

Each trial is an ordinary run, found again by its hash, so a search that was interrupted goes on when called again. Start it with

    preftune tune dpo data=snapshots/ID model=base --trials 9
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from preftune.config import check_config
from preftune.data.snapshot_share import share_of
from preftune.errors import ConfigError, PreftuneError
from preftune.evaluate.preference import measure_preference, read_preference
from preftune.evaluate.run import evaluate, read_evaluation
from preftune.manifest import Work, begin, content_seed, disk_errors, hash_folder, read_manifest, write_json
from preftune.models.load import find, name_in
from preftune.progress import Progress, Silent
from preftune.stages import preference
from preftune.stages.common import resolved
from preftune.stages.preference_config import DPOConfig
from preftune.tuning.choosing import Candidate, choose
from preftune.tuning.halving import Rung, affordable, rungs, survivors

TUNE, BEST, PLAN = "tune.json", "config.yaml", "plan.json"
LEAST_STEPS = 4  # on fewer optimiser steps a trial tells of its warm-up alone


@dataclass(frozen=True)
class Grid:
    """The values to try, each with each."""

    beta: tuple[float, ...] = (0.03, 0.1, 0.3)
    lr: tuple[float, ...] = (2e-5, 5e-5, 1e-4, 2e-4)
    epochs: tuple[int, ...] = (1, 2)

    def settings(self, seed: int) -> list[dict[str, Any]]:
        """Return every combination once, in an order that the seed alone gives."""
        whole = [dict(zip(("beta", "lr", "epochs"), values, strict=True)) for values in itertools.product(self.beta, self.lr, self.epochs)]
        return sorted(whole, key=lambda values: content_seed(seed, sorted(values.items())))


@dataclass
class Trial:
    """One combination and what was measured of it. rungs: a row a rung that it was trained on. failed: why it came to nothing."""

    settings: dict[str, Any]
    rungs: list[dict[str, Any]] = field(default_factory=list)
    failed: str | None = None
    rights: list[float] = field(default_factory=list)
    kl: dict[str, Any] | None = None
    retention: str | None = None
    evaluation: str | None = None

    @property
    def score(self) -> tuple[float, float]:
        """The accuracy on held-out pairs, and for equal ones the margin in its own standard deviations: neither depends on beta."""
        return (-math.inf, -math.inf) if self.failed else (self.rungs[-1]["accuracy"], self.rungs[-1]["separation"])


def tune_dpo(
    config: DPOConfig,
    *,
    base: Path,
    grid: Grid | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    out: Path = Path("runs"),
    reports: Path = Path("reports"),
    held_out_pairs: int = 64,
    size: str = "small",
    progress: Progress | None = None,
) -> Path:
    """Search beta, lr and epochs around `config` and return the report's folder (`tune.json` and `config.yaml` inside).

    base: what retention and KL are measured against. trials: how many combinations of the grid are tried, None = all. minutes: about
    how long the trainings may take together; fewer trials are drawn where they would take longer, by the plan of one whole training.
    held_out_pairs: how many pairs judge a trial. size: of the evaluation of the last ones, as for `evaluate`. config.yaml is there
    unless all lost knowledge. A trial whose loss runs away is out; all other errors are raised.
    Raises ConfigError where nothing is to be tried.
    """
    progress, grid = progress or Silent(), grid or Grid()
    config, hashes = resolved(config, out)
    project = out.resolve().parent
    asked = {"grid": asdict(grid), "trials": trials, "minutes": minutes, "held_out_pairs": held_out_pairs, "size": size}
    inputs = {**hashes, "base": hash_folder(base)}
    combinations = grid.settings(config.seed)
    for values in combinations:  # all are checked before any is trained
        _with(config, values)
    if not combinations or (trials is not None and trials < 1):
        raise ConfigError(f"{trials} trials of {len(combinations)} combinations", "tune", "Give 1 or more of each.")
    final, work = begin(reports, "tune", inputs, {**config.model_dump(mode="json"), **asked})
    if work is None:
        return final
    began = time.monotonic()
    snapshot, reference = find(config.data, project), find(config.model, project)
    ladder = _ladder(work, config, out, min(trials or len(combinations), len(combinations)), minutes, snapshot)
    tried = [Trial(values) for values in combinations[: ladder[0].trials]]
    standing = tried
    for rung in ladder:
        if len(standing) > rung.trials:
            kept = survivors([trial.score for trial in standing], rung.trials)
            standing = [standing[place] for place in kept]
        standing = [trial for trial in standing if trial.failed is None]
        data = share_of(snapshot, rung.share, seed=config.seed)
        for number, trial in enumerate(standing, 1):
            progress.note(f"{rung.share:.0%} of the pairs, trial {number} of {len(standing)}: {told(trial.settings)}")
            changed = _with(config, {**trial.settings, "data": name_in(data, project)})
            _train(trial, changed, rung, out, reports, snapshot, reference, held_out_pairs, progress)
    finalists = [trial for trial in standing if trial.failed is None]
    for trial in finalists:
        _evaluate(trial, snapshot, base, project, size=size, out=reports, seed=config.seed, progress=progress)
    place = choose([Candidate(tuple(t.rights), (t.kl or {})["value"], t.retention != "lost") for t in finalists])
    chosen = None if place is None else finalists[place]
    result = {
        "settings": chosen.settings if chosen else None,
        "run": chosen.rungs[-1]["run"] if chosen else None,
        "ladder": [asdict(rung) for rung in ladder],
        "trials": [asdict(trial) for trial in tried],
        "left_untried": len(combinations) - len(tried),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(work.path / TUNE, result)
    if chosen:
        with disk_errors(work.path):
            values = _with(config, chosen.settings).model_dump(mode="json")
            (work.path / BEST).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (work.path / PLAN).unlink(missing_ok=True)
    return work.finish(final)


def read_tune(folder: Path) -> dict[str, Any]:
    """Return what a folder of `tune_dpo` holds."""
    return dict(json.loads((folder / TUNE).read_text(encoding="utf-8")))


def told(settings: dict[str, Any]) -> str:
    """Return a combination as one types it: "beta=0.1 lr=5e-05 epochs=1"."""
    return " ".join(f"{key}={value:g}" if isinstance(value, int | float) else f"{key}={value}" for key, value in settings.items())


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the table of a search under its heads: each trial with its accuracy on each share, best last."""
    shares = [rung["share"] for rung in result["ladder"]]
    lines = [["beta", "lr", "epochs", *(f"right on {share:.0%}" for share in shares), "KL", "retention", ""]]
    for trial in sorted(result["trials"], key=lambda t: (len(t["rungs"]), t["rungs"][-1]["accuracy"] if t["rungs"] else -1.0)):
        by_share = {row["share"]: f"{100 * row['accuracy']:.1f} %" for row in trial["rungs"]}
        note = "chosen" if trial["settings"] == result["settings"] else trial["failed"] or ""
        lines.append(
            [f"{value:g}" for value in trial["settings"].values()]
            + [by_share.get(share, "–") for share in shares]
            + [f"{trial['kl']['value']:.1f} nats" if trial["kl"] else "–", trial["retention"] or "–", note]
        )
    return lines


def _with(config: DPOConfig, values: dict[str, Any]) -> DPOConfig:
    """Return the config with other values, checked."""
    return check_config(DPOConfig, {**config.model_dump(), **values}, where=told(values), stage="dpo")


def _ladder(work: Work, config: DPOConfig, out: Path, most: int, minutes: float | None, snapshot: Path) -> tuple[Rung, ...]:
    """Return the rungs; what a budget in minutes pays for is planned once, since another plan would differ and with it the trials."""
    path = work.path / PLAN
    pairs = int(read_manifest(snapshot)["counts"]["train"]["pairs"])
    smallest = min(1.0, LEAST_STEPS * config.batch_size / max(1, pairs))
    if not path.exists():
        trials = most
        if minutes is not None:
            planned = preference.plan(config, out)
            trials = affordable(most, 60 * minutes / (planned.seconds + planned.before_seconds), smallest_share=smallest)
        write_json(path, {"trials": trials})
    return rungs(int(json.loads(path.read_text(encoding="utf-8"))["trials"]), smallest_share=smallest)


def _train(
    trial: Trial,
    config: DPOConfig,
    rung: Rung,
    out: Path,
    reports: Path,
    snapshot: Path,
    reference: Path,
    pairs: int,
    progress: Progress,
) -> None:
    """Train one trial on a rung's share and read the held-out pairs with it."""
    try:
        run = preference.run(config, out, progress=progress)
    except PreftuneError as error:
        if type(error) is not PreftuneError:  # the disk, the data, the model: no fault of these settings
            raise
        trial.failed = str(error)
        return
    folder = measure_preference(run, snapshot, reference=reference, pairs=pairs, out=reports, seed=config.seed, progress=progress)
    measured = read_preference(folder)
    margins = [row["margin"] for row in measured["rows"]]
    deviation = statistics.stdev(margins)
    trial.rights = [row["right"] for row in measured["rows"]]
    trial.rungs.append(
        {
            "share": rung.share,
            "run": name_in(run, out.resolve().parent),
            "preference": name_in(folder, out.resolve().parent),
            "accuracy": measured["accuracy"]["value"],
            "separation": statistics.fmean(margins) / deviation if deviation else 0.0,
        }
    )


def _evaluate(trial: Trial, snapshot: Path, base: Path, project: Path, *, size: str, out: Path, seed: int, progress: Progress) -> None:
    """Measure what one of the last trials went and lost."""
    run = find(trial.rungs[-1]["run"], project)
    folder = evaluate(run, snapshot, base=base, out=out, size=size, seed=seed, name=told(trial.settings), progress=progress)
    evaluation = read_evaluation(folder)
    trial.evaluation, trial.kl = name_in(folder, project), evaluation["kl"]
    trial.retention = evaluation["retention"]["verdict"]["overall"]
