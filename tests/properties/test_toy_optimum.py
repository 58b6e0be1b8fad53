"""Each method, run to its fixed point on a toy whose optimum is known exactly: ref · exp(r / β) / Z.

The toy: 8 tokens, completions of 5 of them, so 32,768 completions, each with a reward of its own drawn from N(0, 0.7²); a policy, a
reference and a critic that are tables, one row for each of the 4,681 beginnings; β = 1. Every expectation over the whole toy can be taken
exactly, so how far a policy is from the optimum is no estimate.

What is real: the losses, advantages, KL and token rewards are the package's own, put together as the stages put them together, and the
completions are sampled anew from the policy at every step (for DPO: pairs over the full support, labelled by P(first is better) of the
reward). What is not: the transformer, the sampler, and the stages' loop, which tests/whole covers; a run of theirs to a fixed point would
take minutes. Unclipped and on-policy, as the law is stated; GRPO with its KL in the reward (`kl_in: reward`). With k3 in its loss, as
published, it goes to another fixed point, which the last test pins.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from preftune.losses.advantages import gae, group_relative, leave_one_out, token_rewards, whiten
from preftune.losses.kl import k1, k3
from preftune.losses.policy import clipped_value_loss, policy_ratio, sequence_ratio, surrogate
from preftune.losses.preference import dpo
from preftune.losses.reduce import token_weights, weighted_sum

TOKENS, LENGTH, BETA = 8, 5, 1.0
STEPS, COMPLETIONS, GROUP = 160, 6144, 8
OFFSETS = [(TOKENS**t - 1) // (TOKENS - 1) for t in range(LENGTH + 1)]  # where the beginnings of length t start in a table
PLACES = torch.tensor([TOKENS ** (LENGTH - 1 - t) for t in range(LENGTH)])
MASK = torch.ones(COMPLETIONS, LENGTH, dtype=torch.bool)


def beginnings(ids: Tensor) -> Tensor:
    """Return the row of the table that each token of completions [S, 5] is drawn from."""
    prefix = torch.zeros(len(ids), dtype=torch.long)
    rows = []
    for t in range(LENGTH):
        rows.append(OFFSETS[t] + prefix)
        prefix = prefix * TOKENS + ids[:, t]
    return torch.stack(rows, 1)


def logprobs_of(table: Tensor, ids: Tensor) -> Tensor:
    return table[beginnings(ids)].log_softmax(-1).gather(2, ids[..., None]).squeeze(2)


def sample(table: Tensor, generator: torch.Generator) -> Tensor:
    cumulative = table.softmax(-1).cumsum(-1)
    prefix, ids = torch.zeros(COMPLETIONS, dtype=torch.long), []
    for t in range(LENGTH):
        row = cumulative[OFFSETS[t] + prefix]
        drawn = torch.searchsorted(row, torch.rand(COMPLETIONS, 1, generator=generator) * row[:, -1:], right=True)
        ids.append(drawn.squeeze(1).clamp(max=TOKENS - 1))
        prefix = prefix * TOKENS + ids[-1]
    return torch.stack(ids, 1)


class World:
    """The toy's reference, rewards and exact optimum."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ref = torch.randn(OFFSETS[LENGTH], TOKENS, generator=generator)
        self.rewards = 0.7 * torch.randn(TOKENS**LENGTH, generator=generator)
        self.all = torch.cartesian_prod(*[torch.arange(TOKENS)] * LENGTH)
        self.log_optimum = (logprobs_of(self.ref, self.all).double().sum(1) + self.rewards.double() / BETA).log_softmax(0)

    def scores(self, ids: Tensor) -> Tensor:
        return self.rewards[(ids * PLACES).sum(1)]

    def distance(self, table: Tensor) -> float:
        """Return KL(policy ‖ optimum), nats, over all completions."""
        logprobs = logprobs_of(table, self.all).double().sum(1)
        return float((logprobs.exp() * (logprobs - self.log_optimum)).sum())


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def group_loss(method: str, world: World, policy: Tensor, ids: Tensor) -> Tensor:
    new, ref = logprobs_of(policy, ids), logprobs_of(world.ref, ids)
    old = new.detach()
    rewards = (world.scores(ids) - BETA * k1(old, ref, MASK).sum(1)).view(-1, GROUP)
    advantages = (leave_one_out(rewards) if method == "rloo" else group_relative(rewards, scale=True)).flatten()[:, None]
    ratio = sequence_ratio(new, old, MASK, mean=False) if method == "rloo" else policy_ratio(new, old, MASK)
    values = surrogate(ratio, advantages.expand(-1, LENGTH), MASK, clip=None)
    return weighted_sum(values, token_weights(MASK, "sequences", longest=LENGTH)) / COMPLETIONS


