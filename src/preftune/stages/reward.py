"""The reward model: one number for an answer, learned from which answers people prefer.

    a scalar head on the language model, read at the answer's end token
    for each optimiser step:
        take batch_size rows (a function of the seed and the step): a prompt with all its answers that were compared, up to 9 a row
        r = score of each answer, each computed once
        loss = − log σ(r_better − r_worse) + 0.01 (r_better + r_worse)², the mean over all pairs, those of a ranking of K answers
               weighted 1/C(K,2)                   Bradley & Terry 1952; Ouyang et al. 2203.02155, §3.5; 2312.09244
               (or another of `losses/reward.py`, as the key `loss` says)
        with `heads` above 1: each head the same on weights of its own (a Bayesian bootstrap over prompts), the mean over heads
        one AdamW step
    then: a report on held-out pairs, and the mean and sd of the scores, so that later stages can speak in standard deviations

The result is a sequence-classification folder that plain transformers loads with its head; it is read back before the run
counts as done. docs/reward-model.md says which loss to take when, and what the numbers mean. Start it with

    preftune train reward data=snapshots/… model=base
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from preftune.data.batches import Encoded, Group, batch_indices, shuffled
from preftune.data.pair_report import human_agreement, pair_report
from preftune.data.rows import IN_MEMORY
from preftune.data.snapshot import Snapshot
from preftune.errors import DataError, PreftuneError
from preftune.losses import reward as losses
from preftune.models.adapter import merge_in_place, trainable
from preftune.models.heads import end_scores, load_reward_heads, save_reward_model, scalar_head, with_scalar_head
from preftune.models.load import forget_weights, name_in, unwrap
from preftune.models.one_base import ON_BASE, save_head
from preftune.parallel import world
from preftune.progress import Progress, Silent
from preftune.rollout.reward_probes import probe_items, probe_scorer
from preftune.rollout.score import load_scorer, score
from preftune.stages.common import OfflineConfig, Room, finish, namer, open_room, resolved, save_adapter, settle, something_held_out, start
from preftune.stages.reward_data import Compared, Ordered, Row, bootstrap_weights, encode_rows, rows_of
from preftune.training.held_out import Best, measure
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.step import Loss, mean_metric, micro_batches, train_step

SCALE_ROWS = 100  # rows of training answers whose scores give the mean and sd: enough for 5 % of either
CENTRING = 0.01  # fixes the free constant; accuracy does not move (Eisenstein et al. 2312.09244)
FEWEST_WORD_PAIRS = 30  # pairs of raters' words from which a flip rate is taken
OF_TIES, OF_FLIPS = ("rao_kupper", "davidson"), ("bradley_terry", "robust")


class RewardConfig(OfflineConfig):
    """Settings of `preftune train reward`."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate (1e-4 for LoRA; 9e-6 for all weights)")
    loss: Literal["bradley_terry", "robust", "rao_kupper", "davidson", "plackett_luce"] = Field(
        "bradley_terry",
        description="robust: some judgements are wrong; rao_kupper, davidson: ties too; plackett_luce: each ranking as a whole",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | Literal["measured"] = Field(
        0.0, description="share of flipped judgements, for bradley_terry and robust; measured = by how far raters agree"
    )
    margin: float = Field(
        0.0, ge=0, description="gap asked for a point of a pair's strength, 0 to 3 (Llama 2: 1/3 or 1), for bradley_terry and robust"
    )
    tie_chance: float = Field(0.5, gt=0, lt=1, description="chance that two equal answers are called alike, for rao_kupper and davidson")
    heads: int = Field(
        1, ge=1, le=16, description="heads on one backbone, each learned from a bootstrap of the prompts; above 1 = an ensemble"
    )

    @model_validator(mode="after")
    def _whole_weights(self) -> RewardConfig:
        if self.adapter is not None and self.adapter.kind == "qlora":
            raise ValueError('"adapter.kind" is "qlora": a reward model is saved merged, which 4 bits would round. Take "lora"')
        return self

    @model_validator(mode="after")
    def _only_keys_of_the_loss(self) -> RewardConfig:
        users = {"label_smoothing": OF_FLIPS, "margin": OF_FLIPS, "tie_chance": OF_TIES}
        for key, takers in users.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.loss not in takers:
                raise ValueError(f'key "{key}" means nothing to loss "{self.loss}". Leave it out, or take {" or ".join(takers)}')
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError('loss "robust" needs "label_smoothing", the share of flipped judgements. Give it, or measured')
        return self


def run(config: RewardConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("reward", config, out)
    if work is None:
        return final
    room, policy = _open(config, out, progress)
    flips = flip_rate(config, room.snapshot)
    rows, encoded = _encode(config, room)
    learner = Learner(config, room, rows, flips=flips, weights=bootstrap_weights(rows, config.heads, seed=config.seed))
    # Encoded now, so that what is wrong with them is said before training and not after.
    held_out_rows, held_out_groups = _encode_held_out(config, room)
    watched = Learner(config, room, held_out_rows, flips=flips, weights=torch.ones(len(held_out_rows), config.heads))
    something_held_out(room.snapshot.held_out, config)
    optimiser = adamw(room.model, eps=1e-5, weight_decay=config.weight_decay)
    total = _steps(config, encoded)
    room, planned = settle(config, room, lambda room: _planned(config, room, encoded), progress)
    learner.room = watched.room = room
    loop = Loop(
        work,
        name="reward model",
        total=total,
        models={"reward": room.model},
        optimisers={"reward": optimiser},
        progress=progress,
        behind=config.async_checkpoints,
    )
    best = Best(work.path, room.model, loop.state, every=config.eval_every, patience=config.patience)

    for step in loop.steps():
        picked = [encoded.groups[i] for i in batch_indices(len(encoded.groups), config.batch_size, step, seed=config.seed)]
        lr = lr_at(step, total=total, lr=config.lr, warmup=config.warmup, schedule=config.schedule)
        done = train_step(
            micro_batches(picked, config.token_budget),
            count=learner.count,
            loss=learner.loss,
            parameters=trainable(room.model).values(),
            optimiser=optimiser,
            lr=lr,
            max_grad_norm=config.max_grad_norm,
            where=f"reward step {step + 1}",
            name_batch=namer(rows),
        )
        told = {"loss/train": done.loss, **done.metrics, "lr": lr, "grad_norm": done.grad_norm}
        if best.due(step, total):
            told |= measure(micro_batches(held_out_groups.groups, config.token_budget), count=watched.count, loss=watched.loss)
            best.see(told["loss/held_out"], step)
        loop.log(step, told)
        if best.gains_no_more:
            break
    facts = best.restore()

    with progress.stage("reward model: scores of both sides of the split", 2, "sets") as task:
        some = [encoded.groups[i] for i in shuffled(len(encoded.groups), seed=config.seed, epoch=0)[:SCALE_ROWS]]
        scale = _scale(score_groups(room, some, config.token_budget))
        task.advance()
        held_out = _held_out(config, room, scale.pop("deviations"))
        task.advance()
    _save(room, policy, work.path, encoded.groups[:4], **scale)
    members = {"members": [{"mean": m, "sd": sd} for m, sd in scale["members"]]} if scale["members"] else {}
    facts |= {"normalisation": {"mean": scale["mean"], "sd": scale["deviation"], **members}, "held_out": held_out}
    facts |= {"label_smoothing": flips, "comparisons": sum(len(row.comparisons) for row in rows)}
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


class Learner:
    """The loss of a run on its rows: a value for each pair or order and each head, and what it counts.

    weights: float [R, heads], of each row for each head. flips: the share of flipped judgements.
    """

    def __init__(self, config: RewardConfig, room: Room, rows: Sequence[Row], *, flips: float, weights: Tensor) -> None:
        self.config, self.room, self.rows, self.flips, self.weights = config, room, rows, flips, weights

    def count(self, groups: list[Group]) -> float:
        """Return the total weight of a micro-batch, over all heads."""
        return float(self._weights(groups).sum())

    def loss(self, groups: list[Group]) -> Loss:
        """Return the values and weights of a micro-batch, and its metrics."""
        scores = end_scores(self.room.model, self.room.batch(groups))
        return self.of_scores(scores.reshape(len(scores), -1), groups)

    def of_scores(self, scores: Tensor, groups: list[Group]) -> Loss:
        """Return the same from the scores [S, heads] of the groups' answers."""
        compared = self._compared(groups)
        values, centres = zip(*(self._values(scores[:, head], groups) for head in range(scores.shape[1])), strict=True)
        strict = compared.tied.logical_not()
        apart = (scores[compared.better[strict]] - scores[compared.worse[strict]]).detach()
        ahead = apart.mean(1)
        metrics = {
            "accuracy/train": mean_metric(losses.accuracy(ahead, torch.zeros_like(ahead))),
            "margin/train": mean_metric(ahead),
            "loss/preference": mean_metric(torch.stack(values)),
        }
        if self.config.loss in OF_TIES:
            metrics["ties/train"] = mean_metric(compared.tied.float())
        if self.config.heads > 1:
            metrics["margin/heads_differ"] = mean_metric(apart.std(1, correction=0))
        both = torch.stack(values, 1) + CENTRING * torch.stack(centres, 1)
        return Loss(both.flatten(), self._weights(groups).to(both.device).flatten(), metrics)

    def _compared(self, groups: list[Group]) -> Compared:
        return Compared.of([self.rows[g.index] for g in groups])

    def _weights(self, groups: list[Group]) -> Tensor:
        rows = [self.rows[g.index] for g in groups]
        said = Ordered.of(rows) if self.config.loss == "plackett_luce" else Compared.of(rows)
        return said.weights[:, None] * self.weights[[g.index for g in groups]][said.row]

    def _values(self, scores: Tensor, groups: list[Group]) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair or order by one head's scores [S], and what centring adds to it before its coefficient."""
        config = self.config
        if config.loss == "plackett_luce":
            said = Ordered.of([self.rows[g.index] for g in groups])
            table, ranks = scores[said.answers], said.ranks.to(scores.device)
            return losses.plackett_luce(table, ranks), losses.ranking_centring(table, ranks)
        compared = self._compared(groups)
        chosen, rejected, tied = scores[compared.better], scores[compared.worse], compared.tied.to(scores.device)
        margin = config.margin * compared.strengths.to(scores.device)
        match config.loss:
            case "bradley_terry":
                values = losses.bradley_terry(chosen, rejected, margin=margin, label_smoothing=self.flips)
            case "robust":
                values = losses.robust_bradley_terry(chosen, rejected, margin=margin, label_smoothing=self.flips)
            case "rao_kupper":
                values = losses.rao_kupper(chosen, rejected, tied, theta=(1 + config.tie_chance) / (1 - config.tie_chance))
            case "davidson":
                values = losses.davidson(chosen, rejected, tied, nu=2 * config.tie_chance / (1 - config.tie_chance))
        return values, losses.centring(chosen, rejected)


def flip_rate(config: RewardConfig, snapshot: Snapshot) -> float:
    """Return the share of flipped judgements: as the config says, or as the snapshot's raters agree. Raises DataError where few overlap."""
    if config.label_smoothing != "measured":
        return config.label_smoothing
    found = human_agreement(snapshot.manifest.get("votes", {}))
    if found is None or found["n"] < FEWEST_WORD_PAIRS or found["error"] >= 0.5:
        said = (
            "raters agree no more than coins" if found and found["error"] >= 0.5 else f"{found['n'] if found else 0} pairs of words overlap"
        )
        what = f"the share of flipped judgements cannot be measured ({said})"
        raise DataError(what, str(snapshot.path), f"Let raters judge the same items ({FEWEST_WORD_PAIRS} at least), or give a number.")
    return float(found["error"])


def _open(config: RewardConfig, out: Path, progress: Progress) -> tuple[Room, nn.Module]:
    # The room's policy is a causal LM; its backbone, adapter and all, gets a scalar head in place of the output layer.
    room = open_room(config, out, progress)
    model = with_scalar_head(unwrap(room.model), seed=config.seed, heads=config.heads)
    scalar_head(model).requires_grad_(True)
    return replace(room, model=model), room.model


def score_groups(room: Room, groups: Sequence[Group], token_budget: int) -> Tensor:
    """Return the raw scores of all answers of the groups, [S] or [S, heads], in their order."""
    blocks = (groups[start : start + IN_MEMORY] for start in range(0, len(groups), IN_MEMORY))
    said = partial(score, room.model, pad_id=room.renderer.pad_id, token_budget=token_budget, tree=room.tree)
    return torch.cat([said(block) for block in blocks])


def _encode(config: RewardConfig, room: Room) -> tuple[Sequence[Row], Encoded]:
    there = room.snapshot
    rows = rows_of(there.train, there.kwise, there.ties if config.loss in OF_TIES else (), orders=config.loss == "plackett_luce")
    return encode_rows(room.renderer, rows, max_tokens=room.max_tokens)


def _encode_held_out(config: RewardConfig, room: Room) -> tuple[Sequence[Row], Encoded]:
    there = room.snapshot
    ties = there.held_out_ties if config.loss in OF_TIES else ()
    rows = rows_of(there.held_out, there.held_out_kwise, ties, orders=config.loss == "plackett_luce")
    return encode_rows(room.renderer, rows, max_tokens=room.max_tokens) if rows else ([], Encoded())


def _scale(scores: Tensor) -> dict[str, Any]:
    """Return mean and sd of the one score, those of each head where there are several, and the heads' sds as a tensor."""
    table = scores.reshape(len(scores), -1)
    deviations = table.std(0).clamp(min=1e-6)
    one = losses.ensemble_mean(table, deviations)
    members = list(zip(table.mean(0).tolist(), deviations.tolist(), strict=True)) if table.shape[1] > 1 else []
    return {"mean": float(one.mean()), "deviation": float(one.std()), "members": members, "deviations": deviations}


def _held_out(config: RewardConfig, room: Room, deviations: Tensor) -> dict[str, Any]:
    # All held-out pairs, whatever the loss learns from, by the one score that a run gives.
    there = room.snapshot
    if not there.held_out:
        return {"n": 0}
    rows, encoded = encode_rows(room.renderer, rows_of(there.held_out, there.held_out_kwise), max_tokens=room.max_tokens)
    scores = score_groups(room, encoded.groups, config.token_budget)
    table = scores.reshape(len(scores), -1)
    compared = Compared.of(rows)
    order = sorted(range(len(compared.places)), key=lambda n: compared.places[n])
    better, worse = compared.better[order], compared.worse[order]
    one = losses.ensemble_mean(table, deviations)
    margins = one[better] - one[worse]
    report = pair_report([there.held_out[place] for place in sorted(compared.places)], margins.tolist())
    if table.shape[1] > 1:
        report["accuracy_of_heads"] = [float(losses.accuracy(head[better], head[worse]).mean()) for head in table.T]
    return report | {
        "left_out": dict(encoded.left_out),
        "loss": float(losses.bradley_terry(one[better], one[worse], margin=0.0, label_smoothing=0.0).mean()),
        "human_agreement": human_agreement(there.manifest.get("votes", {})),
    }


def _save(
    room: Room,
    policy: nn.Module,
    folder: Path,
    probes: Sequence[Group],
    *,
    mean: float,
    deviation: float,
    members: list[tuple[float, float]],
) -> None:
    # Merged and whole, so that the head and every weight travel together; then read back, in place of what was saved, and compared.
    before = score_groups(room, probes, 1 << 20)
    if hasattr(policy, "peft_config"):  # the same once more in small: PPO can put it on a base that it has in memory already

        def save_on_base() -> None:
            save_adapter(policy, folder / ON_BASE, base=name_in(room.base, room.project))
            save_head(scalar_head(room.model), folder / ON_BASE)

        world.from_main(save_on_base)
    merge_in_place(policy)  # the backbone is shared with the reward model
    whole = unwrap(room.model)
    save_reward_model(whole, room.renderer, folder / "model", mean=mean, deviation=deviation, members=members)
    forget_weights(unwrap(policy))
    after = score_groups(replace(room, model=load_reward_heads(folder / "model")), probes, 1 << 20)
    gap = float((before - after).abs().max())
    if gap > (1e-3 if whole.dtype == torch.float32 else 0.1):
        raise PreftuneError(
            f"the saved reward model scores differently by {gap:.4f}", str(folder), "The run is not finished; start it again."
        )


def plan(config: RewardConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it."""
    room, _ = _open(resolved(config, out)[0], out, Silent())
    _, encoded = _encode(config, room)
    return settle(config, room, lambda room: _planned(config, room, encoded), Silent())[1]


def _planned(config: RewardConfig, room: Room, encoded: Encoded) -> Plan:
    return make_plan(
        "reward",
        room.model,
        encoded,
        steps_of(encoded.groups, steps=_steps(config, encoded), batch_size=config.batch_size, seed=config.seed),
        lambda part: end_scores(room.model, room.batch(part)),
        token_budget=config.token_budget,
        behind=config.async_checkpoints,
        steps=_steps(config, encoded),
        tree=room.tree,
        apart=room.apart,
    )


def _steps(config: RewardConfig, encoded: Encoded) -> int:
    return config.epochs * -(-len(encoded.groups) // config.batch_size)
