"""What a config says of where samples are drawn (key `rollout`). No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from preftune.config import Config


class LocalRollout(Config):
    """Our generator in the trainer's own processes."""

    backend: Literal["local"] = Field("local", description="local: by the trainer's own processes")


# Several become a union told apart by `backend`: Annotated[LocalRollout | …, Field(discriminator="backend")].
RolloutConfig = LocalRollout
