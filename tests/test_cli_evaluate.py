"""preftune evaluate with files of answers, judges and servers: what it prints, keeps, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.remote_server import choices, says, send, serving

from preftune.cli import main
from preftune.data import remote


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "BACK_OFF_SECONDS", 0.01)
    answers("a.jsonl", lambda i: f"A long answer to {i}. It goes on.")
    answers("b.jsonl", lambda i: f"Short {i}.")
    Path("judge.py").write_text(
        "def shorter(prompts, completions, facts):\n    return [-len(text) for text in completions]\n", encoding="utf-8"
    )


def answers(path: str, text, count: int = 30) -> None:
    rows = [{"prompt": f"question {i}", "answer": text(i)} for i in range(count)]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, *capsys.readouterr()


def test_two_files_of_answers_are_compared_by_a_program_and_the_second_time_they_are_there(capsys):
    words = ["evaluate", "a.jsonl", "--against", "b.jsonl", "--judge", "judge.py:shorter"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "0 won, 0 tied, 30 lost" in out
    assert "0.0 % (0.0 to 11.4)" in out  # Wilson: a loss of all 30 is no certainty
    assert "B is better." in out
    assert "a.jsonl gives no log-probs here, so there is no KL." in out
    assert "length, characters" in out
    assert "found four times of five" in err  # said before anything is judged
    _, again, _ = run(capsys, *words)
    assert "already there: reports/" in again


def test_the_folder_holds_every_answer_with_its_verdict(capsys):
    code, out, _ = run(capsys, "evaluate", "a.jsonl", "--against", "b.jsonl", "--judge", "judge.py:shorter", "--json", "--limit", "7")
    found = json.loads(out)
    assert code == 0
    assert (found["pairs"][0]["losses"], found["prompts"]) == (7, 7)
    rows = [json.loads(line) for line in (Path(found["path"]) / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["verdicts"][0]["verdict"] for row in rows] == [0.0] * 7
    assert rows[0]["answers"]["b.jsonl"] == "Short 0."
    manifest = json.loads((Path(found["path"]) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["kind"] == "comparison"
    assert set(manifest["inputs"]) == {"a.jsonl", "b.jsonl", "prompts"}


def test_three_are_put_in_order(capsys):
    answers("c.jsonl", lambda i: f"Middling {i}." if i % 2 else "!")
    words = ["--against", "b.jsonl", "--against", "c.jsonl", "--judge", "judge.py:shorter", "--no-drift"]
    code, out, _ = run(capsys, "evaluate", "a.jsonl", *words)
    assert code == 0
    assert out.index("\nA against B") < out.index("\nA against C") < out.index("\nB against C") < out.index("place   model")
    assert "3       A" in out  # the longest is last, for sure


def of_two(handler, request):
    """A judge of the family qwen: the longer answer is better; of question 3 it says nothing, of question 4 always the first."""
    asked = request.body["messages"][1]["content"]
    first, second = (part.split("\n>>>")[0] for part in asked.split("<<<answer ")[1:])
    verdict = "no idea" if "question 3\n" in asked else "Better: A" if len(first) > len(second) or "question 4\n" in asked else "Better: B"
    send(handler, choices(verdict))


def test_a_served_judge_is_asked_in_both_orders_and_its_habits_are_told(capsys):
    with serving(of_two) as server:
        url = f"http://127.0.0.1:{server.port}/v1#qwen-judge"
        code, out, err = run(capsys, "evaluate", "a.jsonl", "--against", "b.jsonl", "--judge", url, "--no-drift", "--limit", "9")
        assert code == 0, err
        assert "7 won, 1 tied, 0 lost" in out
        assert "same both ways" in out
        assert "87.5 %" in out  # 7 of the 8 that were read in both orders
        assert "not readable     2 of 18 verdicts" in out
        assert "for example gives no verdict that can be read" in out
        calls = len(server.seen)
        assert calls == 2 * 8 + 2 * 3  # three tries where it cannot be read
        run(capsys, "evaluate", "a.jsonl", "--against", "b.jsonl", "--judge", url, "--no-drift", "--limit", "9", "--seed", "1")
        assert len(server.seen) == calls  # verdicts are kept


def test_a_judge_of_the_family_of_one_of_them_is_warned_of(capsys):
    Path("qwen3-tuned.jsonl").write_bytes(Path("a.jsonl").read_bytes() + b"\n")
    with serving(of_two) as server:
        url = f"http://127.0.0.1:{server.port}/v1#Qwen3-32B"
        code, out, _ = run(capsys, "evaluate", "qwen3-tuned.jsonl", "--against", "b.jsonl", "--judge", url, "--no-drift")
    assert code == 0
    assert "the judge is a qwen, and so is qwen3-tuned.jsonl" in out


def test_a_served_model_answers_and_what_it_said_is_kept(capsys):
    with serving(says("A served answer of some length, longer than the others.")) as server:
        url = f"http://127.0.0.1:{server.port}/v1#tiny"
        code, out, err = run(capsys, "evaluate", url, "--against", "b.jsonl", "--judge", "judge.py:shorter", "--no-drift")
        assert code == 0, err
        assert "0 won, 0 tied, 30 lost" in out
        assert len(server.seen) == 30
        assert server.seen[0].body["temperature"] == 0
        run(capsys, "evaluate", url, "--against", "b.jsonl", "--judge", "judge.py:shorter", "--no-drift", "--seed", "0", "--limit", "5")
        assert len(server.seen) == 30


def test_instructions_that_a_program_can_check_are_checked(capsys):
    rows = [{"prompt": f"question {i}", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "key": i} for i in range(30)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers("c.jsonl", lambda i: "One, two." if i < 15 else "One two.")
    code, out, err = run(capsys, "evaluate", "c.jsonl", "--against", "b.jsonl", "--prompts", "asked.jsonl")
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("instructions followed"))
    assert line.split()[3] == "50.0"
    assert line.rstrip().endswith("100.0")
    assert "No judge was named, so there is no win rate: give --judge." in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a.jsonl", "--against", "few.jsonl", "--judge", "judge.py:shorter"], "26 of 30 prompts have no answer, first: 'question 4'"),
        (["a.jsonl", "--against", "a.jsonl", "--judge", "judge.py:shorter"], "is compared with itself"),
        (["a.jsonl", "--against", "none.jsonl", "--judge", "judge.py:shorter"], "there is no such file"),
        (["a.jsonl", "--against", "b.jsonl", "--judge", "somebody"], '"somebody" is no judge'),
        (["a.jsonl", "--against", "b.jsonl", "--judge", "reward:nowhere"], "there is no such run"),
        (["a.jsonl", "--against", "b.jsonl", "--judge", "judge.py:nothing"], '"nothing" cannot be used'),
        (["http://127.0.0.1:9/v1", "--judge", "judge.py:shorter"], "which prompts to ask is not clear"),
        (["broken.jsonl", "--against", "b.jsonl", "--judge", "judge.py:shorter"], "broken.jsonl line 2: this is no answer"),
        (["nowhere", "--pairs", "a.jsonl"], "there is no such run"),
        (["endpoint:x", "--against", "b.jsonl"], 'there is no endpoint "x"'),
    ],
)
def test_bad_input_gets_a_sentence(capsys, words, sentence):
    answers("few.jsonl", lambda i: "x", count=4)
    Path("broken.jsonl").write_text('{"prompt": "question 0", "answer": "x"}\n{"no": 1}\n', encoding="utf-8")
    code, _, err = run(capsys, "evaluate", *words)
    assert code == 2
    assert sentence in err
