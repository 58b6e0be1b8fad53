"""The stages by their names, and what a run of one was made from.

Whatever loads torch is imported inside a function, as the command line lists the stages without it.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.errors import ConfigError
from preftune.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from preftune.config import Config


class Stage(StrEnum):
    """The stages that `train` and `config` know."""

    sft = "sft"
    reward = "reward"
    dpo = "dpo"
    ppo = "ppo"
    rloo = "rloo"
    grpo = "grpo"


class StageFunctions(NamedTuple):
    """What a stage offers: its config model, `run(config, out, progress=)`, `plan(config, out)`, and which keys name inputs."""

    config: type[Config]
    run: Callable[..., Path]
    plan: Callable[..., Any]
    inputs: tuple[str, ...] = ("data", "model")


def stage_functions(stage: Stage) -> StageFunctions:
    """Return a stage's config model and functions; this loads torch."""
    match stage:
        case Stage.sft:
            from preftune.stages import sft

            return StageFunctions(sft.SFTConfig, sft.run, sft.plan)
        case Stage.reward:
            from preftune.stages import reward

            return StageFunctions(reward.RewardConfig, reward.run, reward.plan)
        case Stage.dpo:
            from preftune.stages import preference, preference_config

            return StageFunctions(preference_config.DPOConfig, preference.run, preference.plan)
        case Stage.ppo:
            from preftune.stages import ppo

            return StageFunctions(ppo.PPOConfig, ppo.run, ppo.plan, ("data", "model", "reward_model"))
        case Stage.rloo:
            from preftune.stages import group

            return StageFunctions(group.RLOOConfig, group.rloo, group.plan_rloo, group.INPUTS)
        case Stage.grpo:
            from preftune.stages import group

            return StageFunctions(group.GRPOConfig, group.grpo, group.plan_grpo, group.INPUTS)


def input_of(run: Path, key: str, option: str) -> Path:
    """Return the folder or file that a run was made from."""
    from preftune.models.load import find, project_of

    settings = read_manifest(run)["config"] if (run / MANIFEST).exists() else {}
    if key not in settings:
        raise ConfigError(f'this is no run of ours that names its "{key}"', str(run), f"Give {option}.")
    return find(settings[key], project_of(run))


def base_under(run: Path) -> Path:
    """Return the model that stood before any tuning of ours: through every run below this one."""
    from preftune.models.load import base_of

    base = input_of(run, "model", "--base")
    while (base / MANIFEST).exists() and "model" in read_manifest(base)["config"]:
        base = base_of(base)
    return base
