"""`preftune scale`: one adapter at several strengths, measured and one chosen."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_output import print_json, print_result

app = typer.Typer()


class By(StrEnum):
    """What counts as won."""

    style = "style"
    score = "score"
    preference = "preference"


@app.command()
def scale(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run with an adapter.")],
    strengths: Annotated[
        str, typer.Option(metavar="LIST", help="The strengths; 1 is the adapter as trained.")
    ] = "0.25,0.5,0.75,1,1.25,1.5",
    by: Annotated[By, typer.Option(metavar="WHAT", help="What counts as won: style, score or preference.")] = By.style,
    data: Annotated[
        Path | None, typer.Option(help="The snapshot; by default the one that the run learned from.", show_default=False)
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The model to compare with; by default the one before any tuning.", show_default=False)
    ] = None,
    reward_model: Annotated[Path | None, typer.Option(help="A reward run, for scores and the win rate.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Where evaluations and the sweep are kept.")] = Path("reports"),
    full: Annotated[bool, typer.Option("--full", help="All facts, texts and requests instead of a part.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Find the best strength of a run's adapter without training.

    The same adapter at several strengths, each measured: what it wins, what it keeps, how far it goes. Of those that lost no
    knowledge the best is chosen, as an ordinary run folder to release. Leaves scale.html with the curves.

    Example: preftune scale runs/ID --strengths 0.5,1,1.5
    """
    from preftune._cli_inputs import base_under, input_of, numbers
    from preftune.progress import for_terminal
    from preftune.tuning.page import heads, notes, rows, verdict
    from preftune.tuning.strengths import PAGE, read_scale
    from preftune.tuning.strengths import scale as sweep

    started = time.time()
    folder = sweep(
        run,
        data or input_of(run, "data", "--data"),
        base=base or base_under(run),
        reward_model=reward_model,
        strengths=numbers(strengths, "--strengths"),
        by=by.value,
        out=out,
        size="full" if full else "small",
        seed=seed,
        progress=for_terminal(),
    )
    result = read_scale(folder)
    if as_json:
        print_json({"path": str(folder), **result})
        return
    print_table(heads(result), [[f"{value} ({small})" if small else value for value, small in row] for row in rows(result)])
    print("\n".join([verdict(result), *notes(result)]))
    chosen = result["chosen"]
    print_result(
        folder, started, f"open {folder / PAGE}, then preftune release {chosen}" if chosen else f"open {folder / PAGE}", as_json=False
    )


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """Print rows under their heads in aligned columns, to stdout."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
