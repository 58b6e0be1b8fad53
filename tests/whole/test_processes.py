"""Several processes, as torchrun starts them, learn what one does. All commands of this file run in the same two processes."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.torchrun import in_two_processes

from preftune.errors import Stopped
from preftune.training.loop import Loop, read_metrics

pytestmark = pytest.mark.slow

# What both processes do: commands of preftune, some of which are stopped after a step or have lost a part of their checkpoint.
SCRIPT = """
import functools, glob, json, os, pathlib, signal, sys, torch
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from preftune._cli_output import run_app
from preftune.cli import app
from preftune.models import parts
from preftune.parallel import one_machine, shard
from preftune.training.loop import Loop

log, stop, share = Loop.log, [0], shard.share_weights

def log_and_stop(self, step, metrics):
    log(self, step, metrics)
    if step + 1 == stop[0] and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)  # one process hears it, and both have to stop after the same step

def share_or_fail(model):
    shared = share(model)
    assert shared is not None, "the weights found no room in shared memory"
    return shared

Loop.log = log_and_stop
lean, half = parts.lean_layers, lambda *_: MixedPrecisionPolicy(torch.bfloat16, torch.float32)
shard.CPUOffloadPolicy = functools.partial(CPUOffloadPolicy, pin_memory=False)  # pinned memory is of a GPU
for words, stop[0], lost, how in json.loads(sys.argv[1]):
    one_machine.shared_memory.cache_clear()
    one_machine.SHARED = pathlib.Path("/nowhere" if how == "gloo" else "/dev/shm")
    shard.share_weights = (lambda model: None) if how == "gathered" else share_or_fail  # as where only what is exchanged finds room
    shard._too_large = lambda *_, trained: how == "offloaded"
    shard.MixedPrecisionPolicy = half if how == "bfloat16" else MixedPrecisionPolicy
    parts.lean_layers = (lambda model: None) if how == "bfloat16" else lean  # those are for float32, and so for no GPU
    if lost and os.environ["RANK"] == "0":
        os.remove(glob.glob(lost)[0])
    code = run_app(app, words, debug=False)
    if code:
        break
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""
STOP = 3
WHOLE = "sft of all weights"
BY_GLOO = (WHOLE, "ppo")  # as processes of several machines exchange weights; the others share them
# Micro-batches of uneven size and of an odd number; a last batch of an epoch with fewer rows than there are processes.
OFFLINE: dict[str, Any] = {"batch_size": 5, "epochs": 1, "token_budget": 96}
ONLINE: dict[str, Any] = {"steps": 3, "token_budget": 128}
MOVES: dict[str, Any] = {"reference_update": {"every": 2, "mix": 0.5}}
# An adapter and all weights; measurements on held-out rows; layers computed again; what a loss takes from its whole batch; a reference
# that moves.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", OFFLINE | {"eval_every": 2}),
    "sft of all weights": ("sft", OFFLINE | {"eval_every": 2, "whole": True}),
    "reward": ("reward", OFFLINE),
    "reward of all weights": ("reward", OFFLINE | {"whole": True, "gradient_checkpointing": True}),
    "kto": ("dpo", OFFLINE | {"loss": "kto"}),
    "dpo of all weights": ("dpo", OFFLINE | MOVES | {"whole": True}),
    "ppo": ("ppo", ONLINE),
    "rloo": ("rloo", ONLINE),
}
BROKEN = OFFLINE | MOVES | {"whole": True, "seed": 1}  # a run of dpo that is stopped and goes on


