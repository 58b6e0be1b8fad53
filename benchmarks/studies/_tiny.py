"""A tiny language model of 16 tokens, its two grammars, a gold reward, proxies that learn from noisy pairs, and PPO on any reward.

The model is a GRU of 48 units, pretrained on two Markov chains: "the task" (what PPO samples) and "the rest" (what should be kept). An
answer has 16 tokens and no end token. Gold pays for keywords, less for each more, and takes off for pairs of tokens that come
again. The losses, the advantages and the token rewards are the package's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from preftune.losses.advantages import gae, token_rewards, whiten
from preftune.losses.policy import clipped_surrogate, clipped_value_loss
from preftune.losses.reward import bradley_terry

TOKENS, LENGTH, WIDTH = 16, 16, 48
TASK, REST = TOKENS, TOKENS + 1  # the first token of each grammar's texts
KEYWORDS = (1, 5, 9)
FLIPS = 0.25
Reward = Callable[[Tensor], Tensor]


class Model(nn.Module):
    """Reads [S, N] ids and says `outputs` numbers at each place; a language model with 16, a critic with 1."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS + 2, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, start: int, ids: Tensor) -> Tensor:
        """Return [S, 16, outputs], at each place what is said before its token is seen."""
        before = torch.cat([torch.full((len(ids), 1), start), ids[:, :-1]], 1)
        return self.head(self.gru(self.embed(before))[0])

    def logprobs(self, start: int, ids: Tensor) -> Tensor:
        """Return log π of each token, nats, [S, 16]."""
        return self(start, ids).log_softmax(-1).gather(2, ids[..., None]).squeeze(2)

    @torch.no_grad()
    def sample(self, answers: int, draw: torch.Generator) -> Tensor:
        """Return answers to the task, int64 [answers, 16]."""
        last, state, ids = torch.full((answers, 1), TASK), None, []
        for _ in range(LENGTH):
            hidden, state = self.gru(self.embed(last), state)
            last = torch.multinomial(self.head(hidden[:, 0]).softmax(-1), 1, generator=draw)
            ids.append(last)
        return torch.cat(ids, 1)


class Grammar:
    """Two Markov chains over the 16 tokens, made by one seed."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.chains = (1.3 * torch.randn(2, TOKENS, TOKENS, generator=draw)).softmax(-1)

    def texts(self, which: int, count: int, draw: torch.Generator) -> Tensor:
        """Return texts of the task (0) or of the rest (1), int64 [count, 16]."""
        ids = [torch.randint(TOKENS, (count,), generator=draw)]
        for _ in range(LENGTH - 1):
            ids.append(torch.multinomial(self.chains[which][ids[-1]], 1, generator=draw).squeeze(1))
        return torch.stack(ids, 1)


def pretrain(grammar: Grammar, steps: int, seed: int) -> Model:
    """Return a language model of both grammars."""
    torch.manual_seed(seed)
    draw, model = torch.Generator().manual_seed(seed), Model(TOKENS)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        loss = sum(nll(model, which, grammar.texts(which, 64, draw)) for which in (0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.requires_grad_(False)


def nll(model: Model, which: int, texts: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of texts of a grammar, nats a token."""
    return cross_entropy(model((TASK, REST)[which], texts).flatten(0, 1), texts.flatten())


def gold(ids: Tensor) -> Tensor:
    """Return 3 (1 − e^{−K/3}) − 4 · share of token pairs that come again, K = keywords in the answer, [S]."""
    keywords = sum((ids == k).sum(1) for k in KEYWORDS)
    pairs = (ids[:, :-1] * TOKENS + ids[:, 1:]).sort(1).values
    again = (pairs[:, 1:] == pairs[:, :-1]).float().sum(1) / (LENGTH - 1)
    return 3 * (1 - torch.exp(-keywords / 3)) - 4 * again


