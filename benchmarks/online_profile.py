"""Where the time of an RLOO or a GRPO step goes: the seconds of its parts; the last line is one JSON object.

    python benchmarks/online_profile.py [--kind rloo|grpo] [--quick] [--steps N] [--threads N] [--json]

The work is that of `rloo.py`: 2 prompts × 4 samples × 64 tokens, LoRA, a reward that costs nothing. The first step warms up and is left
out; the parts are means over the others. What no part took is "rest": bookkeeping, files, metrics. seconds: by the clock; cpu_seconds:
of all threads, which say more beside other programs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from _compare import ROOT
from _online import QUICK, ours, prepare

from preftune.models.decode import Decoder
from preftune.rollout import stream
from preftune.rollout.cache import RunningCache
from preftune.rollout.client import Sampler
from preftune.rollout.rewards.total import Rewards
from preftune.rollout.stream import Batcher
from preftune.stages import experience, group
from preftune.training.loop import Loop


class Clock:
    """Adds up the seconds spent in named parts; what a part calls that is a part itself counts there alone."""

    def __init__(self) -> None:
        self.totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.stack: list[str] = ["rest"]
        self.since = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        """Return (seconds, CPU-seconds)."""
        return time.perf_counter(), time.process_time()

    def switch(self) -> None:
        """Give what has passed to the part that ran."""
        now = self.now()
        for place in (0, 1):
            self.totals[self.stack[-1]][place] += now[place] - self.since[place]
        self.since = now

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count what this function takes as a part."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self.stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self.stack.pop()

        setattr(owner, name, watched)


def watch_step(clock: Clock) -> None:
    """Name the parts of a step."""
    clock.watch(Decoder, "__init__", "decode: copy of the weights")
    clock.watch(stream, "prefill", "prefill")
    clock.watch(Batcher, "_feed_last_tokens", "decode: layers")
    clock.watch(Batcher, "_draw", "decode: head and draw")
    clock.watch(RunningCache, "write", "decode: cache")
    clock.watch(RunningCache, "keep", "decode: cache")
    clock.watch(Sampler, "draw", "decode: rest")
    clock.watch(Rewards, "score", "rewards")
    clock.watch(experience.Rollouts, "_reference", "reference")
    clock.watch(group._Update, "loss", "policy, forward")
    clock.watch(torch.Tensor, "backward", "policy, backward")
    clock.watch(torch.optim.AdamW, "step", "optimiser")
    clock.watch(group, "keep_samples", "samples kept")
    clock.watch(Loop, "log", "log")


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of an RLOO or a GRPO step goes.")
    parser.add_argument("--kind", choices=["rloo", "grpo"], default="rloo")
    parser.add_argument("--quick", action="store_true", help="two layers, 2 samples of 16 tokens, 3 steps")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds HH's test file")
    options = parser.parse_args()
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, value)
    torch.set_num_threads(options.threads)
    clock = Clock()
    watch_step(clock)
    ends: list[dict[str, list[float]]] = []
    log = Loop.log

    def logged(*args: Any, **kwargs: Any) -> None:
        log(*args, **kwargs)
        clock.switch()
        ends.append({part: list(spent) for part, spent in clock.totals.items()})

    Loop.log = logged  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        work = json.loads(prepare(options.kind, options, Path(name)).read_text(encoding="utf-8"))
        found = ours(work, Path(name) / "runs")
    first, last = ends[0], ends[-1]
    steps = len(ends) - 1
    means = {part: [(spent[i] - first.get(part, (0.0, 0.0))[i]) / steps for i in (0, 1)] for part, spent in last.items()}
    if not options.json:
        for part, (wall, cpu) in sorted(means.items(), key=lambda row: -row[1][0]):
            print(f"{wall:8.3f} s {cpu:8.3f} CPU-s  {part}")
    seconds, cpu_seconds = (round(sum(spent[i] for spent in means.values()), 3) for i in (0, 1))
    tokens = sum(found["tokens"][1:]) / steps
    by_part = {part: round(wall, 3) for part, (wall, _) in means.items()}
    told = {"kind": options.kind, "seconds": seconds, "cpu_seconds": cpu_seconds, "tokens_per_step": tokens, "by_part": by_part}
    print(json.dumps({**told, "sampler_gap": found["sampler_gap"]}))


if __name__ == "__main__":
    main()
