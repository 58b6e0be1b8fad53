"""The owner's pages of disagreements: all answers side by side with what each rater said, and the owner's word on them.

An owner's word is a new judgement by the rater `settled:<pseudonym>`, which decides what it compares (`records.votes_of`); nobody's row
is changed. Where an answer came from, and who said what under which name, is hidden; the sources are shown once an owner has settled it.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import Connection, select

from preftune.data import tables
from preftune.data.store import CHUNK, Store, judgement_from_row
from preftune.progress import counted
from preftune.records import SETTLED, Candidate, Judgement, is_settled, standing
from preftune.web import audit, render
from preftune.web.answers import MAX_RATIONALE
from preftune.web.contested import Contested, disputes_of
from preftune.web.disputes import MAX_RANKED, contests, in_letters, last_words, letters_of, ranking_from_places
from preftune.web.owner_parts import PAGE, kinds_of_prompts, load_prompt, number_in, owner_page
from preftune.web.rank import naming_words
from preftune.web.site import Form, Owner, PageError, go, settings_of, store_of

router = APIRouter()
SHOWN = ("open", "settled", "all")


@router.get("/disagreements")
def disagreements(request: Request, show: str = "open", kind: str = "", page: str = "1") -> Response:
    """List what raters differ on."""
    if show not in SHOWN:
        raise PageError(422, f"{show[:20]!r} is not one of {', '.join(SHOWN)}")
    number, store = number_in(page, 1, 10**6, "The page"), store_of(request)
    contested: Contested = request.app.state.contested
    every = contested.marked()
    ids = [prompt_id for prompt_id, is_open in every if show == "all" or is_open == (show == "open")]
    with store.frozen(), store.reading() as connection:
        if kind:
            ids = _of_kind(connection, ids, kind)
        rows = list(disputes_of(connection, ids[(number - 1) * PAGE : number * PAGE]))
    return owner_page(
        request,
        "disagreements.html",
        rows=rows,
        total=len(ids),
        num_open=sum(is_open for _, is_open in every),
        num_all=len(every),
        newest=contested.newest,
        kinds=kinds_of_prompts(store),
        kind=kind,
        show=show,
        number=number,
        page_count=max(1, -(-len(ids) // PAGE)),
    )


def _of_kind(connection: Connection, ids: Sequence[str], kind: str) -> list[str]:
    """Return those of these prompts that are of a kind, in their order."""
    table, found = tables.prompts.c, set[str]()
    for start in range(0, len(ids), CHUNK):
        of_kind = select(table.id).where(table.id.in_(ids[start : start + CHUNK]), table.kind == kind)
        found.update(connection.execute(of_kind).scalars())
    return [prompt_id for prompt_id in ids if prompt_id in found]


@router.get("/prompts/{prompt_id}")
def prompt(request: Request, session: Owner, prompt_id: str) -> Response:
    """Show all answers to one prompt side by side, with what each rater said of them."""
    return _prompt(request, session.person.pseudonym, prompt_id)


def _prompt(request: Request, me: str, prompt_id: str, *, fields: dict[str, str] | None = None, error: str = "") -> Response:
    asked, candidates, judgements = load_prompt(store_of(request), prompt_id)
    valid = standing(judgements)
    shown = _in_question(candidates, valid)
    letters = letters_of(candidate.id for candidate in shown)
    settled = [j for j in valid if is_settled(j) and j.ranking]
    mine = next((j for j in reversed(settled) if j.rater == SETTLED + me), None)
    texts = [candidate.text for candidate in shown]
    return owner_page(
        request,
        "prompt.html",
        422 if error else 200,
        prompt=asked,
        messages=[(message.role, render.markdown(message.content)) for message in asked.messages],
        answers=list(zip(shown, render.shown(texts), strict=True)),
        letters=letters,
        said=[(j, in_letters(j.ranking, letters)) for j in valid if not is_settled(j) and (j.ranking or j.acceptable is not None)],
        superseded=len(judgements) - len(valid),
        contests=contests(last_words(judgements)),
        settled=[(j, in_letters(j.ranking, letters)) for j in settled],
        mine=mine,
        gold=settled[-1] if settled and len(settled[-1].ranking) > 1 else None,
        naming=naming_words(texts, settings_of(request).identity_words),
        fields=fields if fields is not None else _fields_of(mine, letters),
        error=error,
    )


def _in_question(candidates: Sequence[Candidate], judgements: Sequence[Judgement]) -> list[Candidate]:
    """Return the candidates that somebody has ranked, or all where nobody has, in the order of their letters."""
    ranked = {c for j in judgements for tier in j.ranking for c in tier}
    return sorted((c for c in candidates if not ranked or c.id in ranked), key=lambda candidate: candidate.id)


def _fields_of(mine: Judgement | None, letters: dict[str, str]) -> dict[str, str]:
    """Return the form's fields that say what the owner has said before; none where nothing was said: nothing is pre-selected."""
    if mine is None:
        return {}
    places = {f"place_{letters[c]}": str(place) for place, tier in enumerate(mine.ranking, 1) for c in tier}
    good = {f"good_{letters[c]}": "1" for c in mine.acceptable or ()} or ({"all_bad": "1"} if mine.acceptable == () else {})
    return {**places, **good, "rationale": mine.rationale or ""}


