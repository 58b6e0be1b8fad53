"""What a run will take, said before it starts: tokens, steps, memory, time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from preftune.data.batches import Encoded, split_by_budget

EFFICIENCY = 0.5  # share of the GEMM peak that a training step reached when measured (docs/benchmarks.md)


@dataclass(frozen=True)
class Plan:
    """A stage's plan. tokens: real tokens of one pass over the data. padding: share of the computed area that is padding.

    prompt_tokens_saved: tokens not computed because answers share their prompt. peak_memory_gib and seconds are estimates.
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
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON and the manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the plan in words."""
        left = "".join(f"; left out: {n} {why}" for why, n in self.left_out.items())
        return [
            f"{self.stage}: {self.examples:,} examples{left}",
            f"{self.tokens:,} tokens a pass, {self.padding:.0%} padding, {self.prompt_tokens_saved:,} prompt tokens saved by sharing",
            f"{self.steps:,} steps, {self.trained_parameters:,} trained parameters",
            f"about {self.peak_memory_gib:.1f} GiB of memory and {self.seconds / 60:.0f} min",
        ]


def gemm_flops(device: torch.device, *, size: int = 1024, seconds: float = 0.3) -> float:
    """Return the floating-point operations a second of a float32 matrix product, measured."""
    a = torch.randn(size, size, device=device)
    a @ a
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ a
        done += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return done * 2 * size**3 / (time.perf_counter() - began)


def make_plan(
    stage: str,
    model: PreTrainedModel,
    encoded: Encoded,
    *,
    steps: int,
    token_budget: int,
    passes: float,
    forward_passes: float,
    trained_parameters: int,
    resident_models: int = 1,
) -> Plan:
    """Estimate a stage over groups.

    passes: how often the data is trained on. forward_passes: how often it is only scored (the reference, the reward model).
    """
    groups = encoded.groups
    backbone: Any = model.base_model
    embedding = model.get_input_embeddings().weight.numel()
    linear = sum(p.numel() for p in backbone.parameters()) - embedding
    config = model.config.get_text_config()
    tokens, learned = sum(g.num_tokens for g in groups), sum(g.num_completion_tokens for g in groups)
    forward = 2.0 * linear * tokens + 2.0 * embedding * learned
    whole = trained_parameters > linear / 2
    flops = forward * (forward_passes + passes * (3.3 if whole else 2.3))
    parts = split_by_budget(groups, token_budget)
    area = sum(p[0].num_tokens * len(p) for p in parts)
    widest = max(p[0].num_tokens * len(p) for p in parts)
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    activations = widest * config.num_hidden_layers * (12 * hidden + 5 * inner) * 4
    weights = (linear + embedding) * 4 * resident_models
    memory = weights + trained_parameters * 12 + activations + 1024 * config.vocab_size * 8 + 0.6 * 2**30
    saved = sum(len(g.prompt) * (len(g.completions) - 1) for g in groups)
    speed = gemm_flops(next(backbone.parameters()).device) * EFFICIENCY
    return Plan(
        stage,
        len(groups),
        dict(encoded.left_out),
        tokens,
        1 - tokens / area,
        saved,
        steps,
        trained_parameters,
        memory / 2**30,
        flops / speed,
    )
