"""Checkpoints that two processes write while they train: of their own step, whole or not there, and read by any number of processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.processes import two_ended
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from preftune._cli_output import run_app
from preftune.cli import app
from preftune.models.checkpoint import _saved_at
from preftune.training import loop
from preftune.training.loop import CHECKPOINT, read_metrics

pytestmark = pytest.mark.slow


def train(commands: list[tuple[list[str], int, str]]) -> None:
    """What each of the two processes does: commands, each with a number of a write (the first save is 0) at which something happens.

    All later writes are slow enough that steps are made meanwhile. `hangs`: the second process never ends it, and is killed after two
    more steps. `full`: it finds no room.
    """
    loop.SAVE_EVERY_SECONDS, loop.SAVE_SHARE = -1.0, 0
    second = os.environ["RANK"] == "1"
    write, log, count, behind = FileSystemWriter.write_data, loop.Loop.log, [0], []

    def write_data(self: Any, plan: Any, planner: Any) -> Any:
        number, count[0] = count[0], count[0] + 1
        if number == at and second and what == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if number == at and what == "hangs":
            behind.append(0)
            if second:
                time.sleep(10_000)
        time.sleep(0.3 if number else 0)
        return write(self, plan, planner)

    def log_and_die(self: Any, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if behind:
            behind[0] += 1
            if behind[0] == 3 and second:
                os.kill(os.getpid(), signal.SIGKILL)

    FileSystemWriter.write_data, loop.Loop.log = write_data, log_and_die
    for words, at, what in commands:  # noqa: B007  `write_data` reads them
        count[0] = 0
        code = run_app(app, words, debug=False)
        if code:
            break
    sys.stderr.flush()
    os._exit(code)


WORK: dict[str, Any] = {
    "batch_size": 5,
    "epochs": 3,
    "token_budget": 96,
    "whole": True,
    "async_checkpoints": True,
    "reference_update": {"every": 2, "mix": 0.5},
}


def launch(toy, *commands: tuple[str, int, str]) -> tuple[list[int | None], str]:
    """Train in two processes: (folder of the run, number of a write, what happens then), until one of them fails.

    Returns their exit codes, and what both said of errors.
    """
    config = toy.folder / "dpo.yaml"
    config.write_text(yaml.safe_dump(toy.config("dpo", **WORK).model_dump(mode="json")), encoding="utf-8")
    words = [(["train", "dpo", str(config), "--out", str(toy.folder / out)], at, what) for out, at, what in commands]
    return two_ended(toy.folder, train, words)


@pytest.fixture(scope="module")
def there(toy, tmp_path_factory):
    """A copy of the toy project with runs that were killed while a checkpoint was written, met a full disk, and were left alone."""
    there = toy.copy(tmp_path_factory.mktemp("behind"))
    codes, killed = launch(there, ("killed", 2, "hangs"))
    (partial,) = (there.folder / "killed").glob(".*.partial")
    assert codes == [1, -signal.SIGKILL], killed
    shutil.copytree(partial, there.folder / "alone" / partial.name)
    whole = [path.name for path in _saved_at(partial / CHECKPOINT)]
    logged = read_metrics(partial)[-1]["step"]
    codes, full = launch(there, ("killed", -1, ""), ("unbroken", -1, ""), ("full", 2, "full"))
    (there.folder / "said.json").write_text(json.dumps([whole, logged, killed, codes, full]), encoding="utf-8")
    return there


def said(there) -> tuple[list[str], int, str, list[int], str]:
    whole, logged, killed, codes, full = json.loads((there.folder / "said.json").read_text(encoding="utf-8"))
    return whole, logged, killed, codes, full


def finished(there, out: str) -> Path:
    """Return a run, finished here by one process where two have not done so."""
    return replace(there, runs=out).run("dpo", **WORK)


def test_killed_while_it_is_written_it_is_not_there_and_the_one_before_is(there):
    whole, logged, killed, _, _ = said(there)
    assert len(whole) == 1
    assert int(whole[0].removeprefix("checkpoint-")) <= logged - 3, "three steps were made while the next one was written"
    assert "another process of this run has ended" in killed


def test_the_killed_run_goes_on_to_the_same_last_bit_as_one_that_was_left_alone(toy, there):
    runs = [finished(there, name) for name in ("unbroken", "killed")]
    rows = [[{key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(run)] for run in runs]
    assert rows[0] == rows[1]
    weights = [load_file(run / "model" / "model.safetensors") for run in runs]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0].keys() | weights[1].keys())
    assert not list(runs[1].parent.glob(".*"))


def test_and_in_one_process_to_the_same_course(there):
    two, one = (read_metrics(finished(there, name)) for name in ("unbroken", "alone"))
    assert [row["loss/train"] for row in one] == pytest.approx([row["loss/train"] for row in two], abs=1e-5)
    assert [row["grad_norm"] for row in one] == pytest.approx([row["grad_norm"] for row in two], abs=1e-4)


def test_a_full_disk_in_one_process_ends_all_in_one_sentence_and_leaves_the_one_before(there):
    _, _, _, codes, errors = said(there)
    (partial,) = (there.folder / "full").glob(".*.partial")
    (whole,) = _saved_at(partial / CHECKPOINT)
    assert codes == [2, 2]
    assert errors.count("the disk is full") == 1, errors[-3000:]
    assert "Nothing that was written before is lost" in errors
    assert whole.name == "checkpoint-1"
    assert not list(partial.glob(".*.tmp-*"))
