"""What a stage takes on machines that are not here: memory a GPU, time and cost, worked out from a model's sizes and published peaks.

`training/plan.py` measures the model that is there, on the machine that is there, and is to be believed more. This is for the question
before that: which machines to rent. No figure for a GPU here has been measured by us; MFU and the shares beside it are assumptions.

    operations of a forward pass  2 · (tokens · weights of the layers + 2 · squares · width · layers + learned tokens · output layer)
    of training                   3 of these with all weights, 2 with an adapter (none for the gradients of weights), one more where
                                  layers are computed again
    memory                        weights, gradients and moments over all GPUs (FSDP2), what each holds whole, a micro-batch's numbers
    a step's time                 the larger of computing (operations / peak / MFU) and of gathering weights (bytes / link), which overlap,
                                  and the optimiser's pass over its memory; before it, where answers are sampled, reading all weights
                                  once for each token
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from preftune.progress import counted, duration
from preftune.training.hardware import GIB, GPU, SPARE, Shape, forward_flops

Stage = Literal["sft", "reward", "dpo", "ppo", "rloo", "grpo"]
MFU = 0.35  # share of the peak in training; Llama 3 405B reached 0.38 to 0.43 on H100 (2407.21783, table 4), smaller steps reach less
READ_SHARE = 0.6  # of the memory's bandwidth, in sampling and in the optimiser's pass
LINK_SHARE = 0.7  # of a link's rate
NETWORK = 50e9  # bytes a second and GPU between machines, one way: a 400 Gbit/s adapter for each GPU
MACHINE = 8  # GPUs a machine
CONTEXT = 1.0e9  # bytes of CUDA and its libraries
WHOLE_BYTES, BASE_BYTES = 16, 2  # a trained weight: float32, its gradient and two moments; a frozen one: bfloat16
PLACES = 16 << 20  # bytes through which a process hands gradients to the others where they share memory
SCORING = {"sft": 0, "reward": 0, "dpo": 1, "ppo": 4, "rloo": 3, "grpo": 3}  # forward passes beside training: reference, old log-probs, …
SAMPLED = ("ppo", "rloo", "grpo")


@dataclass(frozen=True)
class Work:
    """A run's work. examples: pairs, answers (sft), or prompts that are sampled from. prompt, answer: tokens, on average.

    answers: to a prompt; None = what the stage takes (1 for sft, 2 for pairs, 4 samples). rank: of LoRA; None = all weights are trained.
    """

    stage: Stage
    examples: int
    prompt: int = 300
    answer: int = 300
    answers: int | None = None
    epochs: int = 1
    batch_size: int = 64
    token_budget: int = 8192
    rank: int | None = 32
    recompute: bool = True

    @property
    def completions(self) -> int:
        """Answers a prompt."""
        return self.answers or {"sft": 1, "reward": 2, "dpo": 2}.get(self.stage, 4)

    @property
    def row(self) -> int:
        """Tokens of one row: the prompt once, and every answer."""
        return self.prompt + self.completions * self.answer

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.epochs * -(-self.examples // self.batch_size)


@dataclass(frozen=True)
class Machine:
    """What computes: GPUs of one kind, or (for checks) processes of a machine whose figures were measured.

    mfu: share of the peak. number: bytes of a number while it computes (2 = bfloat16). overlap: whether weights are gathered meanwhile.
    lean: whether layers keep what `models/lean.py` keeps. fixed: bytes that each process holds whatever the model. shared: whether the
    weights lie once in memory that all processes see, as on one machine's CPU (decision 24): then none are gathered, and the system counts
    all of them in each process.
    """

    gpu: GPU
    count: int
    mfu: float = MFU
    network: float = NETWORK
    number: int = 2
    overlap: bool = True
    lean: bool = False
    fixed: float = CONTEXT
    shared: bool = False

    @property
    def link(self) -> float:
        """Bytes a second between two of them, one way, at best."""
        return self.gpu.link if self.count <= MACHINE else min(self.gpu.link, self.network)


@dataclass(frozen=True)
class ClusterPlan:
    """What a run takes. memory: GiB of each GPU, by what holds it; parts: seconds of a step, by what takes them, and `before` the first."""

    model: str
    parameters: int
    stage: str
    gpus: int
    gpu: str
    steps: int
    tokens_a_step: int
    memory: dict[str, float] = field(default_factory=dict)
    memory_gib: float = 0.0
    limit_gib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    seconds_a_step: float = 0.0
    hours: float = 0.0
    cost: float | None = None

    @property
    def advice(self) -> str:
        """What to change where it does not fit: the largest part decides."""
        largest = max(self.memory, key=lambda name: self.memory[name])
        if largest == "micro-batch":
            return "Lower the token budget, or compute layers again (gradient_checkpointing)."
        if largest in ("gathered", "keys and values") and self.stage in SAMPLED:
            return "Sample elsewhere, so that no GPU holds all weights beside the training, or take GPUs with more memory."
        return "Take more GPUs, or train an adapter in place of all weights."

    @property
    def fits(self) -> bool:
        """Whether it fits the memory, with some to spare."""
        return self.memory_gib * SPARE <= self.limit_gib

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {**asdict(self), "fits": self.fits}

    def lines(self) -> list[str]:
        """Return the plan in words."""
        held = ", ".join(f"{size:.1f} {name}" for name, size in self.memory.items() if size >= 0.05)
        took = ", ".join(f"{part:.3g} s {name}" for name, part in self.parts.items() if part and name != "before")
        before = f", after {duration(self.parts['before'])} for the reference" if self.parts["before"] else ""
        lines = [
            f"{self.stage} of {self.model} ({self.parameters / 1e9:.2f} billion weights) on {self.gpus} × {self.gpu}",
            f"memory: about {self.memory_gib:.1f} of {self.limit_gib:.1f} GiB a GPU ({held})",
            f"time: {counted(self.steps, 'steps')} of {self.tokens_a_step:,} tokens, about {self.seconds_a_step:.3g} s each ({took})",
            f"about {duration(self.hours * 3600)} in all{before}, {self.hours * self.gpus:.1f} GPU hours"
            + ("" if self.cost is None else f", {self.cost:,.2f} at the price given"),
            "Worked out from published peaks and assumed shares of them; we have not measured a GPU. A run itself measures and plans anew.",
        ]
        return lines if self.fits else [*lines, f"This will not fit. {self.advice}"]


def cluster_plan(shape: Shape, work: Work, machine: Machine, *, price: float | None = None) -> ClusterPlan:
    """Return what a run takes. price: of one GPU for an hour, in whatever money."""
    held, parts = memory(shape, work, machine), seconds(shape, work, machine)
    step = parts["sampling"] + parts["scoring"] + max(parts["computing"], parts["gathering"]) + parts["optimiser"]
    if not machine.overlap:
        step += min(parts["computing"], parts["gathering"])
    hours = (step * work.steps + parts["before"]) / 3600
    return ClusterPlan(
        model=shape.name,
        parameters=shape.parameters,
        stage=work.stage,
        gpus=machine.count,
        gpu=machine.gpu.name,
        steps=work.steps,
        tokens_a_step=work.batch_size * work.row,
        memory={name: size / GIB for name, size in held.items()},
        memory_gib=sum(held.values()) / GIB,
        limit_gib=machine.gpu.memory / GIB,
        parts=parts,
        seconds_a_step=step,
        hours=hours,
        cost=None if price is None else hours * machine.count * price,
    )


def flops(shape: Shape, tokens: float, squares: float, learned: float) -> float:
    """Return the operations of a forward pass. squares: pairs of tokens that attention compares. learned: tokens with a log-prob."""
    linear, across = shape.layers * shape.layer, shape.layers * shape.queries
    return forward_flops(tokens=tokens, squares=squares, learned=learned, linear=linear, across=across, head=shape.head)


def memory(shape: Shape, work: Work, machine: Machine) -> dict[str, float]:
    """Return the bytes that each GPU holds, by what they are."""
    n, whole = machine.count, work.rank is None
    a_weight, rest = (4, WHOLE_BYTES - 4) if whole else (machine.number, 0)
    parts = 1 if machine.shared else n
    learners = 2 if work.stage == "ppo" and whole else 1
    weights = learners * shape.parameters * (a_weight / parts + rest / n)
    adapters = 0 if whole else WHOLE_BYTES * shape.adapter(work.rank or 0) * (2 if work.stage == "ppo" else 1)
    frozen = {"ppo": 2, "rloo": 2, "grpo": 2}.get(work.stage, 0) if whole else 0  # reference and reward model; LoRA has them on one base
    gathered = 0.0
    if n > 1:  # a layer and the one fetched ahead; what lies outside the layers, through a step; gradients before they are divided
        gathered = PLACES * n if machine.shared else machine.number * (2 * shape.layer + shape.outside)
        gathered += 4 * (shape.layer + shape.outside) if whole else 0
    tokens = min(max(work.token_budget, work.row), -(-work.batch_size // n) * work.row)
    found = {
        "weights, gradients, moments": weights + adapters + frozen * BASE_BYTES * shape.parameters / parts,
        "gathered": gathered,
        "micro-batch": tokens * kept_a_token(shape, machine, recompute=work.recompute) + logits(shape),
        "fixed": machine.fixed,
    }
    if work.stage in SAMPLED:
        at_once = -(-work.batch_size // n) * work.completions
        cache = at_once * (work.prompt + work.answer) * 2 * shape.keys * shape.layers * machine.number
        whole_again = a_weight * shape.parameters * (parts > 1)  # the local sampler holds the weights whole
        found["gathered"] = max(gathered, whole_again)
        found["keys and values"] = max(0.0, cache - found["micro-batch"])  # not at the same time
    return found


def kept_a_token(shape: Shape, machine: Machine, *, recompute: bool) -> float:
    """Return the bytes that a token keeps for backward: a layer's numbers as transformers keeps them, or as `models/lean.py` does.

    With layers computed again it is what enters each of them, and one layer's numbers.
    """
    if machine.lean:
        layer = machine.number * (4 * shape.width + 2 * shape.mlp)
    else:
        layer = machine.number * (10 * shape.width + 4 * shape.mlp) + 16 * shape.width  # both norms are computed in float32
    return shape.layers * machine.number * shape.width + layer if recompute else shape.layers * layer


def logits(shape: Shape) -> float:
    """Return the bytes of the one block of logits that is there at a time."""
    return 3 * 4 * shape.vocabulary * 128.0


def seconds(shape: Shape, work: Work, machine: Machine) -> dict[str, float]:
    """Return the seconds of an optimiser step, by what takes them, and of what comes before the first (`before`)."""
    gpu, n, whole = machine.gpu, machine.count, work.rank is None
    rows = work.batch_size
    learned = rows * work.completions * work.answer
    forward = flops(shape, rows * work.row, rows * work.row**2, learned)
    speed = n * machine.mfu * (gpu.bf16 if n > 1 or not whole else gpu.f32)  # one process trains all weights in float32
    passes = (3 if whole else 2) + work.recompute
    learners = 2 if work.stage == "ppo" else 1
    micro_batches = -(-rows * max(work.row, 1) // (n * max(work.token_budget, work.row)))
    share = (n - 1) / n
    read = 0.0 if machine.shared else machine.number * shape.parameters * share * micro_batches * 2
    moved = read + (4 * shape.parameters * share if whole else 0)
    state = (WHOLE_BYTES + 12) * (shape.parameters / n if whole else shape.adapter(work.rank or 0))  # read, and most of it written
    scoring = SCORING[work.stage] * forward / speed
    before = scoring * work.steps / work.epochs if work.stage == "dpo" else 0.0
    return {
        "sampling": sampling(shape, work, machine) if work.stage in SAMPLED else 0.0,
        "scoring": 0.0 if work.stage == "dpo" else scoring,
        "computing": learners * passes * forward / speed,
        "gathering": learners * moved / (machine.link * LINK_SHARE) if n > 1 else 0.0,
        "optimiser": learners * state / (gpu.bandwidth * READ_SHARE),
        "before": before,
    }


def sampling(shape: Shape, work: Work, machine: Machine) -> float:
    """Return the seconds of drawing a step's answers: the prompts at once, then all weights and keys read once for each token."""
    gpu = machine.gpu
    at_once = -(-work.batch_size // machine.count) * work.completions
    prompts = flops(shape, work.batch_size * work.prompt, work.batch_size * work.prompt**2, 0) / (machine.count * machine.mfu * gpu.bf16)
    cache = at_once * (work.prompt + work.answer / 2) * 2 * shape.keys * shape.layers * machine.number
    read = (machine.number * shape.parameters + cache) / (gpu.bandwidth * READ_SHARE)
    compute = at_once * flops(shape, 1, work.prompt + work.answer / 2, 1) / (machine.mfu * gpu.bf16)
    return prompts + work.answer * max(read, compute)
