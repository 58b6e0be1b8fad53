"""A checkpoint that is written while training goes on: it holds its own step, and whatever becomes of it the one before it stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.training.test_loop import TOTAL, Killed, checkpoint_on_a_full_disk, needs_full, open_loop, rows, train

from preftune.errors import PreftuneError, Stopped
from preftune.models import checkpoint
from preftune.parallel.behind import wait_for_this_process
from preftune.training import loop as loop_module
from preftune.training import memory
from preftune.training.loop import CHECKPOINT, METRICS, Loop


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows and the weights of a run that nothing happened to."""
    loop, model = train(tmp_path_factory.mktemp("undisturbed"))
    return rows(loop), model.weight.detach()


@pytest.fixture
def slow(monkeypatch):
    """A disk that takes nothing until it is told to, or until the test is over."""
    go, begun = threading.Event(), threading.Event()
    write = checkpoint.save_whole

    def wait_and_write(content, path):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            go.wait()
        write(content, path)

    monkeypatch.setattr(checkpoint, "save_whole", wait_and_write)
    yield go, begun
    go.set()
    wait_for_this_process()


@pytest.fixture
def at_each_step(monkeypatch):
    """Checkpoints are due after each step and not once a minute."""
    monkeypatch.setattr(loop_module, "SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(loop_module, "SAVE_SHARE", 0)


def saved(loop: Loop) -> int:
    return torch.load(loop.work.path / CHECKPOINT, weights_only=True)["step"]


def test_what_is_written_is_of_its_own_step_however_late(tmp_path, slow):
    go, begun = slow
    loop, model, optimiser = open_loop(tmp_path)
    loop.state["running"] = [torch.ones(2)]
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    expected = model.weight.detach().clone()
    moment = optimiser.state[model.weight]["exp_avg"].clone()
    loop.save(3, behind=True)
    assert begun.wait(10)
    with torch.no_grad():
        model.weight.fill_(7.0)
        optimiser.state[model.weight]["exp_avg"].fill_(7.0)
        loop.state["running"][0].fill_(7.0)
    assert saved(loop) == 0, "the one before stands meanwhile"
    go.set()
    loop.settle()
    again, model, optimiser = open_loop(tmp_path)
    assert again.start == 3
    assert model.weight.equal(expected)
    assert optimiser.state[model.weight]["exp_avg"].equal(moment)
    assert again.state["running"][0].tolist() == [1, 1]


def test_training_goes_on_meanwhile_one_is_written_at_a_time_and_the_end_waits(tmp_path, slow, at_each_step, undisturbed):
    go, begun = slow
    done: list[int] = []

    def open_the_disk() -> None:
        assert begun.wait(10)
        while len(done) < 6:
            time.sleep(0.001)
        go.set()

    def note(self, step, **how):
        done.append(step)
        save(self, step, **how)

    save = Loop.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "save", note)
        log = Loop.log
        patch.setattr(Loop, "log", lambda self, step, metrics: (log(self, step, metrics), done.append(-1))[0])
        threading.Thread(target=open_the_disk).start()
        loop, model = train(tmp_path, behind=True)
    saves = [step for step in done if step >= 0]
    assert saves[:2] == [0, 1], "before the first step, and after it"
    assert done.index(saves[2]) >= 6, "nothing more is begun while that is written, and nothing waits"
    assert saves[-1] == TOTAL == saved(loop)
    assert rows(loop) == undisturbed[0]
    assert model.weight.equal(undisturbed[1])


def test_a_run_that_writes_behind_at_every_step_is_the_same_and_goes_on_from_what_is_whole(tmp_path, at_each_step, undisturbed):
    for kill_at in (3, 5):
        with pytest.raises(Killed):
            train(tmp_path, kill_at=kill_at, behind=True)
    loop, model = train(tmp_path, behind=True)
    assert loop.start > 0
    assert rows(loop) == undisturbed[0]
    assert model.weight.equal(undisturbed[1])


def test_asked_to_stop_it_waits_for_what_is_written_and_saves_the_step(tmp_path, slow, at_each_step):
    go, _ = slow

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        go.set()

    with pytest.raises(Stopped, match="after step 4 of 8, and saved"):
        train(tmp_path, kill_at=3, kill=stop, behind=True)
    assert open_loop(tmp_path)[0].start == 4


@needs_full
def test_a_disk_that_fills_up_behind_ends_the_run_in_a_sentence_and_the_one_before_stands(tmp_path, at_each_step, undisturbed):
    loop, _, _ = open_loop(tmp_path, behind=True)
    with pytest.raises(PreftuneError, match=r"checkpoint\.pt: the disk is full \(\d+ MiB free\)\. Nothing that was written before is lost"):
        for step in loop.steps():
            loop.log(step, {"loss/train": 1.0})
            wait_for_this_process()
            if step == 2:
                checkpoint_on_a_full_disk(loop.work.path)
    assert loop.done == 4, "the write after the third step failed, which is known after the fourth"
    assert saved(loop) == 2
    (loop.work.path / METRICS).unlink()
    assert open_loop(tmp_path)[0].start == 2


@pytest.mark.parametrize(
    ("wanted", "room", "copied"), [(None, True, False), (False, True, False), (True, False, False), (True, True, True)]
)
def test_a_copy_is_made_where_it_is_asked_for_and_there_is_room(tmp_path, monkeypatch, at_each_step, wanted, room, copied):
    limit = 1 << 50 if room else memory.resident_memory()
    monkeypatch.setattr(memory, "memory_limit", lambda device: limit)
    made: list[bool] = []
    save = loop_module.save_training
    monkeypatch.setattr(
        loop_module, "save_training", lambda *words, behind, **how: (made.append(behind), save(*words, behind=behind, **how))[1]
    )
    loop, _, _ = open_loop(tmp_path, behind=wanted)
    for step in loop.steps():
        loop.log(step, {"loss/train": 1.0})
        wait_for_this_process()
    assert made == [False, *[copied] * (TOTAL - 1), False], "the first and the last are waited for"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_killed_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path, undisturbed):
    code = f"""
import os, pathlib, signal, threading, torch
from preftune.models import checkpoint
from tests.training import test_loop

half, write = threading.Event(), torch.save

def half_a_file(content, file):
    if threading.current_thread() is threading.main_thread():
        return write(content, file)
    file.write(b"PK half a checkpoint")
    file.flush()
    half.set()
    threading.Event().wait()

def die():
    assert half.wait(10)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.torch.save = half_a_file
test_loop.train(pathlib.Path({str(tmp_path)!r}), kill_at=5, save_at=(4,), kill=die, behind=True)
"""
    with pytest.raises(Killed):
        train(tmp_path, kill_at=3, save_at=(3,))
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (partial,) = tmp_path.glob(".*.partial")
    (half,) = partial.glob(".*.tmp-*")
    assert half.read_bytes().startswith(b"PK half")
    loop, model = train(tmp_path)
    assert loop.start == 3
    assert rows(loop) == undisturbed[0]
    assert model.weight.equal(undisturbed[1])
    assert not half.exists()
