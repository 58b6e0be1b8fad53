"""A run that was killed and started again is, to the last bit, the run that was never disturbed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.processes import ended

from preftune.errors import Stopped
from preftune.manifest import Work, read_manifest
from preftune.progress import Silent
from preftune.rollout import client
from preftune.stages import group, ppo, preference, reward, sft
from preftune.training import loop as loop_module
from preftune.training.loop import Loop, read_metrics
from preftune.training.reference import CACHE

SHORT = {
    "sft": {"epochs": 1},
    "reward": {"epochs": 1},
    "dpo": {"epochs": 1},
    "ppo": {"steps": 4, "kl_target": 1.0, "prompts_per_step": 4, "samples_per_prompt": 2},
}
each_stage = pytest.mark.parametrize("stage", SHORT)


class KillAfter(Silent):
    """Interrupts as Ctrl-C does once so many optimiser steps are logged."""

    def __init__(self, steps: int) -> None:
        self.left, self.counts = steps, False

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "steps", *, done: int = 0) -> Iterator[KillAfter]:
        self.counts = unit == "steps"
        yield self

    def advance(self, n: int = 1, **metrics: float) -> None:
        if self.counts:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.fixture
def saving_at_each_step(monkeypatch):
    """Checkpoints after each step and not once a minute."""
    save = Loop.save

    def save_and_forget_the_time(self: Loop, step: int, *, behind: bool = False) -> None:
        save(self, step, behind=behind)
        self._save_seconds = 0.0

    monkeypatch.setattr(Loop, "save", save_and_forget_the_time)
    monkeypatch.setattr(loop_module, "SAVE_EVERY_SECONDS", -1.0)


@pytest.fixture
def elsewhere(toy, tmp_path):
    """A copy of the toy project in which nothing was run but the reward model."""
    return toy.copy(tmp_path / "project", toy.run("reward"))


def settings(toy, stage: str) -> dict:
    reward_model = {"reward_model": str(toy.out / read_manifest(toy.run("reward"))["id"])} if stage == "ppo" else {}
    return {**SHORT[stage], **reward_model}


def content(run: Path) -> dict[str, object]:
    """Return all that a run has learned and said: weights, metrics without the times, samples."""
    found: dict[str, object] = {str(file.relative_to(run)): load_file(file) for file in run.rglob("*.safetensors")}
    found["metrics"] = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run)]
    if (run / "samples.jsonl").exists():
        found["samples"] = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    manifest = read_manifest(run)
    found["facts"] = {
        k: manifest.get(k) for k in ("id", "steps", "normalisation", "held_out", "score_mean", "score_sd", "data", "warnings")
    }
    return found


def assert_same(run: Path, undisturbed: Path) -> None:
    ours, theirs = content(run), content(undisturbed)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if name.endswith(".safetensors"):
            tensors = ours[name]
            assert tensors.keys() == expected.keys()
            assert all(torch.equal(tensors[key], expected[key]) for key in expected), f"{name} differs"
        else:
            assert ours[name] == expected, name
    ours_there, theirs_there = ({str(p.relative_to(r)) for p in r.rglob("*")} for r in (run, undisturbed))
    assert ours_there == theirs_there
    # The same bytes, but for the times in metrics.jsonl and manifest.json.
    for name in sorted(theirs_there - {"metrics.jsonl", "manifest.json"}):
        if (run / name).is_file():
            assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not list(run.parent.glob(".*.partial"))


@each_stage
@pytest.mark.parametrize("kills", [(3,), (2, 2)], ids=lambda kills: "then ".join(map(str, kills)))
def test_killed_between_checkpoints_and_started_again_is_as_never_killed(toy, elsewhere, saving_at_each_step, stage, kills):
    undisturbed = toy.run(stage, **settings(toy, stage))
    for steps in kills:
        with pytest.raises(KeyboardInterrupt):
            elsewhere.run(stage, progress=KillAfter(steps), **settings(elsewhere, stage))
        (partial,) = elsewhere.out.glob(".*.partial")
        assert (partial / "checkpoint.pt").exists()
        assert not (elsewhere.out / undisturbed.name).exists()
    # The step at which it was killed was logged but not saved: it is done again and must not be there twice.
    saved = torch.load(partial / "checkpoint.pt", weights_only=True)["step"]
    assert read_metrics(partial)[-1]["step"] == saved + 1
    assert_same(elsewhere.run(stage, **settings(elsewhere, stage)), undisturbed)


@each_stage
def test_killed_before_any_checkpoint_but_the_first(toy, elsewhere, stage):
    undisturbed = toy.run(stage, **settings(toy, stage))
    with pytest.raises(KeyboardInterrupt):
        elsewhere.run(stage, progress=KillAfter(2), **settings(elsewhere, stage))
    assert_same(elsewhere.run(stage, **settings(elsewhere, stage)), undisturbed)


@each_stage
def test_killed_as_the_folder_gets_its_name(toy, elsewhere, monkeypatch, stage):
    undisturbed = toy.run(stage, **settings(toy, stage))

    def killed(*args: object, **facts: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            elsewhere.run(stage, **settings(elsewhere, stage))
    (partial,) = elsewhere.out.glob(".*.partial")
    (partial / ".checkpoint.pt.tmp-4711").write_bytes(b"half a checkpoint")  # as kill -9 leaves it
    assert_same(elsewhere.run(stage, **settings(elsewhere, stage)), undisturbed)


@each_stage
def test_full_training_resumes_as_well(toy, elsewhere, saving_at_each_step, stage):
    undisturbed = toy.run(stage, whole=True, **settings(toy, stage))
    with pytest.raises(KeyboardInterrupt):
        elsewhere.run(stage, whole=True, progress=KillAfter(3), **settings(elsewhere, stage))
    assert_same(elsewhere.run(stage, whole=True, **settings(elsewhere, stage)), undisturbed)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("rloo", {}), ("grpo", {"variant": "dapo", "epochs": 2, "minibatches": 2})],
    ids=["rloo", "dapo with refills and several updates"],
)
def test_groups_killed_and_started_again_are_as_never_killed(toy, elsewhere, saving_at_each_step, stage, changes):
    def rewarded(project):
        # By how near an answer's length is to four tokens, which is often the same for both of a prompt.
        reward_model = settings(project, "ppo")["reward_model"]
        weights = [{"model": reward_model, "weight": 0.0}, {"rule": "length", "length": {"target": 4}}]
        return {"steps": 4, "prompts_per_step": 4, "samples_per_prompt": 2, "reward_model": reward_model, "rewards": weights, **changes}

    undisturbed = toy.run(stage, **rewarded(toy))
    assert stage == "rloo" or sum(row["groups/refills"] for row in read_metrics(undisturbed)) > 0
    for steps in (2, 2):
        with pytest.raises(KeyboardInterrupt):
            elsewhere.run(stage, progress=KillAfter(steps), **rewarded(elsewhere))
    assert_same(elsewhere.run(stage, **rewarded(elsewhere)), undisturbed)


@pytest.mark.parametrize("changes", [{"loss": "bco"}, {"reference_update": {"every": 2, "mix": 0.5}}], ids=["its shift", "its reference"])
@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
def test_what_a_loss_keeps_of_earlier_steps_is_there_again(toy, elsewhere, saving_at_each_step, changes, whole):
    undisturbed = toy.run("dpo", whole=whole, **SHORT["dpo"], **changes)
    with pytest.raises(KeyboardInterrupt):
        elsewhere.run("dpo", whole=whole, progress=KillAfter(4), **SHORT["dpo"], **changes)
    assert_same(elsewhere.run("dpo", whole=whole, **SHORT["dpo"], **changes), undisturbed)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_the_best_weights_are_the_same_after_a_kill(toy, elsewhere, saving_at_each_step, stage):
    watched = {"epochs": 6, "lr": 0.1, "schedule": "constant", "warmup": 0.0, "eval_every": 1, "patience": 3}
    undisturbed = toy.run(stage, **watched)
    for steps in (2, 2):
        with pytest.raises(KeyboardInterrupt):
            elsewhere.run(stage, progress=KillAfter(steps), **watched)
    run = elsewhere.run(stage, **watched)
    assert read_manifest(run)["best"] == read_manifest(undisturbed)["best"]
    assert_same(run, undisturbed)


def test_dpo_killed_while_it_measures_the_reference(toy, elsewhere):
    class KillAtTheReference(Silent):
        def advance(self, n: int = 1, **metrics: float) -> None:
            raise KeyboardInterrupt

    undisturbed = toy.run("dpo", **SHORT["dpo"])
    with pytest.raises(KeyboardInterrupt):
        elsewhere.run("dpo", progress=KillAtTheReference(), **SHORT["dpo"])
    assert_same(elsewhere.run("dpo", **SHORT["dpo"]), undisturbed)


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
def test_dpo_whose_kept_reference_is_lost_measures_it_from_the_start_again(toy, elsewhere, saving_at_each_step, whole):
    undisturbed = toy.run("dpo", whole=whole, **SHORT["dpo"])
    with pytest.raises(KeyboardInterrupt):
        elsewhere.run("dpo", whole=whole, progress=KillAfter(3), **SHORT["dpo"])
    (elsewhere.folder / CACHE).unlink()
    assert_same(elsewhere.run("dpo", whole=whole, **SHORT["dpo"]), undisturbed)


@each_stage
def test_the_same_command_twice_finds_the_folder_without_work(toy, monkeypatch, stage):
    run = toy.run(stage, **settings(toy, stage))
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    monkeypatch.setattr("preftune.stages.common.load_causal_lm", None)  # so that any work would fail
    assert toy.run(stage, **settings(toy, stage)) == run
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_another_seed_or_setting_is_another_run(toy):
    ids = {toy.run("sft", **SHORT["sft"], **other).name for other in ({}, {"seed": 5}, {"lr": 1e-3})}
    assert len(ids) == 3


class SignalAfter(KillAfter):
    """Sends this process a signal once so many optimiser steps are logged, as `kill` or a queue does."""

    def __init__(self, steps: int, number: int) -> None:
        super().__init__(steps)
        self.number = number

    def advance(self, n: int = 1, **metrics: float) -> None:
        try:
            super().advance(n, **metrics)
        except KeyboardInterrupt:
            os.kill(os.getpid(), self.number)


RUNS = {"sft": sft.run, "reward": reward.run, "dpo": preference.run, "ppo": ppo.run, "rloo": group.rloo}


def train_until_killed(stage: str, config: Any, out: Path, *, steps: int = 10**9, rounds: int = 0) -> None:
    """Train in this process, with a checkpoint at each step, until that step is logged or within that round of sampling."""
    loop_module.SAVE_EVERY_SECONDS = loop_module.SAVE_SHARE = 0
    generate, begun = client.generate, [0]

    def dying(*given: Any, **named: Any) -> Any:
        begun[0] += 1
        die = partial(os.kill, os.getpid(), signal.SIGKILL)
        return generate(*given, **named, on_done=lambda count: die() if begun[0] == rounds else None)

    if rounds:
        client.generate = dying
    RUNS[stage](config, out, progress=SignalAfter(steps, signal.SIGKILL))


def saved_when_killed(project: Any, work: Callable[..., None], stage: str, config: Any) -> int:
    """Begin a run in a process that does not end by itself; return the step of the checkpoint that is left."""
    code, said = ended(project.folder, work, stage, config, project.out)
    assert code == -signal.SIGKILL, said
    (partial,) = project.out.glob(".*.partial")
    return torch.load(partial / "checkpoint.pt", weights_only=True)["step"]


@pytest.mark.slow
@each_stage
def test_killed_without_warning_at_several_steps_it_still_ends_with_the_same_bytes(toy, elsewhere, stage):
    config = elsewhere.config(stage, **settings(elsewhere, stage))
    for saved in (1, 2):  # killed as the second step of each start is told: one step is saved at each
        assert saved_when_killed(elsewhere, partial(train_until_killed, steps=2), stage, config) == saved
    assert_same(elsewhere.run(stage, **settings(elsewhere, stage)), toy.run(stage, **settings(toy, stage)))


@pytest.mark.slow
def test_ppo_killed_within_sampling_still_ends_with_the_same_bytes(toy, elsewhere):
    more = {"reference_ema": 0.5, "ptx_coef": 0.1, "scoring": {"unit": "running"}}
    config = elsewhere.config("ppo", **settings(elsewhere, "ppo"), **more)
    for rounds, saved in ((2, 1), (3, 3)):  # within the second round of the first start, then within the third of the next
        assert saved_when_killed(elsewhere, partial(train_until_killed, rounds=rounds), "ppo", config) == saved
    assert_same(elsewhere.run("ppo", **settings(elsewhere, "ppo"), **more), toy.run("ppo", **settings(toy, "ppo"), **more))


@each_stage
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_asked_to_stop_it_saves_says_how_to_go_on_and_ends_as_never_stopped(toy, elsewhere, stage, number):
    undisturbed = toy.run(stage, **settings(toy, stage))
    with pytest.raises(Stopped, match=r"after step 2 of 4, and saved\. The same command again goes on from there\.") as stopped:
        elsewhere.run(stage, progress=SignalAfter(2, number), **settings(elsewhere, stage))
    assert stopped.value.exit_code == 0
    (partial,) = elsewhere.out.glob(".*.partial")
    assert torch.load(partial / "checkpoint.pt", weights_only=True)["step"] == 2
    assert_same(elsewhere.run(stage, **settings(elsewhere, stage)), undisturbed)
