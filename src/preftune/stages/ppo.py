"""PPO with a critic, on a learned reward: reinforcement learning from human feedback as first published.

    the policy starts from `model`; the reference is that start; the critic starts from the reward model
    for each step:
        sample samples_per_prompt completions of prompts_per_step prompts from the policy (temperature, no top-k, no top-p)
        score each with the reward model, in sd of the reference's own scores; one that did not end by itself gets no_eos_score
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

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from preftune.data.batches import Encoded, Group, batch_indices, shuffled, split_by_budget
from preftune.errors import DataError, ModelError, PreftuneError
from preftune.losses.advantages import explained_variance, gae, token_rewards, whiten
from preftune.losses.kl import adapt_kl_coef, k1, k3
from preftune.losses.policy import clip_fraction, clipped_surrogate, clipped_value_loss, policy_ratio
from preftune.losses.reduce import masked_mean, to_sequences
from preftune.manifest import content_seed, disk_errors
from preftune.models.adapter import adapter_off, add_adapter, trainable
from preftune.models.heads import load_reward_model, scalar_head, token_values
from preftune.models.load import batch_logprobs, device_of, find, load_causal_lm, load_tokenizer
from preftune.progress import Progress, Silent
from preftune.rollout.generate import Sample, generate
from preftune.rollout.score import NO_END_SCORE, score, token_table
from preftune.stages.common import Room, StageConfig, finish, open_room, resolved, save_policy, start
from preftune.training.loop import SAMPLES, Loop
from preftune.training.optim import adamw, lr_at
from preftune.training.plan import Plan, make_plan, steps_of
from preftune.training.step import Loss, Step, mean_metric, train_step

KL_STOP = (
    0.03  # approximate KL to the sampling policy, nats a token, past which the epochs end: 1.5 × 0.02 (maths: the 37 details, extra 3)
)
KL_HORIZON = 10_000  # completions over which kl_coef may move by its whole range (Ziegler et al., code)
SAMPLER_GAP = 0.05  # nats; a wrong temperature or mask is far above, float32 arithmetic far below
SAMPLES_KEPT = 4  # texts a step, for the report


class PPOConfig(StageConfig):
    """Settings of `preftune train ppo`."""

    reward_model: str = Field(description="run of preftune train reward")
    steps: int = Field(20, ge=1, description="rounds of sampling and learning")
    prompts_per_step: int = Field(16, ge=1, description="prompts sampled a step")
    samples_per_prompt: int = Field(4, ge=1, description="completions of each")
    epochs: int = Field(2, ge=1, description="passes over each step's samples (the papers use 1 to 4)")
    minibatches: int = Field(2, ge=1, description="optimiser steps an epoch; divides prompts_per_step")
    lr: float = Field(1e-4, gt=0, description="policy's peak learning rate (1e-4 for LoRA; 3e-6 for all weights)")
    value_lr: float = Field(3e-4, gt=0, description="critic's peak learning rate")
    max_new_tokens: int = Field(96, ge=1, description="longest completion")
    temperature: float = Field(1.0, gt=0, description="of sampling, and of every log-prob")
    no_eos_score: float = Field(NO_END_SCORE, description="score, in sd, of a completion that did not end by itself (replaces its score)")
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL to the start in the reward (2009.01325 uses 0.05)")
    kl_target: float | None = Field(None, gt=0, description="KL a completion, nats, that kl_coef is steered to; null = fixed kl_coef")
    clip_range: float = Field(0.2, gt=0, lt=1, description="allowed change of a token's probability, and of its value")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's lambda")

    @model_validator(mode="after")
    def _minibatches_divide(self) -> PPOConfig:
        if self.prompts_per_step % self.minibatches:
            fits = ", ".join(str(n) for n in range(1, self.prompts_per_step + 1) if self.prompts_per_step % n == 0)
            raise ValueError(f'"minibatches" = {self.minibatches} does not divide "prompts_per_step" = {self.prompts_per_step}. Use {fits}')
        return self


@dataclass(frozen=True)
class Batch:
    """One step's samples. Groups in order; tensors [S, N] by completion, [S] where said."""

    groups: list[Group]
    samples: list[Sample]
    behaviour_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    mask: Tensor
    scores: Tensor  # [S], in sd
    sampler_gap: float


