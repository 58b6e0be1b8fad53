"""Score sampled completions with a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from preftune.data.batches import Group, collate, split_by_budget
from preftune.losses.reduce import to_sequences
from preftune.models.heads import end_scores
from preftune.models.load import device_of
from preftune.tensors import TokenBatch

NO_END_SCORE = -2.0  # sd; what an answer counts that did not end by itself (N+, 2403.17031, uses −1 on the same scale)


@torch.no_grad()
def score(reward_model: nn.Module, groups: Sequence[Group], *, pad_id: int, token_budget: int, tree: bool = True) -> Tensor:
    """Return the raw score of every completion, float32 [S] on the CPU, in the groups' order."""
    parts: dict[int, Tensor] = {}
    for part in split_by_budget(groups, token_budget):
        scores = end_scores(reward_model, collate(part, pad_id, tree=tree).to(device_of(reward_model))).cpu()
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
    for part in split_by_budget(groups, token_budget):
        batch = collate(part, pad_id, tree=tree).to(device)
        values, mask = to_sequences(compute(batch), batch.sequence, batch.num_sequences)
        lengths = mask.sum(1).tolist()
        flat = iter([row[:n].cpu() for row, n in zip(values, lengths, strict=True)])
        for group in part:
            rows[id(group)] = [next(flat) for _ in group.completions]
    table = [row for group in groups for row in rows[id(group)]]
    padded = torch.nn.utils.rnn.pad_sequence(table, batch_first=True)
    lengths_all = torch.tensor([len(row) for row in table])
    return padded, torch.arange(padded.shape[1])[None] < lengths_all[:, None]
