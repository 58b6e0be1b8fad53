"""Reward against KL of eight methods beside the oracle, above which none can lie: after fig. 2 of the DPO paper (2305.18290).

    python benchmarks/studies/frontier.py --out DIR

The toy of `_toy.py`: KL and reward of every policy are exact, so what is scattered is what each method learned, not how it was measured.
Every method takes as many answers a step for as many steps, from the same start. PPO, RLOO and GRPO see the true reward of answers that
they sample; DPO, IPO, KTO and SimPO see answers of the reference, in fresh pairs, labelled by a coin with P = σ(difference of rewards)
(KTO: each side of a pair as good or bad for itself). Best-of-n is computed, not run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from _out import COLOURS, INK, MARKERS, arguments, plt, told, write
from _toy import LENGTH, OFFSETS, World, beginnings, logprobs_of, sample
from torch import Tensor

from preftune.losses.advantages import gae, group_relative, leave_one_out, token_rewards, whiten
from preftune.losses.kl import k1, k3
from preftune.losses.policy import clipped_surrogate, clipped_value_loss, policy_ratio, sequence_ratio, surrogate
from preftune.losses.preference import dpo, ipo, kto, kto_kl, simpo

GROUP = 8
BETAS = (2.0, 1.0, 0.5, 0.25)
# IPO's goal for the gap is 1/(2τ), and (2P − 1) of it is met on average: near equal rewards the optimum of β = 4τ.
STRENGTHS = {method: BETAS for method in ("ppo", "rloo", "grpo", "dpo", "kto")} | {
    "ipo": tuple(beta / 4 for beta in BETAS),
    "simpo": (0.5, 1.0, 2.0, 4.0),
}
DRAWS = (2, 4, 16, 64)
SLACK = 1e-6  # the oracle's halving and float32 tables; no sampling error is left


@dataclass(frozen=True)
class Size:
    """How much each run takes."""

    seeds: int
    steps: int
    answers: int
    lr: float = 0.1


def online_loss(method: str, world: World, policy: Tensor, critic: Tensor, size: Size, beta: float, draw: torch.Generator) -> Tensor:
    """Return the loss of PPO, RLOO or GRPO on answers that the policy samples now."""
    ids = sample(policy.detach(), size.answers, draw)
    new, ref = logprobs_of(policy, ids), logprobs_of(world.ref, ids)
    old, mask, scores = new.detach(), torch.ones_like(ids, dtype=torch.bool), world.scores(ids)
    if method == "ppo":
        values = critic[beginnings(ids)]
        estimate = gae(token_rewards(old, ref, scores, mask, kl_coef=beta), values.detach(), mask, gamma=1.0, gae_lambda=0.95)
        losses = clipped_surrogate(new, old, whiten(estimate.advantages, mask), mask, clip_range=0.2)
        return losses.mean() + clipped_value_loss(values, values.detach(), estimate.returns, mask, clip_range=0.2).mean()
    if method == "rloo":
        advantages = leave_one_out((scores - beta * k1(old, ref, mask).sum(1)).view(-1, GROUP)).view(-1, 1).expand(-1, LENGTH)
        return surrogate(sequence_ratio(new, old, mask, mean=False), advantages, mask, clip=None).mean()
    advantages = group_relative(scores.view(-1, GROUP), scale=True).view(-1, 1).expand(-1, LENGTH)
    return (surrogate(policy_ratio(new, old, mask), advantages, mask, clip=(0.2, 0.2)) + beta * k3(new, ref, mask)).mean()


def offline_loss(method: str, world: World, policy: Tensor, size: Size, strength: float, draw: torch.Generator) -> Tensor:
    """Return the loss of DPO, IPO, KTO or SimPO on a fresh batch of labelled answers of the reference."""
    ids = sample(world.ref, size.answers, draw)
    scores = world.scores(ids)
    logprobs = logprobs_of(policy, ids).sum(1)
    logratios = logprobs - logprobs_of(world.ref, ids).sum(1)
    first, second = scores.view(2, -1)
    wins = torch.rand(first.shape, generator=draw) < torch.sigmoid(first - second)
    if method == "kto":
        # One prompt, so its answers to "other prompts" are other answers of the reference.
        others = sample(world.ref, size.answers, draw)
        kl = kto_kl((logprobs_of(policy.detach(), others) - logprobs_of(world.ref, others)).sum(1))
        return kto(logratios, torch.cat([wins, ~wins]), kl, beta=strength).mean()
    one, two = (logprobs / LENGTH if method == "simpo" else logratios).view(2, -1)
    chosen, rejected = torch.where(wins, one, two), torch.where(wins, two, one)
    if method == "dpo":
        return dpo(chosen, rejected, beta=strength, label_smoothing=0.0).mean()
    if method == "ipo":
        return ipo(chosen, rejected, tau=strength).mean()
    return simpo(chosen, rejected, beta=strength, gamma=0.5 * strength).mean()


def train(method: str, world: World, size: Size, strength: float, seed: int) -> Tensor:
    """Return the table of a policy trained from the reference."""
    draw = torch.Generator().manual_seed(1000 + seed)
    policy, critic = world.ref.clone().requires_grad_(), torch.zeros(OFFSETS[LENGTH], requires_grad=True)
    optimiser = torch.optim.Adam([policy, critic], betas=(0.9, 0.99))
    for step in range(size.steps):
        optimiser.param_groups[0]["lr"] = size.lr * (1 - step / size.steps)
        online = method in ("ppo", "rloo", "grpo")
        loss = (online_loss(method, world, policy, critic, size, strength, draw) if online
                else offline_loss(method, world, policy, size, strength, draw))  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return policy.detach()


def measure(size: Size) -> list[dict[str, float | str]]:
    """Return a row for each method, strength and seed: where it ended, and the oracle's reward there."""
    rows: list[dict[str, float | str]] = []
    for seed in range(size.seeds):
        world = World(seed)
        points = [("best-of-n", float(n), *world.best_of(n)) for n in DRAWS]
        for method, strengths in STRENGTHS.items():
            points += [(method, s, *world.point_of(train(method, world, size, s, seed))) for s in strengths]
        for method, strength, kl, reward in points:
            most = world.most_reward(kl)
            rows.append({"method": method, "strength": strength, "seed": seed, "kl": kl, "reward": reward, "oracle": most})
    return rows


