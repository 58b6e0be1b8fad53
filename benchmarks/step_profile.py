"""Where the time of a training step goes: the CPU-seconds of one thread, by the kind of work; the last line is one JSON object.

    python benchmarks/step_profile.py [--kind dpo|reward|sft] [--lora] [--quick] [--model FOLDER] [--json]

The work is one step of `dpo.py`, `reward.py` or `sft.py`: 8 HH pairs of at most 1,024 tokens, DPO's reference pass among it. The clock,
which torch's profiler goes by, says little beside other programs; the CPU time of one thread, which is counted here, much the same.
"python" is what no operation took: the interpreter, autograd, and the counting itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _work import fitting, make_model, rows_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from preftune.data.batches import Group, collate, encode, split_by_budget
from preftune.losses.preference import dpo
from preftune.losses.reduce import sequence_sum
from preftune.losses.reward import bradley_terry
from preftune.models.adapter import Adapter, adapter_off, add_adapter, trainable
from preftune.models.heads import end_scores, with_scalar_head
from preftune.models.load import batch_logprobs, load_causal_lm, load_renderer
from preftune.records import Message
from preftune.training.measure import kept_for_backward
from preftune.training.optim import adamw
from preftune.training.step import Loss, train_step

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 2048  # the stages' own default
KINDS = {
    "products": ("mm", "addmm", "bmm", "mv", "linear", "dot"),
    "attention": ("scaled_dot_product",),
    "optimiser": ("fused_adamw", "foreach"),
}


def kind_of(name: str) -> str:
    """Return the kind of work that an operation of torch does."""
    plain = name.strip("_")
    for kind, parts in KINDS.items():
        if any(plain == part or (kind != "products" and part in plain) for part in parts):
            return kind
    return "passes over memory"


def groups_of(model: Path, data: Path, *, kind: str, pairs: int, pair_tokens: int) -> list[Group]:
    """Return the first pairs that fit (for sft, their chosen answers alone)."""
    renderer = load_renderer(model)
    rows = fitting(rows_of(data), renderer, count=pairs, max_tokens=pair_tokens)
    sides = ("chosen",) if kind == "sft" else ("chosen", "rejected")
    items = [([Message.model_validate(m) for m in row["prompt"]], [row[side][0]["content"] for side in sides]) for row in rows]
    return encode(renderer, items, max_tokens=1024).groups


class CpuTime(TorchDispatchMode):
    """Counts the CPU-seconds and the calls of each operation of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.process_time()
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        self.calls[name] = self.calls.get(name, 0) + 1
        return result


class Work:
    """One step's parts, as the stages do them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        path = options.model or make_model(folder / "model", layers=options.layers)
        self.kind, self.lora = options.kind, options.lora
        self.groups = groups_of(path, options.data, kind=options.kind, pairs=options.pairs, pair_tokens=options.pair_tokens)
        model: Any = load_causal_lm(path)
        self.policy: nn.Module = add_adapter(model, Adapter(), seed=0) if options.lora else model
        self.learner: nn.Module = with_scalar_head(model, seed=0) if options.kind == "reward" else self.policy
        self.optimiser = adamw(self.learner)
        self.reference: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def refer(self) -> None:
        """Score each pair alone, with the adapter off, as reference.py does."""
        for group in self.groups if self.kind == "dpo" else []:
            self.reference[group.index] = self.sums([group], off=self.lora)

    def sums(self, groups: list[Group], *, off: bool = False) -> torch.Tensor:
        """Return the log-prob of each answer."""
        batch = collate(groups, 0)
        if off:
            with adapter_off(self.policy):
                logprobs, _ = batch_logprobs(self.policy, batch)
        else:
            logprobs, _ = batch_logprobs(self.policy, batch)
        return sequence_sum(logprobs, batch.sequence, batch.num_sequences)

    def loss(self, groups: list[Group]) -> Loss:
        """Return the stage's loss of a micro-batch."""
        if self.kind == "sft":
            batch = collate(groups, 0)
            logprobs, _ = batch_logprobs(self.policy, batch)
            return Loss(-logprobs, batch.completion_mask.float())
        if self.kind == "reward":
            scores = end_scores(self.learner, collate(groups, 0))
            values = bradley_terry(scores[0::2], scores[1::2], margin=0.0, label_smoothing=0.0)
        else:
            h = self.sums(groups) - torch.cat([self.reference[g.index] for g in groups])
            values = dpo(h[0::2], h[1::2], beta=0.1, label_smoothing=0.0)
        return Loss(values, torch.ones_like(values))

    def step(self) -> float:
        """Do one optimiser step and return its loss."""
        done = train_step(
            split_by_budget(self.groups, BUDGET),
            count=lambda part: float(sum(g.num_completion_tokens for g in part) if self.kind == "sft" else len(part)),
            loss=self.loss,
            parameters=trainable(self.learner).values(),
            optimiser=self.optimiser,
            lr=1e-6,
            max_grad_norm=1.0,
            where="profile",
        )
        return done.loss


@contextmanager
def cpu_time(into: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU-seconds of what is done within."""
    began = time.process_time()
    yield
    into[name] = round(time.process_time() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a training step goes.")
    parser.add_argument("--kind", choices=["dpo", "reward", "sft"], default="dpo")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two layers and two pairs")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--model", type=Path, help="a float32 folder, in place of the packaged model")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--pair-tokens", type=int, default=1024)
    parser.add_argument("--top", type=int, default=25, help="operations listed")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds HH's test file")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.layers = 2, 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Work(options, Path(name))
    largest = split_by_budget(work.groups, BUDGET)[0]
    work.refer()
    kept = kept_for_backward(lambda: work.loss(largest).values, work.learner)
    work.step()  # warms up, and makes the optimiser's moments
    seconds: dict[str, float] = {}
    with CpuTime() as seen:
        with cpu_time(seconds, "reference"):
            work.refer()
        with cpu_time(seconds, "step"):
            loss = work.step()
    rows = sorted(seen.seconds.items(), key=lambda row: -row[1])
    if not options.json:
        for name, spent in rows[: options.top]:
            print(f"{spent:8.2f} s {seen.calls[name]:7d} times  {name}")
    shares = {"python": sum(seconds.values()) - sum(seen.seconds.values())}
    for name, spent in rows:
        shares[kind_of(name)] = shares.get(kind_of(name), 0.0) + spent
    area = len(largest) * max(g.num_tokens for g in largest)
    print(
        json.dumps(
            {"kind": options.kind, "lora": options.lora, "tokens": sum(g.num_tokens for g in work.groups), "loss": loss}
            | {"cpu_seconds": seconds, "by_kind": {k: round(v, 2) for k, v in sorted(shares.items())}}
            | {"kept_kib_a_token": round(kept / 1024 / area, 1)}
        )
    )


if __name__ == "__main__":
    main()
