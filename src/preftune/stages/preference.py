"""Direct preference optimisation: the policy learns straight from pairs, without a reward model.

    reference log-probs of every pair: once, before the first step (adapter off, or the start's weights), kept in the project
    for each optimiser step:
        take batch_size pairs (a function of the seed and the step); a pair is one row [prompt | chosen | rejected]
        h = Σ log π(answer) − Σ log ref(answer), for the chosen and the rejected answer
        loss = − log σ(beta (h_chosen − h_rejected)), the mean over pairs          Rafailov et al. 2305.18290, eq. 7
        one AdamW step

At step 0 policy and reference are the same, so every h is 0 and the loss is log 2: the run checks that and stops where it is
not so. Start it with

    preftune train dpo data=snapshots/… model=base
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from preftune.data.batches import Encoded, Group, batch_indices, encode, split_by_budget
from preftune.errors import PreftuneError
from preftune.losses.preference import dpo
from preftune.losses.reduce import sequence_sum
from preftune.losses.reward import accuracy
from preftune.models.adapter import trainable
from preftune.models.load import batch_logprobs, unwrap
from preftune.progress import Progress, Silent
from preftune.stages.common import OfflineConfig, Room, finish, namer, open_room, pair_items, resolved, save_policy, start
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan
from preftune.training.reference import reference_logprobs
from preftune.training.step import Loss, mean_metric, train_step


class DPOConfig(OfflineConfig):
    """Settings of `preftune train dpo`."""

    lr: float = Field(5e-5, gt=0, description="peak learning rate (5e-6 to 5e-5 for LoRA; 5e-7 to 5e-6 for all weights)")
    beta: float = Field(0.1, gt=0, description="pull to the reference: larger = stays nearer (2305.18290 uses 0.1)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="measured share of flipped judgements; above 0 = cDPO")


def run(config: DPOConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("dpo", config, out)
    if work is None:
        return final
    room = open_room(config, out, progress)
    encoded = _encode(room)
    reference = reference_logprobs(
        room.model,
        encoded.groups,
        pad_id=room.renderer.pad_id,
        tree=room.tree,
        token_budget=config.token_budget,
        project=room.project,
        progress=progress,
    )
    weights = torch.tensor([pair.weight for pair in room.snapshot.train])
    optimiser = adamw(room.model, weight_decay=config.weight_decay)
    total = _steps(config, encoded)
    loop = Loop(work, name="DPO", total=total, models={"policy": room.model}, optimisers={"policy": optimiser}, progress=progress)

    def loss(groups: list[Group]) -> Loss:
        batch = room.batch(groups)
        logprobs, _ = batch_logprobs(room.model, batch)
        sums = sequence_sum(logprobs, batch.sequence, batch.num_sequences)
        logratios = sums - reference.sums(groups).to(sums.device)
        chosen, rejected = logratios[0::2], logratios[1::2]
        values = dpo(chosen, rejected, beta=config.beta, label_smoothing=config.label_smoothing)
        return Loss(
            values,
            weights[[g.index for g in groups]].to(values.device),
            {
                "accuracy/train": mean_metric(accuracy(chosen, rejected)),
                "margin/train": mean_metric(config.beta * (chosen - rejected)),
                "logprobs/chosen": mean_metric(chosen),
                "logprobs/rejected": mean_metric(rejected),
            },
        )

    for step in loop.steps():
        picked = [encoded.groups[i] for i in batch_indices(len(encoded.groups), config.batch_size, step, seed=config.seed)]
        lr = lr_at(step, total=total, lr=config.lr, warmup=config.warmup, schedule=config.schedule)
        done = train_step(
            split_by_budget(picked, config.token_budget),
            count=lambda groups: float(weights[[g.index for g in groups]].sum()),
            loss=loss,
            parameters=trainable(room.model).values(),
            optimiser=optimiser,
            lr=lr,
            max_grad_norm=config.max_grad_norm,
            where=f"DPO step {step + 1}",
            name_batch=namer(room.snapshot.train),
        )
        if step == 0:
            check_start(done.metrics)
        loop.log(step, {"loss/train": done.loss, **done.metrics, "lr": lr, "grad_norm": done.grad_norm})
    save_policy(room, work.path)
    return finish(room, work, final, loop, encoded, steps=total)


def check_start(metrics: dict[str, float], *, tolerance: float = 1e-3) -> None:
    """Raise PreftuneError unless policy and reference agree before the first step (log-ratios 0, so the loss is log 2)."""
    worst = max(abs(metrics["logprobs/chosen"]), abs(metrics["logprobs/rejected"]))
    if worst > tolerance:
        raise PreftuneError(
            f"policy and reference differ by {worst:.4f} nats before anything was learned",
            "DPO step 1",
            "The reference is not what training starts from: delete the unfinished run and start it again.",
        )


def plan(config: DPOConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it."""
    room = open_room(resolved(config, out)[0], out, Silent())
    encoded = _encode(room)
    return make_plan(
        "dpo",
        unwrap(room.model),
        encoded,
        steps=_steps(config, encoded),
        token_budget=config.token_budget,
        passes=config.epochs,
        forward_passes=1,
        trained_parameters=room.trained_parameters,
    )


def _encode(room: Room) -> Encoded:
    return encode(room.renderer, pair_items(room.snapshot.train), max_tokens=room.max_tokens)


def _steps(config: DPOConfig, encoded: Encoded) -> int:
    return config.epochs * -(-len(encoded.groups) // config.batch_size)
