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

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from preftune.config import Config
from preftune.data.batches import Encoded, Group, batch_indices, encode, split_by_budget
from preftune.errors import ConfigError, PreftuneError
from preftune.losses.preference import kto_kl, length_desensitised, matched_by_rank, nll
from preftune.losses.reduce import sequence_sum, to_sequences
from preftune.losses.reward import accuracy
from preftune.models.adapter import trainable
from preftune.models.load import batch_logprobs, unwrap
from preftune.progress import Progress, Silent
from preftune.stages.common import (
    OfflineConfig,
    Room,
    finish,
    namer,
    open_room,
    resolved,
    save_policy,
    settle,
    something_held_out,
    start,
)
from preftune.stages.preference_data import Preferences, preferences_of
from preftune.stages.preference_losses import ALSO_CALLED, LOSSES, LossKind, LossName, Scored, Settings, margins, two
from preftune.training.held_out import Best, measure
from preftune.training.loop import Loop
from preftune.training.moving import MovingReference
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.reference import Reference, reference_logprobs
from preftune.training.step import Loss, mean_metric, train_step

LOSS_KEYS = ("beta", "label_smoothing", "gamma", "alpha", "nll_weight")
OWN, OF_ANOTHER, ALL = slice(0, 1), slice(1, 2), slice(None)  # of KTO's answers: the row's own, that of another prompt
BOTH_FALL_STEPS = 10  # the mean over so many steps is looked at
BOTH_FALL_NATS = 1.0  # an answer; below, it may be the batch's luck
BOTH_FALL_NATS_A_TOKEN = 0.1  # where there is no reference to compare with, only the first steps


class ReferenceUpdate(Config):
    """When and how far the reference follows the policy (TR-DPO, Gorbatovski et al. 2404.09656)."""

    every: int = Field(ge=1, description="steps between two updates (the paper: 256 to 512)")
    mix: float = Field(0.6, gt=0, le=1, description="share of the policy in the new reference: 1 = hard, 0.5 to 0.6 = soft")


