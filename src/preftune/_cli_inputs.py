"""What the commands need before they can call their function: checked settings, folders found.

As in cli.py, whatever loads pydantic or torch is imported inside a function.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.stages.kinds import Stage, StageFunctions, base_under

if TYPE_CHECKING:
    from preftune.config import Config


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
