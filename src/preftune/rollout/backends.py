"""What a config says of where samples are drawn (key `rollout`). No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from preftune.config import Config
from preftune.data.endpoints import plain_http


class LocalRollout(Config):
    """Our generator in the trainer's own processes."""

    backend: Literal["local"] = Field("local", description="local: by the trainer's own processes")
    max_staleness: int = Field(0, ge=0, description="local: 0")

    @field_validator("max_staleness")
    @classmethod
    def _one_after_the_other(cls, staleness: int) -> int:
        if staleness:
            raise ValueError(
                "the trainer's own processes draw and learn by turns, so older weights would save no time. Leave it out, or take "
                "rollout.backend=ray or vllm"
            )
        return staleness


class Elsewhere(Config):
    """What the backends share that draw in other processes than the trainer's."""

    max_staleness: int = Field(
        0, ge=0, le=8, description="rounds by which a batch's weights may be older than the policy; drawing and learning then overlap"
    )
    importance_cap: float | None = Field(
        2.0, ge=1, description="largest weight, trainer's probability over the sampler's, of what is learned from a sample; null = none"
    )


class VllmRollout(Elsewhere):
    """Servers started with `vllm serve`, each in an environment of its own (docs/past-one-machine.md)."""

    backend: Literal["vllm"] = Field("vllm", description="vllm: by `vllm serve` over HTTP")
    urls: tuple[str, ...] = Field(min_length=1, description="the servers, such as http://127.0.0.1:8000")
    weights: str = Field(description="folder that this machine and the servers see under one path; each round's weights are written there")
    concurrency: int = Field(64, ge=1, le=1024, description="requests under way at each server")
    timeout_seconds: float = Field(600.0, gt=0, description="longest silence of a server, a push of the weights included")
    tolerance: float = Field(0.3, gt=0, description="nats by which a token's log-prob there may differ from the policy's after a push")

    @field_validator("urls")
    @classmethod
    def _plain_http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            plain_http(url)
        if len(set(urls)) < len(urls):
            raise ValueError("a server is named twice. Name each once")
        return urls


class RayRollout(Elsewhere):
    """Our generator in actors of a Ray cluster (extra `ray`)."""

    backend: Literal["ray"] = Field(description="ray: by actors on a Ray cluster")
    workers: int = Field(2, ge=1, description="ray: actors, each with a model of its own")
    cpus: float = Field(1, gt=0, description="ray: CPU cores of each")
    gpus: float = Field(0, ge=0, description="ray: GPUs of each; 0 = it draws on the CPU")
    score_workers: int = Field(
        0, ge=0, description="ray: further actors (a core each) that ask functions, rules and judges; 0 = the trainer's first process does"
    )
    address: str | None = Field(None, description="ray: the cluster's; null = what RAY_ADDRESS names, else one that is started here")
    timeout_seconds: float = Field(1800.0, gt=0, description="ray: longest silence of a worker with work before it is started again")


RolloutConfig = Annotated[LocalRollout | RayRollout | VllmRollout, Field(discriminator="backend")]
