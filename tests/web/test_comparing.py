"""A blind comparison from its items to the owner's page, judged by people in the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import Team, make_team, question

from preftune.errors import DataError
from preftune.evaluate.blind import read_answers
from preftune.web import assign
from preftune.web.answers import Answer
from preftune.web.comparing import add_comparison, comparisons


@pytest.fixture
def team(tmp_path: Path, empty_store: bytes) -> Iterator[Team]:
    (tmp_path / "store.db").write_bytes(empty_store)
    made = make_team(tmp_path, "Ann", overlap=1)
    yield made
    made.store.close()


def ask(team: Team, count: int):
    prompts = [question(f"question {n}") for n in range(count)]
    answers = [("same", "same") if n == 0 else (f"good {n}", f"poor {n}") for n in range(count)]
    return add_comparison(team.store, team.settings, "runs/secret-a", "runs/secret-b", prompts, answers)


def test_people_judge_blind_and_the_owner_sees_who_is_preferred(team):
    made = ask(team, 25)
    assert (made.new, made.same, made.taken) == (24, 1, 0)
    assert ask(team, 25).new == 0
    browser = team.browser("Ann")
    browser.get("/")
    page = browser.send("/next")
    assert "question" in page.source
    assert "secret" not in page.source
    shown_first = 0
    for n in range(24):
        task = assign.next_assignment(team.store, team.people["Ann"], team.settings)
        shown = [candidate.text.split()[0] for candidate in task.candidates]
        shown_first += shown[0] == "good"
        ranking = [[0, 1]] if n < 4 else [[shown.index("good")], [shown.index("poor")]]
        assign.submit(team.store, team.people["Ann"], task.id, f"submission-{n}", Answer(ranking=ranking))
    assert 0 < shown_first < 24
    (one,) = comparisons(team.store)
    assert (one.a, one.items, one.verdict.wins, one.verdict.ties, one.verdict.losses) == ("runs/secret-a", 24, 20, 4, 0)
    assert one.verdict.preferred == "A"
    assert f"{one.name}: stop: A is preferred (20 for A, 0 for B, 4 ties)" in team.browser("Olga").get("/owner/comparisons").words
    rater = team.browser("Ann")
    rater.get("/owner/comparisons")
    assert rater.status == 403


def test_nothing_to_compare_is_said_and_nothing_is_stored(team):
    asked = [question("one")]
    with pytest.raises(DataError, match="same answer to every prompt"):
        add_comparison(team.store, team.settings, "a", "b", asked, [("x", "x")])
    with pytest.raises(DataError, match="A and B are both a"):
        add_comparison(team.store, team.settings, "a", "a", asked, [("x", "y")])
    with pytest.raises(DataError, match="1 prompts have an empty answer"):
        add_comparison(team.store, team.settings, "a", "b", asked, [("x", " ")])
    assert team.store.counts()["prompts"] == 0


def test_a_file_of_answers_is_matched_to_its_prompts(tmp_path):
    path, asked = tmp_path / "answers.jsonl", [question("one"), question("two")]
    path.write_text(f'{{"prompt": "two", "answer": "2"}}\n{{"prompt": "{asked[0].id}", "answer": "1"}}\n')
    assert read_answers(path, asked) == ["1", "2"]
    with pytest.raises(DataError, match="1 of 3 prompts have no answer, first: 'three'"):
        read_answers(path, [*asked, question("three")])
    path.write_text('{"prompt": "two", "answer": "2"}\n{"prompt": "two", "answer": "3"}\n')
    with pytest.raises(DataError, match="a second answer to 'two'"):
        read_answers(path, asked[1:])
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1"):
        read_answers(path, asked)
