"""RLOO and GRPO: ours and TRL in turn, each in a process of its own, on the same prompts; the figures of both, and their ratio.

The work: SmolLM2-135M-Instruct in float32 with LoRA (rank 16 on all linear layers), steps of 2 prompts of HH × 4 samples of at most 64
tokens at temperature 1, one update a step, β 0.05, and a reward that costs nothing: how near an answer is to 200 characters. A step is
sampling, reward, reference and update, from its beginning to the next one's; the first is left out, since it warms up, and the median
counts. Both draw from the same weights by random numbers of their own, so their samples differ; how many tokens a step each learned from
is told beside the times. Memory is the largest resident set of the process over its whole life, read from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from _compare import HERE, PEER, ROOT, Measured, run_process
from _work import freeze, make_model, rows_of

MOST_CHARACTERS = 600  # of a prompt
RANK = 16
REWARD = '''"""How near an answer is to 200 characters."""


def near_200_characters(prompts, completions, facts):
    return [-abs(len(text) - 200) / 100 for text in completions]
'''
QUICK = {"layers": 2, "samples": 2, "new_tokens": 16, "steps": 3, "runs": 1}


def prepare(kind: str, options: argparse.Namespace, folder: Path) -> Path:
    """Write the model, the prompts and the reward, and return the file that both sides read."""
    short = (row for row in rows_of(options.data) if sum(len(m["content"]) for m in row["prompt"]) < MOST_CHARACTERS)
    found = {json.dumps(row["prompt"]): row for row in islice(short, 4 * options.prompts * options.steps)}
    rows = list(found.values())[: options.prompts * options.steps]
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    work = {
        "kind": kind,
        "model": str(make_model(folder / "model", layers=options.layers)),
        "snapshot": str(freeze(rows, folder)),
        "reward": f"{folder / 'reward.py'}:near_200_characters",
        "prompts": [row["prompt"] for row in rows],
        "prompts_per_step": options.prompts,
        "samples": options.samples,
        "new_tokens": options.new_tokens,
        "steps": options.steps,
        "rank": RANK,
        "lr": 1e-6,
        "beta": 0.05,
        "seed": options.seed,
    }
    file = folder / "work.json"
    file.write_text(json.dumps(work), encoding="utf-8")
    return file


def ours(work: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run our stage, and return the seconds of each step and the tokens that it learned from."""
    from _ours import Stopwatch

    import preftune
    from preftune.training.loop import read_metrics

    shared: dict[str, Any] = {
        "data": work["snapshot"],
        "model": work["model"],
        "rewards": [{"function": work["reward"]}],
        "adapter": {"rank": work["rank"], "alpha": 2 * work["rank"]},
        "steps": work["steps"],
        "prompts_per_step": work["prompts_per_step"],
        "samples_per_prompt": work["samples"],
        "max_new_tokens": work["new_tokens"],
        "kl_coef": work["beta"],
        "lr": work["lr"],
        "warmup": 0.0,
        "scoring": {"missing_end": "add"},  # the peer, too, gives an answer without an end its plain score
        "no_eos_score": 0.0,
        "seed": work["seed"],
    }
    watch = Stopwatch()
    if work["kind"] == "rloo":
        run = preftune.train_rloo(preftune.RLOOConfig(**shared), out, progress=watch)
    else:
        run = preftune.train_grpo(preftune.GRPOConfig(**shared), out, progress=watch)
    training = next(stage for stage in watch.stages if stage.unit == "steps")
    wall, cpu = ([b[i] - a[i] for a, b in zip(training.ticks, training.ticks[1:], strict=False)] for i in (0, 1))
    count = work["prompts_per_step"] * work["samples"]
    tokens = [row["length/completion"] * count for row in read_metrics(run)]
    gap = max(row["policy/sampler_gap"] for row in read_metrics(run))
    return {"step_seconds": wall, "step_cpu_seconds": cpu, "tokens": tokens, "sampler_gap": gap}


