"""`preftune advise`: prompt first, SFT, DPO, RLHF, or collect more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_output import Json, print_json

app = typer.Typer()


@app.command()
def advise(
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The model to tune: its hidden states feed the probe, and it tries the guidelines. Slower.", show_default=False),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose samples in the store are the model's own.", show_default=False)
    ] = None,
    guidelines: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The raters' page to try as system prompt; by default the project's guidelines.md.", show_default=False
        ),
    ] = None,
    held_out: Annotated[
        int | None, typer.Option("--held-out", min=1, help="Prompts of the planned evaluation; by default a tenth.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    as_json: Json = False,
) -> None:
    """Say what your data can carry: prompt first, SFT, DPO, RLHF, or collect more.

    From measurements, each sentence with its number: pairs and demonstrations, agreement of the raters, a quick reward probe and
    its learning curve, the model's own samples, length bias, the planned evaluation's power. Without --model it takes seconds.

    Example: preftune advise
    """
    from preftune._cli_inputs import store_address
    from preftune.evaluate.advise import advise as measure
    from preftune.progress import for_terminal

    advice = measure(
        store_address(store),
        model=model,
        model_name=source,
        guidelines=_read(guidelines),
        held_out=held_out,
        seed=seed,
        progress=for_terminal(),
    )
    if as_json:
        print_json(advice.as_dict())
    else:
        print("\n".join(advice.lines()))


def _read(guidelines: Path | None) -> str | None:
    """Return the guidelines' text: of the file given, which must be there, or of the project's own, where it is."""
    from preftune.errors import ConfigError
    from preftune.project import GUIDELINES_FILE

    path = guidelines or Path(GUIDELINES_FILE)
    if guidelines is None and not path.exists():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the guidelines cannot be read ({said})", str(path), "Give a Markdown file with --guidelines.") from error
