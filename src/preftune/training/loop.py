"""The loop's bookkeeping: counting, logging, saving, going on after a kill. The stage stays in charge of each step."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from preftune.errors import Stopped
from preftune.manifest import Work, disk_errors
from preftune.models.adapter import trainable
from preftune.models.checkpoint import copied_bytes, load_training, remove_checkpoints, save_training
from preftune.parallel import world
from preftune.parallel.behind import Behind
from preftune.progress import Progress, Task
from preftune.training.memory import has_room_beside, reset_peak_memory

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
SAVE_EVERY_SECONDS = 60.0
SAVE_SHARE = 20  # saving may cost at most a twentieth of the time


class Loop:
    """Counts the steps of one run in its unfinished folder.

    work: the folder in the making. models, optimisers: what is saved and put back. state: the stage's own numbers (JSON and
    tensors), changed in place by the stage. before_save: puts into it what would cost too much at every step. A first save is made before
    the first step, so that a full disk is met at once.
    behind: whether training goes on while a checkpoint is written (config key `async_checkpoints`).
    """

    def __init__(
        self,
        work: Work,
        *,
        name: str,
        total: int,
        models: Mapping[str, nn.Module],
        optimisers: Mapping[str, Optimizer],
        progress: Progress,
        before_save: Callable[[dict[str, Any]], None] | None = None,
        behind: bool | None = None,
    ) -> None:
        self.work, self.name, self.total, self.progress = work, name, total, progress
        self.models, self.optimisers, self._before_save = models, optimisers, before_save
        self.state: dict[str, Any] = {"seconds": 0.0}
        # Counted now: a model that is merged at the end has other parameters then.
        self.trained_parameters = {name: sum(p.numel() for p in trainable(model).values()) for name, model in models.items()}
        self.start = 0
        self._path = work.path / CHECKPOINT
        self._save_seconds = 0.0
        self._behind = behind
        self._writing: Behind | None = None
        reset_peak_memory()
        self._began = time.monotonic()
        restored = load_training(self._path, models=models, optimisers=optimisers)
        if restored:
            self.start, self.state = restored
        self.done = self.start  # steps, the one under way among them
        self._kept_seconds = float(self.state["seconds"])
        world.from_main(self._trim_metrics)
        if not restored:
            self.save(0)

    @property
    def seconds(self) -> float:
        """Seconds spent on this run, over all the times it was resumed."""
        return self._kept_seconds + time.monotonic() - self._began

    def steps(self) -> Iterator[int]:
        """Yield the number of each step that is still to do, saving now and then and at the end.

        Raises Stopped on the first SIGTERM or Ctrl-C, once the step under way is done and saved; the second does what it always does.
        """
        saved = time.monotonic()
        with self.progress.stage(self.name, self.total, "steps", done=self.start) as bar, asked_to_stop(bar) as asked:
            self._bar = bar
            for step in range(self.start, self.total):
                self.done = step + 1
                yield step
                due = time.monotonic() - saved > max(SAVE_EVERY_SECONDS, SAVE_SHARE * self._save_seconds) and step + 1 < self.total
                writing = self._writing is not None and not self._writing.over()
                # A signal may reach one process a step before another.
                stop, due, writing = world.any_of(bool(asked), due, writing)
                if not writing:
                    self.settle()
                if stop:
                    self.save(step + 1)
                    raise Stopped(
                        f"stopped by {asked[0] if asked else 'a signal'} after step {step + 1} of {self.total}, and saved",
                        self.name,
                        "The same command again goes on from there.",
                    )
                if due and not writing:
                    self.save(step + 1, behind=self._may_write_behind())
                    saved = time.monotonic()
        self.save(self.total)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and move the progress bar; `step` counts from 0."""
        row = {"step": step + 1, "seconds": round(self.seconds, 2), **{k: round(float(v), 6) for k, v in metrics.items()}}
        if world.is_main():
            with disk_errors(self.work.path), (self.work.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self._bar.advance(1, **{k.removesuffix("/train"): float(v) for k, v in list(metrics.items())[:3]})

    def save(self, step: int, *, behind: bool = False) -> None:
        """Save everything that the run needs to go on after `step` steps, once what is being written is there.

        behind: copy it, and let a thread write it. The checkpoint before stands until that is done; what goes wrong is raised after a
        later step.
        """
        self.settle()
        if self._before_save is not None:
            self._before_save(self.state)
        began = time.monotonic()
        self.state["seconds"] = self.seconds
        self._writing = save_training(
            self._path, models=self.models, optimisers=self.optimisers, step=step, state=self.state, behind=behind
        )
        self._save_seconds = time.monotonic() - began

    def settle(self) -> None:
        """Wait for what is being written behind the training. Raises where a process could not write it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.wait()

    def _may_write_behind(self) -> bool:
        wanted = self._behind or (self._behind is None and torch.cuda.is_initialized())
        short = wanted and not has_room_beside(copied_bytes(self.models, self.optimisers))
        (short,) = world.any_of(short)
        return wanted and not short

    def close(self) -> None:
        """Remove the checkpoint: the run's result stands beside it."""
        remove_checkpoints(self._path)

    def _trim_metrics(self) -> None:
        # Steps after the checkpoint will be done, and logged, again.
        for path in (self.work.path / METRICS, self.work.path / SAMPLES):
            if not path.exists():
                continue
            # Split as bytes: a kill may have cut a character in two, and a text may hold what Python takes for an end of line.
            rows = [line for line in path.read_bytes().split(b"\n") if _step_of(line) <= self.start]
            temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
            with disk_errors(path):
                try:
                    temporary.write_bytes(b"".join(row + b"\n" for row in rows))
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)


@contextmanager
def asked_to_stop(task: Task) -> Iterator[list[str]]:
    """Yield a list that is empty until SIGTERM or Ctrl-C comes, and then holds that signal's name; the second one acts as before.

    Signals reach the main thread alone; elsewhere the list stays empty. A signal that is ignored, as Ctrl-C is in what a script starts in
    the background, stays ignored.
    """
    asked: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def remember(number: int, frame: Any) -> None:
        asked.append("Ctrl-C" if number == signal.SIGINT else "SIGTERM")
        signal.signal(number, before[signal.Signals(number)])
        task.note(f"{asked[-1]}: stopping once this step is done; once more to stop at once.")

    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, remember) for number in heeded}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # a line cut by the kill


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the logged rows of a run."""
    path = run / METRICS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
