"""What a run will take, said before it starts: tokens, steps, memory, time; and, at its end, how far that was from what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from preftune.data.batches import Encoded, Group, batch_indices, split_by_budget
from preftune.models.load import CHUNK_TOKENS, device_of, unwrap
from preftune.progress import duration
from preftune.training.measure import forward_seconds, kept_for_backward, memory_limit, training_seconds, update_seconds

GIB = 2**30
TRIED_TOKENS = 384  # area of the micro-batch that is timed: enough for matrix products of full speed, and soon done on two cores
LIBRARIES_GIB = 0.44  # Python, torch and transformers on Linux (docs/benchmarks.md); a GPU holds none of that
SPARE = 1.1  # the largest share of the memory that a plan may take: what it predicts is off by up to this much
FRAGMENTS = 1.08  # freed memory is kept by the process (decision 7) and does not always fit what is asked for next


@dataclass(frozen=True)
class Plan:
    """A stage's plan. tokens: real tokens of one pass over the data. padding: share of the computed area that is padding.

    prompt_tokens_saved: tokens of a pass that are not computed because answers share their prompt. seconds: of the training itself.
    before_seconds: of what comes before it (the reference). memory_limit_gib: what this machine has left, None where that is not known.
    advice: what would make it fit, where it does not.
    """

    stage: str
    examples: int
    left_out: dict[str, int]
    tokens: int
    padding: float
    prompt_tokens_saved: int
    steps: int
    trained_parameters: int
    peak_memory_gib: float
    memory_limit_gib: float | None
    before_seconds: float
    seconds: float
    advice: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON and the manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the plan in words."""
        left = "".join(f"; left out: {n} {why}" for why, n in self.left_out.items())
        before = f", after {duration(self.before_seconds)} for the reference" if self.before_seconds else ""
        return [
            f"{self.stage}: {self.examples:,} examples{left}",
            f"{self.tokens:,} tokens a pass, {self.padding:.0%} padding, {self.prompt_tokens_saved:,} prompt tokens saved by sharing",
            f"{self.steps:,} steps, {self.trained_parameters:,} trained parameters",
            f"about {self.peak_memory_gib:.1f} GiB of memory and {duration(self.seconds)}{before}",
            *self.warnings(),
        ]

    def warnings(self) -> list[str]:
        """Return a sentence where the plan does not fit the memory, else nothing."""
        if not self.advice or self.memory_limit_gib is None:
            return []
        need = f"This will not fit: about {self.peak_memory_gib:.1f} GiB are needed and {self.memory_limit_gib:.1f} GiB are free."
        return [f"{need} {' '.join(self.advice)}"]

    def against(self, *, seconds: float, peak_memory_gib: float) -> str:
        """Return how the plan compares with what the run took, in a sentence."""
        time = f"{duration(seconds)} (planned {duration(self.seconds)}, {seconds / max(self.seconds, 1e-9) - 1:+.0%})"
        memory = f"{peak_memory_gib:.2f} GiB (planned {self.peak_memory_gib:.2f}, {peak_memory_gib / self.peak_memory_gib - 1:+.0%})"
        return f"{self.stage}: took {time} and {memory}"


def steps_of(groups: Sequence[Group], *, steps: int, batch_size: int, seed: int) -> list[list[Group]]:
    """Return the groups that each optimiser step will take."""
    return [[groups[i] for i in batch_indices(len(groups), batch_size, step, seed=seed)] for step in range(steps)]


def make_plan(
    stage: str,
    model: nn.Module,
    encoded: Encoded,
    batches: Sequence[Sequence[Group]],
    compute: Callable[[list[Group]], Tensor],
    *,
    token_budget: int,
    passes: float = 1.0,
    before: Sequence[Group] = (),
    forward_passes: float = 0.0,
    learners: int = 1,
    resident_models: int = 1,
) -> Plan:
    """Return a stage's plan, from what its data say and what one of its micro-batches takes here and now.

    model: as training starts. batches: the groups of each optimiser step. compute: the stage's forward pass over a micro-batch, to
    anything that backward can start from. passes: how often a step's groups are trained on. before: groups that are scored one by one
    before the first step (the reference). forward_passes: how often a step's groups are only scored. learners: models that are trained like
    this one (PPO's critic is a second). resident_models: models in memory, of its size.
    """
    device = device_of(model)
    sizes = _Sizes.of(model)
    parts = [part for batch in batches for part in split_by_budget(batch, token_budget)]
    tried = _tried(parts)
    work = sizes.flops(tried)
    train = training_seconds(lambda: compute(tried), model, device) / work
    score = forward_seconds(lambda: compute(tried), device) / work if before or forward_passes else 0.0
    per_step = learners * passes * train + forward_passes * score
    trained = learners * sum(p.numel() for p in model.parameters() if p.requires_grad)
    seconds = sum(map(sizes.flops, parts)) * per_step + len(batches) * passes * update_seconds(trained, device)

    memory = _Memory.of(model, compute, trained, sizes.vocabulary, resident_models)
    largest = max(parts, key=lambda part: memory.peak(_shape(part)))
    peak, limit = memory.peak(_shape(largest)), memory_limit(device)
    groups = encoded.groups
    tokens, area = sum(g.num_tokens for part in parts for g in part), sum(rows * length for rows, length in map(_shape, parts))
    return Plan(
        stage,
        len(groups),
        dict(encoded.left_out),
        sum(g.num_tokens for g in groups),
        1 - tokens / area,
        sum(len(g.prompt) * (len(g.completions) - 1) for g in groups),
        len(batches),
        trained,
        peak / GIB,
        limit / GIB if limit is not None else None,
        sum(sizes.flops([group]) for group in before) * score,
        seconds,
        tuple(_advice(memory, largest, limit, token_budget)) if limit is not None and peak * SPARE > limit else (),
    )


