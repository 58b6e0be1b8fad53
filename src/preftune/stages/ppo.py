"""PPO with a critic, on a learned reward: reinforcement learning from human feedback as first published.

    the policy starts from `model`; the reference is that start; the critic starts from the reward model
    for each step:
        sample samples_per_prompt completions of prompts_per_step prompts from the policy (temperature, no top-k, no top-p)
        score each by the reward model and any other `rewards`, in sd of the reference's own scores; one without an end gets no_eos_score
        rewards   = − kl_coef (log π − log ref) on every token, + the score on the last          Ziegler et al. 1909.08593, eq. 2
        advantages, returns = GAE(rewards, values); advantages whitened over all tokens          Schulman et al. 1506.02438
        for each epoch, for each minibatch (shuffled by the seed):
            policy:  mean over tokens of max(− A ρ, − A clip(ρ, 1 ± clip_range))                 Schulman et al. 1707.06347, eq. 7
                     + ptx_coef · NLL of other texts, where that is set                          Ouyang et al. 2203.02155, eq. 2
            critic:  mean over tokens of ½ max((V − R)², (clip(V, V_old ± clip_range) − R)²)
            stop the epochs early where the policy has moved too far from the one that sampled
        kl_coef moves so that the KL a completion nears kl_target                                Ziegler et al. §2.2

The log-probs of the sampling policy are computed again by the trainer's own forward pass, so the first ratio is 1; the
sampler's own are compared with them, and the run stops where they differ. Where the reward model was trained with LoRA from the
very model that the policy starts from, all four roles are adapters on one base in memory. Each detail with its source, its test and its
switch: docs/ppo.md. Start it with

    preftune train ppo data=snapshots/… model=runs/<sft> reward_model=runs/<reward>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from preftune.data.batches import Encoded, Group
from preftune.losses.advantages import explained_variance, gae, scale_around_mean, whiten, with_score
from preftune.losses.kl import adapt_kl_coef, k1, k2, k3
from preftune.losses.policy import clip_fraction, clipped_surrogate, clipped_value_loss, policy_ratio, value_loss
from preftune.losses.reduce import masked_mean, to_sequences
from preftune.manifest import disk_errors
from preftune.models.adapter import trainable
from preftune.models.heads import values_of
from preftune.models.load import batch_logprobs, hidden_states, logprobs_of
from preftune.models.one_base import policy_role
from preftune.parallel import world
from preftune.progress import Progress, Silent
from preftune.stages.common import Room, finish, open_room, resolved, save_policy, start
from preftune.stages.experience import Experience, Rollouts, learnable, prompts_of, shares_base
from preftune.stages.ppo_config import PPOConfig as PPOConfig  # is told by this stage, as those of the others
from preftune.stages.ppo_critic import Critic, open_critic
from preftune.stages.ptx import open_mix
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
from preftune.tensors import TokenBatch
from preftune.training.loop import Loop
from preftune.training.moving import MovingReference
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan
from preftune.training.step import Loss, Step, mean_metric, micro_batches, train_step

KL_HORIZON = 10_000  # completions over which kl_coef may move by its whole range (Ziegler et al., code)
ADAM_EPS = 1e-5  # the papers' code; at torch's 1e-8 the first steps are many times larger
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True)
class Batch:
    """One step's experience, and the critic's word on it: [S, N] by completion."""

    experience: Experience
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class _Part:
    """A micro-batch, its loss, and what it counts in the one division."""

    groups: list[Group]
    loss: Callable[[list[Group]], Loss]
    count: float


def run(config: PPOConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("ppo", config, out, ("data", "model", "reward_model"))
    if work is None:
        return final
    room = open_room(config, out, progress)
    learner = _Learner(config, room, progress)
    rollouts = learner.rollouts
    loop = Loop(
        work,
        name="PPO",
        total=config.steps,
        models=learner.models,
        optimisers=learner.optimisers,
        progress=progress,
        before_save=rollouts.keep,
        behind=config.async_checkpoints,
    )
    rollouts.ahead.restore(loop.state)
    loop.state.setdefault("kl_coef", config.kl_coef)
    learner.follow_policy(loop.state)
    stopped = None

    for step in rollouts.kept_open(loop.steps()):
        batch = learner.sample(step, loop.state)
        metrics = learner.learn(batch, step)
        seen = health(batch.experience)
        if config.kl_target is not None:
            count = len(batch.experience.samples)
            loop.state["kl_coef"] = adapt_kl_coef(
                loop.state["kl_coef"], seen["kl/reference"], target=config.kl_target, num_episodes=count, horizon=KL_HORIZON
            )
        keep_samples(work.path, step, batch.experience, room)
        loop.log(step, {**seen, **_foresight(batch), **metrics, "kl/coef": loop.state["kl_coef"]})
        stopped = watch(loop, config, kl_target=config.kl_target)
        if stopped is not None:
            break
    critic = learner.critic.weights()
    if world.is_main():
        with disk_errors(work.path):
            save_file(critic, work.path / "critic.safetensors")
    one_base = rollouts.one_base
    save_policy(room, work.path)
    facts = {"score_mean": loop.state["mean"], "score_sd": loop.state["sd"], "one_base": one_base}
    facts |= {"warnings": loop.state["warnings"], "stopped_on": stopped}
    return finish(room, work, final, loop, rollouts.prompts, steps=loop.done, **facts)


class _Learner:
    """The four roles: policy, reference, reward model, critic; and the optimisers."""

    def __init__(self, config: PPOConfig, room: Room, progress: Progress) -> None:
        self.config, self.room = config, room
        self.rollouts = Rollouts(config, room, progress)
        self.policy: nn.Module = policy_role(room.model) if self.rollouts.one_base else room.model
        self.critic: Critic = open_critic(config, room, one_base=self.rollouts.one_base)
        if self.critic.shared is None:
            self.models: dict[str, nn.Module] = {"policy": self.policy, "critic": self.critic.module}
        else:
            self.models = {"policy": nn.ModuleList([self.policy, self.critic.module])}
        self.optimisers = {name: adamw(model, eps=ADAM_EPS) for name, model in self.models.items()}
        self.mix = open_mix(room, config.ptx_coef, config.ptx_text, seed=config.seed) if config.ptx_coef is not None else None
        self.moving: MovingReference | None = None
        counts = {name: sum(p.numel() for p in trainable(model).values()) for name, model in self.models.items()}
        where = "; all roles on one base" if self.rollouts.one_base else ""
        progress.note("; ".join(f"{name}: {count:,} trained parameters" for name, count in counts.items()) + where)

    def follow_policy(self, state: dict[str, Any]) -> None:
        """Open the reference that follows the policy, where the config asks for one. state: the loop's, once it is restored."""
        if self.config.reference_ema is not None:
            self.moving = MovingReference(self.policy, state)

    def sample(self, step: int, state: dict[str, Any]) -> Batch:
        """Sample, score and weigh one step's completions."""
        config = self.config
        draw = learnable(self.rollouts.draw(self.rollouts.places(step), step, state))
        experience = self.rollouts.measure(draw, step, f"PPO step {step + 1}")
        logprobs, mask = experience.proximal_logprobs, experience.mask
        values, _ = self.rollouts.table(self._values, experience.groups)
        anchor = experience.ref_logprobs
        if self.moving is not None:  # the KL that is told stays that to the start
            with self.moving.in_place():
                anchor = self.rollouts.table(lambda b: batch_logprobs(self.room.model, b, temperature=config.temperature)[0], draw.groups)[
                    0
                ]
        penalties = -state["kl_coef"] * ESTIMATORS[config.kl_estimator](logprobs, anchor, mask)
        rewards = with_score(penalties, experience.scores, mask)
        if config.scoring.whiten_rewards:
            rewards = scale_around_mean(rewards, mask)
        estimate = gae(rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
        advantages = whiten(estimate.advantages, mask) if config.whiten == "batch" else estimate.advantages
        return Batch(experience, values, advantages, estimate.returns)

    def learn(self, batch: Batch, step: int) -> dict[str, float]:
        """Do the epochs over one step's samples; return the means of the metrics over all optimiser steps."""
        config = self.config
        done: list[dict[str, float]] = []
        scale = lr_at(step, total=config.steps, lr=1.0, warmup=config.warmup)
        for number, minibatch in enumerate(minibatches(config, batch.experience.groups, step)):
            told: dict[str, float] = {}
            if step >= config.critic.warmup_steps:
                own = _whitened(batch, minibatch) if config.whiten == "minibatch" else batch
                update = step * config.epochs * config.minibatches + number
                told = self._policy_step(own, minibatch, step, update, config.lr * scale)
                if not done:
                    insist_on_ratio_1(told["policy/ratio"], f"PPO step {step + 1}", approx_kl=told["policy/approx_kl"])
            if self.critic.shared is None:
                told["loss/value"] = self._critic_step(batch, minibatch, step, config.value_lr * scale).loss
            done.append(told)
            if config.kl_stop is not None and told.get("policy/approx_kl", 0.0) > config.kl_stop:
                break
        if self.moving is not None and config.reference_ema is not None:
            self.moving.follow(1 - config.reference_ema)
        of_sampler = self.rollouts.told(batch.experience.mismatch) if batch.experience.mismatch is not None else {}
        return {**means(done), **of_sampler, "policy/updates": float(len(done)), "lr": config.lr * scale}

    def _policy_step(self, batch: Batch, minibatch: list[Group], step: int, update: int, lr: float) -> dict[str, float]:
        """Do one optimiser step on the policy, with what else its gradient holds: the mix, and a critic that is a head on it."""
        config, mix = self.config, self.mix
        sampled = micro_batches(minibatch, config.token_budget)
        others = micro_batches(mix.examples(len(minibatch), update), config.token_budget) if mix is not None else []
        # The one division is by the sampled tokens; the mix's tokens weigh so that their sum is coef · their mean.
        weight = mix.coef * learned_tokens(minibatch) / sum(map(learned_tokens, others)) if mix is not None else 0.0
        parts = [_Part(part, partial(self._policy_loss, batch), learned_tokens(part)) for part in sampled]
        parts += [_Part(part, partial(self._mix_loss, weight), 0.0) for part in others]
        done = train_step(
            parts,
            count=lambda part: part.count,
            loss=lambda part: part.loss(part.groups),
            parameters=trainable(self.models["policy"]).values(),
            optimiser=self.optimisers["policy"],
            lr=lr,
            max_grad_norm=config.max_grad_norm,
            where=f"PPO step {step + 1}",
            name_batch=lambda part: "prompts " + ", ".join(str(g.index) for g in part.groups),
        )
        of_policy = done.loss
        if mix is not None:
            of_policy -= mix.coef * done.metrics["loss/ptx"]
        if self.critic.shared is not None:
            of_policy -= self.critic.shared * done.metrics["loss/value"]
        return {**done.metrics, "loss/policy": of_policy, "grad_norm": done.grad_norm}

    def _policy_loss(self, batch: Batch, groups: list[Group]) -> Loss:
        config, tokens, experience = self.config, self.room.batch(groups), batch.experience
        hidden = hidden_states(self.room.model, tokens)
        logprobs, entropy = logprobs_of(hidden, self.room.model, tokens, temperature=config.temperature)
        new, mask = to_sequences(logprobs, tokens.sequence, tokens.num_sequences)
        tables = (experience.proximal_logprobs, experience.behaviour_logprobs, batch.advantages)
        old, sampled, advantages = (experience.rows(table, groups, mask) for table in tables)
        values = clipped_surrogate(new, old, advantages, mask, clip_range=config.clip_range)
        values = self.rollouts.weighed(values, old, sampled, mask)
        ratio = policy_ratio(new, old, mask).detach()
        count = float(mask.sum())
        metrics = {
            "policy/ratio": mean_metric(ratio, mask),
            "policy/clip_fraction": (float(clip_fraction(ratio, mask, clip_range=config.clip_range)) * count, count),
            "policy/approx_kl": mean_metric(0.5 * (new - old) ** 2, mask),
            "entropy": mean_metric(entropy, tokens.completion_mask),
        }
        if self.critic.shared is not None:
            errors, _ = self._errors(batch, groups, tokens, values_of(hidden, self.critic.head, tokens))
            metrics["loss/value"] = mean_metric(errors, mask)
            values = values + self.critic.shared * errors
        return Loss(values, mask.float(), metrics)

    def _mix_loss(self, weight: float, groups: list[Group]) -> Loss:
        tokens = self.room.batch(groups)
        losses = -batch_logprobs(self.room.model, tokens)[0]
        mask = tokens.completion_mask
        return Loss(losses, weight * mask.float(), {"loss/ptx": mean_metric(losses, mask)})

    def _critic_step(self, batch: Batch, minibatch: list[Group], step: int, lr: float) -> Step:
        def loss(groups: list[Group]) -> Loss:
            tokens = self.room.batch(groups)
            errors, mask = self._errors(batch, groups, tokens, self._values(tokens))
            return Loss(errors, mask.float())

        model, optimiser, where = self.models["critic"], self.optimisers["critic"], f"PPO step {step + 1}"
        return optimise(self.config, minibatch, count=learned_tokens, loss=loss, model=model, optimiser=optimiser, lr=lr, where=where)

    def _values(self, tokens: TokenBatch) -> Tensor:
        return values_of(hidden_states(self.critic.body, tokens), self.critic.head, tokens)

    def _errors(self, batch: Batch, groups: list[Group], tokens: TokenBatch, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the critic's loss of each token, [S, N], and the mask. values: [B, T], as the critic says now."""
        new, mask = to_sequences(values, tokens.sequence, tokens.num_sequences)
        old, returns = (batch.experience.rows(x, groups, mask) for x in (batch.values, batch.returns))
        clip_range = self.config.critic.clip_range
        if clip_range is None:
            return value_loss(new, returns, mask), mask
        return clipped_value_loss(new, old, returns, mask, clip_range=clip_range), mask


def _whitened(batch: Batch, minibatch: Sequence[Group]) -> Batch:
    """Return the batch with the advantages of one minibatch whitened among themselves."""
    experience, chosen = batch.experience, {group.index for group in minibatch}
    own = torch.tensor([group.index in chosen for group in experience.groups for _ in group.completions])
    return replace(batch, advantages=whiten(batch.advantages, experience.mask & own[:, None]))


def _foresight(batch: Batch) -> dict[str, float]:
    mask = batch.experience.mask
    return {
        "value/explained_variance": float(explained_variance(batch.values, batch.returns, mask)),
        "value/mean": float(masked_mean(batch.values, mask)),
    }


def plan(config: PPOConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it (completions taken as max_new_tokens long)."""
    room = open_room(resolved(config, out)[0], out, Silent())
    prompts = prompts_of(config, room)
    batches = planned_steps(config, prompts)
    # Policy and critic are both trained; sampling, reward model, reference, old log-probs and values are forward passes.
    return make_plan(
        "ppo",
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
        forward_passes=6,
        learners=2,
        resident_models=1 if shares_base(config, room) else 3 if config.adapter else 4,
    )
