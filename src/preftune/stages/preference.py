"""Direct preference optimisation and its kin: the policy learns straight from preferences, without a reward model.

    reference log-probs of every answer: once, before the first step, kept in the project (not for simpo, cpo and orpo)
    for each optimiser step:
        take batch_size pairs (a function of the seed and the step); a pair is one row [prompt | chosen | rejected]
            (kto: single answers; plackett_luce: rankings; rao_kupper and davidson: pairs and ties)
        h = Σ log π(answer) − Σ log ref(answer), for the chosen and the rejected answer
        loss = − log σ(beta (h_chosen − h_rejected)), the mean over pairs          Rafailov et al. 2305.18290, eq. 7
               (or another of `preference_losses.py`, as the key `loss` says; plus nll_weight · NLL of the chosen answer)
        one AdamW step
        every so many steps, where reference_update says so: move the reference towards the policy          (TR-DPO, 2404.09656)

At step 0 policy and reference are the same, so every h is 0 and the loss has a known value (log 2 for DPO): the run checks that and
stops where it is not so. Start it with

    preftune train dpo data=snapshots/… model=base loss=ipo
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preftune.data.batches import Encoded, batch_indices, encode
from preftune.errors import ConfigError
from preftune.models.adapter import trainable
from preftune.models.load import batch_logprobs
from preftune.progress import Progress, Silent
from preftune.stages.common import Room, finish, namer, open_room, resolved, save_policy, settle, something_held_out, start
from preftune.stages.preference_config import PER_TOKEN, DPOConfig
from preftune.stages.preference_data import Preferences, preferences_of
from preftune.stages.preference_learner import Learner, learned
from preftune.stages.preference_losses import LOSSES
from preftune.training.held_out import Best, measure
from preftune.training.loop import Loop
from preftune.training.moving import MovingReference
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.step import micro_batches, train_step


def run(config: DPOConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("dpo", config, out)
    if work is None:
        return final
    room = open_room(config, out, progress)
    data, encoded = _encode(config, room)
    if data.said(config.loss):
        progress.note(data.said(config.loss))
    total = _steps(config, encoded)
    if config.reference_update and config.reference_update.every >= total:
        raise ConfigError(
            f"the reference moves every {config.reference_update.every} steps, and the run has {total}",
            'key "reference_update.every"',
            "Give less, or train for more epochs.",
        )
    room, planned = settle(config, room, lambda room: _planned(config, room, encoded), progress)
    learner = Learner(room, config, data, encoded, progress)
    held_out = _encode_held_out(config, room)
    watched = Learner(room, config, *held_out, progress)
    optimiser = adamw(room.model, weight_decay=config.weight_decay)
    loop = Loop(
        work,
        name=config.loss,
        total=total,
        models={"policy": room.model},
        optimisers={"policy": optimiser},
        progress=progress,
        behind=config.async_checkpoints,
    )
    best = Best(work.path, room.model, loop.state, every=config.eval_every, patience=config.patience)

    if config.reference_update:
        learner.moving = watched.moving = MovingReference(room.model, loop.state)

    for step in loop.steps():
        picked = [encoded.groups[i] for i in batch_indices(len(encoded.groups), config.batch_size, step, seed=config.seed)]
        lr = lr_at(step, total=total, lr=config.lr, warmup=config.warmup, schedule=config.schedule)
        learner.look_at(picked, loop.state)
        done = train_step(
            micro_batches(picked, config.token_budget),
            count=learner.count,
            loss=learner.loss,
            parameters=trainable(room.model).values(),
            optimiser=optimiser,
            lr=lr,
            max_grad_norm=config.max_grad_norm,
            where=f"DPO step {step + 1}",
            name_batch=namer(data.rows),
        )
        if step == 0:
            learner.check_start(done.loss, done.metrics)
        told = {"loss/train": done.loss, **done.metrics, "lr": lr, "grad_norm": done.grad_norm}
        if best.due(step, total):
            watched.look_at(held_out[1].groups, loop.state)
            told |= measure(micro_batches(held_out[1].groups, config.token_budget), count=watched.count, loss=watched.loss)
            best.see(told["loss/held_out"], step)
        loop.log(step, told)
        learner.remember(done, loop.state)
        if learner.moving and config.reference_update and (step + 1) % config.reference_update.every == 0:
            learner.moving.follow(config.reference_update.mix)
        if best.gains_no_more:
            break
    facts = best.restore()
    save_policy(room, work.path)
    facts |= {"unused": {what: n for what, n in data.unused.items() if n}, "warnings": loop.state.get("warnings", [])}
    if learner.kind.reference and not config.reference_update:  # what rollout/score.py makes a reward of
        facts["implicit_reward"] = {"beta": config.settings.beta, "per_token": config.loss in PER_TOKEN}
    return finish(room, work, final, loop, encoded, planned, steps=loop.done, **facts)


def plan(config: DPOConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it."""
    room = open_room(resolved(config, out)[0], out, Silent())
    _, encoded = _encode(config, room)
    return settle(config, room, lambda room: _planned(config, room, encoded), Silent())[1]


def _planned(config: DPOConfig, room: Room, encoded: Encoded) -> Plan:
    kind = LOSSES[config.loss]
    steps = _steps(config, encoded)
    return make_plan(
        "dpo",
        room.model,
        encoded,
        steps_of(encoded.groups, steps=steps, batch_size=config.batch_size, seed=config.seed, completions=learned(kind)),
        lambda part: batch_logprobs(room.model, room.batch(part))[0],
        token_budget=config.token_budget,
        behind=config.async_checkpoints,
        steps=steps,
        tree=room.tree,
        apart=room.apart,
        before=encoded.groups if kind.reference else (),
        forward_passes=float(kind.moment in ("matched", "kl")) + float(config.reference_update is not None),
        resident_models=2 if config.reference_update and config.adapter is None else 1,
    )


def _encode(config: DPOConfig, room: Room) -> tuple[Preferences, Encoded]:
    data = preferences_of(room.snapshot, LOSSES[config.loss].data, seed=config.seed)
    return data, encode(room.renderer, ((row.messages, row.answers) for row in data.rows), max_tokens=room.max_tokens)


def _encode_held_out(config: DPOConfig, room: Room) -> tuple[Preferences, Encoded]:
    # A snapshot keeps ties and thumbs of the training side alone, so held-out pairs stand for them.
    there = room.snapshot
    if not something_held_out(there.held_out, config):
        return Preferences(), Encoded()
    other_side = replace(there, train=there.held_out, kwise=there.held_out_kwise, ties=[], thumbs=[])
    return _encode(config, replace(room, snapshot=other_side))


def _steps(config: DPOConfig, encoded: Encoded) -> int:
    return config.epochs * -(-len(encoded.groups) // config.batch_size)
