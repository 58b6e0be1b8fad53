"""What a rater does: home, the next item, judging it, drafts, submit, skip, undo, history.

Who may see and change what is assign.py's; here is only how it looks. Where a form is sent by the script, the answer is JSON; where the
browser sends it, a redirection. Nothing on a page says where an answer came from: no id of a candidate, no source, no purpose.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from preftune.web import assign, forms, render
from preftune.web.auth import Person
from preftune.web.diff import line_diff
from preftune.web.site import Form, Json, PageError, SignedIn, go, page, settings_of, store_of, wants_json

router = APIRouter()
HISTORY = 200  # of one's own judgements and skips that are listed
EMPTY = {
    "finished": "You have judged everything that is meant for you. New items appear here when the owner adds some.",
    "waiting": "What is left is in the hands of other raters. If they do not finish, it comes back: look again in half an hour.",
    "nothing": "There is nothing to judge yet. An owner adds prompts with answers by preftune import or preftune sample.",
}


@router.get("/")
def home(request: Request, session: SignedIn, empty: str = "", done: str = "") -> Response:
    """Show how far one is, and the way on."""
    progress = assign.own_progress(store_of(request), session.person)
    return page(
        request,
        "home.html",
        progress=progress,
        share=progress.done / max(1, progress.done + progress.remaining),
        empty=EMPTY.get(empty, ""),
        done=_read_back(request, session.person, done),
    )


@router.post("/next")
def take_next(request: Request, session: SignedIn) -> Response:
    """Lease the next item (or take up an open one) and go there."""
    return go(_onward(request, session.person))


@router.get("/a/{assignment_id}")
def judge(request: Request, session: SignedIn, assignment_id: str, done: str = "", undone: str = "", rewrite: str = "") -> Response:
    """Show an item to judge, or one that was judged or skipped, with what was stored, in the order first shown."""
    assignment = assign.load_assignment(store_of(request), session.person, assignment_id)
    fields = forms.fields_of(assignment, list(settings_of(request).aspects))
    if rewrite.isascii() and rewrite.isdigit() and int(rewrite) < len(assignment.candidates):
        fields |= {"rewrite_of": rewrite, "rewrite": assignment.candidates[int(rewrite)].text}
    return _judging(request, session.person, assignment, fields, done=done, undone=bool(undone))


def _judging(
    request: Request,
    person: Person,
    assignment: assign.Assignment,
    fields: forms.Fields,
    *,
    status: int = 200,
    error: str = "",
    done: str = "",
    undone: bool = False,
) -> Response:
    texts = [candidate.text for candidate in assignment.candidates]
    messages = [(message.role, render.markdown(message.content)) for message in assignment.prompt.messages]
    return page(
        request,
        f"{assignment.task}.html",
        status,
        here=assignment.task,
        assignment=assignment,
        messages=messages,
        answers=render.shown(texts),
        diff=line_diff(*texts) if len(texts) == 2 else None,
        fields=fields,
        submission_id=uuid.uuid4().hex,
        choices=forms.CHOICES,
        skip_reasons=assign.SKIP_REASONS,
        naming=naming_words(texts, settings_of(request).identity_words),
        error=error,
        undone=undone,
        done=_read_back(request, person, done),
    )


def naming_words(texts: list[str], words: Any) -> list[str]:
    """Return those of the words that would give an answer's author away which occur in these texts."""
    return [word for word in words if any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for text in texts)]


@router.put("/a/{assignment_id}/draft")
def save_draft(request: Request, session: SignedIn, assignment_id: str, sent: Json) -> Response:
    """Keep what is on the page so far. Another tab's newer draft is not written over: both are returned (409)."""
    version, fields = sent.get("version"), sent.get("fields")
    if not isinstance(version, int) or not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise PageError(400, "A draft is a version and its fields")
    try:
        version = assign.save_draft(store_of(request), session.person, assignment_id, version, {"fields": fields})
    except assign.Conflict as conflict:
        current = assign.load_assignment(store_of(request), session.person, assignment_id)
        theirs = forms.fields_of(current, list(settings_of(request).aspects))
        return JSONResponse({"error": str(conflict), "version": current.draft_version, "fields": theirs}, 409)
    return JSONResponse({"version": version})


