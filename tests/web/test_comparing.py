"""A blind comparison from its items to the owner's page, judged by people in the app."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import Team, make_team, question

from preftune.cli import main
from preftune.errors import DataError
from preftune.evaluate.contenders import read_answers
from preftune.evaluate.subject import Subject
from preftune.records import Message
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
    with pytest.raises(DataError, match="1 prompt has an empty answer"):
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


def test_the_command_asks_a_model_once_and_keeps_what_it_wrote(tmp_path, monkeypatch, capsys, tiny_model_folder, empty_store):
    monkeypatch.chdir(tmp_path)
    Path("store.db").write_bytes(empty_store)
    subject, words = (
        Subject(tiny_model_folder),
        [f"{verb} {what}." for verb in ("Sort", "Read", "Count", "Join") for what in ("lists", "files")],
    )
    said = subject.sample([[Message(role="user", content=word)] for word in words], max_new_tokens=8, temperature=0.0, seed=0)
    asked = [word for word, one in zip(words, said, strict=True) if subject.renderer.decode(one.ids).strip()]  # not all say something
    assert asked
    for name, row in (("prompts", lambda one: {"turns": [one]}), ("answers", lambda one: {"prompt": one, "answer": "No."})):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row(one)) + "\n" for one in asked))
    words = ["compare", str(tiny_model_folder), "answers.jsonl", "--prompts", "prompts.jsonl", "--max-new-tokens", "8"]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
    assert f"{len(asked)} prompts to judge are new" in (told := capsys.readouterr()).err
    assert "A = " in told.out
    (kept,) = Path("reports").iterdir()
    assert [json.loads(line)["messages"][0]["content"] for line in (kept / "answers.jsonl").read_text().splitlines()] == asked
