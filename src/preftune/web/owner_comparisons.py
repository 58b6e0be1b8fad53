"""The owner's page of comparisons: which of two models people prefer, and whether that can be told yet."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from preftune.data.intervals import Share
from preftune.web.comparing import comparisons
from preftune.web.owner_parts import owner_page
from preftune.web.site import store_of

router = APIRouter(prefix="/comparisons")


@router.get("")
def show(request: Request) -> Response:
    """Show every comparison with its win rate, interval and verdict."""
    seen = comparisons(store_of(request))
    rows = [(one, Share(one.verdict.rate, one.verdict.low, one.verdict.high, one.verdict.n)) for one in seen]
    says = [f"{one.name}: {one.verdict}." for one in seen]
    return owner_page(request, "comparisons.html", rows=rows, says=says)
