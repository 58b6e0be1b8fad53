"""A search over DPO's settings and then the chosen adapter's strengths, on the built-in sample with SmolLM2-135M-Instruct.

    python benchmarks/tune.py [--folder FOLDER] [--pairs N] [--quick]

Does what `preftune tune dpo` and `preftune scale` do, through the same functions. The last line is one JSON object: seconds of each, the
chosen settings with their held-out accuracy beside that of the stage's own settings, and what each strength wins, keeps and spends.
FOLDER keeps everything (scale.html in its reports is the page to look at); typed again, the command goes on where it was. --quick: a model
cut to two layers and a handful of items, which shows that all of it runs and nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from _work import make_model

from preftune import sample
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.data.store import Store
from preftune.evaluate import run as evaluation
from preftune.manifest import read_manifest
from preftune.progress import for_terminal
from preftune.records import content_id
from preftune.stages.preference_config import DPOConfig
from preftune.tuning.page import verdict
from preftune.tuning.search import Grid, read_tune, tune_dpo
from preftune.tuning.strengths import PAGE, read_scale, scale

GRID = Grid(beta=(0.05, 0.1, 0.3), lr=(2e-5, 5e-5, 2e-4), epochs=(1,))
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
OWN = {"beta": 0.1, "lr": 5e-5, "epochs": 1}  # the stage's own settings, which are in the grid
TINY = evaluation.Size(prompts=4, max_new_tokens=8, facts=12, texts=2, functions=1)


def collect(folder: Path, pairs: int) -> Path:
    """Return a snapshot of so many of the sample's pairs, drawn by hash; what is held out is the sample's own."""
    lines = sorted(sample.train_path().read_text(encoding="utf-8").splitlines(keepends=True), key=content_id)[:pairs]
    source, store = folder / "preferences.jsonl", folder / "store.db"
    source.write_text("".join(lines), encoding="utf-8")
    if not store.exists():
        Store.create(store).close()
    import_preferences(source, store)
    return snapshot(store, folder / "snapshots", held_out_prompts=sample.held_out_path())


def trials(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each trial's settings and its accuracy on each share of the pairs."""
    return [{**t["settings"], **{f"right on {r['share']:.2f}": r["accuracy"] for r in t["rungs"]}} for t in found["trials"]]


def measured(folder: Path, *, pairs: int, quick: bool) -> dict[str, Any]:
    """Search and sweep in `folder`, and return the figures."""
    base = make_model(folder / "base", layers=2 if quick else None)
    data = collect(folder, pairs)
    out, reports = folder / "runs", folder / "reports"
    grid = Grid(beta=(0.1,), lr=(5e-5, 2e-4), epochs=(1,)) if quick else GRID
    config = DPOConfig(data=str(data), model=str(base), token_budget=1024, batch_size=4 if quick else 8)
    began, progress = time.monotonic(), for_terminal()
    tuned = tune_dpo(config, base=base, grid=grid, out=out, reports=reports, held_out_pairs=8 if quick else 64, progress=progress)
    tune_seconds = time.monotonic() - began
    found = read_tune(tuned)
    run = folder / (found["run"] or next(t for t in found["trials"] if t["settings"] == OWN)["rungs"][-1]["run"])
    began = time.monotonic()
    swept = scale(run, data, base=base, strengths=(0.5, 1.0) if quick else STRENGTHS, out=reports, progress=progress)
    points = read_scale(swept)
    own = next(trial for trial in found["trials"] if trial["settings"] == OWN)
    return {
        "pairs": read_manifest(data)["counts"]["train"]["pairs"],
        "tune_seconds": round(tune_seconds, 1),
        "scale_seconds": round(time.monotonic() - began, 1),
        "chosen": found["settings"],
        "own": {"settings": OWN, "accuracies": [rung["accuracy"] for rung in own["rungs"]]},
        "trials": trials(found),
        "strengths": [
            {"strength": p["strength"], "gain": p["gain"]["value"], "kl": p["kl"]["value"], "retention": p["retention"]["overall"]}
            for p in points["points"]
        ],
        "verdict": verdict(points),
        "page": str(swept / PAGE),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything is kept; by default a temporary folder")
    parser.add_argument("--pairs", type=int, default=200, help="training pairs of the sample")
    parser.add_argument("--quick", action="store_true", help="a cut model and a handful of items, to see that it runs")
    parser.add_argument("--json", action="store_true", help="as the others take it: the last line is JSON either way")
    options = parser.parse_args()
    if options.quick:
        evaluation.SIZES["small"] = TINY
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measured(folder.resolve(), pairs=24 if options.quick else options.pairs, quick=options.quick)))


if __name__ == "__main__":
    main()
