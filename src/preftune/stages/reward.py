"""The reward model: one number for an answer, learned from pairs.

    a scalar head on the language model, read at the answer's end token
    for each optimiser step:
        take batch_size pairs (a function of the seed and the step); a pair is one row [prompt | chosen | rejected]
        loss = − log σ(r_chosen − r_rejected) + 0.01 (r_chosen + r_rejected)²       Bradley & Terry 1952; 2312.09244
        one AdamW step
    then: held-out accuracy, and the mean and sd of the scores, so that later stages can speak in standard deviations

The result is a sequence-classification folder that plain transformers loads with its head; it is read back before the run
counts as done. Start it with

    preftune train reward data=snapshots/… model=base
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from preftune.data.batches import Encoded, Group, batch_indices, encode, shuffled, split_by_budget
from preftune.errors import PreftuneError
from preftune.losses.reward import accuracy, bradley_terry, centring
from preftune.models.adapter import merge_in_place, trainable
from preftune.models.heads import end_scores, load_reward_model, save_reward_model, scalar_head, with_scalar_head
from preftune.models.load import forget_weights, name_in, unwrap
from preftune.models.one_base import ON_BASE, save_head
from preftune.progress import Progress, Silent
from preftune.rollout.reward_probes import probe_items, probe_scorer
from preftune.rollout.score import load_scorer, score
from preftune.stages.common import (
    OfflineConfig,
    Room,
    finish,
    namer,
    open_room,
    pair_items,
    resolved,
    save_adapter,
    settle,
    something_held_out,
    start,
)
from preftune.training.held_out import Best, measure
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.step import Loss, mean_metric, train_step

SCALE_PAIRS = 100  # training pairs whose scores give the mean and sd: enough for 5 % of either
CENTRING = 0.01  # fixes the free constant; accuracy does not move (Eisenstein et al. 2312.09244)


class RewardConfig(OfflineConfig):
    """Settings of `preftune train reward`."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate (1e-4 for LoRA; 9e-6 for all weights)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="measured share of flipped judgements")

    @model_validator(mode="after")
    def _whole_weights(self) -> RewardConfig:
        if self.adapter is not None and self.adapter.kind == "qlora":
            raise ValueError('"adapter.kind" is "qlora": a reward model is saved merged, which 4 bits would round. Take "lora"')
        return self


