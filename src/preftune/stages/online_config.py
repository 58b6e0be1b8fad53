"""The settings that the stages share which learn from their own samples: PPO, RLOO and GRPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from preftune.config import Config
from preftune.rollout.backends import LocalRollout, RolloutConfig
from preftune.rollout.rewards.source import RewardSource
from preftune.rollout.score import NO_END_SCORE
from preftune.stages.common import StageConfig
from preftune.training.health import Trouble

KL_STOP = (
    0.03  # approximate KL to the sampling policy, nats a token, past which the epochs end: 1.5 × 0.02 (maths: the 37 details, extra 3)
)


class Scoring(Config):
    """What is made of the rewards' sum before anything is learned from it."""

    unit: Literal["start", "running", "own"] = Field(
        "start",
        description="start: mean 0 and sd 1 over the start's answers; running: over all so far (PPO-max); own: as it is",
    )
    clip: float | None = Field(None, gt=0, description="largest score, in that unit, of either sign (PPO-max: 5); null = any")
    missing_end: Literal["replace", "add"] = Field("replace", description="whether no_eos_score replaces the score, or is added to it")
    whiten_rewards: bool = Field(False, description="PPO: give token rewards sd 1 around their mean (1909.08593: on; 2403.17031: off)")


class OnlineConfig(StageConfig):
    """The keys that the stages share which learn from their own samples."""

    reward_model: str | None = Field(None, description="run of preftune train reward; null = what rewards names alone")
    rewards: tuple[RewardSource, ...] = Field(
        (), description="further rewards, added with their weights; one that names the reward model too decides what that weighs"
    )
    steps: int = Field(20, ge=1, description="rounds of sampling and learning")
    prompts_per_step: int = Field(16, ge=1, description="prompts sampled a step")
    samples_per_prompt: int = Field(4, ge=1, description="completions of each")
    epochs: int = Field(2, ge=1, description="passes over each step's samples (the papers use 1 to 4)")
    minibatches: int = Field(2, ge=1, description="optimiser steps an epoch; divides prompts_per_step")
    lr: float = Field(1e-4, gt=0, description="policy's peak learning rate (1e-4 for LoRA; 3e-6 for all weights)")
    max_new_tokens: int = Field(96, ge=1, description="longest completion")
    temperature: float = Field(1.0, gt=0, description="of sampling, and of every log-prob")
    no_eos_score: float = Field(NO_END_SCORE, description="score, in sd, of a completion that did not end by itself (replaces its score)")
    scoring: Scoring = Field(Scoring(), description="the scores' unit and bounds (unit, clip, missing_end, whiten_rewards)")
    rollout: RolloutConfig = Field(LocalRollout(), description="where samples are drawn (backend, and its settings)")
    stop_on: tuple[Trouble, ...] = Field((), description="troubles that end the run, which keeps what it has learned; each is said anyway")

    @model_validator(mode="after")
    def _something_rewards(self) -> OnlineConfig:
        if self.reward_model is None and not self.rewards:
            raise ValueError('nothing rewards. Set "reward_model", or "rewards"')
        return self

    @model_validator(mode="after")
    def _minibatches_divide(self) -> OnlineConfig:
        if self.prompts_per_step % self.minibatches:
            fits = ", ".join(str(n) for n in range(1, self.prompts_per_step + 1) if self.prompts_per_step % n == 0)
            raise ValueError(f'"minibatches" = {self.minibatches} does not divide "prompts_per_step" = {self.prompts_per_step}. Use {fits}')
        return self