class DPOConfig(OfflineConfig):
    """Settings of `preftune train dpo`."""

    lr: float = Field(5e-5, gt=0, description="peak learning rate (5e-6 to 5e-5 for LoRA; 5e-7 to 5e-6 for all weights)")
    loss: LossName = Field("dpo", description="what is minimised; docs/losses.md says which to take when, and its keys")
    beta: float | None = Field(
        None, gt=0, description="pull to the reference: larger = stays nearer (IPO's tau, ORPO's lambda); null = the loss's own (dpo: 0.1)"
    )
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="measured share of flipped judgements; above 0 = cDPO; null = the loss's own (dpo: 0)"
    )
    gamma: float | None = Field(None, ge=0, description="margin asked for (simpo: 1; odpo: 0.3 a point of strength); null = the loss's own")
    alpha: float | None = Field(
        None, ge=0, description="weight of the loss's second part (dpop: penalty, 50; ld_dpo: tail tokens, 0.5); null = the loss's own"
    )
    nll_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the chosen answer's NLL a token, added to the loss; null = the loss's own (rpo, cpo, orpo: 1; dpo: 0)",
    )

    reference_update: ReferenceUpdate | None = Field(
        None, description="let the reference follow the policy (TR-DPO): every so many steps, by mix; null = it stays the start"
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _known(cls, loss: Any) -> Any:
        if loss in LOSSES:
            return loss
        near = [ALSO_CALLED[str(loss)]] if str(loss) in ALSO_CALLED else difflib.get_close_matches(str(loss), LOSSES, n=1, cutoff=0.4)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ValueError(f"unknown.{hint} There are {', '.join(LOSSES)}")

    @model_validator(mode="after")
    def _only_keys_of_the_loss(self) -> DPOConfig:
        own = LOSSES[self.loss].defaults
        for key in LOSS_KEYS:
            if getattr(self, key) is not None and key not in own:
                users = ", ".join(name for name, kind in LOSSES.items() if key in kind.defaults)
                raise ValueError(
                    f'key "{key}" means nothing to loss "{self.loss}", which takes {", ".join(own)}. Leave it out, or take {users}'
                )
        if self.reference_update and not LOSSES[self.loss].reference:
            raise ValueError(f'key "reference_update" means nothing to loss "{self.loss}", which has no reference. Leave it out')
        if self.loss == "exo" and self.settings.label_smoothing == 0:
            raise ValueError('key "label_smoothing" is 0, where loss "exo" is infinite. Give a small share, such as 0.01')
        if self.loss == "ld_dpo" and self.settings.alpha > 1:
            raise ValueError(f'key "alpha" is {self.alpha}: loss "ld_dpo" weighs the longer answer\'s tail by it. Give 0 to 1')
        return self

    @property
    def settings(self) -> Settings:
        """The numbers of the loss: as set, else the loss's own."""
        own = LOSSES[self.loss].defaults
        return Settings(**{key: value if getattr(self, key) is None else getattr(self, key) for key, value in own.items()})


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
    learner = _Learner(room, config, data, encoded, progress)
    held_out = _encode_held_out(config, room)
    watched = _Learner(room, config, *held_out, progress)
    optimiser = adamw(room.model, weight_decay=config.weight_decay)
    loop = Loop(work, name=config.loss, total=total, models={"policy": room.model}, optimisers={"policy": optimiser}, progress=progress)
    best = Best(work.path, room.model, loop.state, every=config.eval_every, patience=config.patience)

    if config.reference_update:
        learner.moving = watched.moving = MovingReference(room.model, loop.state)

    for step in loop.steps():
        picked = [encoded.groups[i] for i in batch_indices(len(encoded.groups), config.batch_size, step, seed=config.seed)]
        lr = lr_at(step, total=total, lr=config.lr, warmup=config.warmup, schedule=config.schedule)
        learner.look_at(picked, loop.state)
        done = train_step(
            split_by_budget(picked, config.token_budget),
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
            told |= measure(split_by_budget(held_out[1].groups, config.token_budget), count=watched.count, loss=watched.loss)
            best.see(told["loss/held_out"], step)
        loop.log(step, told)
        learner.remember(done.metrics, loop.state)
        if learner.moving and config.reference_update and (step + 1) % config.reference_update.every == 0:
            learner.moving.follow(config.reference_update.mix)
        if best.gains_no_more:
            break
    facts = best.restore()
    save_policy(room, work.path)
    facts |= {"unused": {what: n for what, n in data.unused.items() if n}, "warnings": loop.state.get("warnings", [])}
    return finish(room, work, final, loop, encoded, planned, steps=loop.done, **facts)


class _Learner:
    """The loss of a run: its reference, and what it measures over a whole batch before a step."""

    def __init__(self, room: Room, config: DPOConfig, data: Preferences, encoded: Encoded, progress: Progress) -> None:
        self.room, self.config, self.progress, self.rows = room, config, progress, data.rows
        self.kind: LossKind = LOSSES[config.loss]
        self.settings = config.settings
        self.weights = torch.tensor([row.weight for row in data.rows])
        self.moments: dict[int, float] = {}  # by the row's place in the data
        self.seen: list[float] = [0.0, 0]  # bco: the sum of this step's rewards, and their number
        self.learned = _learned(self.kind)
        self.moving: MovingReference | None = None
        self.reference: Reference | None = None
        if self.kind.reference and encoded.groups:
            self.reference = reference_logprobs(
                room.model,
                encoded.groups,
                pad_id=room.renderer.pad_id,
                tree=room.tree,
                token_budget=config.token_budget,
                project=room.project,
                progress=progress,
            )

    def count(self, groups: list[Group]) -> float:
        return float(self.weights[[g.index for g in groups]].sum())

    def loss(self, groups: list[Group]) -> Loss:
        scored = self.score(groups, self.learned)
        values = self.kind.values(scored, self.settings)
        metrics = self.metrics(scored, groups)
        if self.kind.moment == "shift":
            self.seen[0] += self.settings.beta * float(scored.logratios.detach().sum())
            self.seen[1] += len(scored.logratios)
        if self.settings.nll_weight:
            term = nll(two(scored.means)[0])
            metrics["loss/nll"] = mean_metric(term)
            values = values + self.settings.nll_weight * term
        return Loss(values, self.weights[[g.index for g in groups]].to(values.device), metrics)

    def score(self, groups: Sequence[Group], which: slice) -> Scored:
        """Return the log-probs of these of the groups' answers, with gradient where it is on."""
        taken = [replace(group, completions=group.completions[which]) for group in groups]
        lengths = torch.tensor([len(completion) for group in taken for completion in group.completions])
        if self.moving and self.moving.updates:
            with self.moving.in_place():  # before the policy's own pass, whose graph must not see other weights
                ref_sums = self._policy_sums(taken, lengths)
        else:
            ref_sums = self._start_sums(groups, which, lengths)
        sums = self._policy_sums(taken, lengths)
        rows = [self.rows[group.index] for group in groups]
        device = sums.device
        return Scored(
            sums,
            ref_sums.to(device),
            lengths.to(device),
            moment=torch.tensor([self.moments.get(group.index, 0.0) for group in groups], dtype=sums.dtype, device=device),
            strengths=torch.tensor([row.strength for row in rows], dtype=sums.dtype, device=device),
            desirable=torch.tensor([row.desirable for row in rows], device=device),
            ranks=pad_sequence([torch.tensor(row.ranks[which]) for row in rows], batch_first=True).to(device),
        )

    def _policy_sums(self, groups: Sequence[Group], lengths: Tensor) -> Tensor:
        batch = self.room.batch(groups)
        logprobs, _ = batch_logprobs(self.room.model, batch)
        if self.config.loss != "ld_dpo":
            return sequence_sum(logprobs, batch.sequence, batch.num_sequences)
        return self._desensitised(*to_sequences(logprobs, batch.sequence, batch.num_sequences), lengths.to(logprobs.device))

    def _start_sums(self, groups: Sequence[Group], which: slice, lengths: Tensor) -> Tensor:
        """Return log ref under the weights that training started from, [S]; nan where there is none, which shows."""
        if self.reference is None:
            return torch.full(lengths.shape, math.nan)
        if self.config.loss != "ld_dpo":
            return self.reference.sums(groups, which)
        rows = pad_sequence(self.reference.rows(groups, which), batch_first=True)
        return self._desensitised(rows, torch.arange(rows.shape[1]) < lengths[:, None], lengths)

    def _desensitised(self, logprobs: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        shared = torch.minimum(*two(lengths)).repeat_interleave(2)
        return length_desensitised(logprobs, mask, shared, tail_weight=self.settings.alpha)

    def look_at(self, picked: list[Group], state: dict[str, Any]) -> None:
        """Measure, before a step, what the loss takes from its whole batch, so that how the batch is cut changes nothing."""
        parts = split_by_budget(picked, self.config.token_budget)
        order = [group.index for part in parts for group in part]
        match self.kind.moment:
            case "shift":
                total, count = state.setdefault("rewards", [0.0, 0])  # of all answers of the steps before
                self.moments, self.seen = dict.fromkeys(order, total / count if count else 0.0), [0.0, 0]
            case "matched":
                with torch.no_grad():
                    scored = [(found.sums, found.ref_sums) for found in (self.score(part, ALL) for part in parts)]
                policy, reference = (torch.cat([margins(x) for x in found]) for found in zip(*scored, strict=True))
                self.moments = dict(zip(order, matched_by_rank(policy, reference).tolist(), strict=True))
            case "kl":
                with torch.no_grad():
                    logratios = torch.cat([self.score(part, OF_ANOTHER).logratios for part in parts])
                self.moments = dict.fromkeys(order, float(kto_kl(logratios)))

    def metrics(self, scored: Scored, groups: Sequence[Group]) -> dict[str, tuple[float, float]]:
        """Return what tells trouble: the better and the worse answers apart, and by how much they are."""
        scored = replace(scored, sums=scored.sums.detach())
        better, worse = self._sides(scored)
        ahead, behind = self._compared(scored)
        told = {
            "accuracy/train": mean_metric(accuracy(ahead, behind)),
            "margin/train": mean_metric(self.settings.beta * (ahead - behind)),
            "logprobs/chosen_per_token": mean_metric(scored.means, better),
            "logprobs/rejected_per_token": mean_metric(scored.means, worse),
            "length/chosen": mean_metric(scored.lengths, better),
            "length/rejected": mean_metric(scored.lengths, worse),
        }
        if self.reference is not None:
            moved = scored.sums - self._start_sums(groups, self.learned, scored.lengths.cpu()).to(scored.sums.device)
            told["logprobs/chosen"] = mean_metric(moved, better)
            told["logprobs/rejected"] = mean_metric(moved, worse)
            if self.kind.data not in ("answers", "rankings"):
                told["logprobs/both_fall"] = mean_metric(((moved[better] < 0) & (moved[worse] < 0)).float())
        if self.kind.data == "ties":
            told["ties/train"] = mean_metric(scored.tied.float())
        if self.kind.moment == "kl":
            told["kl/mismatched"] = mean_metric(scored.moment)
        if self.moving:
            told["reference/updates"] = (float(self.moving.updates), 1.0)
        return told

    def _sides(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Return which answers are the better ones and which the worse, bool [S]: a row's best and last, where these differ."""
        if self.kind.data == "answers":
            return scored.desirable, scored.desirable.logical_not()
        last = scored.ranks.amax(1, keepdim=True).expand_as(scored.ranks)
        present = scored.ranks > 0
        ranks, lasts = scored.ranks[present], last[present]
        return (ranks == 1) & (lasts > 1), (ranks == lasts) & (lasts > 1)

    def _compared(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Return the rewards of every two answers of which one is better, the better one's first; KTO's with its point of reference."""
        rewards = self.kind.rewards(scored)
        if self.kind.data == "answers":
            return torch.where(scored.desirable, rewards, scored.moment), torch.where(scored.desirable, scored.moment, rewards)
        ranks, table = scored.ranks, scored.rows(rewards)
        row, better, worse = ((ranks[:, :, None] > 0) & (ranks[:, None, :] > ranks[:, :, None])).nonzero(as_tuple=True)
        return table[row, better], table[row, worse]

    def check_start(self, loss: float, metrics: dict[str, float]) -> None:
        """Raise PreftuneError unless policy and reference agree before the first step: log-ratios 0, and the loss what that makes it."""
        if self.reference is None:
            return
        exact = unwrap(self.room.model).dtype == torch.float32
        apart = max(abs(metrics.get("logprobs/chosen", 0.0)), abs(metrics.get("logprobs/rejected", 0.0)))
        fix = "The reference is not what training starts from: delete the unfinished run and start it again."
        if apart > (1e-3 if exact else 0.1):
            raise PreftuneError(f"policy and reference differ by {apart:.4f} nats before anything was learned", "DPO step 1", fix)
        if self.kind.start is None:
            return
        expected = self.kind.start(self.settings)
        found = loss - self.settings.nll_weight * metrics.get("loss/nll", 0.0)
        if abs(found - expected) > (1e-2 if exact else 0.2) * max(1.0, abs(expected)):
            raise PreftuneError(
                f"the loss is {found:.4f} before anything was learned, where {self.config.loss} starts at {expected:.4f}", "DPO step 1", fix
            )

    def remember(self, metrics: dict[str, float], state: dict[str, Any]) -> None:
        """Keep what later steps need, and say once where chosen and rejected both fall."""
        if self.kind.moment == "shift":
            state["rewards"] = [before + now for before, now in zip(state["rewards"], self.seen, strict=True)]
        suffix = "" if self.reference else "_per_token"
        named = [f"logprobs/{side}{suffix}" for side in ("chosen", "rejected")]
        if not metrics.keys() >= set(named):  # a step of good answers alone, or of ties
            return
        now = [metrics[name] for name in named]
        early, late = state.setdefault("early", []), state.setdefault("late", [])
        if len(early) < BOTH_FALL_STEPS:
            early.append([0.0, 0.0] if self.reference else now)
        late.append(now)
        del late[:-BOTH_FALL_STEPS]
        chosen, rejected = (sum(row[i] for row in late) / len(late) - sum(row[i] for row in early) / len(early) for i in (0, 1))
        limit = -BOTH_FALL_NATS if self.reference else -BOTH_FALL_NATS_A_TOKEN
        if len(late) == BOTH_FALL_STEPS and max(chosen, rejected) < limit and not state.get("warnings"):
            unit = "an answer" if self.reference else "a token"
            said = (
                f"Chosen and rejected both fall: over the last {BOTH_FALL_STEPS} steps the chosen answers are {-chosen:.2g} nats {unit} "
                f"less likely than at the start, the rejected ones {-rejected:.2g}. The probability goes to answers that nobody judged. "
                "A lower lr, a higher beta, or nll_weight (loss=rpo, or loss=dpop) hold the chosen ones up."
            )
            state["warnings"] = [said]
            self.progress.note(said)


def plan(config: DPOConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it."""
    room = open_room(resolved(config, out)[0], out, Silent())
    _, encoded = _encode(config, room)
    return settle(config, room, lambda room: _planned(config, room, encoded), Silent())[1]


def _planned(config: DPOConfig, room: Room, encoded: Encoded) -> Plan:
    kind = LOSSES[config.loss]
    learned = [replace(group, completions=group.completions[_learned(kind)]) for group in encoded.groups]
    return make_plan(
        "dpo",
        room.model,
        encoded,
        steps_of(learned, steps=_steps(config, encoded), batch_size=config.batch_size, seed=config.seed),
        lambda part: batch_logprobs(room.model, room.batch(part))[0],
        token_budget=config.token_budget,
        before=encoded.groups if kind.reference else (),
        forward_passes=float(kind.moment in ("matched", "kl")) + float(config.reference_update is not None),
    )


def _learned(kind: LossKind) -> slice:
    """Return which of a row's answers are learned from."""
    return OWN if kind.data == "answers" else ALL


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