def run(config: RewardConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("reward", config, out)
    if work is None:
        return final
    room, policy = _open(config, out, progress)
    encoded = encode(room.renderer, pair_items(room.snapshot.train), max_tokens=room.max_tokens)
    held_out_pairs = _encode_held_out(room)  # so that what is wrong with them is said before training and not after
    something_held_out(room.snapshot.held_out, config)
    weights, held_out_weights = (torch.tensor([pair.weight for pair in side]) for side in (room.snapshot.train, room.snapshot.held_out))
    optimiser = adamw(room.model, eps=1e-5, weight_decay=config.weight_decay)
    total = _steps(config, encoded)
    room, planned = settle(config, room, lambda room: _planned(config, room, encoded), progress)
    loop = Loop(work, name="reward model", total=total, models={"reward": room.model}, optimisers={"reward": optimiser}, progress=progress)
    best = Best(work.path, room.model, loop.state, every=config.eval_every, patience=config.patience)

    def loss(groups: list[Group], weights: Tensor) -> Loss:
        scores = end_scores(room.model, room.batch(groups))
        chosen, rejected = scores[0::2], scores[1::2]
        values = bradley_terry(chosen, rejected, margin=0.0, label_smoothing=config.label_smoothing)
        metrics = {
            "accuracy/train": mean_metric(accuracy(chosen, rejected)),
            "margin/train": mean_metric(chosen - rejected),
            "loss/bradley_terry": mean_metric(values),
        }
        return Loss(values + CENTRING * centring(chosen, rejected), weights[[g.index for g in groups]].to(values.device), metrics)

    for step in loop.steps():
        picked = [encoded.groups[i] for i in batch_indices(len(encoded.groups), config.batch_size, step, seed=config.seed)]
        lr = lr_at(step, total=total, lr=config.lr, warmup=config.warmup, schedule=config.schedule)
        done = train_step(
            split_by_budget(picked, config.token_budget),
            count=lambda groups: float(weights[[g.index for g in groups]].sum()),
            loss=partial(loss, weights=weights),
            parameters=trainable(room.model).values(),
            optimiser=optimiser,
            lr=lr,
            max_grad_norm=config.max_grad_norm,
            where=f"reward step {step + 1}",
            name_batch=namer(room.snapshot.train),
        )
        told = {"loss/train": done.loss, **done.metrics, "lr": lr, "grad_norm": done.grad_norm}
        if best.due(step, total):
            told |= measure(
                split_by_budget(held_out_pairs.groups, config.token_budget),
                count=lambda groups: float(held_out_weights[[g.index for g in groups]].sum()),
                loss=partial(loss, weights=held_out_weights),
            )
            best.see(told["loss/held_out"], step)
        loop.log(step, told)
        if best.gains_no_more:
            break
    facts = best.restore()

    with progress.stage("reward model: scores of both sides of the split", 2, "sets") as task:
        some = [encoded.groups[i] for i in shuffled(len(encoded.groups), seed=config.seed, epoch=0)[:SCALE_PAIRS]]
        scores = score_groups(room, some, config.token_budget)
        mean, deviation = float(scores.mean()), float(scores.std())
        task.advance()
        held_out = _held_out(room, held_out_pairs, config.token_budget)
        task.advance()
    _save(room, policy, work.path, encoded.groups[:4], mean=mean, deviation=deviation)
    facts |= {"normalisation": {"mean": mean, "sd": deviation}, "held_out": held_out}
    facts["probes"] = _probed(work.path / "model", room, progress)
    return finish(room, work, final, loop, encoded, planned, steps=loop.done, **facts)


def _probed(model: Path, room: Room, progress: Progress) -> dict[str, Any]:
    """Return what the saved model pays for, and say it."""
    items = probe_items(room.snapshot)
    if len(items) < 2:
        return {}
    found = probe_scorer(load_scorer(model), items, progress=progress)
    for finding in found.findings:
        progress.note(f"This reward model {finding}.")
    return found.as_dict()


def _open(config: RewardConfig, out: Path, progress: Progress) -> tuple[Room, nn.Module]:
    # The room's policy is a causal LM; its backbone, adapter and all, gets a scalar head in place of the output layer.
    room = open_room(config, out, progress)
    model = with_scalar_head(unwrap(room.model), seed=config.seed)
    scalar_head(model).requires_grad_(True)
    return replace(room, model=model), room.model


def score_groups(room: Room, groups: list[Group], token_budget: int) -> Tensor:
    """Return the raw scores of all answers of the groups, in their order."""
    return score(room.model, groups, pad_id=room.renderer.pad_id, token_budget=token_budget, tree=room.tree)


def _encode_held_out(room: Room) -> Encoded:
    pairs = room.snapshot.held_out
    return encode(room.renderer, pair_items(pairs), max_tokens=room.max_tokens) if pairs else Encoded()


def _held_out(room: Room, encoded: Encoded, token_budget: int) -> dict[str, Any]:
    if not encoded.groups:
        return {"n": 0}
    scores = score_groups(room, encoded.groups, token_budget)
    chosen, rejected = scores[0::2], scores[1::2]
    pairs = [room.snapshot.held_out[g.index] for g in encoded.groups]
    longer = [1.0 if len(p.chosen) > len(p.rejected) else 0.5 if len(p.chosen) == len(p.rejected) else 0.0 for p in pairs]
    return {
        "n": len(pairs),
        "left_out": dict(encoded.left_out),
        "accuracy": float(accuracy(chosen, rejected).mean()),
        "correct": accuracy(chosen, rejected).tolist(),
        "margins": (chosen - rejected).tolist(),
        "longer_wins": sum(longer) / len(longer),
        "ece": calibration_error((chosen - rejected).sigmoid()),
        "loss": float(bradley_terry(chosen, rejected, margin=0.0, label_smoothing=0.0).mean()),
    }


def calibration_error(probabilities: Tensor, *, bins: int = 5) -> float:
    """Return the expected calibration error of pairs: Σ share · |share right − mean confidence| over bins of equal mass.

    probabilities: [P], the model's word that the chosen answer is the better one. Confidence is its distance from a coin, in
    [0.5, 1]. Source: Guo et al. 1706.04599. Differs: bins of equal mass, not of equal width.
    """
    confidence = torch.maximum(probabilities, 1 - probabilities)
    right = (probabilities > 0.5).float() + 0.5 * (probabilities == 0.5).float()
    order = confidence.argsort()
    gaps = [abs(float(right[b].mean() - confidence[b].mean())) * len(b) for b in order.chunk(bins)]
    return sum(gaps) / len(probabilities)


def _save(room: Room, policy: nn.Module, folder: Path, probes: list[Group], *, mean: float, deviation: float) -> None:
    # Merged and whole, so that the head and every weight travel together; then read back, in place of what was saved, and compared.
    before = score_groups(room, probes, 1 << 20)
    if hasattr(policy, "peft_config"):  # the same once more in small: PPO can put it on a base that it has in memory already
        save_adapter(policy, folder / ON_BASE, base=name_in(room.base, room.project))
        save_head(scalar_head(room.model), folder / ON_BASE)
    merge_in_place(policy)  # the backbone is shared with the reward model
    whole = unwrap(room.model)
    save_reward_model(whole, room.renderer, folder / "model", mean=mean, deviation=deviation)
    forget_weights(unwrap(policy))
    after = score_groups(replace(room, model=load_reward_model(folder / "model")), probes, 1 << 20)
    gap = float((before - after).abs().max())
    if gap > (1e-3 if whole.dtype == torch.float32 else 0.1):
        raise PreftuneError(
            f"the saved reward model scores differently by {gap:.4f}", str(folder), "The run is not finished; start it again."
        )


def plan(config: RewardConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it."""
    room, _ = _open(resolved(config, out)[0], out, Silent())
    encoded = encode(room.renderer, pair_items(room.snapshot.train), max_tokens=room.max_tokens)
    return settle(config, room, lambda room: _planned(config, room, encoded), Silent())[1]


def _planned(config: RewardConfig, room: Room, encoded: Encoded) -> Plan:
    return make_plan(
        "reward",
        room.model,
        encoded,
        steps_of(encoded.groups, steps=_steps(config, encoded), batch_size=config.batch_size, seed=config.seed),
        lambda part: end_scores(room.model, room.batch(part)),
        token_budget=config.token_budget,
        tree=room.tree,
        apart=room.apart,
    )


def _steps(config: RewardConfig, encoded: Encoded) -> int:
    return config.epochs * -(-len(encoded.groups) // config.batch_size)
