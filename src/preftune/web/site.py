"""What every handler of the web app uses: who asks, what was posted and whether it may be, and a page from a template.

    @router.post("/gold")
    def make_gold(request: Request, session: Owner, form: Form) -> Response:
        ...
        return page(request, "owner/gold.html", rows=rows)

`guard` runs before every handler (app.py sees to it): it finds the session and refuses an unsafe request that another site could
have made. A handler takes `session: SignedIn` (anyone who is logged in) or `session: Owner`, so that a missing check shows.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from preftune.data.store import Store
from preftune.errors import PreftuneError
from preftune.web import auth
from preftune.web.settings import LabelSettings

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
MAX_FIELDS = 500  # of one form; the largest of ours, a ranking of nine with aspects, has about a hundred
SESSION_SECONDS = 7 * 24 * 3600
_OWN_PATH = re.compile(r"/(?!/)[A-Za-z0-9/_-]*")


class PageError(PreftuneError):
    """A request that is answered by a page with this status and sentence."""

    def __init__(self, status: int, what: str, fix: str = "") -> None:
        self.status = status
        super().__init__(what, fix=fix)


class LogInFirst(PageError):
    """Nobody is logged in, or no longer."""

    def __init__(self) -> None:
        super().__init__(401, "You are not logged in, or your session has ended", "Log in and go on; nothing you sent before is lost.")


def store_of(request: Request) -> Store:
    """Return the store that the app was made with."""
    store: Store = request.app.state.store
    return store


def settings_of(request: Request) -> LabelSettings:
    """Return the labelling settings that the app was made with."""
    settings: LabelSettings = request.app.state.settings
    return settings


async def guard(request: Request) -> None:
    """Find the session, read what was posted, and refuse an unsafe request that another site could have made.

    Raises PageError: 400 for what cannot be read, 403 for what does not come from a page of ours, 415 for other kinds of body.
    """
    state = request.state
    state.session, state.form, state.json, state.new_form_cookie = None, {}, None, None
    token = request.cookies.get(cookie_name(request, "preftune"))
    if token:
        state.session = await run_in_threadpool(auth.session_of, store_of(request), token)
    state.csrf = _csrf(request)
    if request.method in SAFE_METHODS:
        return
    if not _from_our_own_pages(request):
        raise PageError(403, "This request came from another site, so nothing was done", "Open the page again and send it from there.")
    await _read_body(request)
    sent = request.headers.get("x-csrf") or state.form.get("csrf", "")
    if not hmac.compare_digest(sent.encode(), state.csrf.encode()):
        if state.session is None and request.url.path != "/login" and not request.url.path.startswith("/invite/"):
            raise LogInFirst
        raise PageError(403, "This form is older than your session, so nothing was done", "Load the page again and send it once more.")


def _csrf(request: Request) -> str:
    """Return the token that a form of this visitor must carry: the session's, or one bound to a cookie before there is a session."""
    if request.state.session is not None:
        token: str = request.state.session.csrf
        return token
    nonce = request.cookies.get(cookie_name(request, "preftune-form"), "")
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", nonce):
        nonce = request.state.new_form_cookie = secrets.token_urlsafe(32)
    return hmac.new(request.app.state.secret, nonce.encode(), hashlib.sha256).hexdigest()


def _from_our_own_pages(request: Request) -> bool:
    # Browsers that know Sec-Fetch-Site send it over TLS and to localhost, and no script can set it; others send Origin. A program
    # that sends neither cannot be tricked by a site, and still needs the token.
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    return origin is None or (origin != "null" and urlsplit(origin).netloc == request.headers.get("host"))


async def _read_body(request: Request) -> None:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        body = await request.body()
    except ClientDisconnect as error:  # nobody reads the answer; without this it would be in the log as a bug of ours
        raise PageError(400, "The connection ended before all was sent") from error
    try:
        if kind == "application/json":
            request.state.json = json.loads(body)
            _check_texts(request.state.json)
        elif kind == "application/x-www-form-urlencoded" or not body:
            pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
            request.state.form = {name: value.replace("\r\n", "\n") for name, value in pairs}
            _check_texts(request.state.form)
        else:
            raise PageError(415, f"A body of the kind {kind or 'unnamed'!r} is not taken here", "Send a form.")
    except (ValueError, RecursionError) as error:
        raise PageError(400, f"What was sent cannot be read ({error})", "Go back and send it once more.") from error


