"""The ranking app: `create_app(store, settings)` puts the pages together and the shell around them.

The shell is what no handler can forget: security headers on every response, a limit on the size of a request, `guard` (site.py)
before every handler, and errors as pages. There is no torch in this process.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preftune.data.store import Store
from preftune.errors import PreftuneError
from preftune.progress import counted
from preftune.web import auth, guide, keys, live, login, owner, rank, words
from preftune.web.assign import BadAnswer, Conflict, NotYours
from preftune.web.contested import Contested
from preftune.web.settings import LabelSettings
from preftune.web.site import PageError, error_response, guard

HOME = Path(__file__).parent
MAX_BODY_BYTES = 4 * 2**20  # a rewrite of a megabyte, each of its characters written as %XX, still fits
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": under it browsers send the Origin "null" with our own forms, which then could not be told from another site's.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
PLAIN_WORDS = {404: "There is no such page", 405: "This page does not take that kind of request", 422: "The address is not complete"}


def create_app(store: Store, settings: LabelSettings, *, secret: bytes | None = None) -> FastAPI:
    """Return the app on an open store. The caller closes the store.

    secret: what the forms before log-in are signed with; by default a new one, so that a log-in form from before a restart must
    be loaded again. Whether cookies are bound to TLS depends on how the request came (behind a proxy: on what uvicorn trusts).
    """
    app = FastAPI(title="preftune", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(guard)])
    app.state.store, app.state.settings = store, settings
    app.state.secret = secret or secrets.token_bytes(32)
    app.state.templates = _templates()
    app.state.live = live.Runs()
    app.state.contested = Contested(store)
    for router in (login.router, rank.router, guide.router, live.router, owner.router):
        app.include_router(router)
    app.add_api_route("/healthz", _healthz, methods=["GET"])
    app.mount(f"/static/{_version()}", StaticFiles(directory=HOME / "static"))
    app.add_middleware(Shell)
    app.add_exception_handler(PreftuneError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_wrong_address)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _templates() -> Environment:
    # From files that we ship, never from a string; and a name that is missing is an error, not an empty place.
    environment = Environment(
        loader=FileSystemLoader(HOME / "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    version = _version()
    environment.filters.update(duration=words.duration, excerpt=words.excerpt, sentence=words.sentence, counted=counted)
    environment.globals.update(
        static=lambda name: f"/static/{version}/{name}", hint=keys.hint, script_table=keys.script_table, letters="ABCDEFGHI"
    )
    return environment


def _version() -> str:
    """Return a hash of all static files. It is part of their path, so that scripts import each other from the same version."""
    files = sorted((HOME / "static").iterdir())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _healthz(request: Request) -> JSONResponse:
    """Say whether the database answers, for whatever watches the process."""
    request.app.state.store.known("prompts", ["none"])
    return JSONResponse({"ok": True})


class Shell:
    """Middleware: refuses a body that is too large before it is read, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. What is not HTTP is passed on (there is no web socket here, so it is refused further down)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        fixed = scope["path"].startswith("/static/")
        secure = scope["scheme"] == "https"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                # Files bear a hash in their path; a page may show what the next person at this computer must not see.
                headers["Cache-Control"] = "public, max-age=31536000, immutable" if fixed and message["status"] == 200 else "no-store"
                if secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            refusal = Response(_too_large(), 413, media_type="text/plain", headers={"Connection": "close"})
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, _limited(receive), send_with_headers)


def _too_large() -> str:
    return f"The request is larger than {MAX_BODY_BYTES // 2**20} MiB, so it was not read. Send less."


def _limited(receive: Receive) -> Receive:
    """Return a receive that stops a body which says no length, or a wrong one."""
    got = 0

    async def receive_some() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > MAX_BODY_BYTES:
            raise PageError(413, _too_large())
        return message

    return receive_some


async def _on_error(request: Request, error: Exception) -> Response:
    """Show one of our own errors: its sentence was written for the reader."""
    if isinstance(error, PageError):
        status = error.status
    elif isinstance(error, NotYours):
        status = 404
    elif isinstance(error, BadAnswer):
        status = 422
    elif isinstance(error, auth.AuthError):
        status = 400
    elif isinstance(error, Conflict):
        status = 409
    else:
        status = 409 if error.exit_code == 2 else 503  # type: ignore[attr-defined]  # registered for PreftuneError alone
    return error_response(request, status, str(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(request, error.status_code, f"{PLAIN_WORDS.get(error.status_code, 'This could not be done')}.")


async def _on_wrong_address(request: Request, error: Exception) -> Response:
    return error_response(request, 422, "The address holds something that this page cannot read.")


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette shows this outside all middleware, hence the headers here. What went wrong is the log's, not the visitor's.
    logging.getLogger("preftune.web").error("%s %s failed", request.method, request.url.path, exc_info=error)
    response = error_response(request, 500, "Something went wrong here; what was saved before is kept. Try again, and tell the owner.")
    response.headers.update({**HEADERS, "Cache-Control": "no-store"})
    return response
