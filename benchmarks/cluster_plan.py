"""The planner for machines that are not here: its table and curves in the docs, and how far it is from what runs here.

    python benchmarks/cluster_plan.py --write                   docs/past-one-machine.md (the table) and docs/cluster-cost.svg (the curves)
    python benchmarks/cluster_plan.py [--processes 2] [--quick] the check: SFT of all weights of SmolLM2-135M on this CPU

The check runs the stage in one process, as `benchmarks/scale.py` does, and takes from that run alone how much of the machine's peak (the
fastest product of two large matrices, measured here) training reaches. With it, and how fast processes copy memory here, it predicts the
seconds a step and the memory of each of N processes, runs those, and tells predicted against real. The last line is one JSON object: for
one process and for N `planned_gib`, `gib`, `gib_ratio` (real over planned), and `planned_seconds`, `seconds`, `seconds_ratio` for N.
--quick: two layers of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.training.cluster import ClusterPlan, Machine, Work, cluster_plan
from preftune.training.hardware import GPU, GPUS, SHAPES, shape_of

ROOT = Path(__file__).resolve().parents[1]
PAGE, CURVES = ROOT / "docs" / "past-one-machine.md", ROOT / "docs" / "cluster-cost.svg"
BEGIN, END = "<!-- printed by benchmarks/cluster_plan.py --write -->\n", "<!-- end -->\n"
SIZES = [1, 2, 4, 8, 16, 32, 64]
WORKS = {
    "SFT, all weights": Work("sft", 20_000, rank=None),
    "DPO, LoRA": Work("dpo", 20_000),
    "DPO, all weights": Work("dpo", 20_000, rank=None),
    "RLOO, LoRA": Work("rloo", 20_000),
}
COPY = """
import sys, time, torch
torch.set_num_threads(1)
a, b = torch.ones(1 << 25), torch.empty(1 << 25)
b.copy_(a)
started = time.perf_counter()
for _ in range(8):
    b.copy_(a)
