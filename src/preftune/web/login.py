"""Pages for coming in and going: log in, accept an invitation, log out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from preftune.web import auth
from preftune.web.site import SESSION_SECONDS, Form, SignedIn, delete_cookie, go, own_path, page, set_cookie, store_of

router = APIRouter()


@router.get("/login")
def show_login(request: Request, next: str = "/") -> Response:
    """Show the log-in form; who is logged in already goes on."""
    if request.state.session is not None:
        return go(own_path(next))
    return page(request, "login.html", next=own_path(next), name="", error="")


@router.post("/login")
def log_in(request: Request, form: Form) -> Response:
    """Log in, or show the form again with the reason (the same for an unknown name and a wrong password)."""
    name, onward = form.get("name", ""), own_path(form.get("next", "/"))
    try:
        token = auth.log_in(store_of(request), name, form.get("password", ""), address=_address(request))
    except auth.AuthError as error:
        return page(request, "login.html", 401, next=onward, name=name, error=str(error))
    return _welcome(request, token, onward)


@router.get("/invite/{token}")
def show_invitation(request: Request, token: str) -> Response:
    """Show the form in which the invited person chooses a name and a password. Whether the link holds is said when it is used."""
    return page(request, "invite.html", token=token, name="", error="")


@router.post("/invite/{token}")
def accept_invitation(request: Request, token: str, form: Form) -> Response:
    """Make the account and log in, or show the form again with the reason."""
    name, password = form.get("name", ""), form.get("password", "")
    try:
        if password != form.get("again", ""):
            raise auth.AuthError("The two passwords are not the same", fix="Type them once more.")
        auth.accept_invitation(store_of(request), token, name, password)
        session_token = auth.log_in(store_of(request), name, password, address=_address(request))
    except auth.AuthError as error:
        return page(request, "invite.html", 400, token=token, name=name, error=str(error))
    return _welcome(request, session_token, "/guide?first=1")


@router.post("/logout")
def log_out(request: Request, session: SignedIn) -> Response:
    """End this session."""
    auth.log_out(store_of(request), session)
    response = go("/login")
    delete_cookie(request, response, "preftune")
    return response


def _welcome(request: Request, token: str, onward: str) -> Response:
    response = go(onward)
    set_cookie(request, response, "preftune", token, max_age=SESSION_SECONDS)
    delete_cookie(request, response, "preftune-form")
    return response


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
