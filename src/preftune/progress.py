"""Progress that a person can read: a bar with the time left on a terminal, plain lines elsewhere, nothing in a library call.

A function that takes a while has `progress: Progress = Silent()` and writes

    with progress.stage("reward model", total=len(plan), unit="steps", done=resumed_at) as task:
        for ...:
            task.advance(loss=loss)

Stages may be nested. All goes to stderr, so that stdout holds results alone. rich is imported when a bar is first drawn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0


class Task(Protocol):
    """One stage under way."""

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Say that n more units are done, and what was measured last (shown by its name)."""
        ...

    def note(self, text: str) -> None:
        """Say one thing worth knowing, such as what was left out."""
        ...


class Progress(Protocol):
    """Where a long-running function tells how far it is."""

    def stage(self, name: str, total: int | None = None, unit: str = "steps", *, done: int = 0) -> AbstractContextManager[Task]:
        """Open a stage of `total` units (None = unknown), of which `done` were done before (a resumed run)."""
        ...

    def note(self, text: str) -> None:
        """Say one thing worth knowing outside any stage."""
        ...


class Silent:
    """Says nothing: what library calls use unless told otherwise."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "steps", *, done: int = 0) -> Iterator[Task]:
        """Open a stage that shows nothing."""
        yield self

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


def duration(seconds: float) -> str:
    """Return a time as people say it: "8 s", "3 min 20 s", "1 h 04 min"."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


_OF_ONE = {"are": "is", "were": "was", "have": "has", "compare": "compares", "give": "gives", "leave": "leaves", "seem": "seems",
           "stand": "stands", "stay": "stays"}  # fmt: skip


def counted(count: int, words: str) -> str:
    """Return a count with what is counted: "1,200 rows", "1 row", "1 pair has".

    words: in the plural. For one, the first plural before any comma or colon loses its s, and the verbs there follow it.
    """
    if count != 1:
        return f"{count:,} {words}"
    head = words[: min(at for at in (words.find(","), words.find(":"), len(words)) if at >= 0)]
    parts = head.split(" ")
    noun = next((place for place, word in enumerate(parts) if word.endswith("s")), None)  # none in a unit such as KiB
    one = [word.removesuffix("s") if place == noun else _OF_ONE.get(word, word) for place, word in enumerate(parts)]
    return " ".join(["1", *one]) + words[len(head) :]


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return "loss 0.412, accuracy 0.87" for the metrics of the last step."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())


@dataclass
class Lines:
    """Plain lines for logs and pipes: one when a stage starts, one every 10 s or 10 %, one when it is done.

    stream: where to write. clock: seconds from any start.
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic

    def note(self, text: str) -> None:
        """Write the text as a line of its own."""
        print(text, file=self.stream, flush=True)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "steps", *, done: int = 0) -> Iterator[Task]:
        """Open a stage; its last line is written only when it ends well."""
        task = _LineTask(self, name, total, unit, done)
        begun = f", {done} done before" if done else ""
        self.note(f"{name}: {counted(total, unit)}{begun}" if total is not None else f"{name}: started{begun}")
        yield task
        task.finish()


class _LineTask:
    def __init__(self, lines: Lines, name: str, total: int | None, unit: str, done: int) -> None:
        self.lines, self.name, self.total, self.unit = lines, name, total, unit
        self.done, self.done_before = done, done
        self.started = self.last_line = lines.clock()
        self.done_at_last_line = done
        self.metrics: dict[str, float] = {}

    def advance(self, n: int = 1, **metrics: float) -> None:
        self.done += n
        self.metrics = metrics or self.metrics
        since_line = self.lines.clock() - self.last_line
        tenth = self.total is not None and (self.done - self.done_at_last_line) * 10 >= self.total
        if (since_line >= SECONDS_BETWEEN_LINES or (tenth and since_line >= 1.0)) and self.done != self.total:
            self.last_line, self.done_at_last_line = self.lines.clock(), self.done
            self.lines.note(self._line())

    def note(self, text: str) -> None:
        self.lines.note(f"{self.name}: {text}")

    def finish(self) -> None:
        spent = duration(self.lines.clock() - self.started)
        tail = f" ({describe_metrics(self.metrics)})" if self.metrics else ""
        self.lines.note(f"{self.name}: done, {counted(self.done, self.unit)} in {spent}{tail}")

    def _line(self) -> str:
        parts = [f"{self.name}: {self.done}{f'/{self.total}' if self.total is not None else ''} {self.unit}"]
        newly = self.done - self.done_before
        if self.total is not None and newly > 0:
            left = (self.lines.clock() - self.started) / newly * (self.total - self.done)
            parts.append(f"about {duration(left)} left")
        if self.metrics:
            parts.append(describe_metrics(self.metrics))
        return ", ".join(parts)


class Bars:
    """Bars with the time left, for a terminal; NO_COLOR is respected. A finished stage leaves one plain line."""

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        self._open = 0

    def note(self, text: str) -> None:
        """Print the text above the bars."""
        self._live().console.print(text, markup=False, highlight=False)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "steps", *, done: int = 0) -> Iterator[Task]:
        """Draw a bar for as long as the stage lasts."""
        bars = self._live()
        if self._open == 0:
            bars.start()
        self._open += 1
        row = bars.add_task(name, total=total, completed=done, unit=unit, metrics="")
        task = _BarTask(self, bars, row, name, unit, done)
        try:
            yield task
            task.finish()
        finally:
            bars.remove_task(row)
            self._open -= 1
            if self._open == 0:
                bars.stop()

    def _live(self) -> RichProgress:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bars = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=Console(stderr=True),
                transient=True,
                speed_estimate_period=120.0,
            )
        return self._bars


class _BarTask:
    def __init__(self, owner: Bars, bars: RichProgress, row: TaskID, name: str, unit: str, done: int) -> None:
        self.owner, self.bars, self.row, self.name, self.unit, self.done = owner, bars, row, name, unit, done
        self.started = time.monotonic()
        self.metrics: dict[str, float] = {}

    def advance(self, n: int = 1, **metrics: float) -> None:
        self.done += n
        self.metrics = metrics or self.metrics
        self.bars.update(self.row, advance=n, metrics=describe_metrics(self.metrics))

    def note(self, text: str) -> None:
        self.owner.note(f"{self.name}: {text}")

    def finish(self) -> None:
        tail = f" ({describe_metrics(self.metrics)})" if self.metrics else ""
        self.note(f"done, {counted(self.done, self.unit)} in {duration(time.monotonic() - self.started)}{tail}")


def for_terminal() -> Progress:
    """Return bars where stderr is a terminal, plain lines where it is not."""
    return Bars() if sys.stderr.isatty() else Lines()
