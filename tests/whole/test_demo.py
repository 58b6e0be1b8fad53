"""The demo on a tiny model: the whole loop in one call, the second call finds it done, and a kill anywhere loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from preftune import demo as demo_module
from preftune.demo import Recipe, demo
from preftune.evaluate import run as evaluation
from preftune.evaluate.run import Size
from preftune.manifest import read_manifest
from preftune.progress import Silent
from preftune.training import step as step_module

STAGES = {"reward", "sft", "dpo", "dpo_base", "ppo"}
ESTIMATE = {"value", "low", "high", "n"}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    settings = {"batch_size": 8, "lr": 1e-3}
    recipe = Recipe(
        pairs=16,
        size="small",
        sft=settings,
        reward=settings,
        dpo=settings,
        dpo_base=settings,
        ppo={"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 12},
        seconds={"reward": 1, "evaluate": 1},
    )
    monkeypatch.setattr(demo_module, "RECIPES", {"demo": recipe})
    monkeypatch.setattr(evaluation, "SIZES", {"small": Size(prompts=4, max_new_tokens=12, facts=24, texts=2, functions=1)})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Where the demo is run once, by the first test."""
    return tmp_path_factory.mktemp("demo") / "demo"


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def without_times(value: Any) -> Any:
    """Return a summary without what differs from one time to the next: seconds and memory."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k and "memory" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_one_call_makes_the_report_the_summary_and_every_folder_between(undisturbed, toy):
    report = demo(undisturbed, model=toy.base)
    assert report == undisturbed / "report.html"
    assert "<html" in report.read_text(encoding="utf-8")
    summary = json.loads((undisturbed / "summary.json").read_text(encoding="utf-8"))

    for name in ("before", "sft", "dpo", "ppo"):
        assert summary["style"][name].keys() == ESTIMATE
    for name in ("dpo", "ppo"):
        assert summary["style"][f"{name}_gain"].keys() == ESTIMATE
        assert summary["retention"][name]["verdict"] in ("kept", "lost", "not proved")
        assert [task["name"] for task in summary["retention"][name]["tasks"]] == ["facts", "prose", "code", "functions"]
        assert isinstance(summary[name]["kl"], float)
        assert summary[name]["win_rate"].keys() >= ESTIMATE
    assert isinstance(summary["ppo"]["reward_gain_sd"], float)
    assert summary["reward_model"]["accuracy"].keys() == ESTIMATE
    assert summary["seconds"].keys() >= STAGES | {"evaluate_before", "evaluate_dpo", "evaluate_ppo", "total"}
    assert summary["peak_memory_gib"] > 0
    assert (summary["size"], summary["seed"], summary["model"]) == ("demo", 0, "base")
    assert {row["name"] for row in summary["comparison"]} >= {"dpo", "ppo"}

    assert summary["folders"]["runs"].keys() == STAGES
    for path in [*summary["folders"]["runs"].values(), *summary["folders"]["evaluations"].values(), summary["folders"]["snapshot"]]:
        assert (undisturbed / path / "manifest.json").exists()
    assert len(list((undisturbed / "runs").iterdir())) == len(STAGES)  # and no unfinished one
    kinds = {name: read_manifest(undisturbed / path)["config"]["model"] for name, path in summary["folders"]["runs"].items()}
    assert kinds["dpo"] == kinds["ppo"] == summary["folders"]["runs"]["sft"]  # the same start, so that they can be compared
    # On so few facts nothing can be proved to be kept, so no method passes the gate of its own.
    assert summary["refusals"].keys() >= {"dpo", "ppo"}
    assert summary["release"] is None or (undisturbed / summary["release"] / "README.md").exists()


def test_a_base_whose_answers_never_end_has_no_reward_to_compare_with_and_is_no_error():
    before = {"sampled_reward": {"value": -2.0, "sd": 0.0}}
    assert demo_module._reward_gain({"sampled_reward": {"value": 1.0, "sd": 1.0}}, before) is None


@pytest.mark.slow
def test_the_second_call_does_nothing_anew(undisturbed, toy, monkeypatch):
    before, summary = files(undisturbed), (undisturbed / "summary.json").read_text(encoding="utf-8")
    monkeypatch.setattr(step_module, "weighted_sum", None)  # so that any training or measuring would fail
    monkeypatch.setattr(evaluation, "Subject", None)
    demo(undisturbed, model=toy.base)
    changed = {name for name, time in files(undisturbed).items() if before.get(name) != time}
    assert (undisturbed / "summary.json").read_text(encoding="utf-8") == summary
    assert not {name for name in changed if name.split("/")[0] in ("runs", "reports", "snapshots", "base")}


@pytest.mark.slow
def test_a_demo_that_is_killed_in_each_of_its_parts_ends_as_one_that_never_was(undisturbed, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "gemm_flops", lambda device: 1e11)
    seen: set[str] = set()

    class KillAtEachNewPart(Silent):
        """Lets every part that it has not seen before begin, and interrupts it at its first sign of progress."""

        def __init__(self) -> None:
            self.fatal = False

        @contextmanager
        def stage(self, name: str, total: int | None = None, unit: str = "steps", *, done: int = 0) -> Iterator[KillAtEachNewPart]:
            self.fatal = name not in seen
            seen.add(name)
            yield self

        def advance(self, n: int = 1, **metrics: float) -> None:
            if self.fatal:
                raise KeyboardInterrupt

    kills = 0
    while True:
        try:
            demo(tmp_path / "demo", model=toy.base, progress=KillAtEachNewPart())
            break
        except KeyboardInterrupt:
            kills += 1
            assert not (tmp_path / "demo" / "summary.json").exists()
            assert not (tmp_path / "demo" / "report.html").exists()
    assert kills >= 10
    ours, theirs = (json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (tmp_path / "demo", undisturbed))
    assert without_times(ours) == without_times(theirs)
    assert not list((tmp_path / "demo").rglob(".*.partial"))
