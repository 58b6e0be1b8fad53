"""`preftune scale` and `preftune tune`: several models measured alike and one chosen."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_output import Json, print_json, print_result

app = typer.Typer()


class By(StrEnum):
    """What counts as won."""

    style = "style"
    score = "score"
    preference = "preference"


class Tunable(StrEnum):
    """The stages whose settings can be searched."""

    dpo = "dpo"


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
    as_json: Json = False,
) -> None:
    """Find the best strength of a run's adapter without training.

    The same adapter at several strengths, each measured: what it wins, what it keeps, how far it goes. Of those that lost no
    knowledge the best is chosen, as an ordinary run folder to release. Leaves scale.html with the curves.

    Example: preftune scale runs/ID --strengths 0.5,1,1.5
    """
    from preftune._cli_inputs import numbers
    from preftune.progress import for_terminal
    from preftune.stages.kinds import base_under, input_of
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


@app.command()
def tune(
    stage: Annotated[Tunable, typer.Argument(help="What to tune: dpo.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="CONFIG|KEY=VALUE...", help="As for train: what all trials share.", show_default=False)
    ] = None,
    beta: Annotated[str, typer.Option(metavar="LIST", help="Values of beta to try.")] = "0.03,0.1,0.3",
    lr: Annotated[str, typer.Option(metavar="LIST", help="Values of lr to try.")] = "2e-5,5e-5,1e-4,2e-4",
    epochs: Annotated[str, typer.Option(metavar="LIST", help="Values of epochs to try.")] = "1,2",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Combinations to try; by default all, or what --minutes pays for.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="About how long all trainings may take, by the plan.", show_default=False)
    ] = None,
    held_out_pairs: Annotated[int, typer.Option(min=2, help="Held-out pairs that judge a trial.")] = 64,
    base: Annotated[
        Path | None, typer.Option(help="What retention is measured against; by default the model before any tuning.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    reports: Annotated[Path, typer.Option(help="Where measurements and the search are kept.")] = Path("reports"),
    as_json: Json = False,
) -> None:
    """Search beta, lr and epochs by successive halving.

    Many trials on few pairs, the best third on three times as many, and so on; judged on held-out pairs, the last ones also by
    KL and retention. Prints the table and the config to use. Interrupted, it goes on when typed again.

    Example: preftune tune dpo data=snapshots/ID --trials 9
    """
    from preftune._cli_inputs import numbers, stage_config, untuned
    from preftune.progress import for_terminal
    from preftune.stages.kinds import Stage, stage_functions
    from preftune.tuning.search import BEST, Grid, read_tune, rows, told, tune_dpo

    started = time.time()
    config = stage_config(Stage(stage.value), stage_functions(Stage(stage.value)), settings or [])
    folder = tune_dpo(
        config,  # type: ignore[arg-type]  # the stage's own config model
        base=base or untuned(config, out),
        grid=Grid(tuple(numbers(beta, "--beta")), tuple(numbers(lr, "--lr")), tuple(int(n) for n in numbers(epochs, "--epochs"))),
        trials=trials,
        minutes=minutes,
        held_out_pairs=held_out_pairs,
        out=out,
        reports=reports,
        progress=for_terminal(),
    )
    result = read_tune(folder)
    if as_json:
        print_json({"path": str(folder), **result})
        return
    table = rows(result)
    print_table(table[0], table[1:])
    if result["run"] is None:
        print("Nothing is chosen: every trial that was left lost knowledge beyond its margin, or failed.")
        print_result(folder, started, "lower --lr or raise --beta, and try again", as_json=False)
        return
    print(f"Chosen: {told(result['settings'])}, as {result['run']}; its config is {folder / BEST}:")
    print((folder / BEST).read_text(encoding="utf-8"), end="")
    print_result(folder, started, f"preftune scale {result['run']}", as_json=False)


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """Print rows under their heads in aligned columns, to stdout."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
