"""What the commands need before they can call their function: the stage's functions, checked settings, folders found.

As in cli.py, whatever loads pydantic or torch is imported inside a function.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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


def stage_config(stage: Stage, kind: StageFunctions, settings: list[str]) -> Config:
    """Return the checked config; the project's model is the default where a stage needs a model and none is named."""
    from preftune.config import load_config
    from preftune.project import read_project

    path = Path(settings[0]) if settings and "=" not in settings[0] else None
    overrides = settings[1:] if path else settings
    project = read_project()
    return load_config(kind.config, path, overrides, stage=stage.value, defaults={"model": project.model})


def after_training(stage: Stage, run: Path) -> str:
    """Return the command that comes after a run of this stage."""
    from preftune.manifest import read_manifest

    data = read_manifest(run)["config"]["data"]
    match stage:
        case Stage.sft:
            return f"preftune train dpo model={run} data={data}"
        case Stage.reward:
            return f"preftune train ppo reward_model={run} data={data}"
        case Stage.dpo | Stage.ppo | Stage.rloo | Stage.grpo:
            return f"preftune evaluate {run}"


def input_of(run: Path, key: str, option: str) -> Path:
    """Return the folder or file that a run was made from."""
    from preftune.errors import ConfigError
    from preftune.manifest import MANIFEST, read_manifest
    from preftune.models.load import find, project_of

    settings = read_manifest(run)["config"] if (run / MANIFEST).exists() else {}
    if key not in settings:
        raise ConfigError(f'this is no run of ours that names its "{key}"', str(run), f"Give {option}.")
    return find(settings[key], project_of(run))


def base_under(run: Path) -> Path:
    """Return the model that stood before any tuning of ours: through every run below this one."""
    from preftune.manifest import MANIFEST, read_manifest
    from preftune.models.load import base_of

    base = input_of(run, "model", "--base")
    while (base / MANIFEST).exists() and "model" in read_manifest(base)["config"]:
        base = base_of(base)
    return base


def untuned(config: Any, out: Path) -> Path:
    """Return the model before any tuning of ours that a stage's config starts from."""
    from preftune.manifest import MANIFEST
    from preftune.models.load import find
    from preftune.stages.common import resolved

    model = find(resolved(config, out)[0].model, out.resolve().parent)
    return base_under(model) if (model / MANIFEST).exists() else model


def evaluation_of(run: Path, reports: Path) -> Path:
    """Return the newest evaluation of a run."""
    from preftune.errors import ConfigError
    from preftune.manifest import MANIFEST, read_manifest

    name = read_manifest(run)["id"]
    manifests = {path.parent: read_manifest(path.parent) for path in reports.glob(f"*/{MANIFEST}")}
    found = [folder for folder, m in manifests.items() if m["kind"] == "evaluation" and m["inputs"].get("model") == name]
    if not found:
        raise ConfigError(f"there is no evaluation of {run} here", str(reports), f"Run preftune evaluate {run} first.")
    return max(found, key=lambda folder: (folder / MANIFEST).stat().st_mtime)


def numbers(text: str, option: str) -> list[float]:
    """Return the numbers of a list such as "0.5,1,1.5". Raises ConfigError where one is none."""
    from preftune.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f'"{text}" is no list of numbers ({error})', option, "Write for example 0.5,1,1.5.") from error


def store_address(store: str | None) -> str:
    """Return the store that was named, or the project's."""
    from preftune.project import read_project

    return store or read_project().store
