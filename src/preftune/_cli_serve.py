"""The command `preftune serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    model: Annotated[Path, typer.Argument(metavar="PATH", help="A run, a release, a model folder or a GGUF file.")],
    key: Annotated[list[str] | None, typer.Option(help="A bearer key that is let in; may be given several times.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8001,
) -> None:
    """Serve a model to clients of OpenAI's API.

    POST /v1/chat/completions and /v1/completions, GET /v1/models and /health; those who ask at once are decoded together.
    Without --key, whoever reaches the address is served.

    Example: preftune serve runs/ID --port 8001
    """
    import uvicorn

    from preftune.models.load import load_causal_lm, load_renderer
    from preftune.release.serving.app import Service, make_app

    renderer = load_renderer(model)
    service = Service(load_causal_lm(model).requires_grad_(False).eval(), renderer, name=model.name, keys=key or ())
    uvicorn.run(make_app(service), host=host, port=port, log_level="warning")
