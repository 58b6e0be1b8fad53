"""The command `preftune compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_inputs import store_address
from preftune._cli_output import Json, print_json

app = typer.Typer()


@app.command()
def compare(
    a: Annotated[
        str | None, typer.Argument(metavar="A", help="A run, release, model folder, GGUF file, URL, or .jsonl file of answers.")
    ] = None,
    b: Annotated[str | None, typer.Argument(metavar="B", help="What it is compared with.")] = None,
    data: Annotated[Path | None, typer.Option(help="A snapshot, whose held-out prompts are asked.", show_default=False)] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts of any format instead.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first so many prompts alone.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Let people compare two models blind.

    Puts both answers to each prompt before the raters of preftune label, who do not see which is whose. Without A and B it prints
    what was said so far: one may look after every judgement and stop as soon as one is preferred.

    Example: preftune compare runs/ID runs/OTHER --data snapshots/ID
    """
    from preftune.data.store import Store
    from preftune.errors import ConfigError
    from preftune.progress import counted
    from preftune.web.comparing import comparisons

    if (a is None) != (b is None):
        raise ConfigError("there is an A but no B", "the command line", "Give both, or neither to see what was said so far.")
    if a is not None and b is not None:
        _ask(a, b, data, prompts, limit, max_new_tokens, store_address(store))
    with Store.open(store_address(store)) as opened:
        found = comparisons(opened)
    if as_json:
        print_json([{**asdict(one), "says": str(one.verdict)} for one in found])
        return
    for one in found:
        print(f"{one.name}: A = {one.a}, B = {one.b}, {counted(one.items, 'prompts')}. {one.verdict}")
    print("Next: preftune label" if found else "No comparison yet. Next: preftune compare A B --data SNAPSHOT")


def _ask(a: str, b: str, data: Path | None, prompts: Path | None, limit: int | None, max_new_tokens: int, store: str) -> None:
    import sys

    from preftune.data.store import Store
    from preftune.errors import ConfigError
    from preftune.evaluate.compared import with_templates
    from preftune.evaluate.contenders import answers_of, contender, held_out_prompts, read_prompts
    from preftune.progress import counted, for_terminal
    from preftune.project import label_settings
    from preftune.web.comparing import add_comparison

    if (data is None) == (prompts is None):
        raise ConfigError("which prompts to ask is not clear", "the command line", "Give either --data or --prompts.")
    if data is not None:
        asked = held_out_prompts(data, limit)
    else:
        assert prompts is not None
        asked = read_prompts(prompts)[:limit]
    settings, progress = label_settings(), for_terminal()
    who = with_templates([contender(word, settings.endpoints) for word in (a, b)])
    # Kept in reports/, so that whoever asks again, or evaluates the same two, does not wait for them again.
    first, second = (answers_of(one, asked, out=Path("reports"), max_new_tokens=max_new_tokens, progress=progress).texts for one in who)
    with Store.open(store) as opened:
        made = add_comparison(opened, settings, a, b, asked, list(zip(first, second, strict=True)))
    print(
        f"{counted(made.new, 'prompts to judge are')} new; {made.same} answered alike and {made.taken} asked elsewhere are left out.",
        file=sys.stderr,
    )
