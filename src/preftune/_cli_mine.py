"""The command `preftune mine`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_inputs import store_address
from preftune._cli_output import Json, print_json

app = typer.Typer()


@app.command()
def mine(
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="The folder of a git repository.")],
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a file in our own format instead.")] = None,
    all_commits: Annotated[bool, typer.Option("--all-commits", help="Not only those that speak of a review, fix-up or style.")] = False,
    keep_format: Annotated[bool, typer.Option("--keep-format", help="Keep changes of layout alone, apart by their kind.")] = False,
    revision: Annotated[str, typer.Option(help="The branch, tag or commit whose history is read.")] = "HEAD",
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Leave out commits before, e.g. 2024-01-31.")] = None,
    exclude_author: Annotated[list[str] | None, typer.Option(metavar="WHO", help="A name, an address, or @domain; again for more.")] = None,
    opt_out: Annotated[Path | None, typer.Option(metavar="FILE", help="Addresses to leave out, besides .preftune-optout.")] = None,
    max_lines: Annotated[int, typer.Option(min=1, help="Longest function.")] = 80,
    run_tests: Annotated[str | None, typer.Option(metavar="CMD", help="Run the tests before and after: RUNS THE REPO'S CODE.")] = None,
    test_seconds: Annotated[float, typer.Option(min=1, help="Longest time of one run of the tests.")] = 600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be taken; store nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Take pairs and demonstrations from a git history.

    What a review or a fix-up changed in a Python function, without changing how it is called or a test that names it, is a pair:
    before = rejected, after = chosen. The repository is only read; what is left out is counted with the reason.

    Example: preftune mine ../our-code --dry-run
    """
    from preftune.config import check_config
    from preftune.data.mining import MiningSettings
    from preftune.data.mining import mine as dig
    from preftune.progress import for_terminal

    told = {
        "revision": revision, "since": since, "all_commits": all_commits, "keep_format": keep_format, "max_lines": max_lines,
        "exclude_authors": tuple(exclude_author or ()), "opt_out": opt_out, "run_tests": run_tests, "test_seconds": test_seconds,
    }  # fmt: skip
    settings = check_config(MiningSettings, told, where="the command line")
    if run_tests:
        print(f"--run-tests runs code of {repository}, with your rights: {run_tests}", file=sys.stderr)
    place = None if out else store_address(store)
    report = dig(repository, place, out=out, settings=settings, dry_run=dry_run, progress=for_terminal())
    if as_json:
        print_json(report.as_dict())
        return
    print("\n".join(report.lines()))
    after = f"preftune import {out}" if out else "preftune check"
    print("Nothing was stored (--dry-run)." if dry_run else f"Next: {after}")
