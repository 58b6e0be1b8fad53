"""The address that a server of ours listens on, taken before anything is loaded or made."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from preftune.errors import PreftuneError

BACKLOG = 2048  # as uvicorn's


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens there; who comes before the server is ready waits. port 0: any free one.

    Bound before anything is said or made, so that a taken port is one sentence and not a log. Raises PreftuneError where the host is
    no address of this machine, or the port cannot be had.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], found[1])
    except OSError as error:
        raise PreftuneError(f"this is no address of this machine ({error.strerror})", f"--host {host}", "Use 127.0.0.1.") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(found[4])
            listener.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise PreftuneError(f"port {port} cannot be used ({said.lower()})", f"{host}:{port}", "Give another by --port.") from error
        yield listener


def url_of(host: str, port: int, *, tls: bool = False) -> str:
    """Return the address as a browser takes it."""
    name = f"[{host.strip('[]')}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{name}:{port}"