@router.post("/prompts/{prompt_id}/settle")
def settle(request: Request, session: Owner, prompt_id: str, form: Form) -> Response:
    """Store the owner's word; an earlier one of the same owner is superseded. Others' rows stay as they are."""
    store, me = store_of(request), session.person.pseudonym
    _, candidates, judgements = load_prompt(store, prompt_id)
    shown = _in_question(candidates, standing(judgements))
    letters = letters_of(candidate.id for candidate in shown)
    try:
        word = _word(form, prompt_id, letters, me)
    except ValueError as error:
        return _prompt(request, me, prompt_id, fields=form, error=f"Nothing was stored: {error}.")
    _store_word(store, word)
    return go(f"/owner/prompts/{prompt_id}")


def _word(form: dict[str, str], prompt_id: str, letters: dict[str, str], me: str) -> Judgement:
    """Return the judgement that a form says. Raises ValueError where it says nothing, or what cannot be meant."""
    ranking = ranking_from_places({candidate: form.get(f"place_{letter}", "") for candidate, letter in letters.items()})
    ranked = sum(map(len, ranking))
    if not 2 <= ranked <= MAX_RANKED:
        raise ValueError(f"{counted(ranked, 'answers have')} a place; it takes 2 to {MAX_RANKED}")
    good = tuple(candidate for candidate, letter in letters.items() if form.get(f"good_{letter}"))
    none = bool(form.get("all_bad"))
    if good and none:
        raise ValueError("answers are marked as good enough, and so is that none is")
    rationale = form.get("rationale", "").strip()
    if len(rationale) > MAX_RATIONALE:
        raise ValueError(f"the reason has {len(rationale):,} characters; use at most {MAX_RATIONALE:,}")
    return Judgement(
        prompt_id=prompt_id,
        ranking=ranking,
        acceptable=good or (() if none else None),
        rationale=rationale or None,
        rater=SETTLED + me,
        presentation=tuple(letters),
        picked_by="settled",
    )


def _store_word(store: Store, word: Judgement) -> None:
    """Add an owner's word, or withdrawal, on top of their last one; one that says the same again (a double click) adds nothing."""
    table = tables.judgements
    with store.writer() as writer:
        mine = select(table).where(table.c.prompt_id == word.prompt_id, table.c.rater == word.rater).order_by(table.c.number)
        rows = [judgement_from_row(row) for row in writer.connection.execute(mine)]
        last = rows[-1] if rows else None
        if last and (last.ranking, last.acceptable, last.rationale) == (word.ranking, word.acceptable, word.rationale):
            return
        new = word.model_copy(update={"supersedes": last.id if last else None})
        writer.add(judgements=[new])
        action = "settle" if word.ranking else "take settling back"
        audit.record(writer.connection, word.rater.removeprefix(SETTLED), action, word.prompt_id, {"judgement": new.id})


@router.post("/prompts/{prompt_id}/unsettle")
def unsettle(request: Request, session: Owner, prompt_id: str) -> Response:
    """Take the owner's own word back: a row that says nothing in its place."""
    store, rater = store_of(request), SETTLED + session.person.pseudonym
    _, _, judgements = load_prompt(store, prompt_id)
    mine = [j for j in standing(judgements) if j.rater == rater and j.ranking]
    if mine:
        _store_word(store, Judgement(prompt_id=prompt_id, rater=rater, picked_by="settled", supersedes=mine[-1].id))
    return go(f"/owner/prompts/{prompt_id}")
