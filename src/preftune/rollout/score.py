"""Score completions: by a reward model, by the heads of an ensemble, or by what a DPO run holds for better (its implicit reward)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preftune.data.batches import Group, collate, split_by_budget
from preftune.data.template import Renderer
from preftune.errors import ModelError
from preftune.losses.reduce import sequence_length, sequence_sum, to_sequences
from preftune.manifest import MANIFEST, read_manifest
from preftune.models.adapter import adapter_off
from preftune.models.heads import end_scores, load_reward_heads, read_members
from preftune.models.load import (
    base_of,
    batch_logprobs,
    device_of,
    find_device,
    load_causal_lm,
    load_renderer,
    max_context,
    tree_rows_agree,
)
from preftune.parallel import world
from preftune.tensors import TokenBatch

NO_END_SCORE = -2.0  # sd; what an answer counts that did not end by itself (N+, 2403.17031, uses −1 on the same scale)
Read = Callable[[TokenBatch], Tensor]


@dataclass(frozen=True)
class Scorer:
    """What gives completions a number, whatever it is made of.

    renderer: what turns text into the tokens that it reads. max_tokens: the longest prompt and completion that it can read.
    mean, deviation: float [], or [N] of an ensemble: of its raw scores over the training answers; 0 and 1 where that was not measured.
    read: TokenBatch → its raw scores. tree: whether it reads shared-prompt rows.
    """

    path: Path
    renderer: Renderer
    device: torch.device
    max_tokens: int
    mean: Tensor
    deviation: Tensor
    read: Read
    tree: bool

    @property
    def num_scores(self) -> int:
        """How many numbers a completion gets: 1, or the N heads of an ensemble."""
        return self.mean.numel()

    def score(self, groups: Sequence[Group], *, token_budget: int = 2048) -> Tensor:
        """Return the raw score of every completion, float32 [S] on the CPU, or [S, N] of an ensemble, in the groups' order.

        groups: in this scorer's own tokens, each completion with its end token.
        """
        return _in_order(self.read, groups, self.device, pad_id=self.renderer.pad_id, token_budget=token_budget, tree=self.tree)

    def standardised(self, groups: Sequence[Group], *, token_budget: int = 2048) -> Tensor:
        """Return the scores in standard deviations from the mean over the training answers, each head in its own; shape as of `score`."""
        return (self.score(groups, token_budget=token_budget) - self.mean) / self.deviation


def load_scorer(path: Path, *, device: torch.device | None = None, model: nn.Module | None = None) -> Scorer:
    """Return what scores completions: a run of train reward (an ensemble gives N scores), a reward model's folder, or a run of train dpo.

    A DPO run's score is its implicit reward, β · (log π − log ref) summed over the completion's tokens (Rafailov et al. 2305.18290, §4),
    known up to a constant for each prompt; with an adapter, policy and reference share one base in memory.
    model: the reward model of this run with its heads, where it is in memory already.
    Raises ModelError where the folder gives no score.
    """
    device = device or find_device()
    kind = read_manifest(path).get("kind") if (path / MANIFEST).exists() else "reward"
    renderer = load_renderer(path)
    if kind == "reward":
        model = model or load_reward_heads(path, device=device).requires_grad_(False)
        members = torch.tensor(read_members(path))
        mean, deviation = members[0] if len(members) == 1 else members.T
        read: Read = partial(end_scores, model)
        tree = tree_rows_agree(model, read=read)
    elif kind == "dpo":
        model, read = _implicit(path, device)
        mean, deviation = torch.tensor(0.0), torch.tensor(1.0)
        tree = tree_rows_agree(model)
    else:
        raise ModelError(f"a {kind} folder gives no score", str(path), "Give a run of train reward, or of train dpo.")
    return Scorer(path, renderer, device, max_context(model), mean, deviation, read, tree)


def _implicit(run: Path, device: torch.device) -> tuple[nn.Module, Read]:
    """Return a DPO run's policy, and what reads its implicit reward: TokenBatch → float [S]."""
    manifest = read_manifest(run)
    known: dict[str, Any] | None = manifest.get("implicit_reward")
    if known is None:
        loss = manifest["config"]["loss"]
        what = f'a run with loss "{loss}" compares with no fixed reference, so it implies no reward'
        raise ModelError(what, str(run), "Give a run with a loss such as dpo, without reference_update, or one of train reward.")
    if (run / "model").exists():
        policy: nn.Module = load_causal_lm(run, device=device)
        reference: nn.Module | None = load_causal_lm(base_of(run), device=device).requires_grad_(False)
    else:
        from peft import PeftModel

        policy, reference = PeftModel.from_pretrained(load_causal_lm(base_of(run), device=device), str(run / "adapter")), None
    policy.requires_grad_(False).eval()

    def read(batch: TokenBatch) -> Tensor:
        logprobs, _ = batch_logprobs(policy, batch)
        if reference is not None:
            ref_logprobs, _ = batch_logprobs(reference, batch)
        else:
            with adapter_off(policy):
                ref_logprobs, _ = batch_logprobs(policy, batch)
        logratios = sequence_sum(logprobs - ref_logprobs, batch.sequence, batch.num_sequences)
        if known["per_token"]:
            logratios = logratios / sequence_length(batch.sequence, batch.num_sequences)
        rewards: Tensor = known["beta"] * logratios
        return rewards

    return policy, read


