"""People on the owner's pages: links, sessions, leaving; and that a deleted person leaves no trace in the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import PASSWORD, Browser, Team, make_team, question

from preftune.records import Demonstration
from preftune.web import assign, auth
from preftune.web.answers import Answer


@pytest.fixture
def team(tmp_path: Path, empty_store: bytes) -> Iterator[Team]:
    (tmp_path / "store.db").write_bytes(empty_store)
    made = make_team(tmp_path, "Zebulon Quagmire", "Bob")
    yield made
    made.store.close()


def link_of(browser: Browser) -> str:
    return next(attributes["value"] for tag, attributes in browser.page.elements if attributes.get("id") == "link")


def path_of(link: str) -> str:
    return link.removeprefix("http://testserver")


def test_a_link_is_shown_once_and_lets_one_person_in(team: Team):
    olga = team.browser("Olga")
    olga.get("/owner/people")
    olga.send("/owner/people/invite", role="rater")
    link = link_of(olga)
    assert link.startswith("http://testserver/invite/")
    token = link.rsplit("/", 1)[1]
    olga.get("/owner/people")
    assert token not in olga.page.source
    assert "a new rater" in olga.page.words
    newcomer = team.browser()
    newcomer.get(path_of(link))
    newcomer.send(path_of(link), name="Newcomer", password="some quite long words", again="some quite long words")
    assert newcomer.status == 200
    assert "Newcomer" in olga.get("/owner/people").words
    assert "a new rater" not in olga.page.words
    second = team.browser()
    second.get(path_of(link))
    second.send(path_of(link), name="Second", password="some quite long words", again="some quite long words")
    assert second.status == 400


def test_a_withdrawn_link_and_an_unknown_role_let_nobody_in(team: Team):
    olga = team.browser("Olga")
    olga.get("/owner/people")
    olga.send("/owner/people/invite", role="owner")
    link = path_of(link_of(olga))
    olga.send("/owner/people/withdraw")
    assert "a new owner" not in olga.page.words
    late = team.browser()
    late.get(link)
    late.send(link, name="Late", password="some quite long words", again="some quite long words")
    assert late.status == 400
    olga.get("/owner/people")
    olga.send("/owner/people/invite", role="admin")
    assert olga.status == 422


def test_a_new_password_by_link_ends_the_old_sessions(team: Team):
    bob, olga = team.browser("Bob"), team.browser("Olga")
    olga.get("/owner/people")
    olga.send(f"/owner/people/{team.people['Bob'].id}/password")
    link = path_of(link_of(olga))
    assert "Bob" in olga.page.words
    somewhere = team.browser()
    somewhere.get(link)
    somewhere.send(link, name="Bob", password="another few plain words", again="another few plain words")
    bob.get("/history")
    assert bob.here.startswith("/login")
    with pytest.raises(auth.AuthError):
        auth.log_in(team.store, "Bob", PASSWORD, address="127.0.0.1")
    auth.log_in(team.store, "Bob", "another few plain words", address="127.0.0.1")


def test_ending_sessions_and_disabling_put_a_person_out_at_once(team: Team):
    bob, olga = team.browser("Bob"), team.browser("Olga")
    base = f"/owner/people/{team.people['Bob'].id}"
    bob.get("/history")
    assert bob.here == "/history"
    olga.get("/owner/people")
    olga.send(f"{base}/sessions")
    bob.get("/history")
    assert bob.here.startswith("/login")
    bob = team.browser("Bob")
    olga.send(f"{base}/disable")
    assert "disabled" in olga.page.words
    bob.get("/history")
    assert bob.here.startswith("/login")
    with pytest.raises(auth.AuthError):
        team.browser("Bob")
    olga.send(f"{base}/enable")
    team.browser("Bob")


def test_the_last_owner_can_neither_be_disabled_nor_deleted(team: Team):
    olga = team.browser("Olga")
    base = f"/owner/people/{team.people['Olga'].id}"
    olga.get("/owner/people")
    olga.send(f"{base}/disable")
    assert olga.status == 400
    assert "This is the last owner" in olga.page.words
    olga.get(f"{base}/delete")
    olga.send(f"{base}/delete", judgements="delete", name="Olga")
    assert olga.status == 400
    assert "Olga" in {person.name for person in auth.people(team.store) if not person.disabled}


def work_of(team: Team, name: str) -> None:
    """Let somebody judge one item with words of their own, skip one, and leave a draft of a third."""
    person = team.people[name]
    for n in range(3):
        team.add(question(f"Question {n}"), ["left", "right"])
    first, second, third = [], [], []
    for n, said in enumerate((first, second, third)):
        task = assign.next_assignment(team.store, person, team.settings)
        assert isinstance(task, assign.Assignment)
        said.append(task.id)
        match n:
            case 0:
                answer = Answer(
                    ranking=[[0], [1]], rewrite="rewritten-by-hand", rewrite_of=0, rationale="unmistakable-reason", active_seconds=9
                )
                judgement = assign.submit(team.store, person, task.id, "submission-0", answer)
                wished = Demonstration(prompt_id=judgement.prompt_id, text="wished-for-text", author=person.pseudonym)
                team.store.add(demonstrations=[wished])
            case 1:
                assign.skip(team.store, person, task.id, "too long")
            case _:
                assign.save_draft(team.store, person, task.id, 0, {"fields": {"rationale": "half-written-draft"}})
    team.browser(name).get("/")


def bytes_of(team: Team) -> bytes:
    """Return the whole database, its log included, after VACUUM."""
    path = team.store.path
    assert path is not None
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("VACUUM")
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


TRACES = (b"Zebulon", b"zebulon", b"Quagmire", b"quagmire", b"half-written-draft")
WORDS = (b"rewritten-by-hand", b"unmistakable-reason", b"wished-for-text")


@pytest.mark.parametrize("choice", ["keep_anonymous", "delete"])
def test_a_deleted_person_leaves_no_trace_in_the_file(team: Team, choice: str):
    work_of(team, "Zebulon Quagmire")
    data = bytes_of(team)
    assert all(trace in data for trace in (*TRACES[:2], TRACES[4], *WORDS))  # else this test would see nothing
    olga, person = team.browser("Olga"), team.people["Zebulon Quagmire"]
    page = olga.get(f"/owner/people/{person.id}/delete")
    for told in ("1 session", "1 open task", "1 skipped one", "Keep 1 row of judgements and 1 demonstration", "1 of them holds words"):
        assert told in " ".join(page.words.split()), told
    assert "judgements" not in page.forms[f"/owner/people/{person.id}/delete"].fields()  # nothing is pre-selected
    olga.send(f"/owner/people/{person.id}/delete", judgements=choice, name="Zebulon Quagmire")
    assert olga.here == "/owner/people"
    assert "Zebulon" not in olga.page.source
    for path in ("/owner", "/owner/audit", "/owner/agreement", "/owner/time", "/owner/items"):
        assert "Zebulon" not in olga.get(path).source
        assert olga.status == 200
    data = bytes_of(team)
    assert [trace for trace in TRACES if trace in data] == []
    assert [words in data for words in WORDS] == [choice == "keep_anonymous"] * 3
    with pytest.raises(auth.AuthError):
        auth.log_in(team.store, "Zebulon Quagmire", PASSWORD, address="127.0.0.1")
    assert "is whole" in olga.get("/owner/audit").words
    # What the person alone held is free again: Bob can judge all that no judgement is kept of.
    left = set()
    while isinstance(task := assign.next_assignment(team.store, team.people["Bob"], team.settings), assign.Assignment):
        left.add(task.item_id)
        assign.submit(team.store, team.people["Bob"], task.id, f"submission-{len(left)}", Answer(ranking=[[0], [1]], active_seconds=1))
    assert len(left) == (2 if choice == "keep_anonymous" else 3)


def test_a_wrong_name_or_no_choice_deletes_nothing(team: Team):
    work_of(team, "Bob")
    olga, base = team.browser("Olga"), f"/owner/people/{team.people['Bob'].id}"
    olga.get(f"{base}/delete")
    for fields in ({"name": "bob", "judgements": "delete"}, {"name": "Bob"}, {"name": "Bob", "judgements": "all"}):
        olga.send(f"{base}/delete", **fields)
        assert olga.status == 422
        assert "nothing was deleted" in olga.page.words
    assert len(auth.people(team.store)) == 3
    assert olga.get("/owner/people/unknown/delete")
    assert olga.status == 404