@pytest.fixture(scope="module")
def two(toy, tmp_path_factory):
    """A copy of the toy project in which two processes have done all of the above. What they said is in `said.json`."""
    there = toy.copy(tmp_path_factory.mktemp("two"), toy.run("reward"))
    stopped_alone(there, there.folder / "one-to-two")

    def words(stage: str, settings: dict[str, Any], out: str = "runs") -> list[str]:
        config = there.config(stage, **settings)
        path = there.folder / f"{stage}-{abs(hash(config.model_dump_json()))}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        return ["train", stage, str(path), "--out", str(there.folder / out)]

    commands: list[tuple[list[str], int, str, str]] = []
    commands += [(words(stage, settings), 0, "", "gloo" if name in BY_GLOO else "") for name, (stage, settings) in SAME.items()]
    commands += [(words(*SAME[WHOLE], how), 0, "", how) for how in ("gathered", "offloaded", "bfloat16")]
    part = f"{there.folder}/lost/.*.partial/checkpoint-{STOP}/__1_0.distcp"
    commands += [
        (words("dpo", BROKEN, out), stop, lost, "")
        for out, stop, lost in (
            ("unbroken", 0, ""),
            ("two-to-two", STOP, ""),
            ("two-to-two", 0, ""),
            ("one-to-two", 0, ""),
            ("two-to-one", STOP, ""),
            ("lost", STOP, ""),
            ("lost", 0, part),
        )
    ]
    done = in_two_processes(there.folder, SCRIPT, commands)
    (there.folder / "said.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]), encoding="utf-8")
    return there


def stopped_alone(toy, out: Path) -> None:
    """Begin the run that is broken in one process, and stop it."""
    log = Loop.log

    def log_and_stop(self: Loop, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if step + 1 == STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Loop, "log", log_and_stop)
        run_in(toy, "dpo", BROKEN, out)


def run_in(toy, stage: str, settings: dict[str, Any], out: Path) -> Path:
    """Return a run below `out`, finished by one process where it is not there yet."""
    return replace(toy, runs=out.name).run(stage, **settings)


def said(toy) -> tuple[int, str, str]:
    code, out, errors = json.loads((toy.folder / "said.json").read_text(encoding="utf-8"))
    return code, out, errors


def assert_same_course(one: Path, two: Path, *, within: float = 1e-5) -> None:
    loss = "loss/train" if "loss/train" in read_metrics(one)[0] else "loss/policy"
    for name, tolerance in ((loss, within), ("grad_norm", 10 * within)):
        assert [row[name] for row in read_metrics(two)] == pytest.approx([row[name] for row in read_metrics(one)], abs=tolerance), name


@pytest.mark.parametrize("name", SAME)
def test_two_processes_learn_what_one_does(toy, two, name):
    stage, settings = SAME[name]
    found = two.out / toy.run(stage, **settings).name
    assert (found / "manifest.json").exists(), said(two)[2][-3000:]
    assert_same_course(toy.run(stage, **settings), found)


@pytest.mark.parametrize("how", ["gathered", "offloaded"])
def test_weights_that_lie_elsewhere_than_they_compute_learn_the_same(toy, two, how):
    stage, settings = SAME[WHOLE]
    run = run_in(two, stage, settings, two.folder / how)
    assert (run / "manifest.json").exists(), said(two)[2][-3000:]
    assert_same_course(toy.run(stage, **settings), run)


def test_layers_that_compute_in_bfloat16_learn_nearly_the_same(toy, two):
    stage, settings = SAME[WHOLE]
    runs = [toy.run(stage, **settings), run_in(two, stage, settings, two.folder / "bfloat16")]
    one, half = ([row["loss/train"] for row in read_metrics(run)] for run in runs)
    assert half == pytest.approx(one, rel=0.01)
    assert half != pytest.approx(one, rel=1e-6)
    saved = load_file(runs[1] / "model" / "model.safetensors")
    assert {str(weight.dtype) for weight in saved.values()} == {"torch.float32"}, "what is trained and saved stays float32"


def test_one_process_speaks(two):
    _, out, errors = said(two)
    assert len(out.splitlines()) == len(SAME) + 6  # runs that came to their end
    assert errors.count("the first step") == 0


@pytest.mark.parametrize("way", ["one-to-two", "two-to-one"])
def test_a_stopped_run_goes_on_in_another_number_of_processes(toy, two, way):
    unbroken = run_in(two, "dpo", BROKEN, two.folder / "unbroken")
    assert_same_course(unbroken, run_in(two, "dpo", BROKEN, two.folder / way))


def test_in_as_many_processes_it_is_the_same_run_to_the_last_bit(two):
    runs = [run_in(two, "dpo", BROKEN, two.folder / name) for name in ("unbroken", "two-to-two")]
    rows = [[{key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(run)] for run in runs]
    assert rows[0] == rows[1]
    one, other = (load_file(run / "model" / "model.safetensors") for run in runs)
    assert all(one[name].equal(other[name]) for name in one.keys() | other.keys())


def test_a_checkpoint_with_a_part_missing_is_refused_by_its_name(two):
    code, _, errors = said(two)
    assert code == 1
    assert "the checkpoint's part __1_0.distcp is missing" in errors
    assert errors.count("is missing") == 1, "said once"
