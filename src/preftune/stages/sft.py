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
from pathlib import Path

from pydantic import Field

from preftune.data.batches import Encoded, Group, batch_indices, encode, split_by_budget
from preftune.data.snapshot_files import Example
from preftune.models.adapter import trainable
from preftune.models.load import batch_logprobs
from preftune.progress import Progress, Silent
from preftune.records import Message
from preftune.stages.common import OfflineConfig, Room, finish, namer, open_room, resolved, save_policy, start
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.step import Loss, train_step


class SFTConfig(OfflineConfig):
    """Settings of `preftune train sft`."""

    lr: float = Field(2e-4, gt=0, description="peak learning rate (2e-4 for LoRA; 1e-5 for all weights)")


def run(config: SFTConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("sft", config, out)
    if work is None:
        return final
    room = open_room(config, out, progress)
    examples = _examples(room)
    encoded = _encode(room, examples)
    optimiser = adamw(room.model, weight_decay=config.weight_decay)
    total = _steps(config, encoded)
    planned = _planned(config, room, encoded)
    for warning in planned.warnings():
        progress.note(warning)
    loop = Loop(work, name="SFT", total=total, models={"policy": room.model}, optimisers={"policy": optimiser}, progress=progress)

    def loss(groups: list[Group]) -> Loss:
        batch = room.batch(groups)
        logprobs, _ = batch_logprobs(room.model, batch)
        mask = batch.completion_mask
        return Loss(-logprobs, mask.float(), {"length/completion": (float(mask.sum()), float(batch.num_sequences))})

    for step in loop.steps():
        chosen = [encoded.groups[i] for i in batch_indices(len(encoded.groups), config.batch_size, step, seed=config.seed)]
        lr = lr_at(step, total=total, lr=config.lr, warmup=config.warmup, schedule=config.schedule)
        done = train_step(
            split_by_budget(chosen, config.token_budget),
            count=lambda groups: float(sum(g.num_completion_tokens for g in groups)),
            loss=loss,
            parameters=trainable(room.model).values(),
            optimiser=optimiser,
            lr=lr,
            max_grad_norm=config.max_grad_norm,
            where=f"SFT step {step + 1}",
            name_batch=namer(examples),
        )
        loop.log(step, {"loss/train": done.loss, **done.metrics, "lr": lr, "grad_norm": done.grad_norm})
    save_policy(room, work.path)
    return finish(room, work, final, loop, encoded, planned, steps=total)


def plan(config: SFTConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it."""
    room = open_room(resolved(config, out)[0], out, Silent())
    encoded = _encode(room, _examples(room))
    return _planned(config, room, encoded)


def _planned(config: SFTConfig, room: Room, encoded: Encoded) -> Plan:
    return make_plan(
        "sft",
        room.model,
        encoded,
        steps_of(encoded.groups, steps=_steps(config, encoded), batch_size=config.batch_size, seed=config.seed),
        lambda part: batch_logprobs(room.model, room.batch(part))[0],
        token_budget=config.token_budget,
    )


def _examples(room: Room) -> list[Example]:
    return [*room.snapshot.demonstrations, *room.snapshot.chosen_as_demonstrations()]


def _encode(room: Room, examples: Sequence[Example]) -> Encoded:
    items: list[tuple[Sequence[Message], list[str]]] = [(e.messages, [e.completion]) for e in examples]
    return encode(room.renderer, items, max_tokens=room.max_tokens)


def _steps(config: SFTConfig, encoded: Encoded) -> int:
    return config.epochs * -(-len(encoded.groups) // config.batch_size)
