"""The command `preftune probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from preftune._cli_output import Json, print_json


def probe(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of train reward, or of train dpo.")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Another snapshot than the run's own.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Say what a reward model pays for, before PPO finds out.

    Good answers are repeated, made longer, thanked for, emptied, put under another prompt, stripped of their format and
    turned into bullet points; none of this makes them better. Told is by how much the score changes, in standard deviations
    of the model's own scores. A run of train reward is probed when it ends; PPO repeats the findings when it starts.

    Example: preftune probe runs/3f9c
    """
    from preftune.progress import for_terminal
    from preftune.rollout.reward_probes import probe_reward

    found = probe_reward(run, data, progress=for_terminal())
    if as_json:
        print_json(found.as_dict())
        return
    for name, result in found.probes.items():
        print(f"{name:<12} {result}")
    print("\n".join(f"It {finding}." for finding in found.findings) or "Nothing worth saying: no change that makes nothing better pays.")
    print(f"Next: preftune train ppo reward_model={run}")
