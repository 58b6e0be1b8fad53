"""What a run will take, said before it starts: tokens, steps, memory, time; and, at its end, how far that was from what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from preftune.data.batches import Area, Encoded, Group, area_of, batch_indices, split_by_budget
from preftune.data.rows import IN_MEMORY
from preftune.models.lean import takes_spans
from preftune.models.load import CHUNK_TOKENS, device_of, freed_memory_is_kept, unwrap
from preftune.models.recompute import one_layer_kept
from preftune.parallel import world
from preftune.parallel.shard import held_bytes, local
from preftune.progress import counted, duration
from preftune.training.hardware import GIB, SPARE, forward_flops
from preftune.training.loop import SAVE_EVERY_SECONDS
from preftune.training.measure import forward_seconds, kept_for_backward, training_cost, update_seconds
from preftune.training.memory import held_memory, memory_limit

TRIED_TOKENS = 384  # area of the micro-batch that is timed: enough for matrix products of full speed, and soon done on two cores
TRIED_SHARE = 0.01  # of the run's tokens, where that is more: a larger one says more, and timing it some five times takes about 5 %
# What is held while a micro-batch is learned, over what backward keeps: results that live for a moment, and freed memory that does not fit
# what is asked for next. Measured on the micro-batch that is timed; the least and the most believed.
LEAST_FRAGMENTS, MOST_FRAGMENTS = 1.08, 2.5
# Where freed memory is kept (decision 7) holes of many sizes add up: measured on SmolLM2 with LoRA 1.75 times what backward keeps after
# micro-batches of two shapes, 1.9 after many (docs/benchmarks.md).
FRAGMENTS_OF_MANY = 1.9
WEIGHT_AND_MOMENTS = 12  # bytes that a checkpoint holds of a trained weight, and so what a copy of it takes


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
        saved = counted(self.prompt_tokens_saved, "prompt tokens")
        return [
            f"{self.stage}: {counted(self.examples, 'examples')}{left}",
            f"{counted(self.tokens, 'tokens')} a pass, {self.padding:.0%} padding, {saved} saved by sharing",
            f"{counted(self.steps, 'steps')}, {counted(self.trained_parameters, 'trained parameters')}",
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


def steps_of(groups: Sequence[Group], *, steps: int, batch_size: int, seed: int, completions: slice = slice(None)) -> list[list[Group]]:
    """Return the groups that each optimiser step will take; where they lie in a file, those of some steps, evenly spread over the run.

    completions: which of a group's are learned.
    """
    told = steps if len(groups) <= IN_MEMORY else min(steps, max(1, IN_MEMORY // batch_size))
    chosen = (batch_indices(len(groups), batch_size, number * steps // told, seed=seed) for number in range(told))
    return [[replace(groups[i], completions=groups[i].completions[completions]) for i in batch] for batch in chosen]


def make_plan(
    stage: str,
    model: nn.Module,
    encoded: Encoded,
    batches: Sequence[Sequence[Group]],
    compute: Callable[[list[Group]], Tensor],
    *,
    token_budget: int,
    steps: int | None = None,
    passes: float = 1.0,
    before: Sequence[Group] = (),
    forward_passes: float = 0.0,
    learners: int = 1,
    resident_models: int = 1,
    tree: bool = True,
    apart: bool = True,
    behind: bool | None = None,
) -> Plan:
    """Return a stage's plan, from what its data say and what one of its micro-batches takes here and now.

    model: as training starts. batches: the groups of each optimiser step, or of some of `steps` of them. compute: the stage's forward pass
    over a micro-batch, to anything that backward can start from. passes: how often a step's groups are trained on. before: groups that are
    scored one by one before the first step (the reference). forward_passes: how often a step's groups are only scored.
    learners: models that are trained like this one (PPO's critic is a second). resident_models: models in memory, of its size.
    tree, apart: how rows are made (see `collate`). behind: whether checkpoints are written from a copy, while training goes on.
    """
    device = device_of(model)
    sizes = _Sizes.of(model)
    parts = [part for batch in batches for part in split_by_budget(batch, token_budget)]
    made = {"tree": tree, "apart": apart, "padded": not takes_spans(unwrap(model).base_model)}
    areas = [area_of(part, **made) for part in parts]
    trained = learners * sum(p.numel() for p in model.parameters() if p.requires_grad)

    def work(part: Sequence[Group]) -> float:
        return sizes.flops(area_of(part, **made), _learned(part))

    tried = _tried(parts, areas)
    held = learners * sum(local(p).numel() for p in model.parameters() if p.requires_grad)  # in this process
    memory = _Memory.of(model, compute, held, sizes, resident_models, rows_a_group=1 if tree else 2)
    cost = training_cost(lambda: compute(tried), model, device)
    grown, shapes = cost.grown - 4 * held // learners, len(set(areas)) if freed_memory_is_kept(device) else 1
    memory = memory.fitted(grown, area_of(tried, **made), learned=_learned(tried), shapes=shapes)
    largest = max(areas, key=memory.peak)
    peak, limit = memory.peak(largest), memory_limit(device)
    train = cost.seconds / work(tried)
    score = forward_seconds(lambda: compute(tried), device) / work(tried) if before or forward_passes else 0.0
    per_step = learners * passes * train + forward_passes * score
    steps = len(batches) if steps is None else steps
    seconds = sum(map(work, parts)) * steps / len(batches) / world.size() * per_step + steps * passes * update_seconds(held, device)
    groups = encoded.groups
    copy = (WEIGHT_AND_MOMENTS * held) if behind and device.type == "cpu" and seconds > SAVE_EVERY_SECONDS else 0
    if limit is None or (peak + copy) * SPARE <= limit:  # else the run writes without one
        peak += copy
    repeated = 0 if tree else sum(len(g.prompt) * (len(g.completions) - 1) for part in parts for g in part)
    begun_once = sum(area.begun * (len(area.lengths) - 1) for area in areas)
    return Plan(
        stage,
        len(groups),
        dict(encoded.left_out),
        sum(g.num_tokens for g in groups),
        1 - (sum(g.num_tokens for part in parts for g in part) + repeated - begun_once) / sum(area.tokens for area in areas),
        sum(len(g.prompt) * (len(g.completions) - 1) for g in groups) if tree else 0,
        steps,
        trained,
        peak / GIB,
        limit / GIB if limit is not None else None,
        sum(work([group]) for group in before) / world.size() * score,
        seconds,
        tuple(_advice(memory, largest, limit, token_budget)) if limit is not None and peak * SPARE > limit else (),
    )


def _learned(part: Sequence[Group]) -> int:
    return sum(g.num_completion_tokens for g in part)


def _tried(parts: Sequence[list[Group]], areas: Sequence[Area]) -> list[Group]:
    # The micro-batch in the middle by size, and of that as many rows as are quickly timed.
    middle = sorted(range(len(parts)), key=lambda n: areas[n].tokens)[len(parts) // 2]
    allowed = max(TRIED_TOKENS, TRIED_SHARE * sum(area.tokens for area in areas))
    groups_allowed = int(allowed * len(parts[middle]) / areas[middle].tokens)
    return parts[middle][: max(1, groups_allowed)]


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

    def flops(self, area: Area, learned: int) -> float:
        """Return the operations of one forward pass, padding and the whole attention square included. learned: tokens with a log-prob."""
        across = self.width * self.layers
        return forward_flops(tokens=area.tokens, squares=area.squares, learned=learned, linear=self.linear, across=across, head=self.head)


@dataclass(frozen=True)
class _Memory:
    """Bytes. state: of what is trained (gradient, moments). fixed: what else is held whatever the micro-batch.

    a_token, a_square: kept for backward, by area and by pairs of tokens. a_logit: for a row of logits. fragments: see LEAST_FRAGMENTS.
    """

    state: float
    fixed: float
    a_token: float
    a_square: float
    a_logit: float = 0.0
    fragments: float = LEAST_FRAGMENTS

    @classmethod
    def of(
        cls,
        model: nn.Module,
        compute: Callable[[list[Group]], Tensor],
        trained: int,
        sizes: _Sizes,
        resident_models: int,
        *,
        rows_a_group: int = 1,
    ) -> _Memory:
        lengths, areas = (48, 96), []
        with one_layer_kept(model):
            kept = [kept_for_backward(lambda length=length: compute([_row(length)]), model) for length in lengths]  # type: ignore[misc]
        for length in lengths:  # the row's two answers, of a quarter each, share their prompt or repeat it
            areas.append(Area((length,) if rows_a_group == 1 else (length - length // 4,) * 2))
        (n, m), (a, b) = (area.tokens for area in areas), (area.squares for area in areas)
        square = max(0.0, (kept[1] / m - kept[0] / n) / (b / m - a / n))
        weights = held_bytes(model)
        largest = max((p.numel() for p in model.parameters() if p.requires_grad), default=0)
        a_logit = 3 * 4 * sizes.vocabulary if sizes.head else 0  # logits and what is made of them
        # Adam keeps two moments a weight, backward a gradient; a step works on one more of the largest tensor, twice.
        state = trained * 12 + 2 * 4 * largest
        held = held_memory(model)  # after the passes above, which have read every weight from its file
        fixed = held + weights * (resident_models - 1) + CHUNK_TOKENS * a_logit
        return cls(state, fixed, kept[0] / n - square * a / n, square, a_logit)

    def fitted(self, grown: int, tried: Area, *, learned: int, shapes: int) -> _Memory:
        """Return this with the fragments of a pass over `tried` that made the process grow by so much beside its gradients.

        shapes: of how many different shapes the run's micro-batches are.
        """
        found = (grown - self.a_logit * min(CHUNK_TOKENS, learned)) / self._kept(tried)
        found = min(max(found, LEAST_FRAGMENTS), MOST_FRAGMENTS)
        return replace(self, fragments=found + (1 - shapes**-2) * max(0.0, FRAGMENTS_OF_MANY - found))

    def _kept(self, area: Area) -> float:
        return area.tokens * self.a_token + area.squares * self.a_square

    def peak(self, area: Area) -> float:
        """Return the most that is held while a micro-batch is learned."""
        return self.state + self.fixed + self.fragments * self._kept(area)


def _row(length: int) -> Group:
    half = tuple([0] * (length // 4))
    return Group(tuple([0] * (length - 2 * len(half))), (half, half), 0)


def _advice(memory: _Memory, largest: Area, limit: int, token_budget: int) -> list[str]:
    length = max(largest.lengths) + largest.begun

    def fits(rows: int, length: int, spared: float = 0.0) -> bool:
        return (memory.peak(Area((length,) * rows)) - spared) * SPARE <= limit

    budgets = [budget for budget in _halves(token_budget) if len(largest.lengths) > 1 and fits(max(1, budget // length), length)]
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
