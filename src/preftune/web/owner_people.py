"""The owner's page of people: invite, send a new password's link, end sessions, disable, delete a person's data.

What each does is auth.py's; a link is shown once, in the answer to the request that made it, and never in an address.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import func, select

from preftune.data import tables
from preftune.web import auth
from preftune.web.auth import Person
from preftune.web.erasure import personal_data
from preftune.web.owner_parts import owner_page
from preftune.web.site import Form, Owner, PageError, go, store_of

router = APIRouter(prefix="/people")
ROLES: tuple[auth.Role, ...] = ("rater", "owner")


@dataclass(frozen=True)
class Member:
    """A person with what is shown of them. sessions: open ones; networks: where these came from; last_seen: None where there is none."""

    person: Person
    sessions: int
    networks: tuple[str, ...]
    last_seen: datetime | None
    judgements: int


def members(request: Request) -> list[Member]:
    """Return everyone with an account."""
    store = store_of(request)
    sessions, judgements = tables.sessions.c, tables.judgements.c
    with store.reading() as connection:
        open_ = connection.execute(select(sessions.person_id, sessions.last_seen, sessions.address).order_by(sessions.last_seen)).all()
        counted = connection.execute(select(judgements.rater, func.count().label("rows")).group_by(judgements.rater)).all()
    counts = {row.rater: row.rows for row in counted}
    found = []
    for person in auth.people(store):
        mine = [row for row in open_ if row.person_id == person.id]
        networks = tuple(dict.fromkeys(row.address for row in mine if row.address))
        found.append(Member(person, len(mine), networks, mine[-1].last_seen if mine else None, counts.get(person.pseudonym, 0)))
    return found


def _person(request: Request, person_id: str) -> Person:
    for person in auth.people(store_of(request)):
        if person.id == person_id:
            return person
    raise PageError(404, "There is no such person here", "Look at the list of people again.")


@router.get("")
def people(request: Request, session: Owner) -> Response:
    """Show everyone, and the links that nobody has used yet."""
    return _people(request, session)


def _people(request: Request, session: auth.Session, *, link: str = "", link_for: str = "") -> Response:
    everyone = members(request)
    return owner_page(
        request,
        "people.html",
        members=everyone,
        names={member.person.id: member.person.name for member in everyone},
        invitations=auth.open_invitations(store_of(request)),
        me=session.person.id,
        link=link,
        link_for=link_for,
    )


@router.post("/invite")
def invite(request: Request, session: Owner, form: Form) -> Response:
    """Make an invitation and show its link, this once."""
    role = next((known for known in ROLES if known == form.get("role")), None)
    if role is None:
        raise PageError(422, f"The role {form.get('role', '')[:20]!r} is not one of {', '.join(ROLES)}", "Choose one of those on the page.")
    token = auth.invite(store_of(request), session.person, role)
    return _people(request, session, link=_link(request, token), link_for=f"a new {role}")


def _link(request: Request, token: str) -> str:
    return f"{request.url.scheme}://{request.url.netloc}/invite/{token}"


@router.post("/withdraw")
def withdraw(request: Request, session: Owner, form: Form) -> Response:
    """Let a link be used no more."""
    auth.withdraw_invitation(store_of(request), session.person, form.get("invitation", ""))
    return go("/owner/people")


@router.post("/{person_id}/password")
def password(request: Request, session: Owner, person_id: str) -> Response:
    """Make a link by which a person can set a new password, and show it, this once."""
    person = _person(request, person_id)
    token = auth.password_link(store_of(request), session.person, person.id)
    return _people(request, session, link=_link(request, token), link_for=person.name)


@router.post("/{person_id}/sessions")
def end_sessions(request: Request, session: Owner, person_id: str) -> Response:
    """End every session of a person; they can log in again."""
    auth.revoke_sessions(store_of(request), _person(request, person_id).id, session.person)
    return go("/owner/people")


@router.post("/{person_id}/disable")
def disable(request: Request, session: Owner, person_id: str) -> Response:
    """Let a person log in no more; what they judged stays."""
    auth.disable(store_of(request), session.person, _person(request, person_id).id)
    return go("/owner/people")


@router.post("/{person_id}/enable")
def enable(request: Request, session: Owner, person_id: str) -> Response:
    """Let a disabled person log in again."""
    auth.enable(store_of(request), session.person, _person(request, person_id).id)
    return go("/owner/people")


@router.get("/{person_id}/delete")
def ask_to_delete(request: Request, session: Owner, person_id: str) -> Response:
    """Say what will go and what will stay, before anything does."""
    return _asked(request, _person(request, person_id))


def _asked(request: Request, person: Person, error: str = "") -> Response:
    held = personal_data(store_of(request), person.id)
    return owner_page(request, "delete_person.html", 422 if error else 200, person=person, held=held, error=error)


@router.post("/{person_id}/delete")
def delete(request: Request, session: Owner, person_id: str, form: Form) -> Response:
    """Delete a person's data: with the judgements, or all but these. The name must be typed, as this cannot be undone."""
    person = _person(request, person_id)
    if form.get("name", "").strip() != person.name:
        return _asked(request, person, "The name that you typed is not this person's, so nothing was deleted.")
    match form.get("judgements"):
        case "keep_anonymous":
            auth.delete_person(store_of(request), session.person, person.id, judgements="keep_anonymous")
        case "delete":
            auth.delete_person(store_of(request), session.person, person.id, judgements="delete")
        case _:
            return _asked(request, person, "Say what is to become of the judgements; nothing was deleted.")
    return go("/owner/people")