def ppo_loss(world: World, policy: Tensor, critic: Tensor, ids: Tensor) -> Tensor:
    new, ref, values = logprobs_of(policy, ids), logprobs_of(world.ref, ids), critic[beginnings(ids)]
    old = new.detach()
    rewards = token_rewards(old, ref, world.scores(ids), MASK, kl_coef=BETA)
    estimate = gae(rewards, values.detach(), MASK, gamma=1.0, gae_lambda=0.95)
    losses = surrogate(policy_ratio(new, old, MASK), whiten(estimate.advantages, MASK), MASK, clip=None)
    return losses.mean() + clipped_value_loss(values, values.detach(), estimate.returns, MASK, clip_range=0.2).mean()


def dpo_loss(world: World, policy: Tensor, generator: torch.Generator) -> Tensor:
    ids = torch.randint(TOKENS, (2 * COMPLETIONS, LENGTH), generator=generator)
    first, second = (logprobs_of(policy, ids) - logprobs_of(world.ref, ids)).sum(1).view(2, -1)
    scores = world.scores(ids).view(2, -1)
    better = torch.sigmoid(scores[0] - scores[1])
    ahead, behind = (dpo(a, b, beta=BETA, label_smoothing=0.0) for a, b in ((first, second), (second, first)))
    return (better * ahead + (1 - better) * behind).mean()


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "dpo"])
def test_run_to_its_fixed_point_a_method_is_within_a_hundredth_of_a_nat_of_the_optimum(world, method):
    generator = torch.Generator().manual_seed(1)
    policy, critic = world.ref.clone().requires_grad_(), torch.zeros(OFFSETS[LENGTH], requires_grad=True)
    optimiser = torch.optim.Adam([policy, critic], betas=(0.9, 0.99))
    assert world.distance(policy.detach()) > 0.2
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / STEPS)
        if method == "dpo":
            loss = dpo_loss(world, policy, generator)
        else:
            ids = sample(policy.detach(), generator)
            loss = ppo_loss(world, policy, critic, ids) if method == "ppo" else group_loss(method, world, policy, ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert world.distance(policy.detach()) < 0.01


@pytest.mark.parametrize("scale", [False, True], ids=["dr_grpo", "grpo"])
def test_with_k3_in_the_loss_grpo_goes_to_another_fixed_point_and_to_which(scale):
    # Completions of one token, and every expectation exact. Where π (A − E A) = β (π − ref), the slope of KL(ref ‖ π), all pulls cancel:
    # π = ref · β / (β − A), a hyperbola and no exponential in the reward.
    generator = torch.Generator().manual_seed(2)
    ref = torch.randn(TOKENS, generator=generator, dtype=torch.float64).log_softmax(0)
    rewards = torch.linspace(-0.7, 0.7, TOKENS, dtype=torch.float64)
    beta = 3.0 if scale else 1.0
    policy, mask = ref.clone().requires_grad_(), torch.ones(TOKENS, 1, dtype=torch.bool)

    def advantages(share: Tensor) -> Tensor:
        centred = rewards - (share * rewards).sum()
        return centred / (share * centred**2).sum().sqrt() if scale else centred

    for _ in range(2000):
        new = policy.log_softmax(0)[:, None]
        old = new.detach()
        share = old.exp().squeeze(1)
        values = surrogate(policy_ratio(new, old, mask), advantages(share)[:, None], mask, clip=None) + beta * k3(new, ref[:, None], mask)
        (slope,) = torch.autograd.grad((share * values.squeeze(1)).sum(), policy)
        policy = (policy - 0.3 * slope).detach().requires_grad_()
    found = policy.detach().softmax(0)
    torch.testing.assert_close(found, ref.exp() * beta / (beta - advantages(found)), rtol=0, atol=1e-6)
    optimum = (ref + advantages(found) / beta).softmax(0)
    assert float((found * (found / optimum).log()).sum()) > 1e-3
