"""Each of the owner's routes, tried as nobody and as a rater: refused, and nothing is told or done."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from tests.web_team import Team, make_team, question

from preftune.records import Judgement
from preftune.web import auth, passwords


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        made = make_team(tmp_path_factory.mktemp("rights"), "Rita", "Bob")
        prompt = question("The secret question")
        ids = sorted(candidate.id for candidate in made.add(prompt, ["left", "right"]))
        rows = [Judgement(prompt_id=prompt.id, ranking=((a,), (b,)), rater=f"r_{a}") for a, b in (ids, ids[::-1])]
        made.store.add(judgements=rows)
        auth.invite(made.store, made.people["Olga"], "rater")
        yield made
        made.store.close()


def routes(team: Team) -> list[tuple[str, str]]:
    """Return (method, address) of each of the owner's routes, filled with ids that are there."""
    with team.store.reading() as connection:
        item = connection.exec_driver_sql("SELECT id FROM items").scalar_one()
        prompt = connection.exec_driver_sql("SELECT id FROM prompts").scalar_one()
    ids = {"{person_id}": team.people["Bob"].id, "{item_id}": item, "{prompt_id}": prompt}
    found = []
    for path, methods in team.app.openapi()["paths"].items():
        if path.startswith("/owner"):
            address = re.sub(r"{\w+}", lambda match: ids[match.group()], path)
            found += [(method.upper(), address) for method in methods]
    return found


def dump(team: Team) -> list[str]:
    assert team.store.path
    raw = sqlite3.connect(team.store.path)
    # When a session was last used is all that may change by looking.
    lines = [line for line in raw.iterdump() if 'INTO "sessions"' not in line]
    raw.close()
    return lines


FIELDS = {
    "role": "owner", "judgements": "delete", "name": "Bob", "priority": "5", "overlap": "3", "format": "own", "rationale": "mine",
    "place_A": "1", "place_B": "2",
}  # fmt: skip


def test_there_are_routes_to_try(team: Team):
    found = routes(team)
    assert {path for method, path in found if method == "GET"} >= {
        "/owner",
        "/owner/people",
        "/owner/export",
        "/owner/audit",
        "/owner/settings",
    }
    assert sum(method == "POST" for method, _ in found) >= 13
    assert {method for method, _ in found} == {"GET", "POST"}


def test_nobody_is_sent_to_log_in_and_a_rater_is_refused(team: Team):
    nobody, rater = team.browser(), team.browser("Rita")
    before = dump(team)
    tokens = {}
    for browser, own in ((nobody, "/login"), (rater, "/guide")):
        browser.get(own)  # a page of their own, whose token the form carries
        tokens[browser] = browser.csrf
    for method, path in routes(team):
        for browser, token in tokens.items():
            if method == "GET":
                browser.get(path)
                refused = browser.here.startswith("/login?next=") if browser is nobody else browser.status == 403
            else:
                browser.post(path, {**FIELDS, "csrf": token})
                refused = browser.status == (401 if browser is nobody else 403)
            assert refused, f"{method} {path} answered {browser.status} to {'nobody' if browser is nobody else 'a rater'}"
            for secret in ("The secret question", "Olga", "settled", team.people["Bob"].pseudonym):
                assert secret not in browser.page.source, f"{method} {path} tells {secret}"
    assert dump(team) == before


def test_an_owners_form_needs_the_sessions_own_token_and_our_own_site(team: Team):
    olga, other = team.browser("Olga"), team.browser("Olga")
    tokens = {}
    for browser in (olga, other):
        browser.get("/guide")
        tokens[browser] = browser.csrf
    before = dump(team)
    for method, path in routes(team):
        if method == "POST":
            for fields, headers in (
                (FIELDS, {}),
                ({**FIELDS, "csrf": "x" * 43}, {}),
                ({**FIELDS, "csrf": tokens[other]}, {}),
                ({**FIELDS, "csrf": tokens[olga]}, {"Sec-Fetch-Site": "cross-site"}),
                ({**FIELDS, "csrf": tokens[olga]}, {"Sec-Fetch-Site": "same-site"}),
            ):
                olga.post(path, fields, **headers)
                assert olga.status == 403, f"{path} took {fields.get('csrf')} with {headers}"
    assert dump(team) == before


def test_an_owner_gets_every_page(team: Team):
    olga = team.browser("Olga")
    for method, path in routes(team):
        if method == "GET":
            olga.get(path)
            assert olga.status == 200, path
            assert "secret-model" not in olga.page.source, path


@pytest.mark.parametrize(
    "address",
    [
        "/owner/audit?before=0", "/owner/audit?before=x", "/owner/items?page=0", "/owner/items?page=1e9", "/owner/items?state=gone",
        "/owner/disagreements?show=x", "/owner/disagreements?page=-1", "/owner/export?format=../../etc/passwd", "/owner/export?format=xls",
    ],
)  # fmt: skip
def test_an_address_that_means_nothing_is_refused_with_a_sentence(team: Team, address: str):
    olga = team.browser("Olga")
    olga.get(address)
    assert olga.status == 422
    assert "This did not work" in olga.page.words