print(8 * a.numel() * 4 / (time.perf_counter() - started))
"""


def chosen(size: str, work: Work, gpu: GPU) -> ClusterPlan | None:
    """Return the plan on the fewest GPUs that hold it and cost at most a tenth more than the cheapest; None where 64 do not hold it."""
    plans = [cluster_plan(SHAPES[size], work, Machine(gpu, count)) for count in SIZES]
    fitting = [plan for plan in plans if plan.fits]
    least = min((plan.hours * plan.gpus for plan in fitting), default=0.0)
    return next((plan for plan in fitting if plan.hours * plan.gpus <= 1.1 * least), None)


def table(gpu: str = "H100") -> str:
    """Return the table of what to choose, as Markdown."""
    lines = ["| | " + " | ".join(f"{size} ({SHAPES[size].name})" for size in SHAPES) + " |", "|---" * (len(SHAPES) + 1) + "|"]
    for name, work in WORKS.items():
        cells = []
        for size in SHAPES:
            plan = chosen(size, work, GPUS[gpu])
            if plan is None:
                cells.append("no: a GPU cannot hold all weights to sample" if work.stage == "rloo" else "over 64 GPUs")
            else:
                cells.append(f"{plan.gpus} × {gpu}, {plan.memory_gib:.0f} GiB each, {plan.hours * plan.gpus:.1f} GPU hours")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def curves(path: Path) -> None:
    """Draw GPU hours against parameters, GPUs and pairs."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "preftune", "svg.fonttype": "none", "font.size": 9}
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, (by_size, by_count, by_pairs) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    kinds = {"LoRA": Work("dpo", 20_000), "all weights": Work("dpo", 20_000, rank=None)}
    for name, work in kinds.items():
        plans = [chosen(size, work, GPUS["H100"]) for size in SHAPES]
        found = [plan for plan in plans if plan is not None]
        by_size.loglog([p.parameters / 1e9 for p in found], [p.hours * p.gpus for p in found], "o-", label=name)
        for plan in found:
            by_size.annotate(f"{plan.gpus}", (plan.parameters / 1e9, plan.hours * plan.gpus), textcoords="offset points", xytext=(4, -10))
        plans = [cluster_plan(SHAPES["8B"], work, Machine(GPUS["H100"], count)) for count in SIZES]
        fitting = [plan for plan in plans if plan.fits]
        by_count.loglog([p.gpus for p in fitting], [p.hours for p in fitting], "o-", label=name)
        pairs = [1_000, 3_000, 10_000, 30_000, 100_000]
        plans = [cluster_plan(SHAPES["8B"], replace(work, examples=count), Machine(GPUS["H100"], 8)) for count in pairs]
        by_pairs.loglog(pairs, [p.hours * p.gpus for p in plans], "o-", label=name)
    for axes, x, y, title, ticks in (
        (by_size, "parameters, billions", "GPU hours", "DPO, 20,000 pairs (number: H100s)", [1, 8, 70]),
        (by_count, "H100s", "hours", "8B, 20,000 pairs", SIZES),
        (by_pairs, "pairs", "GPU hours", "8B on 8 × H100", pairs),
    ):
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def write() -> None:
    """Put the table into the page and draw the curves."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
    curves(CURVES)


# The check


def this_machine(processes: int) -> tuple[float, float]:
    """Return this machine's peak of float32 products, operations a second, and the bytes a second that each of N processes copies."""
    import torch

    a, best = torch.rand(2048, 2048), 0.0
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    running = [subprocess.Popen([sys.executable, "-c", COPY], stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return best, min(float(process.communicate()[0]) for process in running)


def check(processes: int, *, quick: bool) -> dict[str, Any]:
    """Return predicted and real of one process and of N."""
    import scale

    from preftune.training.memory import LIBRARIES_GIB

    sizes = scale.QUICK if quick else scale.SIZES
    peak, copied = this_machine(processes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = scale.prepare(folder, sizes)
        settings = scale.settings_of("sft", model, data, sizes, None)
        one, many = (scale.train("sft", settings, folder / f"run-{count}", count) for count in (1, processes))
        shape = shape_of(str(model))
        row = tokens_a_row(model, data, settings)
    batch = settings["batch_size"]
    work = Work("sft", batch * len(one["rows"]), prompt=row[0], answer=row[1], batch_size=batch, rank=None, recompute=False)
    work = replace(work, token_budget=settings["token_budget"])
    cpu = GPU("this CPU", 64e9, peak, peak, copied, copied / 2, "measured")  # a part is written once and read once
    here = Machine(cpu, 1, mfu=1.0, number=4, overlap=False, lean=True, fixed=LIBRARIES_GIB * 2**30, shared=True)
    mfu = cluster_plan(shape, work, here).seconds_a_step / one["seconds"]
    found: dict[str, Any] = {"tokens_a_step": batch * work.row, "gemm_gflops": round(peak / 1e9), "mfu": round(mfu, 3)}
    found["copied_gb_s"] = round(copied / 1e9, 2)
    for label, count, real in (("one", 1, one), ("many", processes, many)):
        # N processes share the machine's cores, so each has an N-th of its peak.
        machine = replace(here, count=count, mfu=mfu, gpu=replace(cpu, bf16=peak / count, f32=peak / count))
        plan = cluster_plan(shape, work, machine)
        found[label] = {
            "processes": count,
            "planned_gib": round(plan.memory_gib, 2),
            "gib": round(real["peak_memory_gib"], 2),
            "gib_ratio": round(real["peak_memory_gib"] / plan.memory_gib, 3),
            "planned_seconds": round(plan.seconds_a_step, 3),
            "seconds": round(real["seconds"], 3),
            "seconds_ratio": round(real["seconds"] / plan.seconds_a_step, 3),
        }
    return found


def tokens_a_row(model: Path, data: Path, settings: dict[str, Any]) -> tuple[int, int]:
    """Return the mean tokens that a row computes of its prompt and of its answer; what all prompts begin with is computed once a batch."""
    from preftune.data.batches import area_of, encode
    from preftune.data.snapshot import load_snapshot
    from preftune.models.load import load_renderer
    from preftune.training.plan import steps_of

    examples = load_snapshot(data).chosen_as_demonstrations()
    encoded = encode(load_renderer(model, None), ((e.messages, [e.completion]) for e in examples), max_tokens=settings["max_tokens"])
    steps = steps_of(encoded.groups, steps=8, batch_size=settings["batch_size"], seed=0)
    rows = sum(map(len, steps))
    computed = sum(area_of(step, tree=True, apart=True, padded=False).tokens for step in steps) / rows
    answer = sum(group.num_completion_tokens for step in steps for group in step) / rows
    return max(1, round(computed - answer)), round(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="the docs' table and curves")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two layers of the model")
    options = parser.parse_args()
    if options.write:
        write()
        return
    print(json.dumps({"benchmark": "cluster_plan", "cores": os.cpu_count(), **check(options.processes, quick=options.quick)}))


if __name__ == "__main__":
    main()
