"""The commands `preftune serve` and `preftune feedback`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preftune._cli_inputs import store_address
from preftune._cli_output import Json, print_json

if TYPE_CHECKING:
    from preftune.release.serving.arms import Arm
    from preftune.release.serving.desk import Desk


def serve(
    model: Annotated[Path, typer.Argument(metavar="PATH", help="A run, a release, a model folder or a GGUF file.")],
    base: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A model that the chat page shows beside it, blind.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A second release, between which and the first users are divided.", show_default=False),
    ] = None,
    split: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of the users who get the second.")] = 0.5,
    store: Annotated[
        str | None, typer.Option("--store", help="Where feedback goes; by default the project's store.", show_default=False)
    ] = None,
    keep_days: Annotated[int, typer.Option("--keep-days", min=1, max=3650, help="How long feedback is kept.")] = 90,
    consent: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What users are told before their first word, in place of our text.", show_default=False),
    ] = None,
    key: Annotated[list[str] | None, typer.Option(help="A bearer key that is let in; may be given several times.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8001,
) -> None:
    """Serve a model to clients of OpenAI's API, and to people by a chat page.

    POST /v1/chat/completions and /v1/completions, GET /v1/models and /health; those who ask at once are decoded together.
    What users say of the answers (/v1/feedback, or on the page) lands in the store, and is deleted after --keep-days. /results
    shows how a split stands. Without --key, whoever reaches the address is served. More: docs/serve.md

    Example: preftune serve releases/ID --base models/base
    """
    import sys

    import uvicorn

    from preftune.errors import ConfigError
    from preftune.release.serving.app import Service, make_app
    from preftune.release.serving.arms import Split
    from preftune.web.listening import listening, url_of

    desk = _desk(store, keep_days, consent)
    paths = [path for path in (model, against, base) if path is not None]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two of the models have the same name ({', '.join(names)})", "preftune serve", "Give folders of different names."
        )
    divided = Split((names[0], names[1]), split) if against is not None else None
    try:
        with listening(host, port) as listener:
            arms = [_arm(path) for path in paths]
            service = Service(arms, keys=key or (), split=divided, desk=desk, base=names[-1] if base is not None else None)
            kept = (
                f"Feedback goes to {desk.store.where} for {keep_days} days." if desk else "There is no store here, so no feedback is taken."
            )
            print(f"{kept} Chat: {url_of(host, listener.getsockname()[1])} Ctrl-C stops it.", file=sys.stderr)
            # h11: the other parser that uvicorn takes where it is installed, httptools, reads headers without end
            config = uvicorn.Config(make_app(service), log_level="warning", access_log=False, server_header=False, http="h11", ws="none")
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        if desk is not None:
            desk.store.close()


def _arm(path: Path) -> Arm:
    from preftune.models.load import insist_on_answers, load_causal_lm, load_renderer
    from preftune.release.serving.arms import Arm

    insist_on_answers(path)
    return Arm(load_causal_lm(path).requires_grad_(False).eval(), load_renderer(path), path.resolve().name)


def _desk(store: str | None, keep_days: int, consent: Path | None) -> Desk | None:
    from preftune.data.feedback import expire
    from preftune.data.store import Store
    from preftune.errors import ConfigError
    from preftune.release.serving.desk import CONSENT, Desk

    address = store_address(store)
    if store is None and "://" not in address and not Path(address).exists():
        return None
    try:
        text = CONSENT if consent is None else consent.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the consent text cannot be read", f"--consent {consent}", "Give a text file in UTF-8.") from error
    opened = Store.open(address)
    expire(opened)
    return Desk(opened, keep_days=keep_days, consent=text)


def feedback(
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    delete: Annotated[bool, typer.Option("--delete-expired", help="Delete what has been kept as long as was promised.")] = False,
    as_json: Json = False,
) -> None:
    """Say what users said of served models: thumbs, edits, which is better, and how each split stands.

    Expired feedback is deleted whenever preftune serve starts, and by --delete-expired, for a nightly job.

    Example: preftune feedback --delete-expired
    """
    from dataclasses import asdict

    from preftune.data.feedback import expire
    from preftune.data.feedback_results import overview
    from preftune.data.store import Store
    from preftune.progress import counted

    with Store.open(store_address(store)) as opened:
        gone = expire(opened) if delete else None
        found = overview(opened)
    if as_json:
        print_json({**asdict(found), "deleted": asdict(gone) if gone else None})
        return
    if gone is not None:
        changed = f" (and {gone.changed} that had been changed or taken back)" if gone.changed else ""
        others = (
            f"{counted(gone.demonstrations, 'demonstrations')}, {counted(gone.candidates, 'answers')}, {counted(gone.prompts, 'prompts')}"
        )
        print(f"Deleted: {counted(gone.words, 'words')}{changed}, {others}.")
    print("\n".join(found.lines()))
