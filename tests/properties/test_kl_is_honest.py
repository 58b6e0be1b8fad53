"""KL is honest: on a small vocabulary with every sequence enumerated, the estimators, the rewards and PPO's first gradient are exact.

Law 9; the other laws are in test_laws.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.losses.advantages import gae, token_rewards
from preftune.losses.kl import k1, k3
from preftune.losses.policy import clipped_surrogate

many = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31)


def draws(seed: int, *shape: int, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def rows_of(lengths: list[int], width: int, *, left: bool) -> Tensor:
    places = torch.arange(width)[None]
    counts = torch.tensor(lengths)[:, None]
    return places >= width - counts if left else places < counts


# Three tokens, every sequence of up to three of them, the first token ends one.

VOCABULARY, LENGTH = 3, 3
SEQUENCES = [
    s
    for n in range(1, LENGTH + 1)
    for s in itertools.product(range(VOCABULARY), repeat=n)
    if 0 not in s[:-1] and (s[-1] == 0 or n == LENGTH)
]
STATES = [p for n in range(LENGTH) for p in itertools.product(range(1, VOCABULARY), repeat=n)]
MASK = rows_of([len(s) for s in SEQUENCES], LENGTH, left=False)


def enumerated(logits: Tensor) -> Tensor:
    """The log-prob of each token of each sequence, [S, N], of a model that is a table of logits, one row a state."""
    logprobs = logits.log_softmax(-1)
    rows = [torch.stack([logprobs[STATES.index(s[:t]), s[t]] for t in range(len(s))]) for s in SEQUENCES]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def exact_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL between two models over whole sequences, by its definition."""
    one, two = enumerated(first).sum(1), enumerated(second).sum(1)
    return (one.exp() * (one - two)).sum()


def slope_of(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    logits = at.clone().requires_grad_()
    function(logits).backward()
    return logits.grad


@given(seed=seeds)
@many
def test_both_estimators_expect_the_kl_and_k3_is_never_negative(seed):
    policy, reference = draws(seed, len(STATES), VOCABULARY, count=2)
    ours, theirs = enumerated(policy), enumerated(reference)
    probabilities = ours.sum(1).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    exact = exact_kl(policy, reference).item()
    assert exact >= 0
    for estimator in (k1, k3):
        values = estimator(ours, theirs, MASK)
        assert (probabilities * values.sum(1)).sum().item() == pytest.approx(exact, abs=1e-9)
    assert bool((k3(ours, theirs, MASK) >= 0).all())
    whole = [x.sum(1, keepdim=True) for x in (ours, theirs)]
    one = torch.ones(len(SEQUENCES), 1, dtype=torch.bool)
    assert (probabilities * k3(*whole, one)[:, 0]).sum().item() == pytest.approx(exact, abs=1e-9)


@given(kl_coef=st.floats(0, 2), seed=seeds)
@many
def test_token_rewards_sum_to_the_score_less_the_weighted_log_ratio(kl_coef, seed):
    mask = rows_of([4, 1, 3], 4, left=False)
    ours, theirs = draws(seed, 3, 4, count=2)
    scores = draws(seed + 1, 3)[0]
    sums = token_rewards(ours, theirs, scores, mask, kl_coef=kl_coef).sum(1)
    for row, n in enumerate((4, 1, 3)):
        ratio = math.fsum((ours - theirs)[row, :n].tolist())
        assert sums[row].item() == pytest.approx(scores[row].item() - kl_coef * ratio, abs=1e-9)


@given(kl_coef=st.floats(0, 2), seed=seeds)
@many
def test_ppos_first_gradient_is_that_of_the_expected_score_less_the_weighted_kl(kl_coef, seed):
    # Rewards, rewards-to-go as advantages, the surrogate at ratio 1: on all sequences, each as often as the policy writes it.
    policy, reference = draws(seed, len(STATES), VOCABULARY, count=2)
    scores = draws(seed + 1, len(SEQUENCES))[0]
    ours = enumerated(policy)
    rewards = token_rewards(ours, enumerated(reference), scores, MASK, kl_coef=kl_coef)
    baseline = draws(seed + 2, len(STATES))[0]  # any value of a state: it shifts the advantages and not what is expected of them
    values = torch.nn.utils.rnn.pad_sequence(
        [torch.stack([baseline[STATES.index(s[:t])] for t in range(len(s))]) for s in SEQUENCES], batch_first=True
    )
    advantages = gae(rewards, values, MASK, gamma=1.0, gae_lambda=1.0).advantages

    def surrogate(logits: Tensor) -> Tensor:
        losses = clipped_surrogate(enumerated(logits), ours, advantages, MASK, clip_range=0.2)
        return (ours.sum(1).exp() * losses.sum(1)).sum()

    def aim(logits: Tensor) -> Tensor:
        return kl_coef * exact_kl(logits, reference) - (enumerated(logits).sum(1).exp() * scores).sum()

    torch.testing.assert_close(slope_of(surrogate, policy), slope_of(aim, policy), rtol=0, atol=1e-9)


@given(seed=seeds)
@many
def test_as_a_loss_on_the_sequences_log_ratio_k1_pulls_nowhere_and_k3_the_other_way_round(seed):
    policy, reference = draws(seed, len(STATES), VOCABULARY, count=2)
    probabilities, theirs = enumerated(policy).sum(1).exp(), enumerated(reference).sum(1, keepdim=True)
    one = torch.ones(len(SEQUENCES), 1, dtype=torch.bool)

    def expected(estimator) -> Tensor:
        return slope_of(
            lambda logits: (probabilities * estimator(enumerated(logits).sum(1, keepdim=True), theirs, one)[:, 0]).sum(), policy
        )

    torch.testing.assert_close(expected(k1), torch.zeros_like(policy), rtol=0, atol=1e-9)
    torch.testing.assert_close(expected(k3), slope_of(lambda logits: exact_kl(reference, logits), policy), rtol=0, atol=1e-8)
