"""A server of models on a port of this machine, as long as a `with` lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from preftune.release.serving.app import Service, make_app


@contextmanager
def listening(service: Service) -> Iterator[int]:
    """Serve and yield the port."""
    server = uvicorn.Server(uvicorn.Config(make_app(service), port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