def measure(side: str, options: argparse.Namespace, work: Path, number: int) -> Measured:
    """Run one side once."""
    if side == "ours":
        out = work.parent / f"project-{number}" / "runs"
        command = [sys.executable, str(HERE / "_online.py"), str(work), str(out)]
    else:
        command = [str(options.peer), str(HERE / "_peer_online.py"), str(work)]
    found = run_process(command, threads=options.threads, what=side)
    print(f"run {number + 1}, {side}: {found.step_seconds():.2f} s a step, {found.peak_memory_gib:.2f} GiB", file=sys.stderr)
    return found


def compare(mine: list[Measured], peers: list[Measured]) -> dict[str, Any]:
    """Return the JSON object of a comparison."""
    ratios = [p.step_seconds() / o.step_seconds() for o, p in zip(mine, peers, strict=True)]
    cpu = [p.step_seconds("cpu_seconds") / o.step_seconds("cpu_seconds") for o, p in zip(mine, peers, strict=True)]
    memories = [o.peak_memory_gib / p.peak_memory_gib for o, p in zip(mine, peers, strict=True)]
    return {
        "ours": round(statistics.median(o.step_seconds() for o in mine), 2),
        "peer": round(statistics.median(p.step_seconds() for p in peers), 2),
        "unit": "s/step",
        "ratio": round(statistics.median(ratios), 2),
        "ratio_least": round(min(ratios), 2),
        "ratio_most": round(max(ratios), 2),
        "cpu_time_ratio": round(statistics.median(cpu), 2),
        "memory_ratio": round(statistics.median(memories), 3),
        "runs": len(mine),
        "tokens_per_step": round(_tokens(mine), 1),
        "peer_tokens_per_step": round(_tokens(peers), 1),
        "max_sampler_gap": round(max(o.figures["sampler_gap"] for o in mine), 7),
        "peak_memory_gib": round(statistics.median(o.peak_memory_gib for o in mine), 2),
        "peer_peak_memory_gib": round(statistics.median(p.peak_memory_gib for p in peers), 2),
    }


def _tokens(found: list[Measured]) -> float:
    return statistics.mean(n for one in found for n in one.figures["tokens"][1:])


def main(kind: str, description: str) -> None:
    """Compare one stage and print its JSON line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--quick", action="store_true", help="two layers, 2 samples of 16 tokens, 3 steps, in under a minute")
    parser.add_argument("--prompts", type=int, default=2, help="prompts a step")
    parser.add_argument("--samples", type=int, default=4, help="samples of each")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, help="only the first layers of the model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds HH's test file")
    parser.add_argument("--peer", type=Path, default=PEER, help="the Python of the peer's environment")
    parser.add_argument("--alone", action="store_true", help="ours alone, for a machine without the peer; prints no ratio")
    options = parser.parse_args()
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, value)
    if not options.alone and not options.peer.exists():
        raise SystemExit(f"{options.peer}: the peer is not installed. Run: make .venv-peer/.installed (or measure ours --alone)")
    with tempfile.TemporaryDirectory() as name:
        work = prepare(kind, options, Path(name))
        mine, peers = [], []
        for number in range(options.runs):
            mine.append(measure("ours", options, work, number))
            peers += [] if options.alone else [measure("peer", options, work, number)]
    if options.alone:
        steps, memory = statistics.median(o.step_seconds() for o in mine), statistics.median(o.peak_memory_gib for o in mine)
        alone = {"ours": round(steps, 2), "unit": "s/step", "runs": len(mine), "peak_memory_gib": round(memory, 2)}
        print(json.dumps({**alone, "tokens_per_step": round(_tokens(mine), 1)}))
        return
    found = compare(mine, peers)
    if not options.json:
        print(f"{found['ours']} against {found['peer']} s a step, {found['peak_memory_gib']} against {found['peer_peak_memory_gib']} GiB")
    print(json.dumps(found))


if __name__ == "__main__":
    print(json.dumps(ours(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))))