def _check_texts(value: Any) -> None:
    """Raise ValueError where a text holds what no database takes: a NUL character, or half a surrogate pair."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text holds a NUL character")
        value.encode("utf-8")  # half a pair raises UnicodeEncodeError, which is a ValueError
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_texts(name)
            _check_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner)


async def _signed_in(request: Request) -> auth.Session:
    session: auth.Session | None = request.state.session
    if session is None:
        raise LogInFirst
    return session


async def _owner(request: Request) -> auth.Session:
    session = await _signed_in(request)
    if session.person.role != "owner":
        raise PageError(403, "This page is for owners", "Ask an owner of this project for what you need.")
    return session


async def _form(request: Request) -> dict[str, str]:
    form: dict[str, str] = request.state.form
    return form


async def _json(request: Request) -> dict[str, Any]:
    value = request.state.json
    if not isinstance(value, dict):
        raise PageError(400, "A JSON object was expected")
    return value


SignedIn = Annotated[auth.Session, Depends(_signed_in)]
Owner = Annotated[auth.Session, Depends(_owner)]
Form = Annotated[dict[str, str], Depends(_form)]
Json = Annotated[dict[str, Any], Depends(_json)]


def cookie_name(request: Request, name: str) -> str:
    """Return a cookie's name: with the prefix that ties it to this very host where the connection is encrypted."""
    return f"__Host-{name}" if request.url.scheme == "https" else name


def set_cookie(request: Request, response: Response, name: str, value: str, *, max_age: int | None) -> None:
    """Set a cookie that no script can read and no other site can send along with a form. max_age: seconds; None: until the browser ends."""
    response.set_cookie(
        cookie_name(request, name), value, max_age=max_age, path="/", secure=request.url.scheme == "https", httponly=True, samesite="lax"
    )


def delete_cookie(request: Request, response: Response, name: str) -> None:
    """Take a cookie back."""
    set_cookie(request, response, name, "", max_age=0)


def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Return a page from a template of pages/, which also gets session, csrf, settings, path, and here (the key table's page)."""
    state = request.state
    session = getattr(state, "session", None)  # there is none where a request was refused before it was looked at
    ground = {
        "session": session,
        "csrf": getattr(state, "csrf", ""),
        "settings": settings_of(request),
        "path": request.url.path,
        "here": "everywhere",
    }
    html = request.app.state.templates.get_template(template).render({**ground, **context})
    response = HTMLResponse(html, status)
    nonce = getattr(state, "new_form_cookie", None)
    if nonce:
        set_cookie(request, response, "preftune-form", nonce, max_age=None)
    return response


def go(path: str) -> RedirectResponse:
    """Return the redirection that ends a POST (303: the browser gets the next page by GET)."""
    return RedirectResponse(path, status_code=303)


def own_path(text: str, otherwise: str = "/") -> str:
    """Return a path inside this app, or another where the text is anything else (an address of another site, a line break)."""
    return text if _OWN_PATH.fullmatch(text) else otherwise


def wants_json(request: Request) -> bool:
    """Say whether the script asks, which reads JSON, or a browser, which shows a page."""
    return "application/json" in request.headers.get("accept", "")


def error_response(request: Request, status: int, sentence: str) -> Response:
    """Return an error as the asker reads it: JSON for the script, a page else; who must log in is sent to do so."""
    if wants_json(request):
        return JSONResponse({"error": sentence}, status)
    if status == 401 and request.method in SAFE_METHODS:
        return go("/login" if request.url.path == "/" else f"/login?next={own_path(request.url.path)}")
    return page(request, "error.html", status, code=status, sentence=sentence)
