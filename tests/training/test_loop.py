"""A run that is killed goes on as if it had not been; a full disk and a broken file are sentences, and lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from preftune.errors import PreftuneError, Stopped
from preftune.manifest import begin
from preftune.progress import Silent
from preftune.training import loop as loop_module
from preftune.training.loop import CHECKPOINT, METRICS, SAMPLES, Loop, read_metrics
from preftune.training.memory import peak_memory_gib
from preftune.training.optim import adamw, lr_at
from preftune.training.step import Loss, train_step

TOTAL = 8
FULL = Path("/dev/full")  # a file to which nothing can be written, as on a full disk

needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


class Killed(BaseException):
    """Stands for the kill: nothing of ours catches it."""


def open_loop(
    runs: Path, width: int = 2, total: int = TOTAL, *, first: Callable[[Path], object] = lambda folder: None, behind: bool | None = None
) -> tuple[Loop, nn.Module, torch.optim.Optimizer]:
    """Open the unfinished folder, do `first` to it, and start the loop there."""
    _, work = begin(runs, "test", {}, {"width": width})
    first(work.path)
    model = nn.Linear(width, 1)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()
    optimiser = adamw(model)
    return (
        Loop(work, name="test", total=total, models={"model": model}, optimisers={"model": optimiser}, progress=Silent(), behind=behind),
        model,
        optimiser,
    )


def train(
    runs: Path, *, kill_at: int | None = None, save_at: tuple[int, ...] = (), kill=None, behind: bool | None = None
) -> tuple[Loop, nn.Module]:
    """A stage in small. It is killed in the middle of step kill_at, after that step has been logged."""
    loop, model, optimiser = open_loop(runs, behind=behind)
    loop.state.setdefault("kl_coef", 1.0)
    loop.state.setdefault("running", torch.zeros(2))
    for step in loop.steps():
        inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
        done = train_step(
            [inputs],
            count=lambda part: float(len(part)),
            loss=lambda part: Loss((model(part).squeeze(1) - part.sum(1)) ** 2, torch.ones(len(part))),
            parameters=model.parameters(),
            optimiser=optimiser,
            lr=lr_at(step, total=TOTAL, lr=0.1, warmup=0.2),
            max_grad_norm=1.0,
            where="",
        )
        loop.state["kl_coef"] *= 1 + done.loss
        loop.state["running"] = loop.state["running"] + inputs.mean(0)
        loop.log(step, {"loss/train": done.loss, "kl/coef": loop.state["kl_coef"], "running": float(loop.state["running"].sum())})
        if step == kill_at:
            (kill or _raise)()
        if step + 1 in save_at:
            loop.save(step + 1, behind=bool(behind))
    return loop, model


def _raise() -> None:
    raise Killed


def rows(loop: Loop) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(loop.work.path)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows and the weights of a run that nothing happened to."""
    loop, model = train(tmp_path_factory.mktemp("undisturbed"))
    return rows(loop), model.weight.detach()


def test_a_run_logs_each_step_once(undisturbed):
    assert [row["step"] for row in undisturbed[0]] == list(range(1, TOTAL + 1))


@pytest.mark.parametrize("saves", [(), (3,), (2, 5)])
@pytest.mark.parametrize("kill_at", [0, 2, 3, TOTAL - 1])
def test_a_run_killed_at_any_step_ends_as_if_nothing_had_happened(tmp_path, undisturbed, kill_at, saves):
    with pytest.raises(Killed):
        train(tmp_path, kill_at=kill_at, save_at=saves)
    loop, model = train(tmp_path, save_at=saves)
    assert loop.start == max((s for s in saves if s <= kill_at), default=0)
    assert rows(loop) == undisturbed[0]
    assert torch.equal(model.weight, undisturbed[1])


def test_two_kills_in_a_row_are_no_worse_than_one(tmp_path, undisturbed):
    for kill_at in (4, 6):
        with pytest.raises(Killed):
            train(tmp_path, kill_at=kill_at, save_at=(3, 5))
    loop, model = train(tmp_path)
    assert loop.start == 5
    assert rows(loop) == undisturbed[0]
    assert torch.equal(model.weight, undisturbed[1])


