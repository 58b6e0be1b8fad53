"""preftune: from a team's preferences to a released model.

Every command is one function, re-exported here and loaded when it is first asked for, so that `import preftune` loads no
torch. (`demo`, `evaluate` and `release` are also names of modules; their functions are `run_demo`, `evaluate_model` and
`release_run` here.)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.config import load_config
    from preftune.data.checks import check_pairs
    from preftune.data.importing import import_preferences
    from preftune.data.snapshot import snapshot
    from preftune.data.store import Store
    from preftune.demo import demo as run_demo
    from preftune.errors import ConfigError, DataError, ModelError, PreftuneError, Refused, ShapeError
    from preftune.evaluate.run import evaluate as evaluate_model
    from preftune.manifest import read_manifest
    from preftune.progress import Progress, Silent
    from preftune.records import Candidate, Demonstration, Judgement, Message, Pair, Prompt
    from preftune.release.export import release as release_run
    from preftune.stages.ppo import PPOConfig
    from preftune.stages.ppo import run as train_ppo
    from preftune.stages.preference import DPOConfig
    from preftune.stages.preference import run as train_dpo
    from preftune.stages.reward import RewardConfig
    from preftune.stages.reward import run as train_reward
    from preftune.stages.sft import SFTConfig
    from preftune.stages.sft import run as train_sft

    __version__: str

# Where each public name lives: (module, its name there).
_PUBLIC = {
    "ConfigError": ("errors", "ConfigError"),
    "DataError": ("errors", "DataError"),
    "ModelError": ("errors", "ModelError"),
    "PreftuneError": ("errors", "PreftuneError"),
    "Refused": ("errors", "Refused"),
    "ShapeError": ("errors", "ShapeError"),
    "Candidate": ("records", "Candidate"),
    "Demonstration": ("records", "Demonstration"),
    "Judgement": ("records", "Judgement"),
    "Message": ("records", "Message"),
    "Pair": ("records", "Pair"),
    "Prompt": ("records", "Prompt"),
    "Progress": ("progress", "Progress"),
    "Silent": ("progress", "Silent"),
    "load_config": ("config", "load_config"),
    "read_manifest": ("manifest", "read_manifest"),
    "Store": ("data.store", "Store"),
    "import_preferences": ("data.importing", "import_preferences"),
    "check_pairs": ("data.checks", "check_pairs"),
    "snapshot": ("data.snapshot", "snapshot"),
    "SFTConfig": ("stages.sft", "SFTConfig"),
    "RewardConfig": ("stages.reward", "RewardConfig"),
    "DPOConfig": ("stages.preference", "DPOConfig"),
    "PPOConfig": ("stages.ppo", "PPOConfig"),
    "train_sft": ("stages.sft", "run"),
    "train_reward": ("stages.reward", "run"),
    "train_dpo": ("stages.preference", "run"),
    "train_ppo": ("stages.ppo", "run"),
    "evaluate_model": ("evaluate.run", "evaluate"),
    "release_run": ("release.export", "release"),
    "run_demo": ("demo", "demo"),
}

__all__ = [
    "Candidate",
    "ConfigError",
    "DPOConfig",
    "DataError",
    "Demonstration",
    "Judgement",
    "Message",
    "ModelError",
    "PPOConfig",
    "Pair",
    "PreftuneError",
    "Progress",
    "Prompt",
    "Refused",
    "RewardConfig",
    "SFTConfig",
    "ShapeError",
    "Silent",
    "Store",
    "__version__",
    "check_pairs",
    "evaluate_model",
    "import_preferences",
    "load_config",
    "read_manifest",
    "release_run",
    "run_demo",
    "snapshot",
    "train_dpo",
    "train_ppo",
    "train_reward",
    "train_sft",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("preftune")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"preftune.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
