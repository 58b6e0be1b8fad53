"""Training in several processes against one: the same course, its speed and its memory.

    python benchmarks/scale.py [--processes N] [--stage sft|reward|dpo|ppo|rloo] [--quick] [--json]

The work: some steps of a stage on SmolLM2-135M, all weights trained in float32 (ppo and rloo: an adapter, as they come), by `torchrun` on
the CPU with gloo. One process has all of the machine's cores as threads; N processes have cores / N each. Ours is N processes and the
peer one, so `ratio` and `throughput_ratio` are the seconds of one over those of N: 1 means that spreading costs nothing.
`memory_per_process_ratio` is the largest process of N over the one, each at its peak, Python and libraries taken off both;
`with_libraries` keeps them. Both count what processes share in each of them, as the system does. `pss_ratio` counts it once: the largest
proportional set size, of the memory that no file backs, all of it, where a page that N processes map is an N-th of one in each.
`max_loss_diff` and `max_grad_norm_diff` compare the steps one by one; `max_grad_norm_share` is the largest difference as a share of its
step's norm.

`--faults` also kills the last process outright after the fourth step, once for good (`ended_after_s`: until torchrun has ended all of
them) and once with `--max-restarts 1`, where the run goes on from its checkpoint (`restarted_loss_diff`: to the undisturbed run).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from _compare import ROOT
from _work import make_model

from preftune import sample
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.training.loop import read_metrics
from preftune.training.memory import LIBRARIES_GIB

SIZES: dict[str, Any] = {"layers": None, "pairs": 45, "settings": {"batch_size": 4, "token_budget": 1024, "max_tokens": 512}}
QUICK: dict[str, Any] = {"layers": 2, "pairs": 45, "settings": {"batch_size": 4, "token_budget": 512, "max_tokens": 512}}
ONLINE = {"steps": 10, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 24, "token_budget": 512}
LOSS = {"ppo": "loss/policy", "rloo": "loss/policy"}
BARS = {"throughput_ratio": 1.0, "memory_per_process_ratio": 0.65, "max_loss_diff": 1e-5, "max_grad_norm_diff": 1e-4}

# What each process does beside the command: it tells its peak from its own start on, as the run's manifest does of the first process.
SCRIPT = """
import json, os, signal, sys, threading, time, torch
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
from preftune._cli_output import run_app
from preftune.cli import app
from preftune.training import loop, measure
from preftune.training.loop import Loop
from preftune.training.memory import peak_memory_gib, resident_memory

measure.MOST_RUNS = 1  # the plan is not what is measured here
if "KILL_AT" in os.environ:
    loop.SAVE_EVERY_SECONDS, loop.SAVE_SHARE = -1.0, 0  # a checkpoint after each step
    log = Loop.log

    def log_and_die(self, step, metrics):
        log(self, step, metrics)
        first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if step + 1 == int(os.environ["KILL_AT"]) and first_try and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            with open(f"{sys.argv[1]}-killed", "w") as file:
                file.write(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    Loop.log = log_and_die
most, pss, reset = 0, 0.0, loop.reset_peak_memory

def reset_both():
    global most, pss
    reset()
    most, pss = 0, 0.0

def watch():
    global most, pss
    while True:  # the proportional set size takes the system a tenth of a second to tell, so it is asked for at each new peak alone
        if resident_memory() > 1.01 * most:
            most = resident_memory()
            rows = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if line.startswith("Pss_"))
            pss = max(pss, (int(rows["Pss_Anon"].split()[0]) + int(rows["Pss_Shmem"].split()[0])) / 2**20)
        time.sleep(0.02)

