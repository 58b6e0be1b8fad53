"""What all pages of the owner share: the menu, the page function, and reading prompts with their candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from sqlalchemy import select

from preftune.data import tables
from preftune.data.store import Store, candidate_from_row, judgement_from_row, prompt_from_row
from preftune.records import Candidate, Judgement, Prompt
from preftune.web import owner_words
from preftune.web.charts import bar_chart, share_chart
from preftune.web.site import PageError, page, store_of

MENU = (
    ("/owner", "Progress"),
    ("/owner/agreement", "Agreement"),
    ("/owner/disagreements", "Disagreements"),
    ("/owner/position", "Place"),
    ("/owner/time", "Time"),
    ("/owner/gold", "Gold"),
    ("/owner/comparisons", "Comparisons"),
    ("/owner/items", "Items"),
    ("/owner/people", "People"),
    ("/owner/export", "Export"),
    ("/owner/audit", "Audit trail"),
    ("/owner/settings", "Settings"),
)
PAGE = 50  # rows of a list
KINDS = 200  # in a list to choose from


def owner_page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Return a page of pages/owner/, with what its templates use."""
    tools = {"menu": MENU, "words": owner_words, "share_chart": share_chart, "bar_chart": bar_chart}
    return page(request, f"owner/{template}", status, **tools, **context)


def number_in(text: str, least: int, most: int, what: str) -> int:
    """Return the whole number that a form's field or an address holds. Raises PageError (422) where it is none, or out of bounds."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10) or not least <= int(text) <= most:
        raise PageError(422, f"{what} is {text[:20]!r}, which is not a whole number from {least:,} to {most:,}", "Go back and change it.")
    return int(text)


def kinds_of_prompts(store: Store) -> Sequence[str]:
    """Return the kinds of prompts in the store, to choose from."""
    kind = tables.prompts.c.kind
    with store.reading() as connection:
        return connection.execute(select(kind).where(kind != "").distinct().order_by(kind).limit(KINDS)).scalars().all()


def load_prompt(store: Store, prompt_id: str) -> tuple[Prompt, list[Candidate], list[Judgement]]:
    """Return a prompt with its candidates and all its judgements, oldest first. Raises PageError (404) where there is none."""
    with store.reading() as connection:
        row = connection.execute(select(tables.prompts).where(tables.prompts.c.id == prompt_id)).first()
        if row is None:
            raise PageError(404, "There is no such prompt in the store")
        of_prompt = [
            connection.execute(select(table).where(table.c.prompt_id == prompt_id).order_by(table.c.number)).all()
            for table in (tables.candidates, tables.judgements)
        ]
    return prompt_from_row(row), [candidate_from_row(c) for c in of_prompt[0]], [judgement_from_row(j) for j in of_prompt[1]]


def prompts_by_id(store: Store, ids: Iterable[str]) -> dict[str, Prompt]:
    """Return prompts by id; an id that the store does not have is left out."""
    table, wanted = tables.prompts, sorted(set(ids))
    with store.reading() as connection:
        return {row.id: prompt_from_row(row) for row in connection.execute(select(table).where(table.c.id.in_(wanted)))}


def names_of(request: Request) -> dict[str, str]:
    """Return the name of each person by pseudonym; of whom was deleted there is none."""
    people = tables.people.c
    with store_of(request).reading() as connection:
        return {
            row.pseudonym: row.name for row in connection.execute(select(people.pseudonym, people.name).where(people.deleted.is_(None)))
        }


def now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)