def _shape(part: Sequence[Group]) -> tuple[int, int]:
    return len(part), max(g.num_tokens for g in part)


def _tried(parts: Sequence[list[Group]]) -> list[Group]:
    # The micro-batch in the middle by size, and of that as many rows as are quickly timed.
    part = sorted(parts, key=lambda p: _shape(p)[0] * _shape(p)[1])[len(parts) // 2]
    return part[: max(1, TRIED_TOKENS // _shape(part)[1])]


@dataclass(frozen=True)
class _Sizes:
    """The numbers of a model that its work grows with. linear: weights that each token is multiplied with; head: those of the output."""

    linear: int
    head: int
    vocabulary: int
    layers: int
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> _Sizes:
        whole = unwrap(model)
        backbone: Any = whole.base_model
        embedding = whole.get_input_embeddings().weight
        linear = sum(p.numel() for name, p in backbone.named_parameters() if "lora_" not in name) - embedding.numel()
        config = whole.config.get_text_config()
        writes = whole.get_output_embeddings() is not None
        return cls(linear, embedding.numel() if writes else 0, embedding.shape[0], config.num_hidden_layers, config.hidden_size)

    def flops(self, part: Sequence[Group]) -> float:
        """Return the operations of one forward pass over a micro-batch, padding and the whole attention square included."""
        rows, length = _shape(part)
        learned = sum(g.num_completion_tokens for g in part)
        return 2.0 * rows * length * (self.linear + 2 * length * self.width * self.layers) + 2.0 * self.head * learned


@dataclass(frozen=True)
class _Memory:
    """Bytes. state: of what is trained (gradient, moments). fixed: what else is held whatever the micro-batch.

    a_token, a_square: kept for backward, by area and by rows × length².
    """

    state: float
    fixed: float
    a_token: float
    a_square: float

    @classmethod
    def of(cls, model: nn.Module, compute: Callable[[list[Group]], Tensor], trained: int, vocabulary: int, resident_models: int) -> _Memory:
        short, long = (_row(length) for length in (48, 96))
        kept = [kept_for_backward(lambda row=row: compute([row]), model) for row in (short, long)]  # type: ignore[misc]  # of the loop
        n, m = short.num_tokens, long.num_tokens
        square = max(0.0, (kept[1] / m - kept[0] / n) / (m - n))
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        largest = max((p.numel() for p in model.parameters() if p.requires_grad), default=0)
        chunk = 3 * 4 * CHUNK_TOKENS * vocabulary  # logits and what is made of them
        # Adam keeps two moments a weight, backward a gradient; a step works on one more of the largest tensor, twice.
        state = trained * 12 + 2 * 4 * largest
        libraries = 0.0 if device_of(model).type == "cuda" else LIBRARIES_GIB * GIB
        return cls(state, libraries + weights * resident_models + chunk, kept[0] / n - square * n, square)

    def peak(self, shape: tuple[int, int]) -> float:
        """Return the most that is held while a micro-batch of (rows, longest row) is learned."""
        rows, length = shape
        return self.state + self.fixed + FRAGMENTS * rows * length * (self.a_token + self.a_square * length)


def _row(length: int) -> Group:
    half = tuple([0] * (length // 4))
    return Group(tuple([0] * (length - 2 * len(half))), (half, half), 0)


def _advice(memory: _Memory, largest: Sequence[Group], limit: int, token_budget: int) -> list[str]:
    rows, length = _shape(largest)

    def fits(rows: int, length: int, spared: float = 0.0) -> bool:
        return (memory.peak((rows, length)) - spared) * SPARE <= limit

    budgets = [budget for budget in _halves(token_budget) if rows > 1 and fits(max(1, budget // length), length)]
    lengths = [n for n in _halves(length) if fits(1, n)]
    if budgets:
        return [f"Set token_budget={budgets[0]}."]
    if lengths:
        return [f"Set max_tokens={lengths[0]}, which leaves longer examples out."]
    if fits(1, min(length, 64), spared=memory.state):
        return ["Train an adapter in place of all weights, or one of a lower rank."]
    return ["Take a smaller model or a machine with more memory."]


def _halves(start: int) -> list[int]:
    return [start >> n for n in range(1, start.bit_length()) if start >> n >= 64]
