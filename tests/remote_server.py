"""A real HTTP server on this machine that answers as it is told: each request is kept, each answer is a function."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from preftune.data.remote import Endpoint


@dataclass
class Seen:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Answer = Callable[[BaseHTTPRequestHandler, Seen], None]


@dataclass
class Server:
    """What the server got, and what it answers: the answers in turn, the last one for ever."""

    answers: list[Answer]
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def endpoint(self, **changes: Any) -> Endpoint:
        values = {"name": "here", "url": f"http://127.0.0.1:{self.port}/v1", "model": "tiny", "allow_private": True, "timeout_seconds": 5.0}
        return Endpoint(**{**values, **changes})


@contextmanager
def serving(*answers: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server for as long as the `with` lasts. tls: its certificate, for https."""
    server = Server(list(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = Seen(self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(body))
            with server.lock:
                place = len(server.seen)
                server.seen.append(request)
            self.close_connection = True
            try:
                server.answers[min(place, len(server.answers) - 1)](self, request)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client hung up, as it should

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is no news
    if tls:
        httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
    server.port = httpd.server_address[1]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Send a whole answer."""
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def choices(*texts: str | None, finish_reason: str = "stop") -> bytes:
    """Return the body of an answer with these choices."""
    return json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason} for text in texts]}
    ).encode()


def says(*texts: str, **options: str) -> Answer:
    """Answer with these texts, as many as were asked for."""
    return lambda handler, request: send(handler, choices(*texts[: request.body.get("n", 1)], **options))


def fails(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with an error."""
    return lambda handler, request: send(handler, body, status, **headers)


def streams(*parts: bytes) -> Answer:
    """Send these bytes part by part as a stream of events, then close the connection."""

    def answer(handler: BaseHTTPRequestHandler, request: Seen) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()

    return answer


def delta(text: str, finish_reason: str | None = None) -> bytes:
    """Return one event of a stream."""
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]}).encode() + b"\n\n"
