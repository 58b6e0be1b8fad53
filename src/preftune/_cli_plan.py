"""The command `preftune plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from preftune._cli_output import Json, print_json
from preftune.stages.kinds import Stage


def plan(
    stage: Annotated[Stage, typer.Argument(help="Which stage.")],
    model: Annotated[str, typer.Option(help="1B, 8B or 70B (Llama's sizes), or a model's folder.")] = "8B",
    cluster: Annotated[str, typer.Option(help="GPUs: a number and A100-80, H100, H200, L40S or RTX4090.")] = "8xH100",
    examples: Annotated[int, typer.Option(min=1, help="Pairs; answers for sft; prompts for ppo, rloo and grpo.")] = 20_000,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, on average.")] = 300,
    answer: Annotated[int, typer.Option(min=1, help="Tokens of an answer, on average.")] = 300,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples an optimiser step.")] = 64,
    token_budget: Annotated[int, typer.Option(min=64, help="Tokens a GPU computes at once.")] = 8192,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter (LoRA).")] = 32,
    all_weights: Annotated[bool, typer.Option("--all-weights", help="Train all weights in place of an adapter.")] = False,
    mfu: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Share of the peak that training reaches [0.35].")] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="What one GPU costs an hour.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Say what a stage would take on GPUs that are not here.

    Memory a GPU, time and cost, from the model's sizes and published peaks; nothing is loaded. Layers are computed again in the
    backward pass. Where model and machine are there, train --dry-run measures them, which is to be believed more.
    More: docs/past-one-machine.md

    Example: preftune plan dpo --model 70B --cluster 8xH100 --examples 50000
    """
    from preftune.training.cluster import MFU, Machine, Work, cluster_plan
    from preftune.training.hardware import cluster_of, shape_of

    count, gpu = cluster_of(cluster)
    work = Work(
        stage.value,
        examples,
        prompt=prompt,
        answer=answer,
        epochs=epochs,
        batch_size=batch_size,
        token_budget=token_budget,
        rank=None if all_weights else rank,
    )
    found = cluster_plan(shape_of(model), work, Machine(gpu, count, mfu=mfu or MFU), price=price)
    if as_json:
        print_json(found.as_dict())
    else:
        print("\n".join(found.lines()))
