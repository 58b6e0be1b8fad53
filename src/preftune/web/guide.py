"""Pages to read: the team's guidelines, and the keys."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from preftune.web import keys
from preftune.web.render import markdown
from preftune.web.site import SignedIn, page, settings_of

router = APIRouter()


@router.get("/guide")
def guide(request: Request, session: SignedIn, first: str = "") -> Response:
    """Show the guidelines, read anew each time, so that a change is seen at once."""
    text = settings_of(request).guidelines_text()
    return page(request, "guide.html", guidelines=markdown(text, top=2) if text.strip() else None, first=bool(first))


@router.get("/keys")
def show_keys(request: Request, session: SignedIn) -> Response:
    """Show the whole table of keys."""
    return page(request, "keys.html", sheet=keys.sheet())
