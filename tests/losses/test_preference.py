"""DPO: hand cases, a slow loop in plain Python from token log-probs on, and its slope."""

from __future__ import annotations

import math
import random

import pytest
import torch

from preftune.data.batches import Group, collate
from preftune.errors import ShapeError
from preftune.losses.preference import dpo
from preftune.losses.reduce import sequence_sum


def pair(chosen: float, rejected: float) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected))


# log π −12 and −15, log ref −13 and −14: log-ratios 1 and −1.
@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.598139), (0.1, 0.618139)])
def test_the_hand_cases(smoothing, expected):
    loss = dpo(*pair(-12 + 13, -15 + 14), beta=0.1, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_slope_of_the_hand_case():
    chosen, rejected = pair(1, -1)
    dpo(chosen, rejected, beta=0.1, label_smoothing=0.0).sum().backward()
    assert float(chosen.grad) == pytest.approx(-0.045017, abs=1e-6)
    assert float(rejected.grad) == pytest.approx(0.045017, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_policy_equal_to_reference_gives_log_two(beta, smoothing):
    zero = torch.zeros(3, dtype=torch.float64)
    assert dpo(zero, zero, beta=beta, label_smoothing=smoothing).tolist() == pytest.approx([math.log(2)] * 3, abs=1e-12)


def slow_dpo(policy: list[list[float]], reference: list[list[float]], beta: float, smoothing: float) -> list[float]:
    """Rafailov et al., eq. 7, token by token; rows come as chosen, rejected, chosen, rejected, …"""
    losses = []
    for i in range(0, len(policy), 2):
        ratios = []
        for answer in (i, i + 1):
            total = 0.0
            for ours, theirs in zip(policy[answer], reference[answer], strict=True):
                total += ours - theirs
            ratios.append(total)
        p = 1 / (1 + math.exp(-beta * (ratios[0] - ratios[1])))
        losses.append(-(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p))
    return losses


@pytest.mark.parametrize("tree", [True, False])
def test_from_token_log_probs_on_it_equals_a_slow_loop(tree):
    draw = random.Random(0)
    lengths = [(3, 7), (1, 1), (5, 2)]
    groups = [Group((1, 2), tuple(tuple([3] * n) for n in both), i) for i, both in enumerate(lengths)]
    policy, reference = ([[draw.uniform(-3, 0) for _ in range(n)] for both in lengths for n in both] for _ in range(2))
    batch = collate(groups, 0, tree=tree)
    sums = []
    for rows in (policy, reference):
        table = torch.full(batch.ids.shape, 1e6, dtype=torch.float64)  # what stands on prompts and padding must not matter
        for which, row in enumerate(rows):
            table[batch.sequence == which] = torch.tensor(row, dtype=torch.float64)
        sums.append(sequence_sum(table, batch.sequence, batch.num_sequences))
    ratios = sums[0] - sums[1]
    ours = dpo(ratios[0::2], ratios[1::2], beta=0.3, label_smoothing=0.1)
    assert ours.tolist() == pytest.approx(slow_dpo(policy, reference, 0.3, 0.1), abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_is_that_of_central_differences(smoothing):
    generator = torch.Generator().manual_seed(2)
    ratios = [3 * torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda c, r: dpo(c, r, beta=0.7, label_smoothing=smoothing), [x.requires_grad_() for x in ratios])


def test_hundreds_of_nats_neither_overflow_nor_lose_the_slope():
    chosen = torch.tensor([-900.0], requires_grad=True)
    loss = dpo(chosen, torch.zeros(1), beta=1.0, label_smoothing=0.0)
    loss.sum().backward()
    assert (loss.item(), chosen.grad.item()) == (900, -1)


def test_tensors_of_different_lengths_are_refused():
    with pytest.raises(ShapeError, match=r"chosen_logratios is \[2\] but rejected_logratios is \[3\]"):
        dpo(torch.zeros(2), torch.zeros(3), beta=0.1, label_smoothing=0.0)
    with pytest.raises(ShapeError, match=r"chosen_logratios is \[2, 1\] but should be \[P\]"):
        dpo(torch.zeros(2, 1), torch.zeros(2, 1), beta=0.1, label_smoothing=0.0)
