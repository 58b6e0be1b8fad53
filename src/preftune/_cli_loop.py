"""The command `preftune loop`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_inputs import store_address
from preftune._cli_output import Json, print_json

DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def loop(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings of train dpo; model= is what users judge now.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=DATES, metavar="DATE", help="Judgements from then on (UTC); by default since the last candidate.", show_default=False
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How many days back, where there is no candidate yet.")] = 7,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.9, help="Share of the prompts that is held out.")] = 0.2,
    least: Annotated[int, typer.Option(min=2, help="The fewest prompts to begin with.")] = 20,
    reward_model: Annotated[
        Path | None, typer.Option(help="A reward run, for the win rate; by default the newest in runs.", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Measure on all facts, texts and requests instead of a part.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to learn from, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Go round once: feedback, snapshot, DPO, evaluation, gate, release candidate.

    Says what changed since the last candidate. Refused (exit code 1) where too little was said, or the gate refuses. The same command
    goes on where it was interrupted. More: docs/loop.md

    Example: preftune loop model=releases/ID lr=2e-5 --dry-run
    """
    from dataclasses import asdict

    from preftune.loop import make_plan, run
    from preftune.progress import for_terminal
    from preftune.project import read_project

    address = store_address(store)
    plan = make_plan(
        address,
        settings or [],
        model=read_project().model,
        since=since,
        days=days,
        held_out=held_out,
        least=least,
        reward_model=reward_model,
    )
    if dry_run:
        if as_json:
            print_json({**asdict(plan), "too_little": plan.too_little})
        else:
            print("\n".join(plan.lines()))
        return
    found = run(plan, address, full=full, progress=for_terminal())
    if as_json:
        print_json({"path": str(found.folder), **found.facts})
    else:
        print(
            "\n".join([*found.lines, f"Next: preftune serve {found.release}" if found.release else f"Read: {found.folder / 'loop.json'}"])
        )
    if found.release is None:
        raise typer.Exit(1)
