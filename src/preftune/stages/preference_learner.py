"""What a preference loss is computed from in a run: the policy's and the reference's log-probs, and what it needs of a whole batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from preftune.data.batches import Encoded, Group
from preftune.errors import PreftuneError
from preftune.losses.preference import kto_kl, length_desensitised, matched_by_rank, nll
from preftune.losses.reduce import sequence_sum, to_sequences
from preftune.losses.reward import accuracy
from preftune.models.load import batch_logprobs, unwrap
from preftune.parallel import world
from preftune.progress import Progress
from preftune.stages.common import Room
from preftune.stages.preference_config import DPOConfig
from preftune.stages.preference_data import Preferences
from preftune.stages.preference_losses import LOSSES, LossKind, Scored, margins, two
from preftune.training.moving import MovingReference
from preftune.training.reference import Reference, reference_logprobs
from preftune.training.step import Loss, Step, mean_metric, micro_batches

SHIFT = "reward/train"  # of all answers, which bco takes off the rewards of later steps
OWN, OF_ANOTHER, ALL = slice(0, 1), slice(1, 2), slice(None)  # of KTO's answers: the row's own, that of another prompt
BOTH_FALL_STEPS = 10  # the mean over so many steps is looked at
BOTH_FALL_NATS = 1.0  # an answer; below, it may be the batch's luck
BOTH_FALL_NATS_A_TOKEN = 0.1  # where there is no reference to compare with, only the first steps


def learned(kind: LossKind) -> slice:
    """Return which of a row's answers are learned from."""
    return OWN if kind.data == "answers" else ALL


class Learner:
    """The loss of a run: its reference, and what it measures over a whole batch before a step."""

    def __init__(self, room: Room, config: DPOConfig, data: Preferences, encoded: Encoded, progress: Progress) -> None:
        self.room, self.config, self.progress, self.rows = room, config, progress, data.rows
        self.kind: LossKind = LOSSES[config.loss]
        self.settings = config.settings
        self.weights = torch.tensor([row.weight for row in data.rows])
        self.moments: dict[int, float] = {}  # by the row's place in the data
        self.learned = learned(self.kind)
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
        """Return what the groups weigh together."""
        return float(self.weights[[g.index for g in groups]].sum())

    def loss(self, groups: list[Group]) -> Loss:
        """Return the loss of each group, and what tells trouble."""
        scored = self.score(groups, self.learned)
        values = self.kind.values(scored, self.settings)
        metrics = self.metrics(scored, groups)
        if self.kind.moment == "shift":
            metrics[SHIFT] = (self.settings.beta * float(scored.logratios.detach().sum()), len(scored.logratios))
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

    def look_at(self, picked: Sequence[Group], state: dict[str, Any]) -> None:
        """Measure, before a step, what the loss takes from its whole batch, so that how the batch is cut changes nothing."""
        parts = micro_batches(picked, self.config.token_budget)
        order = [group.index for part in parts for group in part]
        match self.kind.moment:
            case "shift":
                total, count = state.setdefault("rewards", [0.0, 0])  # of all answers of the steps before
                self.moments = dict.fromkeys(order, total / count if count else 0.0)
            case "matched":
                scored = world.spread(parts, lambda part: self._sums(part, ALL))
                policy, reference = (torch.cat([margins(x) for x in found]) for found in zip(*scored, strict=True))
                self.moments = dict(zip(order, matched_by_rank(policy, reference).tolist(), strict=True))
            case "kl":
                scored = world.spread(parts, lambda part: self._sums(part, OF_ANOTHER))
                logratios = torch.cat([sums - ref_sums for sums, ref_sums in scored])
                self.moments = dict.fromkeys(order, float(kto_kl(logratios)))

    @torch.no_grad()
    def _sums(self, groups: list[Group], which: slice) -> tuple[Tensor, Tensor]:
        scored = self.score(groups, which)
        return scored.sums.cpu(), scored.ref_sums.cpu()

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

    def remember(self, done: Step, state: dict[str, Any]) -> None:
        """Keep what later steps need, and say once where chosen and rejected both fall."""
        metrics = done.metrics
        if self.kind.moment == "shift":
            state["rewards"] = [before + now for before, now in zip(state["rewards"], done.sums[SHIFT], strict=True)]
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
