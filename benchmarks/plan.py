"""What a plan says against what the run then takes, each stage in a process of its own; the last line is one JSON object.

    python benchmarks/plan.py [--pairs N] [--only NAME,…] [--quick] [--json]

SmolLM2-135M-Instruct on the built-in sample, batch 8, token_budget 1024, as in `preftune demo`: with LoRA (reward, sft, dpo, ppo), with all
weights trained, and with its layers computed again. For each: planned and real seconds of training, planned and real GiB, and both ratios
(real over planned; the bar is 0.85 to 1.15). --quick: a model cut to two layers and 16 pairs, which shows that it runs and nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _work import make_model
from tune import collect

import preftune

SHARED = ["token_budget=1024", "batch_size=8"]
WHOLE = ["adapter=null", "lr=1e-5"]
WORK: dict[str, list[str]] = {
    "reward": ["reward", *SHARED],
    "sft": ["sft", *SHARED],
    "dpo": ["dpo", *SHARED],
    "ppo": ["ppo", "token_budget=1024", "steps=2", "prompts_per_step=6", "samples_per_prompt=4", "epochs=1", "minibatches=2"],
    "sft, all weights": ["sft", *SHARED, *WHOLE],
    "dpo, all weights": ["dpo", *SHARED, *WHOLE],
    "sft, all weights, layers computed again": ["sft", *SHARED, *WHOLE, "gradient_checkpointing=true"],
}


def called(folder: Path, *words: str) -> dict[str, Any]:
    """Run a command of preftune in a process of its own, in `folder`, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "preftune", "train", *words, "--json"], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(folder: Path, words: list[str]) -> dict[str, Any]:
    """Return planned and real of one stage."""
    planned: dict[str, Any] = {}
    if words[0] == "ppo":  # whose run makes no plan of its own
        said = called(folder, *words, "--dry-run")["plan"]
        planned = {"training_seconds": said["seconds"], "peak_memory_gib": said["peak_memory_gib"]}
    manifest = preftune.read_manifest(folder / called(folder, *words)["path"])
    planned = planned or manifest["planned"]
    seconds, memory = ((planned[key], manifest[key]) for key in ("training_seconds", "peak_memory_gib"))
    return {
        "planned_seconds": round(seconds[0], 1),
        "seconds": seconds[1],
        "seconds_ratio": round(seconds[1] / seconds[0], 3),
        "planned_gib": round(memory[0], 2),
        "gib": memory[1],
        "gib_ratio": round(memory[1] / memory[0], 3),
    }


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=72, help="training pairs of the sample")
    parser.add_argument("--only", default=",".join(name.split(",")[0] for name in WORK), help="stages, such as sft,dpo")
    parser.add_argument("--quick", action="store_true", help="a cut model and 16 pairs, to see that it runs")
    parser.add_argument("--json", action="store_true", help="as the others take it: the last line is JSON either way")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_model(folder / "base", layers=2 if options.quick else None)
        data = collect(folder, 16 if options.quick else options.pairs)
        found: dict[str, Any] = {}
        for name, words in WORK.items():
            if words[0] not in options.only.split(","):
                continue
            settings = [words[0], f"data={data}", f"model={base}", *words[1:]]
            if words[0] == "ppo":
                reward = called(folder, "reward", f"data={data}", f"model={base}", *SHARED)["path"]
                settings.append(f"reward_model={reward}")
            found[name] = compared(folder, settings)
            print(f"{name}: {found[name]}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
