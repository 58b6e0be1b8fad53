"""Ours and the peer in turn, each in a process of its own, on the same work; the figures of both, and their ratio.

A run of either is timed step by step, the first left out (it warms up), and the median step counts. To our step its share of
the reference pass is added, since the peer computes its reference within each step. Memory is the largest resident set of the
process over its whole life, read from outside every 20 ms, so that loading counts on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _work import Settings, fitting, freeze, in_training_order, make_model, rows_of, write_rows

from preftune.models.heads import scalar_head, with_scalar_head
from preftune.models.load import load_causal_lm, load_renderer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER = ROOT / ".venv-peer" / "bin" / "python"
LEARNING_RATES = {("dpo", False): 1e-6, ("dpo", True): 5e-5, ("reward", False): 9e-6, ("reward", True): 1e-4}
LEARNING_RATES |= {("sft", False): 1e-5, ("sft", True): 2e-4}
FIRST_STEPS = 10  # whose losses are compared
QUICK = {"pairs": 16, "runs": 1, "layers": 2, "pair_tokens": 256}


@dataclass(frozen=True)
class Measured:
    """What one process printed, and the most memory that it held."""

    figures: dict[str, Any]
    peak_memory_gib: float

    def step_seconds(self, key: str = "seconds") -> float:
        """Return the median step, the first left out, with its share of the reference pass. key: "seconds" or "cpu_seconds"."""
        steps = self.figures[f"step_{key}"]
        return statistics.median(steps[1:] or steps) + self.figures.get(f"reference_{key}", 0.0) / len(steps)

    @property
    def whole_seconds(self) -> float:
        """The time of all steps and of the reference pass."""
        return float(sum(self.figures["step_seconds"]) + self.figures.get("reference_seconds", 0.0))


def run_process(command: list[str], *, threads: int, what: str) -> Measured:
    """Run a program that prints one JSON line last, and watch its memory. Stops with its last words where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=environment, cwd=ROOT)
        peak = [0.0]
        watcher = threading.Thread(target=_watch_memory, args=(process, peak), daemon=True)
        watcher.start()
        process.wait()
        watcher.join()
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            killed = " (killed: the machine has too little memory for it)" if process.returncode == -9 else ""
            raise SystemExit(f"{what} failed with {process.returncode}{killed} at {peak[0]:.1f} GiB:\n{errors.read()[-3000:]}")
        return Measured(json.loads(out.read().strip().splitlines()[-1]), peak[0])


