"""Supervised fine-tuning: the model learns to write the answers that people wish for.

    for each optimiser step:
        take batch_size examples (a function of the seed and the step)
        loss = − log π(answer | prompt), the mean over all answer tokens of the whole batch, the end token among them
        one AdamW step

The examples are the snapshot's demonstrations and the chosen side of its pairs. Start it with

    preftune train sft data=snapshots/… model=base
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from pydantic import Field

from preftune.data.batches import Encoded, Group, batch_indices, encode
from preftune.data.rows import Rows
from preftune.data.snapshot_files import Example
from preftune.manifest import content_seed
from preftune.models.adapter import trainable
from preftune.models.load import batch_logprobs
from preftune.models.noise import noisy_embeddings
from preftune.progress import Progress, Silent
from preftune.stages.common import OfflineConfig, Room, finish, namer, open_room, resolved, save_policy, settle, something_held_out, start
from preftune.tensors import TokenBatch
from preftune.training.held_out import Best, measure
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.step import Loss, micro_batches, train_step


class SFTConfig(OfflineConfig):
    """Settings of `preftune train sft`."""

    lr: float = Field(2e-4, gt=0, description="peak learning rate (2e-4 for LoRA; 1e-5 for all weights)")
    neftune_alpha: float | None = Field(None, gt=0, description="noise on the embeddings (5 to 15 in 2310.05914); null = none")


def run(config: SFTConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("sft", config, out)
    if work is None:
        return final
    room = open_room(config, out, progress)
    if config.neftune_alpha is not None:
        room = replace(room, apart=False)
    examples = _examples(room)
    encoded = _encode(room, examples)
    held_out = micro_batches(_held_out(room, config).groups, config.token_budget)
    optimiser = adamw(room.model, weight_decay=config.weight_decay)
    total = _steps(config, encoded)
    room, planned = settle(config, room, lambda room: _planned(config, room, encoded), progress)
    loop = Loop(
        work,
        name="SFT",
        total=total,
        models={"policy": room.model},
        optimisers={"policy": optimiser},
        progress=progress,
        behind=config.async_checkpoints,
    )
    best = Best(work.path, room.model, loop.state, every=config.eval_every, patience=config.patience)

    def loss(groups: list[Group], step: int | None = None) -> Loss:
        batch = room.batch(groups)
        with _noise(config, room, batch, groups, step):
            logprobs, _ = batch_logprobs(room.model, batch)
        mask = batch.completion_mask
        return Loss(-logprobs, mask.float(), {"length/completion": (float(mask.sum()), float(batch.num_sequences))})

    for step in loop.steps():
        chosen = [encoded.groups[i] for i in batch_indices(len(encoded.groups), config.batch_size, step, seed=config.seed)]
        lr = lr_at(step, total=total, lr=config.lr, warmup=config.warmup, schedule=config.schedule)
        done = train_step(
            micro_batches(chosen, config.token_budget),
            count=_learned_tokens,
            loss=partial(loss, step=step),
            parameters=trainable(room.model).values(),
            optimiser=optimiser,
            lr=lr,
            max_grad_norm=config.max_grad_norm,
            where=f"SFT step {step + 1}",
            name_batch=namer(examples),
        )
        told = {"loss/train": done.loss, **done.metrics, "lr": lr, "grad_norm": done.grad_norm}
        if best.due(step, total):
            told |= measure(held_out, count=_learned_tokens, loss=loss)
            best.see(told["loss/held_out"], step)
        loop.log(step, told)
        if best.gains_no_more:
            break
    facts = best.restore()
    save_policy(room, work.path)
    return finish(room, work, final, loop, encoded, planned, steps=loop.done, **facts)


def _learned_tokens(groups: list[Group]) -> float:
    return float(sum(g.num_completion_tokens for g in groups))


def _noise(config: SFTConfig, room: Room, batch: TokenBatch, groups: list[Group], step: int | None) -> AbstractContextManager[None]:
    # None in the measurements, which have no step.
    if config.neftune_alpha is None or step is None:
        return nullcontext()
    seeds = [content_seed(config.seed, step, group.index) for group in groups]
    return noisy_embeddings(room.model, batch, alpha=config.neftune_alpha, seeds=seeds)


def plan(config: SFTConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it."""
    room = open_room(resolved(config, out)[0], out, Silent())
    encoded = _encode(room, _examples(room))
    return settle(config, room, lambda room: _planned(config, room, encoded), Silent())[1]


def _planned(config: SFTConfig, room: Room, encoded: Encoded) -> Plan:
    return make_plan(
        "sft",
        room.model,
        encoded,
        steps_of(encoded.groups, steps=_steps(config, encoded), batch_size=config.batch_size, seed=config.seed),
        lambda part: batch_logprobs(room.model, room.batch(part))[0],
        token_budget=config.token_budget,
        behind=config.async_checkpoints,
        steps=_steps(config, encoded),
        tree=room.tree,
        apart=room.apart,
    )


def _held_out(room: Room, config: SFTConfig) -> Encoded:
    there = Rows(chain(room.snapshot.held_out_demonstrations, room.snapshot.chosen_as_demonstrations(held_out=True)))
    chosen = something_held_out(there, config)
    return _encode(room, chosen) if chosen else Encoded()


def _examples(room: Room) -> Sequence[Example]:
    return Rows(chain(room.snapshot.demonstrations, room.snapshot.chosen_as_demonstrations()))


def _encode(room: Room, examples: Sequence[Example]) -> Encoded:
    items = ((e.messages, [e.completion]) for e in examples)
    return encode(room.renderer, items, max_tokens=room.max_tokens)


def _steps(config: SFTConfig, encoded: Encoded) -> int:
    return config.epochs * -(-len(encoded.groups) // config.batch_size)
