"""`preftune sample`: candidates for people to rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preftune._cli_output import Json, print_json

if TYPE_CHECKING:
    from preftune.data.remote import Endpoint

app = typer.Typer()


@app.command()
def sample(
    model: Annotated[
        Path | None, typer.Option(help="A local model: a folder, a GGUF file or a run; by default the project's.", show_default=False)
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option("--endpoint", metavar="NAME", help="An endpoint of preftune.yaml; may be given again.", show_default=False),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-style URL instead, such as http://127.0.0.1:8080/v1.", show_default=False)
    ] = None,
    url_model: Annotated[str | None, typer.Option("--url-model", help="The model's name at that URL.", show_default=False)] = None,
    key_env: Annotated[str | None, typer.Option("--key-env", help="The environment variable with its key.", show_default=False)] = None,
    allow_private: Annotated[bool, typer.Option("--allow-private", help="The URL may be of this machine or network.")] = False,
    candidates: Annotated[int, typer.Option("-k", "--candidates", min=1, max=9, help="Different answers a prompt.")] = 4,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", min=0.0, help="A rung of the ladder; may be given again.", show_default="0.7, 1, 1.3"),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Let each model's first answer be its likeliest.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 512,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add the prompts of this file and answer them, not all of the store.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Sample candidates for people to rank.

    k different answers to each prompt, from a local model or a URL. Answers that are nearly alike are replaced. Interrupted, it
    goes on where it was; the same command twice adds nothing.

    Example: preftune sample --endpoint local -k 4 --greedy
    """
    from preftune._cli_inputs import store_address
    from preftune.progress import counted, for_terminal
    from preftune.rollout.collect import sample_candidates
    from preftune.rollout.sources import SampleSettings

    named = {"temperatures": tuple(temperature)} if temperature else {}
    settings = SampleSettings(candidates=candidates, greedy=greedy, max_new_tokens=max_new_tokens, seed=seed, **named)
    sources: list[Path | Endpoint] = [*_endpoints(endpoint or [], url, url_model, key_env, allow_private)]
    if model or not sources:
        sources.insert(0, model or _project_model())
    report = sample_candidates(store_address(store), sources, settings, prompts=prompts, limit=limit, progress=for_terminal())
    if as_json:
        print_json(report.as_dict())
    else:
        print("\n".join(report.lines(max_new_tokens)))
    if report.failed:
        print(
            f"{counted(report.failed, 'answers')} failed. What there is, is stored: run the same command again for the rest.",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    if not as_json:
        print("Next: preftune label")


def _endpoints(names: list[str], url: str | None, model: str | None, key_env: str | None, allow_private: bool) -> list[Endpoint]:
    from preftune.config import check_config
    from preftune.data.remote import Endpoint, read_endpoints
    from preftune.errors import ConfigError
    from preftune.project import PROJECT_FILE

    known = {one.name: one for one in read_endpoints(Path(PROJECT_FILE))} if names else {}
    for name in names:
        if name not in known:
            there = f"Known are {', '.join(known)}." if known else "It names none: write them below label: endpoints:, or give --url."
            raise ConfigError(f'there is no endpoint "{name}"', PROJECT_FILE, there)
    found = [known[name] for name in names]
    if url is None:
        if model or key_env or allow_private:
            raise ConfigError(
                "--url-model, --key-env and --allow-private say something of a --url, and there is none", "the command line", "Give --url."
            )
        return found
    if not model:
        raise ConfigError("--url needs the model's name at that server", "the command line", "Give --url-model.")
    values = {"name": url[:100], "url": url, "model": model, "api_key_env": key_env, "allow_private": allow_private}
    return [*found, check_config(Endpoint, values, where="--url")]


def _project_model() -> Path:
    from preftune.errors import ConfigError
    from preftune.project import PROJECT_FILE, read_project

    named = read_project().model
    if named is None:
        raise ConfigError(
            "there is no model to ask", "the command line", f"Give --model, --endpoint or --url, or name a model in {PROJECT_FILE}."
        )
    return Path(named)