def _watch_memory(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            line = next((row for row in status.read_text().splitlines() if row.startswith("VmHWM:")), None)
        except OSError:  # it has just ended
            return
        if line is not None:
            peak[0] = max(peak[0], int(line.split()[1]) / 2**20)
        time.sleep(0.02)


def prepare(kind: str, options: argparse.Namespace, folder: Path) -> Settings:
    """Make the model, the rows and the snapshot in `folder` and return the settings of both sides."""
    model = make_model(folder / "model", layers=options.layers)
    renderer = load_renderer(model)
    rows = fitting(rows_of(options.data), renderer, count=options.pairs, max_tokens=options.pair_tokens)
    data = freeze(rows, folder)
    ordered = in_training_order(data, batch_size=options.batch_size, seed=options.seed)
    steps = -(-len(ordered) // options.batch_size)
    lora = getattr(options, "lora", False)
    settings = Settings(
        kind=kind,
        model=str(model),
        snapshot=str(data),
        rows=str(write_rows(folder / "ordered.jsonl", ordered)),
        lora=lora,
        batch_size=options.batch_size,
        max_tokens=1024,
        lr=LEARNING_RATES[kind, lora],
        adam_epsilon=1e-5 if kind == "reward" else 1e-8,
        beta=0.1,
        seed=options.seed,
        start=_reward_head(model, folder, options.seed) if kind == "reward" else None,
    )
    settings.write(folder / "settings.json")
    print(f"{len(ordered)} pairs, {steps} steps of {options.batch_size}, {'LoRA' if lora else 'all weights'}", file=sys.stderr)
    return settings


def _reward_head(model: Path, folder: Path, seed: int) -> str:
    # The peer starts from the head that ours draws: another head is another loss.
    from safetensors.torch import save_file

    head = scalar_head(with_scalar_head(load_causal_lm(model), seed=seed))
    save_file({"weight": head.weight.detach().clone()}, folder / "head.safetensors")
    return str(folder / "head.safetensors")


def measure(side: str, options: argparse.Namespace, folder: Path, number: int) -> Measured:
    """Run one side once."""
    settings = str(folder / "settings.json")
    if side == "ours":
        command = [sys.executable, str(HERE / "_ours.py"), settings, str(folder / f"project-{number}" / "runs")]
    else:
        command = [str(options.peer), str(HERE / "_peer.py"), settings]
    found = run_process(command, threads=options.threads, what=side)
    print(f"run {number + 1}, {side}: {found.step_seconds():.2f} s a step, {found.peak_memory_gib:.2f} GiB", file=sys.stderr)
    return found


def compare(ours: list[Measured], peers: list[Measured], settings: Settings) -> dict[str, Any]:
    """Return the JSON object of a comparison."""
    ratios = [p.step_seconds() / o.step_seconds() for o, p in zip(ours, peers, strict=True)]
    memories = [o.peak_memory_gib / p.peak_memory_gib for o, p in zip(ours, peers, strict=True)]
    cpu = [p.step_seconds("cpu_seconds") / o.step_seconds("cpu_seconds") for o, p in zip(ours, peers, strict=True)]
    curves = [(o.figures["losses"], p.figures["losses"]) for o, p in zip(ours, peers, strict=True)]
    differences = [abs(a - b) for mine, theirs in curves for a, b in zip(mine[:FIRST_STEPS], theirs[:FIRST_STEPS], strict=True)]
    gemm = statistics.median(o.figures["gemm_gflops"] for o in ours)
    return {
        "ours": round(settings.batch_size / statistics.median(o.step_seconds() for o in ours), 4),
        "peer": round(settings.batch_size / statistics.median(p.step_seconds() for p in peers), 4),
        "unit": "examples/s" if settings.kind == "sft" else "pairs/s",
        "ratio": round(statistics.median(ratios), 2),
        "ratio_least": round(min(ratios), 2),
        "ratio_most": round(max(ratios), 2),
        "cpu_time_ratio": round(statistics.median(cpu), 2),
        "memory_ratio": round(statistics.median(memories), 3),
        "runs": len(ours),
        "max_loss_diff": round(max(differences), 7),
        "steps_compared": min(FIRST_STEPS, len(curves[0][0])),
        "mfu": round(statistics.median(o.figures["model_gflop"] / o.whole_seconds / o.figures["gemm_gflops"] for o in ours), 3),
        "gemm_gflops": round(gemm, 1),
        "peak_memory_gib": round(statistics.median(o.peak_memory_gib for o in ours), 2),
        "peer_peak_memory_gib": round(statistics.median(p.peak_memory_gib for p in peers), 2),
        "step_seconds": round(statistics.median(o.step_seconds() for o in ours), 2),
        "peer_step_seconds": round(statistics.median(p.step_seconds() for p in peers), 2),
    }


def parser_for(description: str, *, lora: bool) -> argparse.ArgumentParser:
    """Return the command line that all comparisons share."""
    parser = argparse.ArgumentParser(description=description)
    if lora:
        parser.add_argument("--lora", action="store_true", help="LoRA, rank 16 on all linear layers, instead of all weights")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--quick", action="store_true", help="two layers of the model and 16 short pairs, in under a minute")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pair-tokens", type=int, default=1024, help="only pairs whose prompt and either answer have at most so many")
    parser.add_argument("--layers", type=int, help="only the first layers of the model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds HH's test file")
    parser.add_argument("--peer", type=Path, default=PEER, help="the Python of the peer's environment")
    parser.add_argument("--curves", type=Path, help="draw both loss curves into this SVG file")
    return parser


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options, --quick applied. Stops where the peer is not installed."""
    options = parser.parse_args()
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, value)
    if not options.peer.exists():
        raise SystemExit(f"{options.peer}: the peer is not installed. Run: make .venv-peer/.installed")
    return options


def main(kind: str, description: str) -> None:
    """Compare one stage and print its JSON line."""
    options = options_of(parser_for(description, lora=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = prepare(kind, options, folder)
        ours, peers = [], []
        for number in range(options.runs):
            ours.append(measure("ours", options, folder, number))
            peers.append(measure("peer", options, folder, number))
    if options.curves:
        draw_curves(options.curves, ours[0].figures["losses"], peers[0].figures["losses"], title=f"{kind}, the same work")
    found = compare(ours, peers, settings)
    if not options.json:
        for mine, theirs in zip(ours[0].figures["losses"], peers[0].figures["losses"], strict=True):
            print(f"loss: ours {mine:.6f}, peer {theirs:.6f}, difference {mine - theirs:+.2e}")
    print(json.dumps(found))


def draw_curves(path: Path, ours: list[float], peer: list[float], *, title: str) -> None:
    """Draw both loss curves over each other, and their difference below."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    steps = range(1, len(ours) + 1)
    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5), height_ratios=(3, 1), layout="constrained")
    upper.plot(steps, peer, color="#e8a33d", linewidth=6, alpha=0.6, label="TRL")
    upper.plot(steps, ours, color="#1f4e79", linewidth=1.5, marker="o", markersize=3, label="preftune")
    upper.set(ylabel="loss", title=title)
    upper.legend(frameon=False)
    lower.axhspan(-1e-4, 1e-4, color="0.9")
    lower.plot(steps, [a - b for a, b in zip(ours, peer, strict=True)], color="0.2", marker="o", markersize=3)
    lower.set(xlabel="step", ylabel="difference")
    lower.ticklabel_format(axis="y", scilimits=(0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
