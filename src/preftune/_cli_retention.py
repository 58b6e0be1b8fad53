"""Which retention tasks a command adds: those of `--retention`, or else those of the project, and what it says of their result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from preftune.evaluate.task_settings import TaskSettings

RetentionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--retention",
        metavar="KIND=WHAT",
        help="A task of your own, such as choices=rules.jsonl,margin=0.03; instead of the project's. May be repeated.",
    ),
]


def chosen_tasks(options: Sequence[str] | None) -> Sequence[TaskSettings]:
    """Return the tasks of the command line, or else those that preftune.yaml names."""
    from preftune.evaluate.task_settings import parse_task
    from preftune.project import read_project

    return [parse_task(option) for option in options] if options else read_project().retention


def tell_retention(folder: Path) -> None:
    """Print to stderr what was kept and lost, and where the flipped items are to be read."""
    from preftune.evaluate.flipped import retention_lines
    from preftune.evaluate.run import read_evaluation

    for line in retention_lines(folder, read_evaluation(folder)):
        print(line, file=sys.stderr)
