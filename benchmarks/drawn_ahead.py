"""An RLOO run whose samples a Ray actor draws: step by step, and with the next step's samples drawn while the policy learns.

    python benchmarks/drawn_ahead.py

Trainer and actor have one core each. Prints one line of JSON last; `ratio` is seconds a step without staleness over those with one round,
of the steps that both overlap (all but the first two and the last).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _work import make_model
from ray_faults import REWARD

from preftune import sample
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.stages.group import RLOOConfig, rloo
from preftune.training.loop import read_metrics

MISMATCH = ("mismatch/mean", "mismatch/kl", "mismatch/ess", "mismatch/cut")


def run(folder: Path, staleness: int, *, steps: int, prompts: int, seed: int) -> dict[str, Any]:
    """Do the run, and return its figures."""
    config = RLOOConfig(
        data=str(folder / "data"),
        model=str(folder / "model"),
        rewards=[{"function": str(folder / "vowels.py:vowels")}],
        no_eos_score=0.0,
        scoring={"missing_end": "add"},  # samples come to the limit; were that their score, nothing would be learned and no mismatch seen
        steps=steps,
        prompts_per_step=prompts,
        samples_per_prompt=4,
        max_new_tokens=32,
        seed=seed,
        rollout={"backend": "ray", "workers": 1, "max_staleness": staleness},
    )
    rows = read_metrics(rloo(config, folder / "runs"))
    ends = [row["seconds"] for row in rows]
    overlapped = rows[2:-1]
    return {
        "step_seconds": statistics.median(b - a for a, b in pairwise(ends[1:-1])),
        "wait_seconds": statistics.median(row["rollout/wait_seconds"] for row in overlapped),
        **{name: statistics.fmean(row[name] for row in overlapped) for name in MISMATCH},
        "score": statistics.fmean(row["reward/score"] for row in rows[-3:]),
    }


def main() -> None:
    """Run both by turns and print the JSON line."""
    parser = argparse.ArgumentParser(description="RLOO by a Ray actor, with and without drawing ahead.")
    parser.add_argument("--quick", action="store_true", help="two layers, 6 steps, once")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        options.layers, options.steps, options.prompts, options.runs = 2, 6, 2, 1
    torch.set_num_threads(1)
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", layers=options.layers)
        (folder / "vowels.py").write_text(REWARD, encoding="utf-8")
        pairs = folder / "pairs.jsonl"
        rows = sample.train_path().read_text(encoding="utf-8").splitlines()[:40]
        pairs.write_text("\n".join(rows) + "\n", encoding="utf-8")
        import_preferences(pairs, folder / "store.db")
        (folder / "data").symlink_to(snapshot(folder / "store.db", folder / "snapshots", held_out=0.0))
        for number in range(options.runs):
            for staleness in sorted(found, reverse=bool(number % 2)):
                made = run(folder, staleness, steps=options.steps, prompts=options.prompts, seed=number)
                print(f"staleness {staleness}: {json.dumps(made)}", flush=True)
                found[staleness].append(made)
    means = {staleness: {key: statistics.fmean(one[key] for one in ones) for key in ones[0]} for staleness, ones in found.items()}
    line = {
        "ours": round(means[1]["step_seconds"], 3),
        "peer": round(means[0]["step_seconds"], 3),
        "unit": "s a step; peer: the same without staleness",
        "ratio": round(means[0]["step_seconds"] / means[1]["step_seconds"], 2),
        "runs": options.runs,
        "wait_seconds": {str(s): round(m["wait_seconds"], 3) for s, m in means.items()},
        **{key.replace("/", "_"): {str(s): float(f"{m[key]:.3g}") for s, m in means.items()} for key in MISMATCH},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
