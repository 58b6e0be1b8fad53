from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import DataError
from preftune.evaluate.choices import read_choices, score_choices

GOOD = {"question": "What ends a sentence?", "choices": ["a dot", "a comma"], "answer": 0}


def written(folder: Path, *rows: object) -> Path:
    path = folder / "rules.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("answer", "place"), [(1, 1), ("B", 1), ("b", 1), ("a comma", 1), ("A", 0), (0, 0)])
def test_an_answer_is_a_place_a_letter_or_the_choice(tmp_path: Path, answer: object, place: int) -> None:
    questions, set_aside = read_choices(written(tmp_path, {**GOOD, "answer": answer}, {**GOOD, "question": "Which?", "group": "g"}))
    assert (questions[0].answer, questions[1].group, set_aside) == (place, "g", [])


def test_bad_rows_are_set_aside_with_line_and_reason_and_the_good_ones_kept(tmp_path: Path) -> None:
    rows = [
        GOOD,
        "{half",
        [1, 2],
        {**GOOD, "answer": 2},
        {**GOOD, "answer": True},
        {"question": "q", "choices": ["one"], "answer": 0},
        {"question": "q", "choices": ["x", "x"], "answer": 0},
        {"question": "q", "choices": ["x", 3], "answer": 0},
        {"choices": ["x", "y"], "answer": 0},
        {"question": " ", "choices": ["x", "y"], "answer": 0},
        GOOD,
        {**GOOD, "question": "And a clause?"},
    ]
    questions, set_aside = read_choices(written(tmp_path, *rows))
    assert [q.question for q in questions] == ["What ends a sentence?", "And a clause?"]
    assert [line.split(":")[0] for line in set_aside] == [f"line {n}" for n in range(2, 12)]
    assert "this is no JSON" in set_aside[0]
    assert set_aside[2] == 'line 4: "answer" is 2: give 0 to 1, A to B, or the choice itself'
    assert '"answer" is true' in set_aside[3]
    assert "two of the choices are alike" in set_aside[5]
    assert "it has no question" in set_aside[7]
    assert set_aside[9] == "line 11: it is the same as line 1"


def test_a_file_without_two_good_rows_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has 1 row that can be used, and two are the least; line 2: this is no JSON"):
        read_choices(written(tmp_path, GOOD, "{"))
    with pytest.raises(DataError, match="the file cannot be read"):
        read_choices(tmp_path / "none.jsonl")


class Scorer:
    """Gives each choice the log-prob that it is told."""

    def __init__(self, *sums: list[float]) -> None:
        self.sums = sums

    def score_completions(self, prompts, completions):
        return [[(s, 1) for s in mine] for mine in self.sums[: len(prompts)]]


def test_the_raw_and_the_length_normalised_score_are_those_by_hand(tmp_path: Path) -> None:
    # −4 over 2 characters is −2 a character, −6 over 12 is −0.5: the sum prefers the first, the sum by characters the second.
    row = {"question": "q", "choices": ["ab", "twelve chars"], "answer": 1}
    questions, _ = read_choices(written(tmp_path, row, {**row, "question": "r", "answer": 0}))
    model = Scorer([-4.0, -6.0], [-4.0, -6.0])
    (first, both), (second, _) = score_choices(model, questions, "acc")
    assert (first.score, first.said, first.right, both) == (0.0, "ab", "twelve chars", {"acc": 0.0, "acc_norm": 1.0})
    assert second.score == 1.0
    assert [item.score for item, _ in score_choices(model, questions, "acc_norm")] == [1.0, 0.0]
