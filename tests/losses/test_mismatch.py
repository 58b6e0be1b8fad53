"""The weight of samples that another policy drew, against numbers worked by hand and against every sequence of a small vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.errors import ShapeError
from preftune.losses.mismatch import Mismatch, mismatch, together, truncated_weights
from preftune.losses.policy import policy_ratio, sequence_ratio

ALL = torch.ones(1, 3, dtype=torch.bool)
SOME = torch.tensor([[True, True, False]])


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


TRAINER, SAMPLER = row(-0.5, -1.0, -0.2), row(-1.5, -0.8, -0.2)  # log-ratios 1, −0.2, 0


def test_the_weights_by_hand():
    trainer = TRAINER.clone().requires_grad_()
    ratio = policy_ratio(trainer, SAMPLER, ALL)
    weights = truncated_weights(ratio, ALL, cap=2.0)
    assert weights.tolist()[0] == pytest.approx([2.0, 0.818731, 1.0], abs=1e-6)  # e = 2.718282 is cut
    assert not weights.requires_grad
    assert truncated_weights(ratio, SOME, cap=2.0)[0, 2] == 1
    whole = sequence_ratio(TRAINER, SAMPLER, ALL, mean=False)
    assert truncated_weights(whole, ALL, cap=3.0).tolist()[0] == pytest.approx([2.225541] * 3, abs=1e-6)  # e^0.8
    assert truncated_weights(whole, ALL, cap=None).tolist() == [[1, 1, 1]]


def test_what_a_mask_leaves_out_is_nothing_even_where_it_is_nan():
    odd = row(-0.5, -1.0, math.nan)
    found = mismatch(odd, SAMPLER, policy_ratio(odd, SAMPLER, SOME), SOME, cap=2.0)
    assert found.tokens == 2
    assert all(math.isfinite(value) for value in found.told().values())
    assert truncated_weights(policy_ratio(odd, SAMPLER, SOME), SOME, cap=2.0).isfinite().all()
    nothing = mismatch(odd, SAMPLER, policy_ratio(odd, SAMPLER, ~ALL), ~ALL, cap=2.0)
    assert nothing == Mismatch()
    assert nothing.told() == {"mismatch/mean": 0.0, "mismatch/kl": 0.0, "mismatch/ess": 1.0, "mismatch/cut": 0.0}


def test_the_statistics_by_hand():
    found = mismatch(TRAINER, SAMPLER, policy_ratio(TRAINER, SAMPLER, ALL), ALL, cap=2.0)
    assert found.largest == pytest.approx(1.0)
    told = found.told()
    assert told["mismatch/mean"] == pytest.approx(0.4)  # (1 + 0.2 + 0)/3
    # k3 of μ against π: e^r − 1 − r with r = 1, −0.2, 0: 0.718282, 0.018731, 0
    assert told["mismatch/kl"] == pytest.approx(0.245671, abs=1e-6)
    # (2.718282 + 0.818731 + 1)² / (3 (7.389056 + 0.670320 + 1)) = 20.584487 / 27.178129
    assert told["mismatch/ess"] == pytest.approx(0.757392, abs=1e-6)
    assert told["mismatch/cut"] == pytest.approx(1 / 3)


def test_parts_add_up_to_the_whole():
    ratio = policy_ratio(TRAINER, SAMPLER, ALL)
    parts = [mismatch(TRAINER[:, at], SAMPLER[:, at], ratio[:, at], ALL[:, at], cap=2.0) for at in (slice(0, 1), slice(1, 3))]
    whole = mismatch(TRAINER, SAMPLER, ratio, ALL, cap=2.0)
    added = sum(parts, Mismatch())
    assert added.largest == whole.largest
    assert added.told() == pytest.approx(whole.told())


def test_a_micro_batch_that_two_processes_computed_counts_once():
    of_trainer = [mismatch(row(a), row(b), row(1.0), ALL[:, :1], cap=2.0) for a, b in ((-1.0, -1.3), (-1.0, -1.0), (-2.0, -1.4))]
    first, second, last = of_trainer
    found = together([{(4, 1): first, (0,): second}, {(2, 3): last, (0,): second}])
    assert found.tokens == 3
    assert found.mean == pytest.approx(0.3)  # (0.3 + 0 + 0.6)/3
    assert together([{}]) == Mismatch()


def test_policies_that_are_worlds_apart_give_numbers_all_the_same():
    far = mismatch(row(-1, -1), row(-900, -1), policy_ratio(row(-1, -1), row(-900, -1), ALL[:, :2]), ALL[:, :2], cap=2.0)
    assert far.told() == {name: pytest.approx(value, rel=1e-3) for name, value in far.told().items()}
    assert all(math.isfinite(value) for value in far.told().values())
    assert far.told()["mismatch/ess"] == pytest.approx(0.5)  # one of two weighs all


def toy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy and sampler over the 9 sequences of two of three tokens: logits [1 + 3, 3], first and then after each; rewards [9]."""
    generator = torch.Generator().manual_seed(3)
    policy, sampler = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return policy, sampler, torch.randn(9, generator=generator, dtype=torch.float64)


def sequences(logits: torch.Tensor) -> torch.Tensor:
    """Return the log-probs of both tokens of every sequence, [9, 2]."""
    logprobs = logits.log_softmax(1)
    return torch.stack([torch.stack([logprobs[0, a], logprobs[1 + a, b]]) for a in range(3) for b in range(3)])


def gradient(of: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(of, logits)[0]


@pytest.mark.parametrize("cap", [1e9, 2.0])
def test_weighed_by_the_whole_completion_the_expected_gradient_is_the_policys_own_unless_weights_are_cut(cap):
    policy, sampler, rewards = toy()
    policy.requires_grad_()
    new, drawn = sequences(policy), sequences(sampler)
    mask = torch.ones(9, 2, dtype=torch.bool)
    true = gradient((new.sum(1).exp() * rewards).sum(), policy)
    weights = truncated_weights(sequence_ratio(new, drawn, mask, mean=False), mask, cap=cap)
    # What the sampler expects, Σ over all sequences, of weight · reward · Σ over tokens of log π.
    found = gradient((drawn.sum(1).exp()[:, None] * weights * rewards[:, None] * sequences(policy)).sum(), policy)
    assert torch.allclose(found, true, atol=1e-12) == (cap > 1e6)
    unweighed = gradient((drawn.sum(1).exp() * rewards * sequences(policy).sum(1)).sum(), policy)
    assert float((found - true).norm()) < float((unweighed - true).norm())


def test_weighed_token_by_token_an_answer_of_one_token_is_unbiased():
    policy, sampler, rewards = toy()
    first = policy[:1].clone().requires_grad_()
    new, drawn, mask = first.log_softmax(1).T, sampler[:1].log_softmax(1).T, torch.ones(3, 1, dtype=torch.bool)
    true = gradient((new.exp()[:, 0] * rewards[:3]).sum(), first)
    weights = truncated_weights(policy_ratio(new, drawn, mask), mask, cap=1e9)
    found = gradient((drawn.exp() * weights * rewards[:3, None] * first.log_softmax(1).T).sum(), first)
    assert torch.allclose(found, true, atol=1e-12)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"ratio is \[1, 3\] but mask is \[1, 2\]"):
        truncated_weights(row(1, 1, 1), ALL[:, :2], cap=2.0)
