"""The command `preftune pick`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_output import Json, print_json


def pick(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="What judges: a run of train reward, or of train dpo.")],
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Candidates of this source alone; repeatable.", show_default=False)
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Let a reward pick the best and the worst of each prompt's candidates.

    They become a judgement of the rater reward:RUN, beside those of people: pairs for DPO, and the best of n to learn by
    SFT. The same command twice adds nothing; where new candidates have come, the prompt is judged anew.

    Example: preftune pick runs/3f9c --source 77ab
    """
    from preftune._cli_inputs import store_address
    from preftune.progress import for_terminal
    from preftune.rollout.pick import pick as pick_candidates

    report = pick_candidates(store_address(store), run, sources=source or (), progress=for_terminal())
    if as_json:
        print_json(report.as_dict())
        return
    print("\n".join(report.lines()))
    only = "".join(f" --source {name}" for name in source or ())
    print(f"Next: preftune snapshot --rater {report.rater}{only}")
