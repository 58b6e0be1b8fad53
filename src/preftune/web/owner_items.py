"""The owner's list of items: what is asked, how far each is, its priority and overlap; and the draw of what is asked next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import ColumnElement, Text, and_, cast, exists, func, select

from preftune.data import tables
from preftune.data.store import Store
from preftune.web import items
from preftune.web.assign import BARRED
from preftune.web.items import MAX_PRIORITY
from preftune.web.next_items import MOST, ask_next, last_draw
from preftune.web.owner_parts import PAGE, kinds_of_prompts, number_in, owner_page, prompts_by_id
from preftune.web.rank import naming_words
from preftune.web.site import Form, Owner, PageError, go, settings_of, store_of

router = APIRouter(prefix="/items")
STATES = ("all", "untouched", "begun", "judged", "skipped")


@dataclass(frozen=True)
class Row:
    """An item of the list. naming: words in its answers by which one may tell who wrote them."""

    id: str
    prompt_id: str
    asked: str
    kind: str
    task: str
    submitted: int
    wanted: int
    skipped: int
    priority: int
    overlap: int | None
    picked_by: str
    picked_probability: float | None
    naming: tuple[str, ...]


def _count(state: str) -> Any:
    """Return how many assignments of an item are in a state, as a column beside the items."""
    table = tables.assignments.c
    own = (
        table.item_id == tables.items.c.id,
        table.state == state,
        table.purpose == "normal",
        func.coalesce(table.skip_reason, "") != BARRED,
    )
    return select(func.count()).select_from(tables.assignments).where(*own).correlate(tables.items).scalar_subquery()


def _filter(state: str, kind: str, text: str) -> ColumnElement[bool]:
    wanted, submitted = tables.items.c.wanted, _count("submitted")
    parts: list[ColumnElement[bool]] = [tables.items.c.purpose == "normal"]
    match state:
        case "untouched":
            parts.append(submitted == 0)
        case "begun":
            parts += [submitted > 0, submitted < wanted]
        case "judged":
            parts.append(submitted >= wanted)
        case "skipped":
            parts.append(_count("skipped") > 0)
    prompt = tables.prompts.c
    if kind:
        parts.append(exists().where(prompt.id == tables.items.c.prompt_id, prompt.kind == kind))
    if text:
        # Messages are kept as JSON, in which other than ASCII characters, quotes and line breaks are written with backslashes.
        written = json.dumps(text)[1:-1].lower()
        parts.append(
            exists().where(
                prompt.id == tables.items.c.prompt_id, func.lower(cast(prompt.messages, Text)).contains(written, autoescape=True)
            )
        )
    return and_(*parts)


def item_rows(store: Store, state: str, kind: str, text: str, page: int, identity_words: tuple[str, ...]) -> tuple[list[Row], int]:
    """Return the items of a page (from 1), in the order in which they are given out, and how many there are on all pages."""
    table, chosen = tables.items, _filter(state, kind, text)
    columns = (table, _count("submitted").label("submitted"), _count("skipped").label("skipped"))
    query = select(*columns).where(chosen).order_by(table.c.priority.desc(), table.c.shuffle.desc(), table.c.number.desc())
    with store.reading() as connection:
        total = connection.execute(select(func.count()).select_from(table).where(chosen)).scalar_one()
        found = connection.execute(query.limit(PAGE).offset((page - 1) * PAGE)).all()
        ids = {candidate for row in found for candidate in row.candidate_ids}
        candidates = tables.candidates.c
        texts = {row.id: row.text for row in connection.execute(select(candidates.id, candidates.text).where(candidates.id.in_(ids)))}
    prompts = prompts_by_id(store, (row.prompt_id for row in found))
    return [
        Row(
            id=row.id,
            prompt_id=row.prompt_id,
            asked=prompts[row.prompt_id].text,
            kind=prompts[row.prompt_id].kind,
            task=row.task,
            submitted=row.submitted,
            wanted=row.wanted,
            skipped=row.skipped,
            priority=row.priority,
            overlap=row.overlap,
            picked_by=row.picked_by,
            picked_probability=row.picked_probability,
            naming=tuple(naming_words([texts[candidate] for candidate in row.candidate_ids], identity_words)),
        )
        for row in found
    ], total


@router.get("")
def list_items(request: Request, state: str = "all", kind: str = "", text: str = "", page: str = "1") -> Response:
    """List items by state, kind and words."""
    if state not in STATES:
        raise PageError(422, f"{state[:20]!r} is not one of {', '.join(STATES)}")
    store, number = store_of(request), number_in(page, 1, 10**6, "The page")
    rows, total = item_rows(store, state, kind, text, number, settings_of(request).identity_words)
    return owner_page(
        request,
        "items.html",
        rows=rows,
        total=total,
        state=state,
        states=STATES,
        kind=kind,
        kinds=kinds_of_prompts(store),
        text=text,
        number=number,
        page_count=max(1, -(-total // PAGE)),
        most=MAX_PRIORITY,
        most_drawn=MOST,
        drawn=last_draw(store),
    )


@router.post("/next")
def draw(request: Request, session: Owner, form: Form) -> Response:
    """Draw the pairs to ask next, and go back to the list, which says what came of it."""
    number = number_in(form.get("n", ""), 1, MOST, "The number of pairs")
    ask_next(store_of(request), session.person, number, settings_of(request))
    return go("/owner/items")


@router.post("/{item_id}")
def change(request: Request, session: Owner, item_id: str, form: Form) -> Response:
    """Set an item's priority and overlap; an empty overlap is the settings'."""
    store = store_of(request)
    priority = number_in(form.get("priority", ""), -MAX_PRIORITY, MAX_PRIORITY, "The priority")
    overlap = number_in(form["overlap"], 1, 9, "The overlap") if form.get("overlap") else None
    with store.reading() as connection:
        held = connection.execute(select(tables.items.c.priority, tables.items.c.overlap).where(tables.items.c.id == item_id)).first()
    if held is None:
        raise PageError(404, "There is no such item", "Look at the list of items again.")
    if priority != held.priority:
        items.set_priority(store, session.person, item_id, priority)
    if overlap != held.overlap:
        items.set_overlap(store, session.person, item_id, overlap, settings_of(request))
    return go(form.get("back", "") if form.get("back", "").startswith("/owner/items?") else "/owner/items")
