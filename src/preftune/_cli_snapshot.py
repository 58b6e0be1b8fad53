"""`preftune snapshot`: the options of freezing the store."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preftune._cli_inputs import store_address
from preftune._cli_output import Json, print_result

if TYPE_CHECKING:
    from preftune.data.filters import Filters

app = typer.Typer()


class Aggregate(StrEnum):
    """How several raters become one preference."""

    majority = "majority"
    weighted = "weighted"
    dawid_skene = "dawid-skene"


DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
NEW_OBJECTS = 50_000  # between two looks for cycles; Python's own 700 make that a fifth of the time of a large snapshot


@app.command()
def snapshot(
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Where snapshots are kept.")] = Path("snapshots"),
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the prompt groups that is held out.")] = 0.1,
    held_out_prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hold out the prompts of this file (our own format) instead of a share.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    aggregate: Annotated[Aggregate, typer.Option(metavar="WAY", help="majority, weighted or dawid-skene.")] = Aggregate.majority,
    rater_weights: Annotated[Path | None, typer.Option(metavar="FILE", help="What each vote counts, as in ann: 2.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Prompts of this kind alone; repeatable.")] = None,
    rater: Annotated[list[str] | None, typer.Option(help="Judgements of this rater; repeatable.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Pairs of its answers alone; repeatable.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=DATES, metavar="DATE", help="Judgements from then on (UTC).", show_default=False)
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=DATES, metavar="DATE", help="Judgements before then (UTC).", show_default=False)
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(min=0.5, max=1.0, help="Least share of the votes that are for the chosen answer.")
    ] = None,
    min_strength: Annotated[int | None, typer.Option(min=0, max=3, help="Least strength of a judgement.")] = None,
    max_characters: Annotated[int | None, typer.Option(min=1, help="Longest prompt with answer, in characters.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The same in tokens of --tokenizer.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="A tokenizer.json, or a folder with one.")] = None,
    unbiased_only: Annotated[bool, typer.Option("--unbiased-only", help="Items picked at random alone.")] = False,
    as_json: Json = False,
) -> None:
    """Freeze the store's pairs as a data set that never changes.

    Prompts that are nearly alike stay together, so that no prompt of the training part is in the held-out part. What is left out is
    counted in the snapshot's manifest. Judgements on gold items never get in.

    Example: preftune snapshot --held-out 0.2 --min-agreement 0.67
    """
    from preftune.data.snapshot import snapshot as freeze

    started = time.time()
    filters = filters_from(
        kinds=kind, raters=rater, sources=source, since=since, until=until, min_agreement=min_agreement, min_strength=min_strength,
        max_characters=max_characters, max_tokens=max_tokens, tokenizer=tokenizer, unbiased_only=unbiased_only,
    )  # fmt: skip
    with _cycles_looked_for_rarely():
        folder = freeze(
            store_address(store),
            out,
            held_out=held_out,
            seed=seed,
            held_out_prompts=held_out_prompts,
            aggregate=aggregate.value,
            rater_weights=rater_weights,
            filters=filters,
        )
    print_result(folder, started, f"preftune train dpo data={folder}", as_json=as_json)


@contextmanager
def _cycles_looked_for_rarely() -> Iterator[None]:
    # Records hold no cycles, so there is nothing to be found. For the whole process, which is why the command does it and no function.
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def filters_from(**options: Any) -> Filters:
    """Return the filters that the options ask for. Raises ConfigError where two do not go together."""
    from pydantic import ValidationError

    from preftune.data.filters import Filters
    from preftune.errors import ConfigError

    try:
        return Filters(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(str(error.errors()[0]["msg"]).removeprefix("Value error, "), "snapshot") from error
