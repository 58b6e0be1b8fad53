"""Progress: what a person sees while a stage runs."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass

import pytest

from preftune.progress import Bars, Lines, Silent, counted, describe_metrics, duration


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_silent_progress_says_nothing(capsys):
    with Silent().stage("sft", total=2) as task:
        task.advance(loss=1.0)
        task.note("nothing to see")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3840, "1 h 04 min"), (-3, "0 s")],
)
def test_a_duration_is_said_as_people_say_it(seconds, text):
    assert duration(seconds) == text


def test_metrics_are_shown_with_four_digits():
    assert describe_metrics({"loss": 0.123456, "kl_per_answer": 2.0}) == "loss 0.1235, kl per answer 2"


def test_lines_come_every_ten_percent_or_ten_seconds_with_the_time_left():
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, clock).stage("sft", total=100, unit="steps") as task:
        for _ in range(100):
            clock.seconds += 2.0  # 10 s pass after 5 steps, before 10 % are done
            task.advance(loss=0.5)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sft: 100 steps"
    assert lines[1] == "sft: 5/100 steps, about 3 min 10 s left, loss 0.5"  # 95 steps of 2 s
    assert lines[-1] == "sft: done, 100 steps in 3 min 20 s (loss 0.5)"
    assert len(lines) == 1 + 19 + 1


def test_ten_percent_of_a_quick_stage_gives_a_line_at_most_once_a_second():
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, clock).stage("quick", total=1000, unit="rows") as task:
        for _ in range(1000):
            clock.seconds += 0.001
            task.advance()
    assert stream.getvalue().splitlines() == ["quick: 1,000 rows", "quick: done, 1,000 rows in 1 s"]


def test_steps_done_before_do_not_shorten_the_time_left():
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, clock).stage("ppo", total=20, done=10) as task:
        clock.seconds += 12.0
        task.advance()
    assert "ppo: 11/20 steps, about 1 min 48 s left" in stream.getvalue()  # 9 steps of 12 s


def test_a_stage_that_fails_is_not_called_done():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Lines(stream).stage("sft", total=3):
        raise RuntimeError
    assert "done, " not in stream.getvalue()


def test_a_stage_of_unknown_length_shows_what_is_done():
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, clock).stage("import", unit="rows") as task:
        clock.seconds += 11
        task.advance(500)
        task.note("3 rows set aside")
    assert stream.getvalue().splitlines() == [
        "import: started",
        "import: 500 rows",
        "import: 3 rows set aside",
        "import: done, 500 rows in 11 s",
    ]


def test_nested_bars_leave_one_line_each_on_stderr_and_none_on_stdout(capsys):
    bars = Bars()
    with bars.stage("demo", total=1, unit="stages") as outer, bars.stage("sft", total=2) as inner:
        inner.advance(2, loss=0.25)
        outer.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.index("sft: done, 2 steps") < err.index("demo: done, 1 stage")
    assert "loss 0.25" in err


def test_square_brackets_in_a_note_are_shown_as_they_are(capsys):
    Bars().note("runs/[3f9c] is there")
    assert "runs/[3f9c] is there" in capsys.readouterr().err


def test_progress_loads_neither_rich_nor_torch_when_imported():
    code = "import sys, preftune.progress; print([m for m in ('rich', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [
        (0, "pairs", "0 pairs"),
        (1, "pairs", "1 pair"),
        (1200, "new prompts", "1,200 new prompts"),
        (1, "new prompts have", "1 new prompt has"),
        (1, "twos of answers are", "1 two of answers is"),
        (1, "prompts leave no room for 8 tokens", "1 prompt leaves no room for 8 tokens"),
        (1, "answers failed, the last one so: it answers 400, they are", "1 answer failed, the last one so: it answers 400, they are"),
        (1, "KiB", "1 KiB"),
    ],
)
def test_one_of_a_thing_is_told_as_one(count, words, told):
    assert counted(count, words) == told