def plot(rows: list[dict[str, float | str]]) -> object:
    """Return the figure: every run a mark, the oracle of seed 0 a line."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    world = World(0)
    line = [world.oracle(10 ** (1.2 - i / 25)) for i in range(60)]
    far = 1.1 * max(float(row["kl"]) for row in rows)
    axes.plot(*zip(*[point for point in line if point[0] < far], strict=True), color=INK, label="oracle (seed 0)")
    for i, method in enumerate(["best-of-n", *STRENGTHS]):
        its = [row for row in rows if row["method"] == method]
        axes.scatter([r["kl"] for r in its], [r["reward"] for r in its], s=18, color=COLOURS[i], marker=MARKERS[i], label=method, alpha=0.8)
    axes.set(xlabel="KL(policy ‖ reference), nats an answer", ylabel="true reward", xscale="symlog")
    axes.legend(ncol=2)
    return figure


def main() -> None:
    """Run all, write, and say whether a point lies above the oracle."""
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    rows = measure(Size(seeds=1, steps=10, answers=512) if options.quick else Size(seeds=3, steps=120, answers=4096))
    shown = []
    for method in ["best-of-n", *STRENGTHS]:
        for strength in dict.fromkeys(row["strength"] for row in rows if row["method"] == method):
            its = [row for row in rows if row["method"] == method and row["strength"] == strength]
            below = [100 * (1 - float(r["reward"]) / float(r["oracle"])) for r in its]
            cells = {"KL, nats": told([float(r["kl"]) for r in its]), "reward": told([float(r["reward"]) for r in its])}
            shown.append({"method": method, "strength": f"{strength:g}"} | cells | {"below the oracle, %": told(below, 1)})
    above = [row for row in rows if float(row["reward"]) > float(row["oracle"]) + SLACK]
    write(options.out, "frontier", rows, shown, plot(rows), {"points": len(rows), "above_the_oracle": len(above), "quick": options.quick})
    if above:
        raise SystemExit(f"{len(above)} points lie above the oracle: {above[0]}")


if __name__ == "__main__":
    main()
