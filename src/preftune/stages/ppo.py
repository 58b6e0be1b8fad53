"""PPO with a critic, on a learned reward: reinforcement learning from human feedback as first published.

    the policy starts from `model`; the reference is that start; the critic starts from the reward model
    for each step:
        sample samples_per_prompt completions of prompts_per_step prompts from the policy (temperature, no top-k, no top-p)
        score each by the reward model and any other `rewards`, in sd of the reference's own scores; one without an end gets no_eos_score
        rewards   = − kl_coef (log π − log ref) on every token, + the score on the last          Ziegler et al. 1909.08593, eq. 2
        advantages, returns = GAE(rewards, values); advantages whitened over all tokens          Schulman et al. 1506.02438
        for each epoch, for each minibatch (shuffled by the seed):
            policy:  mean over tokens of max(− A ρ, − A clip(ρ, 1 ± clip_range))                 Schulman et al. 1707.06347, eq. 7
            critic:  mean over tokens of ½ max((V − R)², (clip(V, V_old ± clip_range) − R)²)
            stop the epochs early where the policy has moved too far from the one that sampled
        kl_coef moves so that the KL a completion nears kl_target                                Ziegler et al. §2.2

The log-probs of the sampling policy are computed again by the trainer's own forward pass, so the first ratio is 1; the
sampler's own are compared with them, and the run stops where they differ. Start it with

    preftune train ppo data=snapshots/… model=runs/<sft> reward_model=runs/<reward>
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from preftune.data.batches import Encoded, Group, batch_indices
from preftune.losses.advantages import explained_variance, gae, token_rewards, whiten
from preftune.losses.kl import adapt_kl_coef
from preftune.losses.policy import clip_fraction, clipped_surrogate, clipped_value_loss, policy_ratio
from preftune.losses.reduce import masked_mean, to_sequences
from preftune.manifest import disk_errors
from preftune.models.adapter import add_adapter, trainable
from preftune.models.heads import load_reward_model, scalar_head, token_values, with_scalar_head
from preftune.models.load import batch_logprobs, device_of, find, load_causal_lm, load_tokenizer
from preftune.progress import Progress, Silent
from preftune.stages.common import Room, finish, open_room, resolved, save_policy, start
from preftune.stages.experience import (
    KL_STOP,
    Experience,
    OnlineConfig,
    Rollouts,
    health,
    insist_on_ratio_1,
    keep_samples,
    learnable,
    learned_tokens,
    means,
    minibatches,
    optimise,
    planned_steps,
    prompts_of,
)
from preftune.training.loop import Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan
from preftune.training.step import Loss, Step, mean_metric

KL_HORIZON = 10_000  # completions over which kl_coef may move by its whole range (Ziegler et al., code)


class PPOConfig(OnlineConfig):
    """Settings of `preftune train ppo`."""

    value_lr: float = Field(3e-4, gt=0, description="critic's peak learning rate")
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL to the start in the reward (2009.01325 uses 0.05)")
    kl_target: float | None = Field(None, gt=0, description="KL a completion, nats, that kl_coef is steered to; null = fixed kl_coef")
    clip_range: float = Field(0.2, gt=0, lt=1, description="allowed change of a token's probability, and of its value")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's lambda")


@dataclass(frozen=True)
class Batch:
    """One step's experience, and the critic's word on it: [S, N] by completion."""

    experience: Experience
    values: Tensor
    advantages: Tensor
    returns: Tensor


def run(config: PPOConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("ppo", config, out, ("data", "model", "reward_model"))
    if work is None:
        return final
    room = open_room(config, out, progress)
    learner = _Learner(config, room, progress)
    prompts = prompts_of(config, room)
    models, optimisers = (
        {"policy": room.model, "critic": learner.critic},
        {"policy": learner.policy_optimiser, "critic": learner.critic_optimiser},
    )
    loop = Loop(work, name="PPO", total=config.steps, models=models, optimisers=optimisers, progress=progress)
    loop.state.setdefault("kl_coef", config.kl_coef)

    for step in loop.steps():
        chosen = batch_indices(len(prompts.groups), config.prompts_per_step, step, seed=config.seed)
        batch = learner.sample([prompts.groups[i] for i in chosen], step, loop.state)
        metrics = learner.learn(batch, step)
        seen = health(batch.experience)
        if config.kl_target is not None:
            count = len(batch.experience.samples)
            loop.state["kl_coef"] = adapt_kl_coef(
                loop.state["kl_coef"], seen["kl/reference"], target=config.kl_target, num_episodes=count, horizon=KL_HORIZON
            )
        keep_samples(work.path, step, batch.experience, room)
        loop.log(step, {**seen, **_foresight(batch), **metrics, "kl/coef": loop.state["kl_coef"]})
    save_policy(room, work.path)
    with disk_errors(work.path):
        save_file({k: p.detach().contiguous() for k, p in trainable(learner.critic).items()}, work.path / "critic.safetensors")
    return finish(room, work, final, loop, prompts, steps=config.steps, score_mean=loop.state["mean"], score_sd=loop.state["sd"])


class _Learner:
    """The four roles: policy, reference, reward model, critic; and the two optimisers."""

    def __init__(self, config: PPOConfig, room: Room, progress: Progress) -> None:
        self.config, self.room = config, room
        self.rollouts = Rollouts(config, room, progress)
        self.critic = _critic_of(find(config.reward_model, room.project), config, room)
        self.policy_optimiser, self.critic_optimiser = adamw(room.model, eps=1e-5), adamw(self.critic, eps=1e-5)
        progress.note(
            f"policy: {room.trained_parameters:,} trained parameters; critic: {sum(p.numel() for p in trainable(self.critic).values()):,}"
        )

    def sample(self, groups: list[Group], step: int, state: dict[str, Any]) -> Batch:
        """Sample, score and weigh one step's completions."""
        config = self.config
        draw = learnable(self.rollouts.draw(groups, step, state))
        experience = self.rollouts.measure(draw, f"PPO step {step + 1}")
        logprobs, mask = experience.behaviour_logprobs, experience.mask
        values, _ = self.rollouts.table(lambda b: token_values(self.critic, b), experience.groups)
        rewards = token_rewards(logprobs, experience.ref_logprobs, experience.scores, mask, kl_coef=state["kl_coef"])
        estimate = gae(rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
        return Batch(experience, values, whiten(estimate.advantages, mask), estimate.returns)

    def learn(self, batch: Batch, step: int) -> dict[str, float]:
        """Do the epochs over one step's samples; return the means of the metrics over all optimiser steps."""
        config = self.config
        done: list[dict[str, float]] = []
        scale = lr_at(step, total=config.steps, lr=1.0, warmup=config.warmup)
        for minibatch in minibatches(config, batch.experience.groups, step):
            policy = self._step(minibatch, self._policy_loss(batch), self.room.model, self.policy_optimiser, config.lr * scale, step)
            critic = self._step(minibatch, self._value_loss(batch), self.critic, self.critic_optimiser, config.value_lr * scale, step)
            if not done:
                insist_on_ratio_1(policy.metrics["policy/ratio"], f"PPO step {step + 1}")
            losses = {"loss/policy": policy.loss, "loss/value": critic.loss, "grad_norm": policy.grad_norm}
            done.append({**policy.metrics, **critic.metrics, **losses})
            if done[-1]["policy/approx_kl"] > KL_STOP:
                break
        return {**means(done), "policy/updates": float(len(done)), "lr": config.lr * scale}

    def _policy_loss(self, batch: Batch) -> Callable[[list[Group]], Loss]:
        def loss(groups: list[Group]) -> Loss:
            tokens = self.room.batch(groups)
            logprobs, entropy = batch_logprobs(self.room.model, tokens, temperature=self.config.temperature)
            new, mask = to_sequences(logprobs, tokens.sequence, tokens.num_sequences)
            experience = batch.experience
            old, advantages = (experience.rows(x, groups, mask) for x in (experience.behaviour_logprobs, batch.advantages))
            values = clipped_surrogate(new, old, advantages, mask, clip_range=self.config.clip_range)
            ratio = policy_ratio(new, old, mask).detach()
            count = float(mask.sum())
            clipped = float(clip_fraction(ratio, mask, clip_range=self.config.clip_range)) * count
            return Loss(
                values,
                mask.float(),
                {
                    "policy/ratio": mean_metric(ratio, mask),
                    "policy/clip_fraction": (clipped, count),
                    "policy/approx_kl": mean_metric(0.5 * (new - old) ** 2, mask),
                    "entropy": mean_metric(entropy, tokens.completion_mask),
                },
            )

        return loss

    def _value_loss(self, batch: Batch) -> Callable[[list[Group]], Loss]:
        def loss(groups: list[Group]) -> Loss:
            tokens = self.room.batch(groups)
            new, mask = to_sequences(token_values(self.critic, tokens), tokens.sequence, tokens.num_sequences)
            old, returns = (batch.experience.rows(x, groups, mask) for x in (batch.values, batch.returns))
            return Loss(clipped_value_loss(new, old, returns, mask, clip_range=self.config.clip_range), mask.float())

        return loss

    def _step(
        self,
        groups: list[Group],
        loss: Callable[[list[Group]], Loss],
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        lr: float,
        step: int,
    ) -> Step:
        where = f"PPO step {step + 1}"
        return optimise(self.config, groups, count=learned_tokens, loss=loss, model=model, optimiser=optimiser, lr=lr, where=where)


def _critic_of(reward_path: Path, config: PPOConfig, room: Room) -> nn.Module:
    device = device_of(room.model)
    if load_tokenizer(reward_path).get_vocab() == room.renderer.tokenizer.get_vocab():
        critic = load_reward_model(reward_path, device=device)
    else:  # it reads other tokens, and a critic must read the policy's
        critic = with_scalar_head(load_causal_lm(room.base, device=device), seed=config.seed)
    old = scalar_head(critic)
    # The reward model's body, but a head of zeros: the reward's own head means something on the last token alone, and on the
    # others it is wilder than the returns (explained variance −9 on the sample), so that its advantages are noise. Zero is the mean
    # of the scores in their unit.
    head = nn.Linear(old.in_features, 1, bias=True, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    name = next(n for n, m in critic.named_children() if m is old)
    setattr(critic, name, head)
    wrapped: nn.Module = add_adapter(critic, config.adapter, seed=config.seed) if config.adapter else critic.requires_grad_(True)
    scalar_head(wrapped).requires_grad_(True)
    return wrapped


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
        tree=room.tree,
        apart=room.apart,
        passes=config.epochs,
        forward_passes=6,
        learners=2,
        resident_models=3 if config.adapter else 4,
    )