class Proxy(nn.Module):
    """A reward model: embedding, GRU, mean over the places, one number; in sd of the reference's answers once `fit` has seen them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.gru, self.head = nn.Embedding(TOKENS, width), nn.GRU(width, width, batch_first=True), nn.Linear(width, 1)
        self.mean, self.deviation = 0.0, 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """Return the score of each answer, [S]."""
        return (self.head(self.gru(self.embed(ids))[0].mean(1)).squeeze(1) - self.mean) / self.deviation


def fit(width: int, pairs: Tensor, wins: Tensor, seen: Tensor, *, steps: int, seed: int) -> Proxy:
    """Return a proxy trained by Bradley–Terry. pairs: int64 [P, 2, 16]. wins: bool [P], the first is better. seen: its unit."""
    torch.manual_seed(seed)
    proxy, draw = Proxy(width), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(proxy.parameters(), lr=1e-2)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        some = torch.randint(len(pairs), (64,), generator=draw)
        first, second = proxy(pairs[some].flatten(0, 1)).view(-1, 2).unbind(1)
        chosen, rejected = torch.where(wins[some], first, second), torch.where(wins[some], second, first)
        optimiser.zero_grad()
        bradley_terry(chosen, rejected, margin=0.0, label_smoothing=0.0).mean().backward()
        optimiser.step()
    with torch.no_grad():
        scores = proxy(seen)
    proxy.mean, proxy.deviation = float(scores.mean()), float(scores.std())
    return proxy.requires_grad_(False)


def labelled(reference: Model, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (pairs of the reference's answers [P, 2, 16], whether the first is called better [P]): by gold, a quarter of them flipped."""
    pairs = reference.sample(2 * count, draw).view(count, 2, LENGTH)
    scores = gold(pairs.flatten(0, 1)).view(count, 2)
    return pairs, (scores[:, 0] > scores[:, 1]) ^ (torch.rand(count, generator=draw) < FLIPS)


@dataclass(frozen=True)
class Settings:
    """How PPO runs."""

    steps: int
    answers: int = 128
    epochs: int = 2
    lr: float = 2e-3
    kl_coef: float = 0.0
    ptx: float = 0.0  # weight of the rest's nll
    every: int = 4  # steps from one look at the policy to the next


def ppo(reference: Model, reward: Reward, settings: Settings, seed: int, more: Callable[[], Tensor] | None = None) -> Iterator[Model]:
    """Yield the policy at the start and every few steps. more: texts of the rest for the pretraining mix."""
    torch.manual_seed(seed)
    draw, policy, critic = torch.Generator().manual_seed(seed), deepcopy(reference).requires_grad_(), Model(1)
    optimiser = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=settings.lr, eps=1e-5)
    mask = torch.ones(settings.answers, LENGTH, dtype=torch.bool)
    yield policy
    for step in range(settings.steps):
        ids = policy.sample(settings.answers, draw)
        with torch.no_grad():
            old, ref, old_values = policy.logprobs(TASK, ids), reference.logprobs(TASK, ids), critic(TASK, ids).squeeze(2)
            rewards = token_rewards(old, ref, reward(ids), mask, kl_coef=settings.kl_coef)
        estimate = gae(rewards, old_values, mask, gamma=1.0, gae_lambda=0.95)
        advantages = whiten(estimate.advantages, mask)
        for _ in range(settings.epochs):
            loss = clipped_surrogate(policy.logprobs(TASK, ids), old, advantages, mask, clip_range=0.2).mean()
            values = critic(TASK, ids).squeeze(2)
            loss = loss + 0.5 * clipped_value_loss(values, old_values, estimate.returns, mask, clip_range=0.2).mean()
            if settings.ptx and more is not None:
                loss = loss + settings.ptx * nll(policy, 1, more())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if (step + 1) % settings.every == 0:
            yield policy


@torch.no_grad()
def look(policy: Model, reference: Model, answers: int, draw: torch.Generator) -> tuple[float, Tensor]:
    """Return (KL(policy‖reference) of the task in nats an answer, estimated by k1 on fresh answers; those answers)."""
    ids = policy.sample(answers, draw)
    return float((policy.logprobs(TASK, ids) - reference.logprobs(TASK, ids)).sum(1).mean()), ids
