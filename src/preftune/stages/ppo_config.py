"""The settings of `preftune train ppo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from preftune.config import Config
from preftune.stages.online_config import KL_STOP, OnlineConfig


class Critic(Config):
    """The critic, which says what a state is worth."""

    shared: float | None = Field(
        None, gt=0, description="weight of its loss where it is a head on the policy itself (1909.08593: 0.1); null = a critic of its own"
    )
    clip_range: float | None = Field(0.2, gt=0, description="allowed change of a value in one step; null = any (2005.12729 finds no use)")
    warmup_steps: int = Field(0, ge=0, description="first steps in which it learns alone (PPO-max, 2307.04964)")


class PPOConfig(OnlineConfig):
    """Settings of `preftune train ppo`."""

    reward_model: str = Field(description="run of preftune train reward; the critic starts from it")
    value_lr: float = Field(3e-4, gt=0, description="critic's peak learning rate, where it is one of its own")
    critic: Critic = Field(Critic(), description="the critic (shared, clip_range, warmup_steps)")
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL to the start in the reward (2009.01325 uses 0.05)")
    kl_target: float | None = Field(None, gt=0, description="KL a completion, nats, that kl_coef is steered to; null = fixed kl_coef")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="of the KL in the reward; k1 alone has the KL's gradient there")
    kl_stop: float | None = Field(
        KL_STOP, gt=0, description="KL to the sampling policy, nats a token, past which a step's epochs end; null = never"
    )
    reference_ema: float | None = Field(
        None, gt=0, lt=1, description="share that a step leaves of the KL's reference, which follows the policy (0.992); null = the start"
    )
    clip_range: float = Field(0.2, gt=0, lt=1, description="allowed change of a token's probability")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's lambda")
    whiten: Literal["batch", "minibatch"] | None = Field("batch", description="over what advantages get mean 0, sd 1; null = nothing")
    ptx_coef: float | None = Field(None, gt=0, description="weight of a plain likelihood loss beside PPO's (2203.02155: 27.8); null = none")
    ptx_text: str | None = Field(
        None,
        description="its text file, blank lines between texts; null = the snapshot's demonstrations, else its chosen answers",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> PPOConfig:
        if self.ptx_text is not None and self.ptx_coef is None:
            raise ValueError('"ptx_text" is what "ptx_coef" weighs, and that is not set. Set it too')
        if self.critic.shared is not None and self.critic.warmup_steps:
            raise ValueError('"critic.warmup_steps" needs a critic of its own: what "critic.shared" learns moves the policy. Leave one out')
        return self