def test_a_run_killed_after_its_last_step_has_nothing_left_to_do(tmp_path, undisturbed):
    train(tmp_path)
    loop, model = train(tmp_path)
    assert loop.start == TOTAL
    assert rows(loop) == undisturbed[0]
    assert torch.equal(model.weight, undisturbed[1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_killed_without_warning_leaves_a_run_that_goes_on(tmp_path, undisturbed):
    code = (
        f"import importlib.util, os, signal; from pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('killed', {__file__!r})\n"
        f"test = importlib.util.module_from_spec(spec); spec.loader.exec_module(test)\n"
        f"test.train(Path({str(tmp_path)!r}), kill_at=5, save_at=(4,), kill=lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    loop, model = train(tmp_path)
    assert loop.start == 4
    assert rows(loop) == undisturbed[0]
    assert torch.equal(model.weight, undisturbed[1])


def test_what_is_drawn_from_torch_itself_goes_on_too(tmp_path):
    def draws(runs: Path, *, kill_at: int | None = None) -> list[float]:
        loop, _, _ = open_loop(runs)
        for step in loop.steps():
            loop.log(step, {"drawn": float(torch.rand(()))})
            if step == kill_at:
                raise Killed
            loop.save(step + 1)
        return [row["drawn"] for row in read_metrics(loop.work.path)]

    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = draws(tmp_path / "undisturbed")
        torch.manual_seed(5)
        with pytest.raises(Killed):
            draws(tmp_path / "killed", kill_at=4)
        torch.manual_seed(6)  # another process, another state
        assert draws(tmp_path / "killed") == expected
    assert len(set(expected)) == TOTAL


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_ends_the_run_after_its_step_and_saves_it(tmp_path, undisturbed, number, name):
    before = signal.getsignal(number)
    with pytest.raises(
        Stopped, match=rf"^test: stopped by {name} after step 4 of 8, and saved\. The same command again goes on from there\.$"
    ):
        train(tmp_path, kill_at=3, kill=lambda: os.kill(os.getpid(), number))
    assert signal.getsignal(number) is before
    loop, model = train(tmp_path)
    assert loop.start == 4
    assert rows(loop) == undisturbed[0]
    assert torch.equal(model.weight, undisturbed[1])


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill_at=3, kill=twice)
    assert signal.getsignal(signal.SIGINT) is before
    assert open_loop(tmp_path)[0].start == 0


def test_an_ignored_signal_stays_ignored(tmp_path, undisturbed):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        loop, _ = train(tmp_path, kill_at=3, kill=lambda: os.kill(os.getpid(), signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert rows(loop) == undisturbed[0]


def test_the_steps_run_in_a_thread_too_where_signals_do_not_reach(tmp_path, undisturbed):
    with ThreadPoolExecutor(1) as pool:
        loop, _ = pool.submit(train, tmp_path).result()
    assert rows(loop) == undisturbed[0]


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path):
    loop, model, _ = open_loop(tmp_path)
    before = (loop.work.path / CHECKPOINT).read_bytes()
    with torch.no_grad():
        model.weight[0, 1] = float("nan")
    with pytest.raises(
        PreftuneError, match=r"checkpoint\.pt: weight is not finite after step 3\. The checkpoint before it stands; lower lr\."
    ):
        loop.save(3)
    assert (loop.work.path / CHECKPOINT).read_bytes() == before


def test_seconds_count_on_over_the_kill(tmp_path):
    loop, _, _ = open_loop(tmp_path)
    loop.state["seconds"] = 0.0
    loop._kept_seconds = 100.0
    loop.save(2)
    again, _, _ = open_loop(tmp_path)
    assert 100 <= again.seconds < 110


def test_a_long_run_saves_on_its_way(tmp_path, monkeypatch):
    loop, _, _ = open_loop(tmp_path)
    monkeypatch.setattr(loop_module, "SAVE_EVERY_SECONDS", 0.0)
    saved: list[int] = []
    save = loop.save
    monkeypatch.setattr(loop, "save", lambda step, behind=False: (saved.append(step), save(step)))
    for _ in loop.steps():
        loop._save_seconds = 0.0  # as if saving took no time
    assert saved == list(range(1, TOTAL + 1))


def test_the_last_line_cut_by_a_kill_is_dropped(tmp_path, undisturbed):
    with pytest.raises(Killed):
        train(tmp_path, kill_at=4, save_at=(3,))
    _, work = begin(tmp_path, "test", {}, {"width": 2})
    path = work.path / METRICS
    path.write_bytes(path.read_bytes()[:-20])
    loop, _ = train(tmp_path)
    assert rows(loop) == undisturbed[0]


def test_samples_are_kept_up_to_the_checkpoint_whatever_is_written_in_them(tmp_path):
    loop, _, _ = open_loop(tmp_path)
    loop.save(2)
    path = loop.work.path / SAMPLES
    # Ends of line to Python, not to JSON; and a last line that a kill cut in the middle of a character.
    kept = [json.dumps({"step": s, "completion": t}, ensure_ascii=False) for s, t in ((1, "a\u2028b\u0085c"), (2, "é 🙂"))]
    later = json.dumps({"step": 3, "completion": "never"})
    cut = json.dumps({"step": 3, "completion": "🙂"}, ensure_ascii=False).encode()[:-4]
    path.write_bytes("\n".join([*kept, later, ""]).encode() + cut)
    open_loop(tmp_path)
    assert path.read_text(encoding="utf-8").split("\n") == [*kept, ""]


def test_the_first_save_is_made_before_the_first_step(tmp_path):
    loop, _, _ = open_loop(tmp_path)
    assert (loop.work.path / CHECKPOINT).exists()
    loop.close()
    assert not (loop.work.path / CHECKPOINT).exists()


def checkpoint_on_a_full_disk(folder: Path) -> Path:
    """Turn the file that the next checkpoint is first written to into one that takes nothing."""
    temporary = folder / f".{CHECKPOINT}.tmp-{os.getpid()}"
    temporary.symlink_to(FULL)
    return temporary


@needs_full
@pytest.mark.parametrize("width", [2, 100_000])  # the write fails at the flush, or in the midst of torch's own writing
def test_a_full_disk_leaves_the_checkpoint_before_and_is_a_sentence(tmp_path, width):
    loop, model, _ = open_loop(tmp_path, width)
    path = loop.work.path / CHECKPOINT
    before = path.read_bytes()
    with torch.no_grad():
        model.weight.fill_(7.0)
    temporary = checkpoint_on_a_full_disk(loop.work.path)
    with pytest.raises(PreftuneError, match=r"checkpoint\.pt: the disk is full \(\d+ MiB free\)\. Nothing that was written before is lost"):
        loop.save(3)
    assert path.read_bytes() == before
    assert not temporary.is_symlink()
    again, model, _ = open_loop(tmp_path, width)
    assert again.start == 0
    assert float(model.weight.detach().max()) == pytest.approx(0.1)


@needs_full
def test_a_disk_that_is_full_from_the_start_is_met_before_the_first_step(tmp_path):
    with pytest.raises(PreftuneError, match="the disk is full"):
        open_loop(tmp_path, first=checkpoint_on_a_full_disk)


@needs_full
def test_a_disk_that_is_full_when_a_step_is_logged_is_a_sentence(tmp_path):
    loop, _, _ = open_loop(tmp_path)
    (loop.work.path / METRICS).symlink_to(FULL)
    with pytest.raises(PreftuneError, match="the disk is full"):
        for step in loop.steps():
            loop.log(step, {"loss/train": 1.0})


@needs_full
def test_a_disk_that_is_full_at_the_resume_leaves_the_metrics_as_they_were(tmp_path):
    loop, _, _ = open_loop(tmp_path)
    loop.save(1)
    path = loop.work.path / METRICS
    path.write_text('{"step": 1}\n')
    with pytest.raises(PreftuneError, match=r"metrics\.jsonl: the disk is full"):
        open_loop(tmp_path, first=lambda folder: (folder / f".{METRICS}.tmp-{os.getpid()}").symlink_to(FULL))
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_broken_checkpoint_is_a_sentence(tmp_path, keep):
    loop, _, _ = open_loop(tmp_path)
    path = loop.work.path / CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(PreftuneError, match=r"checkpoint\.pt: the checkpoint cannot be read .*Delete it to start this run anew\."):
        open_loop(tmp_path)


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path):
    loop, _, _ = open_loop(tmp_path)
    torch.save({"step": 1, "state": Path("x")}, loop.work.path / CHECKPOINT)
    with pytest.raises(PreftuneError, match="the checkpoint cannot be read"):
        open_loop(tmp_path)


def test_a_checkpoint_of_another_model_is_a_sentence(tmp_path):
    loop, _, _ = open_loop(tmp_path)
    other = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(PreftuneError, match=r"the checkpoint is of another model\. Delete it to start this run anew\."):
        Loop(loop.work, name="test", total=1, models={"model": other}, optimisers={"model": adamw(other)}, progress=Silent())


def test_frozen_weights_are_not_in_the_checkpoint(tmp_path):
    _, work = begin(tmp_path, "test", {}, {})
    model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 1))
    model[0].requires_grad_(False)
    Loop(work, name="test", total=1, models={"model": model}, optimisers={"model": adamw(model)}, progress=Silent())
    assert (work.path / CHECKPOINT).stat().st_size < 20_000


def test_the_steps_move_the_progress_from_where_the_run_goes_on(tmp_path):
    open_loop(tmp_path)[0].save(3)
    seen: list[object] = []

    class Watching(Silent):
        def stage(self, name, total=None, unit="steps", *, done=0):
            seen.append((name, total, unit, done))
            return super().stage(name, total, unit, done=done)

        def advance(self, n=1, **metrics):
            seen.append((n, metrics))

    loop, _, _ = open_loop(tmp_path)
    loop.progress = Watching()
    for step in loop.steps():
        loop.log(step, {"loss/train": 0.5})
    assert seen == [("test", TOTAL, "steps", 3), *[(1, {"loss": 0.5})] * (TOTAL - 3)]


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_memory_that_a_process_took_is_of_a_sane_size():
    assert 0.02 < peak_memory_gib() < 64
