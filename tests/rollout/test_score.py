"""Scores and token tables come in the order of the groups, whatever batches they were computed in."""

from __future__ import annotations

import pytest
import torch

from preftune.data.batches import Group, collate
from preftune.models.heads import end_scores, with_scalar_head
from preftune.models.load import load_causal_lm
from preftune.rollout.score import score, token_table

CPU = torch.device("cpu")


def ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


# Lengths out of order, so that batches by length shuffle them; different numbers of completions.
GROUPS = [
    Group(ids(3, 1), (ids(2, 2), ids(5, 3)), 0),
    Group(ids(9, 4), (ids(7, 5),), 1),
    Group(ids(2, 6), (ids(1, 7), ids(4, 8), ids(2, 9)), 2),
]


@pytest.fixture(scope="module")
def reward_model(tiny_folder):
    return with_scalar_head(load_causal_lm(tiny_folder("llama"), device=CPU), seed=3)


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_scores_are_those_of_each_completion_alone_in_the_groups_order(reward_model, budget, tree):
    alone = [Group(g.prompt, (c,), 0) for g in GROUPS for c in g.completions]
    with torch.no_grad():
        expected = torch.cat([end_scores(reward_model, collate([one], 0)) for one in alone])
    together = score(reward_model, GROUPS, pad_id=0, token_budget=budget, tree=tree)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)
    assert not together.requires_grad


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_a_token_table_has_a_row_a_completion_left_aligned(budget, tree):
    # What is computed of each token is its id, so the table must spell out the completions.
    values, mask = token_table(lambda b: b.ids.float(), GROUPS, device=CPU, pad_id=0, token_budget=budget, tree=tree)
    completions = [c for g in GROUPS for c in g.completions]
    assert mask.sum(1).tolist() == [len(c) for c in completions]
    assert values.shape == (6, 7)
    for row, completion in enumerate(completions):
        assert values[row].tolist() == [*map(float, completion), *[0.0] * (7 - len(completion))]
