"""preftune: from a team's preferences to a released model.

Every command is one function, re-exported here and loaded when it is first asked for, so that `import preftune` loads no
torch. (`demo`, `evaluate` and `release` are also names of modules; their functions are `run_demo`, `evaluate_model` and
`release_run` here.)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.config import describe as describe_config
    from preftune.config import load_config
    from preftune.data.agreement import agreement
    from preftune.data.checks import check_pairs, check_store
    from preftune.data.exporting import export_preferences
    from preftune.data.filters import Filters
    from preftune.data.importing import import_preferences
    from preftune.data.mining import mine
    from preftune.data.mining.settings import MiningSettings
    from preftune.data.remote import Endpoint
    from preftune.data.selection import next_pairs
    from preftune.data.snapshot import load_snapshot, snapshot
    from preftune.data.store import Store
    from preftune.demo import demo as run_demo
    from preftune.errors import ConfigError, DataError, ModelError, PreftuneError, Refused, ShapeError
    from preftune.evaluate.advise import advise
    from preftune.evaluate.preference import measure_preference
    from preftune.evaluate.report import write_report
    from preftune.evaluate.run import evaluate as evaluate_model
    from preftune.loop import make_plan as plan_loop
    from preftune.loop import run as run_loop
    from preftune.manifest import read_manifest
    from preftune.progress import Progress, Silent
    from preftune.project import init_project
    from preftune.records import Candidate, Demonstration, Judgement, KWise, Message, Pair, Prompt
    from preftune.release.export import release as release_run
    from preftune.release.provenance import judgements_behind
    from preftune.release.report import report
    from preftune.rollout.collect import sample_candidates
    from preftune.rollout.pick import pick
    from preftune.rollout.reward_probes import probe_reward
    from preftune.rollout.sources import SampleSettings
    from preftune.stages.group import GRPOConfig, RLOOConfig
    from preftune.stages.group import grpo as train_grpo
    from preftune.stages.group import rloo as train_rloo
    from preftune.stages.ppo import PPOConfig
    from preftune.stages.ppo import run as train_ppo
    from preftune.stages.preference import run as train_dpo
    from preftune.stages.preference_config import DPOConfig
    from preftune.stages.reward import RewardConfig
    from preftune.stages.reward import run as train_reward
    from preftune.stages.sft import SFTConfig
    from preftune.stages.sft import run as train_sft
    from preftune.tuning.search import tune_dpo
    from preftune.tuning.strengths import scale, scaled_run
    from preftune.web.serve import label
    from preftune.web.settings import LabelSettings

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
    "probe_reward": ("rollout.reward_probes", "probe_reward"),
    "check_pairs": ("data.checks", "check_pairs"),
    "snapshot": ("data.snapshot", "snapshot"),
    "SFTConfig": ("stages.sft", "SFTConfig"),
    "RewardConfig": ("stages.reward", "RewardConfig"),
    "DPOConfig": ("stages.preference_config", "DPOConfig"),
    "PPOConfig": ("stages.ppo", "PPOConfig"),
    "RLOOConfig": ("stages.group", "RLOOConfig"),
    "GRPOConfig": ("stages.group", "GRPOConfig"),
    "train_sft": ("stages.sft", "run"),
    "train_reward": ("stages.reward", "run"),
    "train_dpo": ("stages.preference", "run"),
    "train_ppo": ("stages.ppo", "run"),
    "train_rloo": ("stages.group", "rloo"),
    "train_grpo": ("stages.group", "grpo"),
    "evaluate_model": ("evaluate.run", "evaluate"),
    "release_run": ("release.export", "release"),
    "judgements_behind": ("release.provenance", "judgements_behind"),
    "report": ("release.report", "report"),
    "plan_loop": ("loop", "make_plan"),
    "run_loop": ("loop", "run"),
    "run_demo": ("demo", "demo"),
    "describe_config": ("config", "describe"),
    "Filters": ("data.filters", "Filters"),
    "KWise": ("records", "KWise"),
    "Endpoint": ("data.remote", "Endpoint"),
    "MiningSettings": ("data.mining.settings", "MiningSettings"),
    "SampleSettings": ("rollout.sources", "SampleSettings"),
    "LabelSettings": ("web.settings", "LabelSettings"),
    "init_project": ("project", "init_project"),
    "mine": ("data.mining", "mine"),
    "sample_candidates": ("rollout.collect", "sample_candidates"),
    "pick": ("rollout.pick", "pick"),
    "label": ("web.serve", "label"),
    "check_store": ("data.checks", "check_store"),
    "agreement": ("data.agreement", "agreement"),
    "next_pairs": ("data.selection", "next_pairs"),
    "advise": ("evaluate.advise", "advise"),
    "load_snapshot": ("data.snapshot", "load_snapshot"),
    "export_preferences": ("data.exporting", "export_preferences"),
    "write_report": ("evaluate.report", "write_report"),
    "measure_preference": ("evaluate.preference", "measure_preference"),
    "scale": ("tuning.strengths", "scale"),
    "tune_dpo": ("tuning.search", "tune_dpo"),
    "scaled_run": ("tuning.strengths", "scaled_run"),
}

__all__ = [
    "Candidate",
    "ConfigError",
    "DPOConfig",
    "DataError",
    "Demonstration",
    "Endpoint",
    "Filters",
    "GRPOConfig",
    "Judgement",
    "KWise",
    "LabelSettings",
    "Message",
    "MiningSettings",
    "ModelError",
    "PPOConfig",
    "Pair",
    "PreftuneError",
    "Progress",
    "Prompt",
    "RLOOConfig",
    "Refused",
    "RewardConfig",
    "SFTConfig",
    "SampleSettings",
    "ShapeError",
    "Silent",
    "Store",
    "__version__",
    "advise",
    "agreement",
    "check_pairs",
    "check_store",
    "describe_config",
    "evaluate_model",
    "export_preferences",
    "import_preferences",
    "init_project",
    "judgements_behind",
    "label",
    "load_config",
    "load_snapshot",
    "measure_preference",
    "mine",
    "next_pairs",
    "pick",
    "plan_loop",
    "probe_reward",
    "read_manifest",
    "release_run",
    "report",
    "run_demo",
    "run_loop",
    "sample_candidates",
    "scale",
    "scaled_run",
    "snapshot",
    "train_dpo",
    "train_grpo",
    "train_ppo",
    "train_reward",
    "train_rloo",
    "train_sft",
    "tune_dpo",
    "write_report",
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