def run(config: PPOConfig, out: Path = Path("runs"), *, progress: Progress | None = None) -> Path:
    """Train, and return the run's folder; the same config again returns the same folder, an interrupted one goes on."""
    progress = progress or Silent()
    config, final, work = start("ppo", config, out, ("data", "model", "reward_model"))
    if work is None:
        return final
    room = open_room(config, out, progress)
    learner = _Learner(config, room, progress)
    prompts = _prompts(config, room)
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
        kl = float(k1(batch.behaviour_logprobs, batch.ref_logprobs, batch.mask).sum(1).mean())
        if config.kl_target is not None:
            count = len(batch.samples)
            loop.state["kl_coef"] = adapt_kl_coef(
                loop.state["kl_coef"], kl, target=config.kl_target, num_episodes=count, horizon=KL_HORIZON
            )
        _keep_samples(work.path, step, batch, room)
        loop.log(step, {**_health(batch, kl), **metrics, "kl/coef": loop.state["kl_coef"]})
    save_policy(room, work.path)
    with disk_errors(work.path):
        save_file({k: p.detach().contiguous() for k, p in trainable(learner.critic).items()}, work.path / "critic.safetensors")
    return finish(room, work, final, loop, prompts, steps=config.steps, score_mean=loop.state["mean"], score_sd=loop.state["sd"])


