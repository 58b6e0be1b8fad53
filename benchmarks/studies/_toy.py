"""A toy whose answers can all be listed: 8 tokens, answers of 5, so 32,768 of them, and every expectation exact.

A policy is a table of logits, one row for each of the 4,681 beginnings. Rewards are one number an answer. The oracle is
ref · exp(r / β) / Z (Ziegler et al. 1909.08593, eq. 2): of all policies at its KL none has more reward.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS, LENGTH = 8, 5
OFFSETS = [(TOKENS**t - 1) // (TOKENS - 1) for t in range(LENGTH + 1)]  # where the beginnings of length t start in a table
REWARD_SD = 0.7
ANSWERS = torch.cartesian_prod(*[torch.arange(TOKENS)] * LENGTH)
PLACES = torch.tensor([TOKENS ** (LENGTH - 1 - t) for t in range(LENGTH)])


def beginnings(ids: Tensor) -> Tensor:
    """Return the row of the table that each token of answers [S, 5] is drawn from."""
    prefix, rows = torch.zeros(len(ids), dtype=torch.long), []
    for t in range(LENGTH):
        rows.append(OFFSETS[t] + prefix)
        prefix = prefix * TOKENS + ids[:, t]
    return torch.stack(rows, 1)


def logprobs_of(table: Tensor, ids: Tensor) -> Tensor:
    """Return log π of each token of answers [S, 5], nats, [S, 5]."""
    return table.log_softmax(-1)[beginnings(ids)].gather(2, ids[..., None]).squeeze(2)


def sample(table: Tensor, answers: int, generator: torch.Generator) -> Tensor:
    """Return answers drawn from the policy, int64 [answers, 5]."""
    cumulative = table.softmax(-1).cumsum(-1)
    prefix, ids = torch.zeros(answers, dtype=torch.long), []
    for t in range(LENGTH):
        row = cumulative[OFFSETS[t] + prefix]
        drawn = torch.searchsorted(row, torch.rand(answers, 1, generator=generator) * row[:, -1:], right=True)
        ids.append(drawn.squeeze(1).clamp(max=TOKENS - 1))
        prefix = prefix * TOKENS + ids[-1]
    return torch.stack(ids, 1)


class World:
    """A reference, a reward for each answer (mean 0 under the reference), and what is exact about any policy."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ref = torch.randn(OFFSETS[LENGTH], TOKENS, generator=generator)
        self.log_ref = logprobs_of(self.ref, ANSWERS).double().sum(1).log_softmax(0)
        rewards = REWARD_SD * torch.randn(TOKENS**LENGTH, generator=generator, dtype=torch.float64)
        self.rewards = rewards - (self.log_ref.exp() * rewards).sum()

    def scores(self, ids: Tensor) -> Tensor:
        """Return the reward of each answer, float32 [S]."""
        return self.rewards[(ids * PLACES).sum(1)].float()

    def point(self, log_policy: Tensor) -> tuple[float, float]:
        """Return (KL(policy‖ref) in nats, expected reward), exact. log_policy: float64 [32768], of all answers."""
        share = log_policy.exp()
        return float((share * torch.where(share > 0, log_policy - self.log_ref, 0.0)).sum()), float((share * self.rewards).sum())

    def point_of(self, table: Tensor) -> tuple[float, float]:
        """Return `point` of a table of logits."""
        return self.point(logprobs_of(table.detach().double(), ANSWERS).sum(1))

    def oracle(self, beta: float) -> tuple[float, float]:
        """Return the point of ref · exp(r / β) / Z."""
        return self.point((self.log_ref + self.rewards / beta).log_softmax(0))

    def most_reward(self, kl: float) -> float:
        """Return the oracle's reward at a KL, by halving log β."""
        low, high = -6.0, 6.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.oracle(10.0**middle)[0] > kl else (low, middle)
        return self.oracle(10.0**high)[1]

    def best_of(self, n: int) -> tuple[float, float]:
        """Return the point of best-of-n from the reference, exact: P(y) = F(y)ⁿ − F(<y)ⁿ, F the reference's share up to y by reward."""
        order = self.rewards.argsort()
        up_to = self.log_ref[order].exp().cumsum(0).clamp(max=1.0)
        before = torch.cat([torch.zeros(1, dtype=torch.float64), up_to[:-1]])
        share = torch.empty_like(up_to)
        share[order] = up_to**n - before**n
        return self.point((share / share.sum()).log())
