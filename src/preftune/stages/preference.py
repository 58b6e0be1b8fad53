"""Direct preference optimisation and its kin: the policy learns straight from preferences, without a reward model.

    reference log-probs of every answer: once, before the first step, kept in the project (not for simpo, cpo and orpo)
    for each optimiser step:
        take batch_size pairs (a function of the seed and the step); a pair is one row [prompt | chosen | rejected]
        h = Σ log π(answer) − Σ log ref(answer), for the chosen and the rejected answer
        loss = − log σ(beta (h_chosen − h_rejected)), the mean over pairs          Rafailov et al. 2305.18290, eq. 7
               (or another of `preference_losses.py`, as the key `loss` says; plus nll_weight · NLL of the chosen answer)
        one AdamW step

At step 0 policy and reference are the same, so every h is 0 and the loss has a known value (log 2 for DPO): the run checks that and
stops where it is not so. Start it with

    preftune train dpo data=snapshots/… model=base loss=ipo
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from preftune.data.batches import Encoded, Group, batch_indices, encode, split_by_budget
from preftune.errors import PreftuneError
from preftune.losses.preference import length_desensitised, matched_by_rank, nll
from preftune.losses.reduce import sequence_length, sequence_sum, to_sequences
from preftune.losses.reward import accuracy
from preftune.models.adapter import trainable
from preftune.models.load import batch_logprobs, unwrap
from preftune.progress import Progress, Silent
from preftune.stages.common import OfflineConfig, Room, finish, namer, open_room, pair_items, resolved, save_policy, start
from preftune.stages.preference_losses import ALSO_CALLED, LOSSES, LossKind, LossName, Scored, Settings, margins, two
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.reference import Reference, reference_logprobs
from preftune.training.step import Loss, mean_metric, train_step

LOSS_KEYS = ("beta", "label_smoothing", "gamma", "alpha", "nll_weight")
BOTH_FALL_STEPS = 10  # the mean over so many steps is looked at
BOTH_FALL_NATS = 1.0  # an answer; below, it may be the batch's luck
BOTH_FALL_NATS_A_TOKEN = 0.1  # where there is no reference to compare with, only the first steps


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
    gamma: float | None = Field(None, ge=0, description="margin asked for (simpo: 1); null = the loss's own")
    alpha: float | None = Field(
        None, ge=0, description="weight of the loss's second part (dpop: penalty, 50; ld_dpo: tail tokens, 0.5); null = the loss's own"
    )
    nll_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the chosen answer's NLL a token, added to the loss; null = the loss's own (rpo, cpo, orpo: 1; dpo: 0)",
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
    encoded = _encode(room)
    total = _steps(config, encoded)
    planned = _planned(config, room, encoded)
    for warning in planned.warnings():
        progress.note(warning)
    learner = _Learner(room, config, encoded, progress)
    optimiser = adamw(room.model, weight_decay=config.weight_decay)
    loop = Loop(work, name=config.loss, total=total, models={"policy": room.model}, optimisers={"policy": optimiser}, progress=progress)

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
            name_batch=namer(room.snapshot.train),
        )
        if step == 0:
            learner.check_start(done.loss, done.metrics)
        loop.log(step, {"loss/train": done.loss, **done.metrics, "lr": lr, "grad_norm": done.grad_norm})
        learner.remember(done.metrics, loop.state)
    save_policy(room, work.path)
    return finish(room, work, final, loop, encoded, planned, steps=total, warnings=loop.state.get("warnings", []))


class _Learner:
    """The loss of a run: its reference, and what it measures over a whole batch before a step."""

    def __init__(self, room: Room, config: DPOConfig, encoded: Encoded, progress: Progress) -> None:
        self.room, self.config, self.progress = room, config, progress
        self.kind: LossKind = LOSSES[config.loss]
        self.settings = config.settings
        self.weights = torch.tensor([pair.weight for pair in room.snapshot.train])
        self.moments: dict[int, float] = {}  # by the pair's place in the data
        self.reference: Reference | None = None
        if self.kind.reference:
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
        scored = self.score(groups)
        values = self.kind.values(scored, self.settings)
        metrics = self.metrics(scored)
        if self.settings.nll_weight:
            term = nll(two(scored.means)[0])
            metrics["loss/nll"] = mean_metric(term)
            values = values + self.settings.nll_weight * term
        return Loss(values, self.weights[[g.index for g in groups]].to(values.device), metrics)

    def score(self, groups: Sequence[Group]) -> Scored:
        """Return the log-probs of the groups' answers, with gradient where it is on."""
        batch = self.room.batch(groups)
        logprobs, _ = batch_logprobs(self.room.model, batch)
        lengths = sequence_length(batch.sequence, batch.num_sequences)
        if self.config.loss == "ld_dpo":
            sums = self._desensitised(*to_sequences(logprobs, batch.sequence, batch.num_sequences), lengths)
        else:
            sums = sequence_sum(logprobs, batch.sequence, batch.num_sequences)
        moment = torch.tensor([self.moments.get(g.index, 0.0) for g in groups], dtype=sums.dtype, device=sums.device)
        return Scored(sums, self._ref_sums(groups, lengths).to(sums.device), lengths, moment)

    def _ref_sums(self, groups: Sequence[Group], lengths: Tensor) -> Tensor:
        if self.reference is None:
            return torch.full(lengths.shape, math.nan)  # so that a formula which reads it shows
        if self.config.loss != "ld_dpo":
            return self.reference.sums(groups)
        rows = pad_sequence([row for g in groups for row in self.reference.tokens[g.index]], batch_first=True)
        return self._desensitised(rows, torch.arange(rows.shape[1]) < lengths.cpu()[:, None], lengths.cpu())

    def _desensitised(self, logprobs: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        shared = torch.minimum(*two(lengths)).repeat_interleave(2)
        return length_desensitised(logprobs, mask, shared, tail_weight=self.settings.alpha)

    def look_at(self, picked: list[Group], state: dict[str, Any]) -> None:
        """Measure, before a step, what the loss takes from its whole batch, so that how the batch is cut changes nothing."""
        match self.kind.moment:
            case "shift":
                seen = state.setdefault("rewards", [0.0, 0.0])  # their sum and their number, over all steps before
                self.moments = dict.fromkeys((g.index for g in picked), seen[0] / seen[1] if seen[1] else 0.0)
            case "matched":
                with torch.no_grad():
                    parts = split_by_budget(picked, self.config.token_budget)
                    scored = [self.score(part) for part in parts]
                policy, reference = (
                    torch.cat([margins(x) for x in rows]) for rows in ([s.sums for s in scored], [s.ref_sums for s in scored])
                )
                order = [g.index for part in parts for g in part]
                self.moments = dict(zip(order, matched_by_rank(policy, reference).tolist(), strict=True))

    def metrics(self, scored: Scored) -> dict[str, tuple[float, float]]:
        """Return what tells trouble: the two sides apart, and by how much they are."""
        rewards = two(self.kind.rewards(scored))
        means, lengths = two(scored.means), two(scored.lengths)
        told = {
            "accuracy/train": mean_metric(accuracy(*rewards)),
            "margin/train": mean_metric(self.settings.beta * (rewards[0] - rewards[1])),
            "logprobs/chosen_per_token": mean_metric(means[0]),
            "logprobs/rejected_per_token": mean_metric(means[1]),
            "length/chosen": mean_metric(lengths[0]),
            "length/rejected": mean_metric(lengths[1]),
        }
        if self.reference is not None:
            chosen, rejected = scored.pairs
            told["logprobs/chosen"] = mean_metric(chosen)
            told["logprobs/rejected"] = mean_metric(rejected)
            told["logprobs/both_fall"] = mean_metric(((chosen < 0) & (rejected < 0)).float())
        return told

    def check_start(self, loss: float, metrics: dict[str, float]) -> None:
        """Raise PreftuneError unless policy and reference agree before the first step: log-ratios 0, and the loss what that makes it."""
        if self.reference is None:
            return
        exact = unwrap(self.room.model).dtype == torch.float32
        apart = max(abs(metrics["logprobs/chosen"]), abs(metrics["logprobs/rejected"]))
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
            seen = state["rewards"]
            seen[0] += self.settings.beta * (metrics["logprobs/chosen"] + metrics["logprobs/rejected"]) / 2
            seen[1] += 1
        suffix = "" if self.reference else "_per_token"
        now = [metrics[f"logprobs/{side}{suffix}"] for side in ("chosen", "rejected")]
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
    encoded = _encode(room)
    return _planned(config, room, encoded)


def _planned(config: DPOConfig, room: Room, encoded: Encoded) -> Plan:
    kind = LOSSES[config.loss]
    return make_plan(
        "dpo",
        room.model,
        encoded,
        steps_of(encoded.groups, steps=_steps(config, encoded), batch_size=config.batch_size, seed=config.seed),
        lambda part: batch_logprobs(room.model, room.batch(part))[0],
        token_budget=config.token_budget,
        before=encoded.groups if kind.reference else (),
        forward_passes=float(kind.moment == "matched"),
    )


def _encode(room: Room) -> Encoded:
    return encode(room.renderer, pair_items(room.snapshot.train), max_tokens=room.max_tokens)


def _steps(config: DPOConfig, encoded: Encoded) -> int:
    return config.epochs * -(-len(encoded.groups) // config.batch_size)