class _Learner:
    """The four roles: policy, reference, reward model, critic; and the two optimisers."""

    def __init__(self, config: PPOConfig, room: Room, progress: Progress) -> None:
        self.config, self.room = config, room
        device = device_of(room.model)
        reward_path = find(config.reward_model, room.project)
        _same_tokens(room, reward_path)
        self.reward_model = load_reward_model(reward_path, device=device).requires_grad_(False)
        self.critic = _critic_of(reward_path, config, device)
        # Without an adapter to switch off, the reference is a second, frozen copy of the start.
        whole = config.adapter is None
        self.reference = load_causal_lm(find(config.model, room.project), device=device).requires_grad_(False) if whole else None
        self.policy_optimiser, self.critic_optimiser = adamw(room.model, eps=1e-5), adamw(self.critic, eps=1e-5)
        progress.note(
            f"policy: {room.trained_parameters:,} trained parameters; critic: {sum(p.numel() for p in trainable(self.critic).values()):,}"
        )

    def sample(self, groups: list[Group], step: int, state: dict[str, Any]) -> Batch:
        """Sample, score and weigh one step's completions."""
        config, room = self.config, self.room
        samples = generate(
            room.model,
            [g.prompt for g in groups],
            samples_per_prompt=config.samples_per_prompt,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=content_seed(config.seed, step),
            stop_ids=room.renderer.stop_ids,
            pad_id=room.renderer.pad_id,
            keys=[str(g.index) for g in groups],
        )
        k = config.samples_per_prompt
        groups = [Group(g.prompt, tuple(s.ids for s in samples[i * k : (i + 1) * k]), i) for i, g in enumerate(groups)]
        raw = score(self.reward_model, groups, pad_id=room.renderer.pad_id, token_budget=config.token_budget, tree=room.tree)
        finished = torch.tensor([s.finished for s in samples])
        self._set_scale(state, raw[finished] if finished.sum() > 1 else raw)
        scores = torch.where(finished, (raw - state["mean"]) / state["sd"], config.no_eos_score)

        logprobs, mask = self._table(lambda b: batch_logprobs(room.model, b, temperature=config.temperature)[0], groups)
        ref_logprobs = self._reference(groups)
        values, _ = self._table(lambda b: token_values(self.critic, b), groups)
        rewards = token_rewards(logprobs, ref_logprobs, scores, mask, kl_coef=state["kl_coef"])
        estimate = gae(rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
        sampled = torch.nn.utils.rnn.pad_sequence([torch.tensor(s.logprobs) for s in samples], batch_first=True)
        gap = float(torch.where(mask, logprobs - sampled, 0.0).abs().max())
        if gap > SAMPLER_GAP and room.model.dtype == torch.float32:
            raise PreftuneError(
                f"sampler and trainer disagree on a token's log-prob by {gap:.3f} nats",
                f"PPO step {step + 1}",
                "One of temperature, mask, positions or dropout differs between them: report this with the model's name.",
            )
        return Batch(
            groups, samples, logprobs, ref_logprobs, values, whiten(estimate.advantages, mask), estimate.returns, mask, scores, gap
        )

    def learn(self, batch: Batch, step: int) -> dict[str, float]:
        """Do the epochs over one step's samples; return the means of the metrics over all optimiser steps."""
        config = self.config
        done: list[dict[str, float]] = []
        scale = lr_at(step, total=config.steps, lr=1.0, warmup=config.warmup)
        for epoch in range(config.epochs):
            order = shuffled(len(batch.groups), seed=content_seed(config.seed, step) % 2**31, epoch=epoch)
            size = -(-len(order) // config.minibatches)
            for at in range(0, len(order), size):
                minibatch = [batch.groups[i] for i in order[at : at + size]]
                policy = self._step(minibatch, self._policy_loss(batch), self.room.model, self.policy_optimiser, config.lr * scale, step)
                critic = self._step(minibatch, self._value_loss(batch), self.critic, self.critic_optimiser, config.value_lr * scale, step)
                if not done and abs(policy.metrics["policy/ratio"] - 1) > 0.02:
                    raise PreftuneError(
                        f"the first ratio is {policy.metrics['policy/ratio']:.4f} and not 1",
                        f"PPO step {step + 1}",
                        "Is dropout on? Report this.",
                    )
                done.append(
                    {
                        **policy.metrics,
                        **critic.metrics,
                        "loss/policy": policy.loss,
                        "loss/value": critic.loss,
                        "grad_norm": policy.grad_norm,
                    }
                )
                if done[-1]["policy/approx_kl"] > KL_STOP:
                    break
            if done[-1]["policy/approx_kl"] > KL_STOP:
                break
        means = {key: sum(d[key] for d in done) / len(done) for key in done[0]}
        return {**means, "policy/updates": float(len(done)), "lr": config.lr * scale}

    def _policy_loss(self, batch: Batch) -> Callable[[list[Group]], Loss]:
        def loss(groups: list[Group]) -> Loss:
            tokens = self.room.batch(groups)
            logprobs, entropy = batch_logprobs(self.room.model, tokens, temperature=self.config.temperature)
            new, mask = to_sequences(logprobs, tokens.sequence, tokens.num_sequences)
            old, advantages = (self._rows(x, groups, mask) for x in (batch.behaviour_logprobs, batch.advantages))
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
            old, returns = (self._rows(x, groups, mask) for x in (batch.values, batch.returns))
            return Loss(clipped_value_loss(new, old, returns, mask, clip_range=self.config.clip_range), mask.float())

        return loss

    def _rows(self, table: Tensor, groups: list[Group], mask: Tensor) -> Tensor:
        k = self.config.samples_per_prompt
        rows = [g.index * k + j for g in groups for j in range(k)]
        return table[rows, : mask.shape[1]].to(mask.device)

    def _step(
        self,
        groups: list[Group],
        loss: Callable[[list[Group]], Loss],
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        lr: float,
        step: int,
    ) -> Step:
        return train_step(
            split_by_budget(groups, self.config.token_budget),
            count=lambda part: float(sum(g.num_completion_tokens for g in part)),
            loss=loss,
            parameters=trainable(model).values(),
            optimiser=optimiser,
            lr=lr,
            max_grad_norm=self.config.max_grad_norm,
            where=f"PPO step {step + 1}",
            name_batch=lambda part: "prompts " + ", ".join(str(g.index) for g in part),
        )

    def _table(self, compute: Callable[[Any], Tensor], groups: list[Group]) -> tuple[Tensor, Tensor]:
        room = self.room
        return token_table(
            compute,
            groups,
            device=device_of(room.model),
            pad_id=room.renderer.pad_id,
            token_budget=self.config.token_budget,
            tree=room.tree,
        )

    def _reference(self, groups: list[Group]) -> Tensor:
        model = self.reference or self.room.model
        with nullcontext() if self.reference is not None else adapter_off(self.room.model):
            return self._table(lambda b: batch_logprobs(model, b, temperature=self.config.temperature)[0], groups)[0]

    def _set_scale(self, state: dict[str, Any], raw: Tensor) -> None:
        # The first step's samples come from the reference itself: their mean and sd make the score's unit, so that
        # kl_coef and no_eos_score mean the same on every reward model.
        if "mean" not in state:
            state["mean"], state["sd"] = float(raw.mean()), max(float(raw.std()), 1e-3)


def _critic_of(reward_path: Path, config: PPOConfig, device: torch.device) -> nn.Module:
    critic = load_reward_model(reward_path, device=device)
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


def _same_tokens(room: Room, reward_path: Path) -> None:
    if load_tokenizer(reward_path).get_vocab() != room.renderer.tokenizer.get_vocab():
        raise ModelError("the reward model reads other tokens than the policy", str(reward_path), "Train it from the same base model.")


def _prompts(config: PPOConfig, room: Room) -> Encoded:
    encoded = Encoded()
    for index, prompt in enumerate(room.snapshot.prompts):
        try:
            ids, dropped = room.renderer.fit_prompt(prompt.messages, room.max_tokens - config.max_new_tokens)
        except DataError:
            encoded.left_out["prompt too long"] += 1
            continue
        encoded.turns_dropped += dropped
        encoded.groups.append(Group(tuple(ids), (), index))
    if not encoded.groups:
        raise DataError("no prompt fits", config.data, "Raise max_tokens or lower max_new_tokens.")
    return encoded


def _health(batch: Batch, kl: float) -> dict[str, float]:
    finished = [s.finished for s in batch.samples]
    lengths = [len(s.ids) for s in batch.samples]
    return {
        "reward/score": float(batch.scores.mean()),
        "kl/reference": kl,
        "length/completion": sum(lengths) / len(lengths),
        "length/finished": sum(finished) / len(finished),
        "reward/score_sd": float(batch.scores.std(correction=0)),
        "kl/k3": float(k3(batch.behaviour_logprobs, batch.ref_logprobs, batch.mask).sum(1).mean()),
        "value/explained_variance": float(explained_variance(batch.values, batch.returns, batch.mask)),
        "value/mean": float(masked_mean(batch.values, batch.mask)),
        "policy/sampler_gap": batch.sampler_gap,
    }


def _keep_samples(folder: Path, step: int, batch: Batch, room: Room) -> None:
    kl = k1(batch.behaviour_logprobs, batch.ref_logprobs, batch.mask).sum(1)
    every = max(1, len(batch.samples) // SAMPLES_KEPT)
    with disk_errors(folder), (folder / SAMPLES).open("a", encoding="utf-8") as file:
        for row in range(0, len(batch.samples), every):
            sample = batch.samples[row]
            prompt = room.renderer.tokenizer.decode(batch.groups[sample.prompt_index].prompt)
            text = room.renderer.decode(sample.ids)
            line = {"step": step + 1, "prompt": prompt, "completion": text, "score": float(batch.scores[row]), "kl": float(kl[row])}
            file.write(json.dumps({**line, "finished": sample.finished}, ensure_ascii=False) + "\n")


def plan(config: PPOConfig, out: Path = Path("runs")) -> Plan:
    """Say what the run will take, without starting it (completions taken as max_new_tokens long)."""
    room = open_room(resolved(config, out)[0], out, Silent())
    prompts = _prompts(config, room)
    filler = tuple([0] * config.max_new_tokens)
    steps = steps_of(prompts.groups, steps=config.steps, batch_size=config.prompts_per_step, seed=config.seed)
    batches = [[Group(g.prompt, (filler,) * config.samples_per_prompt, g.index) for g in step] for step in steps]
    # Policy and critic are both trained; sampling, reward model, reference, old log-probs and values are forward passes.
    return make_plan(
        "ppo",
        room.model,
        Encoded([group for step in batches for group in step], prompts.left_out),
        batches,
        lambda part: batch_logprobs(room.model, room.batch(part))[0],
        token_budget=config.token_budget,
        passes=config.epochs,
        forward_passes=6,
        learners=2,
        resident_models=3,
    )
