"""The command `preftune check`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_inputs import store_address
from preftune._cli_output import Json, print_json

app = typer.Typer()


@app.command()
def check(
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    snapshot: Annotated[Path | None, typer.Option(metavar="DIR", help="A snapshot in place of the store; tells of leaks, too.")] = None,
    held_out: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts or pairs of any format that must not leak.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(metavar="DIR", help="A model's folder, to count tokens; else an estimate.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens that the longest pair may have.")] = 2048,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots, too.")] = None,
    as_json: Json = False,
) -> None:
    """Say what is in the data and what is wrong with it.

    Counts pairs, ties, duplicates, contradictions and circles; how far raters agree; how well length and looks alone tell the
    chosen answer; languages, length in tokens, and lines that seem private. The values of what seems private are never shown.

    Example: preftune check --html check.html
    """
    from preftune.data.checks import check_pairs, check_store, prompts_in, write_page
    from preftune.data.store import Store
    from preftune.errors import ConfigError
    from preftune.progress import for_terminal

    gc.freeze()  # what is loaded by now stays anyway; else the collector looks at it again and again while pairs go by
    others = list(prompts_in(held_out)) if held_out else None
    progress = for_terminal()
    if snapshot and store:
        raise ConfigError("both --snapshot and --store are given", "the command line", "Leave one of them out.")
    if snapshot:
        from preftune.data.snapshot import load_snapshot

        frozen = load_snapshot(snapshot)
        report = check_pairs(frozen.train, [*frozen.held_out, *(others or [])], tokenizer=tokenizer, context=context, progress=progress)
    else:
        with Store.open(store_address(store)) as opened:
            report = check_store(opened, others, tokenizer=tokenizer, context=context, progress=progress)
    if html:
        write_page(report, html)
    if as_json:
        print_json(report.as_dict())
        return
    print("\n".join(report.lines()))
    after = f"preftune train dpo data={snapshot}" if snapshot else "preftune snapshot"
    print(f"Next: {f'open {html} in a browser, then ' if html else ''}{after}")
