"""An evaluation, a snapshot, and runs on a tiny model, as the stages before the release leave them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.manifest import begin, hash_folder, write_json


def estimate(value: float, low: float, high: float, n: int = 100) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def task(name: str, verdict: str | None = "kept", **changes: Any) -> dict[str, Any]:
    shared = {"before": 0.55, "after": 0.545, "difference": -0.005, "lower": -0.0123, "margin": 0.03, "n": 1000, "flipped": []}
    unit = "relative change of bits per byte" if name in ("prose", "code") else "share of right answers"
    return {"name": name, "unit": unit, "verdict": verdict, "gated": verdict is not None, **shared, **changes}


def tasks(facts: str = "kept") -> list[dict[str, Any]]:
    lower = {"kept": -0.0123, "lost": -0.0719, "not proved": -0.0345}[facts]
    return [
        task("facts", facts, lower=lower),
        task("prose", before=1.0123, after=1.0145, lower=-0.0031, margin=0.01, n=60),
        task("code", before=0.9, after=0.901, lower=-0.0029, margin=0.01, n=60),
        task("functions", None, lower=None, margin=None, n=40),
    ]


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """What `evaluate` measures of a model that passes the gate."""
    return {
        "name": "dpo",
        "model": "runs/of-the-test",
        "base": "base",
        "reward_model": "runs/reward",
        "size": "small",
        "seed": 3,
        "style": estimate(0.6217, 0.5811, 0.6602),
        "style_gain": estimate(0.3141, 0.2612, 0.3623),
        "fully_adherent": estimate(0.21, 0.14, 0.3),
        "parses": estimate(0.97, 0.92, 0.99),
        "passes_check": estimate(0.33, 0.25, 0.43),
        "ends_by_itself": estimate(0.93, 0.86, 0.97),
        "mean_tokens": estimate(71.37, 66.1, 76.9),
        "conventions": {"type-hints": {"followed": 71, "applies": 98}, "never-seen": {"followed": 0, "applies": 0}},
        "reward": {**estimate(1.234, 1.01, 1.45), "sd": 0.9},
        "win_rate": estimate(0.777, 0.69, 0.85),
        "kl": estimate(12.34, 10.9, 13.8),
        "retention": {"measure": {}, "verdict": {"overall": "kept", "tasks": tasks(), "flipped": []}},
        "answers": [],
        "seconds": 12.0,
        "peak_memory_gib": 0.5,
    }


@pytest.fixture
def set_retention(evaluation: dict[str, Any]) -> Callable[[str], None]:
    """Make the evaluation's verdict "kept", "lost" or "not proved", the task `facts` being at fault."""

    def change(overall: str) -> None:
        evaluation["retention"]["verdict"] = {"overall": overall, "tasks": tasks(overall), "flipped": []}

    return change


@pytest.fixture
def project(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A project folder with a snapshot of two pairs on one prompt; its base is the tiny model with a licence and a card."""
    shutil.copytree(tiny_model_folder, tmp_path / "base")
    (tmp_path / "base" / "LICENSE").write_text("The base may be used by all.\n")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    final, work = begin(tmp_path / "snapshots", "snapshot", {"store": "5707e0aa"}, {"held_out": 0.1, "seed": 0})
    assert work is not None
    for name, groups in (("train.jsonl", ["aaaa1111", "aaaa1111", "bbbb2222"]), ("demonstrations.jsonl", ["cccc3333"])):
        (work.path / name).write_text("".join(json.dumps({"group": group}) + "\n" for group in groups))
    counts = {
        "train": {"pairs": 3, "demonstrations": 1, "prompts": 3},
        "held_out": {"pairs": 4, "demonstrations": 0, "prompts": 5},
        "dropped": {"pairs": 6, "demonstrations": 0, "prompts": 6, "reason": "nearly alike"},
    }
    work.finish(final, counts=counts)
    return tmp_path


def begin_run(project: Path, kind: str, **config: Any):
    snapshot = next((project / "snapshots").iterdir())
    settings = {"data": f"snapshots/{snapshot.name}", "model": "base", "chat_template": None, "seed": 7, "lr": 0.0123, **config}
    inputs = {"data": snapshot.name, "model": hash_folder(project / settings["model"])}
    return begin(project / "runs", kind, inputs, settings)


FACTS = {
    "steps": 41, "trained_parameters": 1234, "training_seconds": 75.0, "peak_memory_gib": 0.77,
    "data": {"groups": 3, "left_out": {"longer than 2,048 tokens": 2}, "turns_dropped": 1},
}  # fmt: skip


def save_adapter_run(project: Path, kind: str = "dpo", **config: Any) -> Path:
    """Write a run whose adapter changes what its model says."""
    import torch

    from preftune.models.adapter import Adapter, add_adapter
    from preftune.models.checkpoint import save_tokenizer
    from preftune.models.load import load_causal_lm, load_renderer

    final, work = begin_run(project, kind, adapter={"rank": 4, "alpha": 8.0}, **config)
    base = project / config.get("model", "base")
    model = add_adapter(load_causal_lm(base, device=torch.device("cpu")), Adapter(rank=4, alpha=8.0), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(work.path / "adapter")
    save_tokenizer(load_renderer(base, config.get("chat_template")), work.path / "adapter")
    return work.finish(final, **FACTS)


@pytest.fixture
def make_adapter_run(project: Path) -> Callable[..., Path]:
    """Write a run with an adapter: its kind ("dpo"), and settings by name."""
    return lambda kind="dpo", **config: save_adapter_run(project, kind, **config)


@pytest.fixture
def adapter_run(make_adapter_run: Callable[..., Path]) -> Path:
    """A DPO run with an adapter on the tiny model."""
    return make_adapter_run()


@pytest.fixture
def chained_run(make_adapter_run: Callable[..., Path]) -> Path:
    """A DPO run with an adapter on an SFT run with an adapter on the tiny model."""
    return make_adapter_run(model=f"runs/{make_adapter_run('sft').name}")


@pytest.fixture
def whole_run(project: Path) -> Path:
    """An SFT run that trained all weights."""
    import torch

    from preftune.models.checkpoint import save_model
    from preftune.models.load import load_causal_lm, load_renderer

    final, work = begin_run(project, "sft", adapter=None)
    model = load_causal_lm(project / "base", device=torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    save_model(model, load_renderer(project / "base"), work.path / "model")
    return work.finish(final, **FACTS)


@pytest.fixture
def evaluated(project: Path, evaluation: dict[str, Any]) -> Callable[[Path], Path]:
    """Write the evaluation as a folder of reports that is about this run, and return the folder."""

    def write(run: Path) -> Path:
        inputs = {"model": run.name, "base": "0ba5e", "told": json.dumps(evaluation)}
        final, work = begin(project / "reports", "evaluation", inputs, {"size": "small", "seed": 3})
        assert work is not None
        write_json(work.path / "evaluation.json", evaluation)
        return work.finish(final)

    return write
