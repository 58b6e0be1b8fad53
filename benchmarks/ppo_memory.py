"""The memory of a PPO step with all four roles on one base, against one frozen model with its activations.

The peer is one frozen model that does the same forward and backward passes: it samples the completions, and keeps what a backward pass
through the largest micro-batch needs. Ours samples, scores, takes log-probs of policy and reference and values, and does the optimiser
steps of policy and critic. Both are processes of their own whose largest resident set is read from outside; `apart` is ours with a
model for each role, as it is where the reward model has another base. What Python and its libraries take by themselves (`idle`) is
subtracted from all, since it would hide the rest in a small model; `with_libraries` keeps it. The bar: ours at most 1.6 times the peer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _compare import Measured, run_process
from _work import make_model

from preftune import sample
from preftune.data.batches import Group, collate, split_by_budget
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.models.load import batch_logprobs, device_of
from preftune.models.one_base import ON_BASE
from preftune.rollout.generate import generate
from preftune.stages import ppo, reward
from preftune.stages.experience import prompts_of
from preftune.stages.ppo_config import PPOConfig

BAR = 1.6
SIZES = {"prompts": 4, "samples": 4, "tokens": 64, "steps": 2, "budget": 1024, "layers": None, "pairs": 32}
QUICK = {"prompts": 2, "samples": 2, "tokens": 16, "steps": 1, "budget": 512, "layers": 2, "pairs": 12}


def config_of(folder: Path, sizes: dict[str, Any], *, apart: bool) -> PPOConfig:
    """Return the PPO run that is measured. apart: a reward model that cannot share the policy's base."""
    return PPOConfig(
        data=str(folder / "data"),
        model=str(folder / "model"),
        reward_model=str(folder / ("apart" if apart else "reward")),
        steps=sizes["steps"],
        prompts_per_step=sizes["prompts"],
        samples_per_prompt=sizes["samples"],
        max_new_tokens=sizes["tokens"],
        token_budget=sizes["budget"],
        epochs=1,
        minibatches=1,
    )


def prepare(folder: Path, sizes: dict[str, Any]) -> None:
    """Make the model, a snapshot of a few pairs and a reward model (its quality is of no matter), with and without its adapter."""
    model = make_model(folder / "model", layers=sizes["layers"])
    rows = sample.train_path().read_text(encoding="utf-8").splitlines()[: sizes["pairs"]]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    import_preferences(folder / "pairs.jsonl", folder / "store.db")
    data = snapshot(folder / "store.db", folder / "snapshots", held_out=0.1)
    (folder / "data").symlink_to(data)
    settings = reward.RewardConfig(
        data=str(data), model=str(model), token_budget=sizes["budget"], max_tokens=512, batch_size=sizes["pairs"]
    )
    made = reward.run(settings, folder / "runs")
    (folder / "reward").symlink_to(made)
    shutil.copytree(made, folder / "apart")
    shutil.rmtree(folder / "apart" / ON_BASE)


def ours(folder: Path, sizes: dict[str, Any], *, apart: bool) -> dict[str, Any]:
    """Run PPO once and say which way it held its roles."""
    run = ppo.run(config_of(folder, sizes, apart=apart), folder / ("runs-apart" if apart else "runs-one"))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {"one_base": manifest["one_base"], "seconds": rows[-1]["seconds"] / len(rows)}


def frozen(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Sample with one frozen model and keep what a backward pass through each micro-batch needs; nothing is trained."""
    config = config_of(folder, sizes, apart=False)
    room = ppo.open_room(config.model_copy(update={"adapter": None}), folder / "runs", ppo.Silent())
    model: Any = room.model.requires_grad_(False)
    prompts = prompts_of(config, room).groups[: sizes["prompts"]]
    samples = generate(
        model,
        [group.prompt for group in prompts],
        samples_per_prompt=sizes["samples"],
        max_new_tokens=sizes["tokens"],
        temperature=1.0,
        seed=0,
        stop_ids=room.renderer.stop_ids,
        pad_id=room.renderer.pad_id,
    )
    k = sizes["samples"]
    groups = [Group(g.prompt, tuple(s.ids for s in samples[i * k : (i + 1) * k]), i) for i, g in enumerate(prompts)]
    words = model.get_input_embeddings()
    words.register_forward_hook(lambda module, given, out: out.requires_grad_())  # so that activations are kept, though no weight learns
    for part in split_by_budget(groups, sizes["budget"]):
        batch_logprobs(model, collate(part, room.renderer.pad_id, tree=room.tree).to(device_of(model)))[0].sum().backward()
    return {"samples": len(samples)}


def measured(role: str, folder: Path, sizes: dict[str, Any], threads: int) -> Measured:
    """Run one role in a process of its own."""
    return run_process(
        [sys.executable, __file__, "--role", role, "--folder", str(folder), "--sizes", json.dumps(sizes)], threads=threads, what=role
    )


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four layers, two prompts, one step: under a minute")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--role", choices=("prepare", "idle", "one", "apart", "frozen"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        match options.role:
            case "prepare":
                prepare(options.folder, options.sizes)
                print("{}")
            case "idle":
                print("{}")
            case "frozen":
                print(json.dumps(frozen(options.folder, options.sizes)))
            case role:
                print(json.dumps(ours(options.folder, options.sizes, apart=role == "apart")))
        return
    sizes, count = (QUICK, 1) if options.quick else (SIZES, options.runs)
    found: dict[str, list[Measured]] = {"one": [], "frozen": [], "apart": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured("prepare", folder, sizes, options.threads)
        idle = measured("idle", folder, sizes, options.threads).peak_memory_gib
        for number in range(count):
            for role, runs in found.items():
                for old in ("runs-one", "runs-apart"):
                    shutil.rmtree(folder / old, ignore_errors=True)
                runs.append(measured(role, folder, sizes, options.threads))
                print(f"run {number + 1}, {role}: {runs[-1].peak_memory_gib:.2f} GiB", file=sys.stderr)
    assert all(run.figures["one_base"] for run in found["one"])
    assert not any(run.figures["one_base"] for run in found["apart"])
    one, peer, apart = (statistics.median(run.peak_memory_gib for run in found[role]) for role in ("one", "frozen", "apart"))
    pairs = [(a.peak_memory_gib, b.peak_memory_gib) for a, b in zip(found["one"], found["frozen"], strict=True)]
    result = {
        "ours": round(one - idle, 3),
        "peer": round(peer - idle, 3),
        "unit": "GiB",
        "ratio": round((peer - idle) / (one - idle), 2),
        "memory_ratio": round(statistics.median((a - idle) / (b - idle) for a, b in pairs), 3),
        "memory_ratio_with_libraries": round(statistics.median(a / b for a, b in pairs), 3),
        "bar": BAR,
        "runs": count,
        "peak_memory_gib": round(one, 3),
        "idle_gib": round(idle, 3),
        "apart": round(apart - idle, 3),
        "apart_memory_ratio": round((apart - idle) / (peer - idle), 3),
        "step_seconds": round(statistics.median(run.figures["seconds"] for run in found["one"]), 2),
        "apart_step_seconds": round(statistics.median(run.figures["seconds"] for run in found["apart"]), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
