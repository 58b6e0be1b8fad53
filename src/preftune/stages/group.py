"""RLOO and GRPO: reinforcement learning without a critic, since the completions of one prompt judge each other.

    the policy starts from `model`; the reference is that start
    for each step:
        sample samples_per_prompt completions of prompts_per_step prompts, and score them (stages/experience.py)
        where the method says so: give up groups all of whose scores are equal, and sample other prompts in their place
        advantages from the scores; KL either in the reward or in the loss
        for each epoch, for each minibatch (shuffled by the seed):
            values = max(− A ρ, − A clip(ρ, 1 − below, 1 + above)) + (KL in the loss) kl_coef · k3
            loss   = Σ weight · value / (number of tokens, or of completions)
            stop the epochs early where the policy has moved too far from the one that sampled

    method                A                                        ρ of         weight        KL          source
    rloo                  r − mean of the others' r                completion   1/length      reward      Ahmadian et al. 2402.14740
    grpo                  (r − mean)/sd of the group               token        1/length      loss        Shao et al. 2402.03300
    dr_grpo               r − mean of the group                    token        1/longest     loss (0)    Liu et al. 2503.20783
    dapo                  as grpo; other clip, refills             token        1             loss (0)    Yu et al. 2503.14476
    gspo                  as grpo                                  completion¹  1/length      loss (0)    Zheng et al. 2507.18071
    reinforce++           rewards-to-go, whitened over the step    token        1             reward      Hu et al. 2501.03262
    reinforce++_baseline  the same, r less the group's mean first  token        1             reward      ibid.
    ¹ the mean of its tokens' log-ratios; rloo takes their sum: the whole completion is one action

With one epoch of one minibatch every ratio is 1 and the gradient is REINFORCE's, whatever the clip. Start it with

    preftune train rloo data=snapshots/… model=runs/<sft> reward_model=runs/<reward>
    preftune train grpo variant=dapo data=snapshots/… model=runs/<sft> reward_model=runs/<reward>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from preftune.data.batches import Encoded, Group, shuffled
from preftune.losses.advantages import equal_groups, group_relative, leave_one_out, rewards_to_go, token_rewards, whiten
from preftune.losses.kl import k3
from preftune.losses.mismatch import Mismatch, together
from preftune.losses.policy import clip_fraction, policy_ratio, sequence_ratio, surrogate
from preftune.losses.reduce import Average, to_sequences, token_weights
from preftune.manifest import content_seed
from preftune.models.load import batch_logprobs
from preftune.models.one_base import policy_role
from preftune.parallel import world
from preftune.progress import Progress, Silent
from preftune.rollout.rewards.source import with_reward_model
from preftune.stages.common import Room, finish, open_room, resolved, save_policy, start
from preftune.stages.experience import Draw, Experience, Rollouts, prompts_of, shares_base
from preftune.stages.online_config import KL_STOP, OnlineConfig
from preftune.stages.rounds import (
    health,
    insist_on_ratio_1,
    keep_samples,
    learned_tokens,
    means,
    minibatches,
    optimise,
    planned_steps,
    watch,
)
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan
from preftune.training.step import Loss, mean_metric

ADAM_EPS = 1e-5  # as for PPO: at torch's 1e-8 the first steps are many times larger
INPUTS = ("data", "model", "reward_model")
Variant = Literal["grpo", "dr_grpo", "dapo", "gspo", "reinforce++", "reinforce++_baseline"]
KLIn = Literal["reward", "loss"]


class GroupConfig(OnlineConfig):
    """The keys that both commands share."""

    samples_per_prompt: int = Field(4, ge=2, description="completions of each, which judge each other (the papers use 2 to 64)")
    epochs: int = Field(1, ge=1, description="passes over each step's samples (1: every update is on-policy, as the papers have it)")
    minibatches: int = Field(1, ge=1, description="optimiser steps an epoch; divides prompts_per_step")


class RLOOConfig(GroupConfig):
    """Settings of `preftune train rloo`."""

    kl_coef: float = Field(0.05, ge=0, description="weight of a completion's KL to the start in its reward (2402.14740: 0.03 to 0.10)")
    clip_range: tuple[float, float] = Field(
        (0.2, 0.2),
        description="how far a completion's probability may fall and rise in one step, as shares; with one update a step nothing",
    )


class GRPOConfig(GroupConfig):
    """Settings of `preftune train grpo`."""

    variant: Variant = Field("grpo", description="grpo, dr_grpo, dapo, gspo, reinforce++ or reinforce++_baseline: see docs/groups.md")
    kl_coef: float | None = Field(None, ge=0, description="weight of the KL to the start; null = the variant's (grpo 0.04)")
    kl_in: KLIn | None = Field(None, description='where the KL counts: "loss" (k3 of each token) or "reward"; null = the variant\'s')
    clip_range: tuple[float, float] | None = Field(
        None, description="how far a probability may fall and rise in one step, as shares; null = the variant's (0.2, 0.2; dapo 0.2, 0.28)"
    )
    refills: int | None = Field(
        None, ge=0, le=10, description="how often groups that scored all alike are replaced a step; null = the variant's (dapo 3)"
    )


@dataclass(frozen=True)
class Method:
    """What sets the group methods apart. clip: (below, above)."""

    baseline: Literal["others", "group", "group_sd", "batch", "batch_group"]
    ratio: Literal["token", "completion", "completion_mean"]
    average: Average
    kl_in: KLIn
    kl_coef: float
    clip: tuple[float, float] = (0.2, 0.2)
    refills: int = 0


RLOO = Method("others", "completion", "sequences", "reward", 0.05)
VARIANTS: dict[Variant, Method] = {
    "grpo": Method("group_sd", "token", "sequences", "loss", 0.04),
    "dr_grpo": Method("group", "token", "constant", "loss", 0.0),
    "dapo": Method("group_sd", "token", "tokens", "loss", 0.0, clip=(0.2, 0.28), refills=3),
    "gspo": Method("group_sd", "completion_mean", "sequences", "loss", 0.0, clip=(3e-4, 4e-4)),
    "reinforce++": Method("batch", "token", "tokens", "reward", 0.05),
    "reinforce++_baseline": Method("batch_group", "token", "tokens", "reward", 0.05),
}


def method_of(config: RLOOConfig | GRPOConfig) -> Method:
    """Return the method that a config asks for: the variant's, with what the config says otherwise."""
    if isinstance(config, RLOOConfig):
        return replace(RLOO, kl_coef=config.kl_coef, clip=config.clip_range)
    method = VARIANTS[config.variant]
    return replace(
        method,
        kl_coef=method.kl_coef if config.kl_coef is None else config.kl_coef,
        kl_in=config.kl_in or method.kl_in,
        clip=config.clip_range or method.clip,
        refills=method.refills if config.refills is None else config.refills,
    )