def score(reward_model: nn.Module, groups: Sequence[Group], *, pad_id: int, token_budget: int, tree: bool = True) -> Tensor:
    """Return the raw score of every completion, float32 [S] on the CPU, or [S, N] of N heads, in the groups' order."""
    read = partial(end_scores, reward_model)
    return _in_order(read, groups, device_of(reward_model), pad_id=pad_id, token_budget=token_budget, tree=tree)


@torch.no_grad()
def _in_order(read: Read, groups: Sequence[Group], device: torch.device, *, pad_id: int, token_budget: int, tree: bool) -> Tensor:
    parts: dict[int, Tensor] = {}
    batches = split_by_budget(groups, token_budget, shares=world.size())
    found = world.spread(batches, lambda part: read(collate(part, pad_id, tree=tree).to(device)).float().cpu())
    for part, scores in zip(batches, found, strict=True):
        for group, own in zip(part, scores.split([len(g.completions) for g in part]), strict=True):
            parts[id(group)] = own
    return torch.cat([parts[id(g)] for g in groups])


@torch.no_grad()
def token_table(
    compute: Callable[[TokenBatch], Tensor], groups: Sequence[Group], *, device: torch.device, pad_id: int, token_budget: int, tree: bool
) -> tuple[Tensor, Tensor]:
    """Return (values [S, N], mask [S, N]) on the CPU: what `compute` says of each completion token, a row a completion.

    compute: TokenBatch → float [B, T]. Rows are left-aligned, in the groups' order, 0 where the mask is False.
    """
    rows: dict[int, list[Tensor]] = {}

    def said(part: list[Group]) -> list[Tensor]:
        batch = collate(part, pad_id, tree=tree).to(device)
        values, mask = to_sequences(compute(batch), batch.sequence, batch.num_sequences)
        return [row[:n].cpu() for row, n in zip(values, mask.sum(1).tolist(), strict=True)]

    batches = split_by_budget(groups, token_budget, shares=world.size())
    for part, found in zip(batches, world.spread(batches, said), strict=True):
        flat = iter(found)
        for group in part:
            rows[id(group)] = [next(flat) for _ in group.completions]
    table = [row for group in groups for row in rows[id(group)]]
    padded = torch.nn.utils.rnn.pad_sequence(table, batch_first=True)
    lengths_all = torch.tensor([len(row) for row in table])
    return padded, torch.arange(padded.shape[1])[None] < lengths_all[:, None]
