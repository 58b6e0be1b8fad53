"""`preftune label`: the ranking web app."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def label(
    store: Annotated[str | None, typer.Option("--store", help="The store; by default the project's.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any free one.")] = 8321,
    owner: Annotated[str | None, typer.Option(metavar="NAME", help="Make this person an owner; asks for the password.")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="A proxy in front of it speaks TLS.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="A certificate in PEM format.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key.", show_default=False)] = None,
) -> None:
    """Rank answers in a browser.

    Serves the ranking app on the store until Ctrl-C. Without --owner the first start prints a link by which the first owner comes
    in; owners invite the raters. It listens to this machine alone unless it speaks TLS itself (--tls-cert, --tls-key) or a
    proxy does (--behind-proxy; the proxy's addresses: FORWARDED_ALLOW_IPS). What is asked: the key label of preftune.yaml.

    Example: preftune label --owner ann
    """
    from preftune._cli_inputs import store_address
    from preftune.project import label_settings
    from preftune.web.serve import label as serve

    serve(
        store_address(store),
        label_settings(),
        host=host,
        port=port,
        owner=owner,
        ask_password=_ask if sys.stdin.isatty() else None,
        behind_proxy=behind_proxy,
        tls_cert=tls_cert,
        tls_key=tls_key,
        say=_say,
    )


def _ask(name: str) -> str:
    password: str = typer.prompt(f"A password for {name} (12 characters or more)", hide_input=True, confirmation_prompt=True)
    return password


def _say(line: str) -> None:
    print(line, flush=True)