@router.post("/a/{assignment_id}/submit")
def submit(request: Request, session: SignedIn, assignment_id: str, form: Form) -> Response:
    """Store what the form says, then go on; where it says nothing or too much, show it again as it was sent, with the reason."""
    store, person = store_of(request), session.person
    task, count, state = assign.task_of(store, person, assignment_id)
    try:
        answer = forms.read_form(task, count, list(settings_of(request).aspects), form)
        said = assign.submit(store, person, assignment_id, form.get("submission_id", ""), answer)
    except (forms.FormError, assign.BadAnswer) as error:
        if wants_json(request):
            return JSONResponse({"error": str(error)}, 422)
        return _judging(request, person, assign.load_assignment(store, person, assignment_id), form, status=422, error=str(error))
    # What is corrected later is corrected in passing: back to where it was found, not on to something new. A first word that is sent
    # again, as its answer got lost, leads on like the first time.
    corrected = state == "submitted" and said.supersedes is not None
    onward = f"/history?done={assignment_id}" if corrected else _onward(request, person, assignment_id)
    return JSONResponse({"next": onward}) if wants_json(request) else go(onward)


@router.post("/a/{assignment_id}/skip")
def skip(request: Request, session: SignedIn, assignment_id: str, form: Form) -> Response:
    """Skip with a reason. What was typed is kept as the draft, so that an undo brings it back."""
    store, person, reason = store_of(request), session.person, form.get("reason", "")
    if reason not in assign.SKIP_REASONS:
        raise PageError(422, f"{reason[:40]!r} is not one of the reasons for skipping", "Choose one of those on the page.")
    kept = {name: value for name, value in form.items() if name not in ("csrf", "reason", "submission_id", "draft_version") and value}
    assign.skip(store, person, assignment_id, reason, {"fields": kept} if kept.keys() - {"active_seconds"} else None)
    onward = _onward(request, person, assignment_id)
    return JSONResponse({"next": onward}) if wants_json(request) else go(onward)


@router.post("/undo")
def undo(request: Request, session: SignedIn, form: Form) -> Response:
    """Take the last judgement or skip back (or the one named), and open it again."""
    opened = assign.undo(store_of(request), session.person, form.get("assignment") or None)
    onward = f"/a/{opened}?undone=1" if opened else "/"
    return JSONResponse({"next": onward}) if wants_json(request) else go(onward)


@router.get("/a/{assignment_id}/text/{place}")
def text(request: Request, session: SignedIn, assignment_id: str, place: int) -> Response:
    """Return one answer as it was written, for the script that fills the field of a rewrite."""
    assignment = assign.load_assignment(store_of(request), session.person, assignment_id)
    if not 0 <= place < len(assignment.candidates):
        raise PageError(404, "There is no such answer")
    return PlainTextResponse(assignment.candidates[place].text)


@router.get("/a/{assignment_id}/diff")
def diff(request: Request, session: SignedIn, assignment_id: str, left: int = 0, right: int = 1) -> Response:
    """Show two answers line by line."""
    assignment = assign.load_assignment(store_of(request), session.person, assignment_id)
    count = len(assignment.candidates)
    if not (0 <= left < count and 0 <= right < count):
        raise PageError(404, "There is no such answer")
    compared = line_diff(assignment.candidates[left].text, assignment.candidates[right].text)
    return page(request, "diff.html", diff=compared, left=forms.LETTERS[left], right=forms.LETTERS[right], assignment=assignment)


@router.get("/history")
def history(request: Request, session: SignedIn, done: str = "") -> Response:
    """Show what one has judged and skipped, newest first, each to be opened again."""
    rows = [(past, said_of(past)) for past in assign.history(store_of(request), session.person, limit=HISTORY)]
    return page(request, "history.html", rows=rows, most=HISTORY, done=_read_back(request, session.person, done))


def said_of(assignment: assign.Assignment) -> str:
    """Return in words what is stored of an assignment."""
    if assignment.answer is not None:
        return forms.read_back(assignment.task, len(assignment.candidates), assignment.answer)
    return f"skipped ({assignment.skip_reason})" if assignment.state == "skipped" else "not finished"


def _read_back(request: Request, person: Person, assignment_id: str) -> tuple[str, str] | None:
    """Return (assignment id, what is stored of it), read from the store and not from what was sent; None where there is none."""
    if not assignment_id:
        return None
    try:
        assignment = assign.load_assignment(store_of(request), person, assignment_id)
    except assign.NotYours:
        return None
    return (assignment_id, said_of(assignment)) if assignment.state in ("submitted", "skipped") else None


def _onward(request: Request, person: Person, done: str = "") -> str:
    """Return the path of the next item, or of home with the reason why there is none. done: the assignment to read back there."""
    following = assign.take_next(store_of(request), person, settings_of(request))
    back = f"done={done}" if done else ""
    if isinstance(following, assign.Empty):
        return f"/?empty={following.reason}" + (f"&{back}" if back else "")
    return f"/a/{following}" + (f"?{back}" if back else "")
