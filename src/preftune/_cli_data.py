"""The commands that bring data in and out: import and export.

As in cli.py, what a command needs is imported inside it.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preftune._cli_inputs import store_address
from preftune._cli_output import Json, print_json

if TYPE_CHECKING:
    from preftune.data.import_report import ImportReport
    from preftune.progress import Progress

app = typer.Typer()

LARGE_BYTES = 2**23  # from here on reading takes longer than one waits without a sign

StoreOption = Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)]


@app.command(name="import")
def import_(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Files to read.")],
    store: StoreOption = None,
    format_: Annotated[str | None, typer.Option("--format", help="The format, where looking is not enough.", show_default=False)] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="KEY=COLUMN", help="For a table: which column is our prompt, chosen, rejected… Repeat it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported; store nothing.")] = False,
    max_unpacked_gib: Annotated[float, typer.Option(min=0.001, help="What a compressed file may unpack to, in GiB.")] = 16.0,
    as_json: Json = False,
) -> None:
    """Read preferences into the store.

    The format is found by looking into the file: JSON lines, a JSON array, CSV, TSV or Parquet, also packed by gzip or zstd.
    The report says which answer is taken for the better one. A row that cannot be used is set aside with its line and the
    reason; all other rows are imported (exit code 2 tells a script). Importing the same file twice adds nothing.

    Example: preftune import preferences.jsonl --dry-run
    """
    from preftune.data.formats.columns import parse_map
    from preftune.data.importing import import_preferences

    gc.freeze()  # what is loaded by now stays anyway; else the collector looks at it again and again while rows go by
    columns = parse_map(map_ or [])
    reports = []
    for source in sources:
        report = import_preferences(
            source,
            store_address(store),
            format=format_,
            map_columns=columns,
            dry_run=dry_run,
            max_unpacked_bytes=round(max_unpacked_gib * 2**30),
            progress=_progress_for(source),
        )
        reports.append(report)
        if not as_json:  # at once: if the next file cannot be read, what was stored of this one has been told
            print("\n".join(report.lines()), flush=True)
    if as_json:
        print_json({"imports": [report.as_dict() for report in reports]})
    else:
        print("Nothing was stored (--dry-run)." if dry_run else f"Next: {_after_import(reports)}")
    set_aside = sum(sum(report.set_aside.values()) for report in reports)
    if set_aside:
        rows = sum(report.rows for report in reports)
        print(f"{set_aside:,} of {rows:,} rows were set aside; the others were read.", file=sys.stderr)
        raise typer.Exit(2)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    format_: Annotated[str, typer.Option("--format", help="own, trl, trl-unpaired (for KTO), openai, llamafactory or argilla.")] = "own",
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Write the store's preferences for another tool.

    The format own loses nothing and can be imported again. Each of the others tells what it cannot say, such as a tie. The
    judgements of gold items never leave.

    Example: preftune export pairs.jsonl --format trl
    """
    from preftune.data.exporting import export_preferences
    from preftune.progress import for_terminal

    report = export_preferences(store_address(store), out, format=format_, progress=for_terminal() if sys.stderr.isatty() else None)
    if as_json:
        print_json(report.as_dict())
    else:
        print("\n".join(report.lines()))


def _after_import(reports: list[ImportReport]) -> str:
    new = {kind: sum(report.records[kind] for report in reports) for kind in ("prompts", "judgements", "demonstrations")}
    only_prompts = new["prompts"] and not new["judgements"] and not new["demonstrations"]
    return "preftune sample, then preftune label" if only_prompts else "preftune check"


def _progress_for(source: Path) -> Progress | None:
    from preftune.progress import for_terminal

    return for_terminal() if source.exists() and source.stat().st_size >= LARGE_BYTES else None