loop.reset_peak_memory = reset_both
threading.Thread(target=watch, daemon=True).start()
code = run_app(app, sys.argv[2:], debug=True)
with open(f"{sys.argv[1]}-{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump([peak_memory_gib(), pss], file)
sys.stdout.flush(); sys.stderr.flush()
os._exit(code)
"""


def prepare(folder: Path, sizes: dict[str, Any]) -> tuple[Path, Path]:
    """Return the model and a snapshot of some pairs of the built-in sample."""
    model = make_model(folder / "model", layers=sizes["layers"])
    rows = sample.train_path().read_text(encoding="utf-8").splitlines()[: sizes["pairs"]]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    import_preferences(folder / "pairs.jsonl", folder / "store.db")
    return model, snapshot(folder / "store.db", folder / "snapshots", held_out=0.1)


def settings_of(stage: str, model: Path, data: Path, sizes: dict[str, Any], reward: Path | None) -> dict[str, Any]:
    """Return the config of the run that is measured."""
    common = {"model": str(model), "data": str(data)}
    if reward is not None:
        return {**common, **ONLINE, "reward_model": str(reward)}
    return {**common, **sizes["settings"], "adapter": None, "lr": 1e-5}


def launch(stage: str, settings: dict[str, Any], folder: Path, processes: int, *options: str, **more: str) -> Any:
    """Start a stage in so many processes, each with its share of the cores, and wait for its end."""
    folder.mkdir()
    config, script, peaks = folder / "config.yaml", folder / "command.py", folder / "peak"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    script.write_text(SCRIPT, encoding="utf-8")
    threads = max(1, (os.cpu_count() or 1) // processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    if processes > 1:
        more["THP_MEM_ALLOC_ENABLE"] = "1"  # as the command does for itself before it loads torch
    return subprocess.run(
        [*command, str(script), str(peaks), "train", stage, str(config), "--out", str(folder / "runs"), "--json"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "src"), **more},
        capture_output=True,
        text=True,
    )


def train(stage: str, settings: dict[str, Any], folder: Path, processes: int) -> dict[str, Any]:
    """Run a stage in so many processes, and return what it took."""
    done = launch(stage, settings, folder, processes)
    if done.returncode:
        raise SystemExit(f"{stage} in {processes} processes failed:\n{done.stderr[-3000:]}")
    run = Path(json.loads(done.stdout)["path"])
    rows = read_metrics(run)
    peaks = [json.loads(path.read_text()) for path in folder.glob("peak-*.json")]
    return {
        "run": run,
        "rows": rows,
        # Of the steps after the first, which pays for memory and for what is made on first use.
        "seconds": (rows[-1]["seconds"] - rows[0]["seconds"]) / (len(rows) - 1),
        "peak_memory_gib": max(peak for peak, _ in peaks),
        "pss_gib": max(pss for _, pss in peaks),
    }


def apart(one: list[dict[str, float]], other: list[dict[str, float]], name: str, *, share: bool = False) -> float:
    """Return by how much a logged number of two runs differs at the most. share: of the number itself."""
    return max(abs(a[name] - b[name]) / (abs(a[name]) if share else 1) for a, b in zip(one, other, strict=True))


def compare(stage: str, one: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of N processes beside one."""
    loss, rows = LOSS.get(stage, "loss/train"), (one["rows"], many["rows"])
    ratio = one["seconds"] / many["seconds"]
    own = [found["peak_memory_gib"] - LIBRARIES_GIB for found in (many, one)]
    return {
        "ours": round(many["seconds"], 3),
        "peer": round(one["seconds"], 3),
        "ratio": round(ratio, 3),
        "throughput_ratio": round(ratio, 3),
        "memory_per_process_ratio": round(own[0] / own[1], 3),
        "with_libraries": round(many["peak_memory_gib"] / one["peak_memory_gib"], 3),
        "pss_ratio": round(many["pss_gib"] / one["pss_gib"], 3),
        "peak_memory_gib": round(many["peak_memory_gib"], 2),
        "peer_peak_memory_gib": round(one["peak_memory_gib"], 2),
        "pss_gib": round(many["pss_gib"], 2),
        "peer_pss_gib": round(one["pss_gib"], 2),
        "max_loss_diff": round(apart(*rows, loss), 7),
        "max_grad_norm_diff": round(apart(*rows, "grad_norm"), 7),
        "max_grad_norm_share": float(f"{apart(*rows, 'grad_norm', share=True):.2g}"),
        "steps": len(one["rows"]),
    }


def faults(stage: str, settings: dict[str, Any], folder: Path, processes: int, undisturbed: dict[str, Any]) -> dict[str, Any]:
    """Kill a process, without and with a restart."""
    ended = launch(stage, settings, folder / "killed", processes, KILL_AT="4")
    seconds = time.time() - float((folder / "killed" / "peak-killed").read_text())
    again = launch(stage, settings, folder / "restarted", processes, "--max-restarts=1", KILL_AT="4")
    if not ended.returncode or again.returncode:
        raise SystemExit(f"killed: {ended.returncode}; restarted: {again.returncode}\n{again.stderr[-3000:]}")
    rows = read_metrics(Path(json.loads(again.stdout)["path"]))
    loss = LOSS.get(stage, "loss/train")
    return {"ended_after_s": round(seconds, 1), "restarted_loss_diff": round(apart(undisturbed["rows"], rows, loss), 7)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the last line alone (nothing else is printed)")
    parser.add_argument("--quick", action="store_true", help="two layers of the model and few pairs, in under a minute")
    parser.add_argument("--runs", type=int, default=1, help="how often each is measured, in turn; the quickest of each counts")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="rows a step, of sft, reward and dpo")
    parser.add_argument("--steps", type=int, default=5, help="of that many rows")
    parser.add_argument("--faults", action="store_true", help="kill a process, too")
    parser.add_argument("--stage", choices=["sft", "reward", "dpo", "ppo", "rloo"], default="dpo")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else SIZES
    if arguments.batch_size:
        sizes["settings"] |= {"batch_size": arguments.batch_size, "token_budget": 2048}
        sizes["pairs"] = round(arguments.batch_size * arguments.steps / 0.9)  # of which a tenth is held out
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = prepare(folder, sizes)
        reward = None
        if arguments.stage in LOSS:
            trained = train("reward", {**settings_of("reward", model, data, sizes, None), "adapter": {"rank": 8}}, folder / "reward", 1)
            reward = trained["run"]
        settings = settings_of(arguments.stage, model, data, sizes, reward)
        runs = []
        found: dict[int, list[dict[str, Any]]] = {1: [], arguments.processes: []}
        for number in range(arguments.runs):
            for processes in found:
                found[processes].append(train(arguments.stage, settings, folder / f"run-{number}-{processes}", processes))
            runs.append(compare(arguments.stage, found[1][-1], found[arguments.processes][-1]))
        killed = {}
        if arguments.faults:
            last = found[arguments.processes][-1]
            killed = faults(arguments.stage, settings, folder, arguments.processes, last)
        best = {count: min(all_of, key=lambda one: one["seconds"]) for count, all_of in found.items()}
    result = {
        "benchmark": "scale",
        "stage": arguments.stage,
        "processes": arguments.processes,
        "threads": max(1, (os.cpu_count() or 1) // arguments.processes),
        **compare(arguments.stage, best[1], best[arguments.processes]),
        **killed,
        "unit": "s a step",
        "runs": [{key: run[key] for key in ("ours", "peer", "ratio", "memory_per_process_ratio", "pss_ratio")} for run in runs],
        "torch": torch.__version__,
        "bars": BARS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