def advantages_of(method: Method, experience: Experience, *, samples_per_prompt: int) -> Tensor:
    """Return the advantage of every token of a step's completions, float [S, N], 0 where the mask is False or the score is none."""
    scores, mask = experience.scores, experience.mask
    if experience.failed is not None:
        mask = mask & ~experience.failed[:, None]
    kl_coef = method.kl_coef if method.kl_in == "reward" else 0.0
    if method.baseline in ("batch", "batch_group"):
        if method.baseline == "batch_group":
            scores = group_relative(scores.view(-1, samples_per_prompt), scale=False).flatten()
        rewards = token_rewards(experience.proximal_logprobs, experience.ref_logprobs, scores, mask, kl_coef=kl_coef)
        return whiten(rewards_to_go(rewards, mask), mask)
    rewards = scores - kl_coef * experience.kl() if kl_coef else scores
    groups = rewards.view(-1, samples_per_prompt)
    by_group = leave_one_out(groups) if method.baseline == "others" else group_relative(groups, scale=method.baseline == "group_sd")
    return torch.where(mask, by_group.flatten()[:, None], 0.0)


def ratio_of(method: Method, logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the ratio that each token's loss is taken with, [S, N]."""
    if method.ratio == "token":
        return policy_ratio(logprobs, behaviour_logprobs, mask)
    return sequence_ratio(logprobs, behaviour_logprobs, mask, mean=method.ratio == "completion_mean")


def rloo(config: RLOOConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train by RLOO, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    return _run("rloo", config, out, progress or Silent())


def grpo(config: GRPOConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train by GRPO or a variant, and return the run's folder; the same config again returns it, an interrupted one goes on."""
    return _run("grpo", config, out, progress or Silent())


def _run(kind: Literal["rloo", "grpo"], config: RLOOConfig | GRPOConfig, out: Path, progress: Progress) -> Path:
    config, final, work = start(kind, config, out, INPUTS)
    if work is None:
        return final
    method, name = method_of(config), kind.upper()
    room = open_room(config, out, progress)
    rollouts = Rollouts(config, room, progress)
    policy: nn.Module = policy_role(room.model) if rollouts.one_base else room.model
    optimiser = adamw(policy, eps=ADAM_EPS)
    progress.note(f"policy: {room.trained_parameters:,} trained parameters{'; all roles on one base' if rollouts.one_base else ''}")
    models, optimisers = {"policy": policy}, {"policy": optimiser}
    loop = Loop(
        work,
        name=name,
        total=config.steps,
        models=models,
        optimisers=optimisers,
        progress=progress,
        before_save=rollouts.keep,
        behind=config.async_checkpoints,
    )
    rollouts.ahead.restore(loop.state)
    stopped, told = None, False

    for step in rollouts.kept_open(loop.steps()):
        where = f"{name} step {step + 1}"
        draw, counted = _draw(rollouts, method, step, loop.state)
        if not told and counted["groups/equal"] == 1 and float(draw.scores.std(correction=0)) == 0:
            told = True
            progress.note(f"{where}: every completion scored {float(draw.scores[0]):.3g} sd, so the reward tells nothing apart.")
        once = _once(config)
        experience = rollouts.measure(draw, step, where, once=once, ratio_of=partial(ratio_of, method))
        advantages = advantages_of(method, experience, samples_per_prompt=config.samples_per_prompt)
        lr = config.lr * lr_at(step, total=config.steps, lr=1.0, warmup=config.warmup)
        learned = _Update(rollouts, method, policy, experience, advantages, once, where).learn(optimiser, step, lr)
        keep_samples(work.path, step, experience, room)
        loop.log(step, {**health(experience), **learned, **counted, "lr": lr})
        stopped = watch(loop, config)
        if stopped is not None:
            break
    save_policy(room, work.path)
    facts = {"score_mean": loop.state["mean"], "score_sd": loop.state["sd"], "one_base": rollouts.one_base, "method": asdict(method)}
    facts |= {"warnings": loop.state["warnings"], "stopped_on": stopped}
    return finish(room, work, final, loop, rollouts.prompts, steps=loop.done, **facts)


def _once(config: RLOOConfig | GRPOConfig) -> bool:
    """Say whether the policy that learns from a step's samples is always the very one that has drawn them."""
    return config.epochs == config.minibatches == 1 and config.rollout.max_staleness == 0


def _draw(rollouts: Rollouts, method: Method, step: int, state: dict[str, Any]) -> tuple[Draw, dict[str, float]]:
    """Sample a step's completions. Where the method refills, groups that scored all alike make room for others, while any are found."""
    config, k = rollouts.config, rollouts.config.samples_per_prompt
    asked = alike = refills = 0

    def sample(places: Sequence[int]) -> tuple[Draw, list[int]]:
        nonlocal asked, alike
        draw = rollouts.draw(places, step, state, again=refills)
        differing = [place for place, same in enumerate(equal_groups(draw.scores.view(-1, k)).tolist()) if not same]
        asked, alike = asked + len(places), alike + len(places) - len(differing)
        return draw, differing

    chosen = rollouts.places(step)
    first, differing = sample(chosen)
    found = [(first, differing)]
    while (missing := len(chosen) - sum(len(places) for _, places in found)) and refills < method.refills:
        refills += 1
        order = shuffled(len(rollouts.prompts.groups), seed=content_seed(config.seed, step, "refill") % 2**31, epoch=refills)
        found.append(sample(order[:missing]))
    some = any(places for _, places in found)
    draw = _only(found, k) if method.refills and some else first
    return draw, {"groups/equal": alike / asked, "groups/refills": float(refills)}


def _only(found: Sequence[tuple[Draw, list[int]]], k: int) -> Draw:
    """Return these groups of these draws as one draw."""
    places = [(draw, place) for draw, kept in found for place in kept]
    groups = [replace(draw.groups[place], index=new) for new, (draw, place) in enumerate(places)]
    samples = [
        replace(sample, prompt_index=new) for new, (draw, place) in enumerate(places) for sample in draw.samples[place * k : place * k + k]
    ]
    scores = torch.cat([draw.scores[place * k : place * k + k] for draw, place in places])
    failed = torch.cat([_failed(draw)[place * k : place * k + k] for draw, place in places])
    asked = sum(len(draw.samples) for draw, _ in found)
    told = {name: sum(draw.told[name] * len(draw.samples) for draw, _ in found) / asked for name in found[0][0].told}
    return Draw(groups, samples, scores, failed=failed, told=told)


def _failed(draw: Draw) -> Tensor:
    return draw.failed if draw.failed is not None else torch.zeros(len(draw.samples), dtype=torch.bool)


@dataclass(frozen=True)
class _Update:
    """What is learned from one step's experience. once: in one optimiser step, so that the policy that learns is the one that sampled."""

    rollouts: Rollouts
    method: Method
    policy: nn.Module
    experience: Experience
    advantages: Tensor
    once: bool
    where: str
    # To the sampler, of each micro-batch by the places of its groups; filled where `once`.
    found: dict[tuple[int, ...], Mismatch] = field(default_factory=dict)

    def learn(self, optimiser: torch.optim.Optimizer, step: int, lr: float) -> dict[str, float]:
        """Do the epochs over the step's samples; return the means of the metrics over all optimiser steps."""
        config, done = self.rollouts.config, list[dict[str, float]]()
        for minibatch in minibatches(config, self.experience.groups, step):
            made = optimise(
                config,
                minibatch,
                count=learned_tokens if self.method.average == "tokens" else _completions,
                loss=self.loss,
                model=self.policy,
                optimiser=optimiser,
                lr=lr,
                where=self.where,
            )
            if not done:
                insist_on_ratio_1(made.metrics["policy/ratio"], self.where, approx_kl=made.metrics["policy/approx_kl"])
            done.append({**made.metrics, "loss/policy": made.loss, "grad_norm": made.grad_norm})
            if made.metrics["policy/approx_kl"] > KL_STOP:
                break
        found = self.experience.mismatch or together(world.of_all(self.found))
        told = self.rollouts.told(found)
        return {**means(done), **told, "policy/updates": float(len(done))}

    def loss(self, groups: list[Group]) -> Loss:
        """Return the loss of a micro-batch of groups, token by token."""
        experience, method, rollouts = self.experience, self.method, self.rollouts
        config, room, ratio_by = rollouts.config, rollouts.room, partial(ratio_of, method)
        tokens = room.batch(groups)
        logprobs, entropy = batch_logprobs(room.model, tokens, temperature=config.temperature)
        new, mask = to_sequences(logprobs, tokens.sequence, tokens.num_sequences)
        tables = (experience.proximal_logprobs, experience.ref_logprobs, experience.behaviour_logprobs, self.advantages)
        old, ref, sampled, advantages = (experience.rows(table, groups, mask) for table in tables)
        if self.once:
            # The log-probs of this very pass are those of the policy that sampled: a pass of their own would give the same.
            old = new.detach()
            self.found[tuple(g.index for g in groups)] = rollouts.compare(old, sampled, mask, self.where, ratio_of=ratio_by)
        ratio = ratio_by(new, old, mask)
        values = rollouts.weighed(surrogate(ratio, advantages, mask, clip=method.clip), old, sampled, mask, ratio_of=ratio_by)
        if method.kl_in == "loss" and method.kl_coef:
            values = values + method.kl_coef * k3(new, ref, mask)
        below, above = method.clip
        clipped = float(clip_fraction(ratio.detach(), mask, clip_range=below, above=above)) * float(mask.sum())
        metrics = {
            "policy/ratio": mean_metric(ratio, mask),
            "policy/clip_fraction": (clipped, float(mask.sum())),
            "policy/approx_kl": mean_metric(0.5 * (new - old) ** 2, mask),
            "entropy": mean_metric(entropy, tokens.completion_mask),
        }
        return Loss(values, token_weights(mask, method.average, longest=config.max_new_tokens), metrics)


def _completions(groups: Sequence[Group]) -> float:
    return float(sum(len(g.completions) for g in groups))


def plan_rloo(config: RLOOConfig, out: Path = Path("runs")) -> Plan:
    """Say what an RLOO run will take, without starting it (completions taken as max_new_tokens long)."""
    return _plan("rloo", config, out)


def plan_grpo(config: GRPOConfig, out: Path = Path("runs")) -> Plan:
    """Say what a GRPO run will take, without starting it (completions taken as max_new_tokens long; no refills)."""
    return _plan("grpo", config, out)


def _plan(kind: str, config: RLOOConfig | GRPOConfig, out: Path) -> Plan:
    room = open_room(resolved(config, out, INPUTS)[0], out, Silent())
    prompts = prompts_of(config, room)
    batches = planned_steps(config, prompts)
    # Forward passes: sampling (about two: a token at a time is slower), the reward model, the reference, and the old log-probs.
    return make_plan(
        kind,
        room.model,
        Encoded([group for step in batches for group in step], prompts.left_out),
        batches,
        lambda part: batch_logprobs(room.model, room.batch(part))[0],
        token_budget=config.token_budget,
        behind=config.async_checkpoints,
        steps=config.steps,
        tree=room.tree,
        apart=room.apart,
        passes=config.epochs,
        forward_passes=4 if _once(config) else 5,
        resident_models=_resident_models(config, room),
    )


def _resident_models(config: RLOOConfig | GRPOConfig, room: Room) -> int:
    if shares_base(config, room):
        return 1
    models = {name for source in with_reward_model(config.rewards, config.reward_model) for name in source.models}
    return 1 + len(models) + (config.adapter is None)  # without an adapter to switch off, the reference is a copy
