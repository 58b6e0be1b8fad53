"""Who comes in, how, and who sees whose work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import Team, make_team, question

from preftune.web import auth


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = make_team(tmp_path, "Rita", "Ravi", aspects={"correct": "Does it do what was asked?", "clear": "Is it easy to read?"})
    yield made
    made.store.close()


def test_another_raters_item_and_one_that_is_not_there_look_the_same(team):
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    path, other = browser.judging(), team.browser("Ravi")
    pages = [(other.get(p).words, other.status) for p in (path, "/a/nothing", f"{path}/diff", f"{path}/text/0")]
    assert {status for _, status in pages} == {404}
    assert len({text for text, _ in pages}) == 1


@pytest.mark.parametrize(
    "path", ["/", "/history", "/guide", "/keys", "/a/x", "/a/x/diff", "/a/x/text/0", "/live", "/live/stream?run=x", "/owner"]
)
def test_nobody_sees_a_page_without_logging_in(team, path):
    browser = team.browser()
    browser.get(path)
    assert browser.here.startswith("/login")


def test_logging_in_leads_to_where_one_wanted_to_go(team):
    browser = team.browser()
    browser.get("/history")
    page = browser.send("/login", name="Rita", password="a few plain words")
    assert browser.here == "/history"
    assert "Rita" in page.words
    browser.send("/logout")
    assert browser.here == "/login"
    assert browser.get("/").forms.keys() == {"/login"}


def test_a_wrong_password_and_an_unknown_name_get_the_same_words(team):
    said = set()
    for name in ("Rita", "Nobody"):
        browser = team.browser()
        browser.get("/login")
        said.add(browser.send("/login", name=name, password="not the password").words.replace(name, ""))
        assert browser.status == 401
    assert len(said) == 1


def test_an_invitation_makes_a_rater_who_is_logged_in_at_once(team):
    token = auth.invite(team.store, team.people["Olga"], "rater")
    browser = team.browser()
    page = browser.get(f"/invite/{token}")
    page = browser.send(f"/invite/{token}", name="Rosa", password="long enough words", again="other long words")
    assert "The two passwords are not the same" in page.words
    page = browser.send(f"/invite/{token}", password="long enough words", again="long enough words")
    assert browser.here == "/guide?first=1"
    assert "Rosa" in page.words
    assert "Owner" not in page.words
    late = team.browser()
    late.get(f"/invite/{token}")
    assert (
        "this link is unknown, was used"
        in late.send(f"/invite/{token}", name="Eve", password="long enough words", again="long enough words").words.lower()
    )


def test_the_app_says_that_it_is_well(team):
    assert team.browser().client.get("/healthz").json() == {"ok": True}


def test_a_page_that_is_not_there_and_a_wrong_method_are_said_to_be(team):
    browser = team.browser("Rita")
    assert "There is no such page" in browser.get("/nowhere").words
    assert browser.status == 404
    assert browser.client.get("/next").status_code == 405
    browser.get("/a/x/text/abc")
    assert browser.status == 422
