"""The owner's pages: how far the work is, what the judgements are worth, who works, what leaves the store.

This file holds the pages that only show; owner_settle, owner_gold, owner_items, owner_people and owner_export those that change
something. Each route is for owners alone, by the one dependency of the router below. Numbers come from progress.py and figures.py,
sentences from owner_words.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy import func, select

from preftune.data import tables
from preftune.web import audit, owner_comparisons, owner_export, owner_gold, owner_items, owner_people, owner_settle
from preftune.web.figures import figures_for
from preftune.web.kept import kept
from preftune.web.owner_parts import names_of, now, number_in, owner_page, prompts_by_id
from preftune.web.owner_words import agreement_words, position_words, progress_words, time_words
from preftune.web.progress import overview
from preftune.web.settings import protocols
from preftune.web.site import Owner, settings_of, store_of

FAST_SHOWN = 100
AUDIT_PAGE = 100


def owners_only(session: Owner) -> None:
    """Refuse everyone who is not logged in as an owner."""


router = APIRouter(prefix="/owner", dependencies=[Depends(owners_only)])
for part in (
    owner_settle.router,
    owner_gold.router,
    owner_comparisons.router,
    owner_items.router,
    owner_people.router,
    owner_export.router,
):
    router.include_router(part)


@router.get("")
def progress(request: Request) -> Response:
    """Show how far the work is, when it will be done, and each rater's pace."""
    store, at = store_of(request), now()
    found = kept(request, "owner_overview", lambda: at, lambda: overview(store, at))  # time alone changes it: a lease may run out
    seen = found.value
    labels = [f"{back} to {back + 1} days ago" if back else "the last 24 hours" for back in range(len(seen.days) - 1, -1, -1)]
    says = progress_words(seen)
    return owner_page(request, "progress.html", kept=found, seen=seen, day_labels=labels, says=says, names=names_of(request))


@router.get("/agreement")
def agreement(request: Request) -> Response:
    """Show how far raters agree: all, each against the others, by kind of prompt, and programs against people."""
    found = figures_for(request)
    figures = found.value
    return owner_page(
        request,
        "agreement.html",
        kept=found,
        figures=figures,
        seen=figures.people,
        says=agreement_words(figures),
        names=names_of(request),
    )


@router.get("/position")
def position(request: Request) -> Response:
    """Show whether an answer wins because of where it was shown, and whether raters repeat themselves."""
    found = figures_for(request)
    people = found.value.people
    return owner_page(
        request,
        "position.html",
        kept=found,
        figures=found.value,
        seen=people.position,
        retest=people.retest,
        says=position_words(found.value),
        names=names_of(request),
    )


@router.get("/time")
def time(request: Request) -> Response:
    """Show how long judgements take, and those that were faster than one can read."""
    found = figures_for(request)
    times = found.value.people.times
    fast = [identity for ids in times.too_fast.values() for identity in ids] if times else []
    return owner_page(
        request,
        "time.html",
        kept=found,
        figures=found.value,
        times=times,
        rows=_fast_rows(request, fast[:FAST_SHOWN]),
        num_fast=len(fast),
        says=time_words(found.value),
        names=names_of(request),
    )


def _fast_rows(request: Request, ids: Sequence[str]) -> list[tuple[str, float, str, str]]:
    """Return (rater, seconds, prompt's id, its text) of these judgements, the fastest first."""
    table, store = tables.judgements.c, store_of(request)
    with store.reading() as connection:
        query = select(table.rater, table.active_seconds, table.prompt_id).where(table.id.in_(ids)).order_by(table.active_seconds)
        found = connection.execute(query).all()
    prompts = prompts_by_id(store, (row.prompt_id for row in found))
    return [(row.rater, row.active_seconds, row.prompt_id, prompts[row.prompt_id].text) for row in found]


@router.get("/audit")
def audit_trail(request: Request, before: str = "") -> Response:
    """Show who did what, the newest first, and whether the chain of hashes is whole."""
    store = store_of(request)
    last = audit.last_number(store)
    top = number_in(before, 1, 10**9, "The page's beginning") - 1 if before else last
    rows = audit.entries(store, after=max(0, top - AUDIT_PAGE), limit=min(top, AUDIT_PAGE))[::-1]
    return owner_page(request, "audit.html", rows=rows, last=last, breaks=audit.verify(store), names=names_of(request))


@router.get("/settings")
def settings(request: Request) -> Response:
    """Show the settings that hold, and each version of what raters were told and asked, with how much was judged under it."""
    held, store = settings_of(request), store_of(request)
    values = held.model_dump(mode="json")
    described = [(name, field.description or "", values[name]) for name, field in type(held).model_fields.items()]
    versions = protocols(store)
    judgements = tables.judgements.c
    with store.reading() as connection:
        # Only what was made here has a protocol; an imported judgement was given under somebody else's.
        begun = [version["created"] for version in versions]
        counts = []
        for start, end in zip(begun, [*begun[1:], None], strict=False):
            within = [judgements.created >= start, judgements.picked_by != "import"]
            counts.append(
                connection.execute(select(func.count()).where(*within, *([judgements.created < end] if end else []))).scalar_one()
            )
    return owner_page(request, "settings.html", described=described, versions=list(zip(versions, counts, strict=True))[::-1])
