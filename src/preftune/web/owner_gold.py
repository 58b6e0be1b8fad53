"""The owner's page of gold items: raters against known answers, and items made from settled disagreements."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select

from preftune.data import tables
from preftune.data.intervals import Share, wilson
from preftune.data.store import Store, judgement_from_row
from preftune.records import GOLD, Judgement, is_settled, pairs_of, standing
from preftune.web import items
from preftune.web.disputes import in_letters, letters_of
from preftune.web.figures import figures_for
from preftune.web.owner_parts import load_prompt, names_of, owner_page, prompts_by_id
from preftune.web.owner_words import gold_words
from preftune.web.site import Form, Owner, PageError, go, store_of

router = APIRouter(prefix="/gold")
MAX_NOTE = 1000


@dataclass(frozen=True)
class GoldItem:
    """A gold item with how many raters were right on it; share is None where nobody has met it yet."""

    id: str
    prompt_id: str
    asked: str
    expected: str
    note: str
    is_asked: bool
    share: Share | None


def gold_items(store: Store) -> list[GoldItem]:
    """Return the gold items, oldest first; those that are asked no more too."""
    table, judgements = tables.items, tables.judgements
    with store.reading() as connection:
        rows = connection.execute(select(table).where(table.c.purpose == GOLD).order_by(table.c.number)).all()
        said = connection.execute(select(judgements).where(judgements.c.picked_by == GOLD).order_by(judgements.c.number)).all()
    words: dict[tuple[str, ...], list[Judgement]] = {}
    for judgement in standing(map(judgement_from_row, said)):
        words.setdefault(tuple(sorted(judgement.presentation)), []).append(judgement)
    prompts = prompts_by_id(store, (row.prompt_id for row in rows))
    found = []
    for row in rows:
        ranking = tuple(tuple(tier) for tier in row.expected)
        wanted = set(pairs_of(Judgement(prompt_id=row.prompt_id, ranking=ranking)))
        answers = [wanted <= set(pairs_of(j)) for j in words.get(tuple(sorted(row.candidate_ids)), []) if j.ranking]
        share = Share(sum(answers) / len(answers), *wilson(sum(answers), len(answers)), len(answers)) if answers else None
        expected = in_letters(ranking, letters_of(row.candidate_ids))
        asked = prompts[row.prompt_id].text
        found.append(GoldItem(row.id, row.prompt_id, asked, expected, row.note or "", row.queue == GOLD, share))
    return found


@router.get("")
def gold(request: Request) -> Response:
    """Show raters against gold items, and these items."""
    rows, found = gold_items(store_of(request)), figures_for(request)
    says = gold_words(found.value, sum(row.is_asked for row in rows))
    seen = found.value.people.gold
    return owner_page(request, "gold.html", kept=found, rows=rows, seen=seen, says=says, names=names_of(request))


@router.post("")
def make(request: Request, session: Owner, form: Form) -> Response:
    """Make a gold item of a prompt that an owner has settled: the last such word is what raters are held against."""
    store = store_of(request)
    asked, _, judgements = load_prompt(store, form.get("prompt", ""))
    settled = [j for j in standing(judgements) if is_settled(j) and len(j.ranking) > 1]
    if not settled:
        raise PageError(422, "No owner has settled which of these answers is better", "Settle it first.")
    expected = settled[-1].ranking
    items.add_gold(store, session.person, asked.id, sorted(c for tier in expected for c in tier), expected, form.get("note", "")[:MAX_NOTE])
    return go("/owner/gold")


@router.post("/{item_id}/retire")
def retire(request: Request, session: Owner, item_id: str) -> Response:
    """Ask a gold item no more; what was judged of it stays."""
    items.retire_gold(store_of(request), session.person, item_id)
    return go("/owner/gold")
