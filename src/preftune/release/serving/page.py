"""The chat page: one template, one sheet, scripts. It speaks to the same routes as any client, so it needs no rights of its own."""

from __future__ import annotations

import secrets
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from preftune.release.serving.desk import Desk
from preftune.web.app import HEADERS

HOME = Path(__file__).parent
COOKIE = "preftune_visitor"  # a random word by which the split knows a visitor again; nothing else is kept by it
COOKIE_SECONDS = 400 * 24 * 3600
FILES = {"chat.css": "text/css", "chat.js": "text/javascript", "results.js": "text/javascript"}


def routes(release: str, *, base: str | None, with_keys: bool, desk: Desk | None) -> list[Route]:
    """Return the routes of the page and of what it loads."""
    environment = Environment(
        loader=FileSystemLoader(HOME / "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown = {"release": release, "base": base, "with_keys": with_keys, "terms": desk.terms if desk else None}
    pages = {
        "/": environment.get_template("chat.html").render(**shown),
        "/results": environment.get_template("results.html").render(**shown),
    }

    async def show(request: Request) -> Response:
        response = HTMLResponse(pages[request.url.path], headers={**HEADERS, "Cache-Control": "no-store"})
        if COOKIE not in request.cookies:
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, secrets.token_hex(16), COOKIE_SECONDS, httponly=True, samesite="strict", secure=secure)
        return response

    async def file(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return Response((HOME / "static" / name).read_bytes(), media_type=FILES[name], headers={**HEADERS, "Cache-Control": "no-cache"})

    return [*(Route(path, show) for path in pages), *(Route(f"/static/{name}", file) for name in FILES)]
