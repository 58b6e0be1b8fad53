"""Our side of a comparison, in a process of its own: one epoch over the rows of a snapshot, through the public functions.

    python benchmarks/_ours.py SETTINGS.json OUT

SETTINGS.json is what `_work.Settings` writes; OUT is where the run goes. Prints one JSON line last.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from _work import Settings, read_settings

import preftune
from preftune.data.batches import Group, encode
from preftune.data.snapshot import load_snapshot
from preftune.models.load import load_renderer
from preftune.models.product import product
from preftune.records import Message
from preftune.training.loop import read_metrics


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass
class Watched:
    """One stage of a run: when it began and when each unit was done, as (seconds, CPU seconds)."""

    unit: str
    ticks: list[tuple[float, float]] = field(default_factory=lambda: [(time.perf_counter(), cpu_seconds())])
    end: tuple[float, float] = (0.0, 0.0)

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Note the time."""
        self.ticks.append((time.perf_counter(), cpu_seconds()))

    def note(self, text: str) -> None:
        """Pass a word on."""
        print(text, file=sys.stderr)


class Stopwatch:
    """A progress that times the stages of a run."""

    def __init__(self) -> None:
        self.stages: list[Watched] = []

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "steps", *, done: int = 0) -> Iterator[Watched]:
        """Time one stage."""
        watched = Watched(unit)
        self.stages.append(watched)
        yield watched
        watched.end = (time.perf_counter(), cpu_seconds())

    def note(self, text: str) -> None:
        """Pass a word on."""
        print(text, file=sys.stderr)


def train(s: Settings, out: Path, watch: Stopwatch) -> Path:
    """Run the stage and return its folder."""
    shared = {
        "data": s.snapshot,
        "model": s.model,
        "adapter": {"rank": 16, "alpha": 32} if s.lora else None,
        "seed": s.seed,
        "max_tokens": s.max_tokens,
        "batch_size": s.batch_size,
        "lr": s.lr,
        "epochs": s.epochs,
        "warmup": 0.0,
        "schedule": "constant",
    }
    match s.kind:
        case "dpo":
            return preftune.train_dpo(preftune.DPOConfig(**shared, beta=s.beta), out, progress=watch)
        case "reward":
            return preftune.train_reward(preftune.RewardConfig(**shared), out, progress=watch)
        case "sft":
            return preftune.train_sft(preftune.SFTConfig(**shared), out, progress=watch)
    raise SystemExit(f'"{s.kind}" is none of dpo, reward and sft.')


def groups_of(s: Settings) -> list[Group]:
    """Return the rows as our stage computes them, for counting."""
    pairs = load_snapshot(Path(s.snapshot)).train
    items: list[tuple[list[Message], list[str]]] = [
        (list(p.messages), [p.chosen] if s.kind == "sft" else [p.chosen, p.rejected]) for p in pairs
    ]
    return encode(load_renderer(Path(s.model)), items, max_tokens=s.max_tokens).groups


def model_flops(s: Settings, groups: list[Group]) -> float:
    """Return the floating-point operations that an epoch and the reference pass need: no padding, no recomputation.

    A product with a weight matrix is 2 · tokens · in · out forward, as much again for the gradient of its input, and as much
    again for that of the weights where they are trained. Attention is 4 · (pairs of tokens that see each other) · width a
    layer forward, and twice that backward.
    """
    config = json.loads((Path(s.model) / "config.json").read_text(encoding="utf-8"))
    width, heads, inner = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    head_width = config.get("head_dim") or width // heads
    queries, keys = heads * head_width, config["num_key_value_heads"] * head_width
    layers = config["num_hidden_layers"]
    linear = layers * (2 * width * queries + 2 * width * keys + 3 * width * inner)
    tokens = sum(g.num_tokens for g in groups)
    seen = sum(len(g.prompt) ** 2 / 2 + sum(len(c) * (len(g.prompt) + len(c) / 2) for c in g.completions) for g in groups)
    scored = 0 if s.kind == "reward" else sum(g.num_completion_tokens for g in groups)
    weights = 2.0 * linear * tokens + 2.0 * scored * width * config["vocab_size"]
    attention = 4.0 * layers * queries * seen
    reference = weights + attention if s.kind == "dpo" else 0.0
    return weights * (2 if s.lora else 3) + attention * 3 + reference


@torch.no_grad()
def gemm_flops(model: Path, *, rows: int = 1024, repeats: int = 9) -> float:
    """Return the operations a second of float32 matrix products at the shapes of the model's own layers, as these do them, measured."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    width, inner = config["hidden_size"], config["intermediate_size"]
    done = seconds = 0.0
    for into, out in ((width, width), (width, inner), (width, inner), (inner, width)):
        x, weight = torch.randn(rows, into), torch.randn(out, into)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            product(x, weight)
            times.append(time.perf_counter() - began)
        seconds += statistics.median(times)
        done += 2.0 * rows * into * out
    return done / seconds


def main() -> None:
    s, out = read_settings(Path(sys.argv[1])), Path(sys.argv[2])
    rates = [gemm_flops(Path(s.model))]
    watch = Stopwatch()
    run = train(s, out, watch)
    rates.append(gemm_flops(Path(s.model)))
    training = next(stage for stage in watch.stages if stage.unit == "steps")
    before = watch.stages[: watch.stages.index(training)]
    reference = [sum(stage.end[i] - stage.ticks[0][i] for stage in before) for i in (0, 1)]
    steps = [[b[i] - a[i] for a, b in zip(training.ticks, training.ticks[1:], strict=False)] for i in (0, 1)]
    result = {
        "step_seconds": steps[0],
        "step_cpu_seconds": steps[1],
        "reference_seconds": reference[0],
        "reference_cpu_seconds": reference[1],
        "losses": [row["loss/train"] for row in read_metrics(run)],
        "gemm_gflops": statistics.mean(rates) / 1e9,
        "model_gflop": s.epochs * model_flops(s, groups_of(s)) / 1e9,
        "run": str(run),
        "said_peak_memory_gib": preftune.read_manifest(run)["peak_memory_gib"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
