"""The command `preftune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_output import print_result


def report(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A run, a report, a release, a project, or what the demo has left.")
    ] = Path(),
    other: Annotated[Path | None, typer.Argument(metavar="OTHER", help="Another, to set beside it.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default beside a run or report, in a project.", show_default=False)
    ] = None,
) -> None:
    """Write a report: of a run, an evaluation, a whole project, or of two beside each other.

    One HTML file that needs no network: what happened, the curves, warnings in words, answers before and after, what was kept,
    and where each number comes from. More: docs/report.md

    Example: preftune report runs/ID
    """
    import time

    from preftune.manifest import MANIFEST
    from preftune.project import PROJECT_FILE, read_project
    from preftune.release.report import report as write

    started = time.time()
    store = None
    if (path / PROJECT_FILE).exists() and not (path / MANIFEST).exists():
        named = read_project(path).store
        store = named if "://" in named else str(path / named)
    written = write(path, other, out=out, store=store)
    print_result(written, started, f"open {written} in a browser", as_json=False)
