"""A line of a JSON Lines file ends where its format says, and nowhere else."""

from __future__ import annotations

import json

import pytest

from preftune.evaluate.contenders import prompts_of, read_answers
from preftune.evaluate.instructions import read_asked
from preftune.evaluate.json_lines import numbered_lines
from preftune.evaluate.reward_bench import read_items
from preftune.records import Message, Prompt


def test_lines_that_hold_something_are_numbered_as_they_stand():
    assert list(numbered_lines("a\n\n  \nb\r\nc")) == [(1, "a"), (4, "b\r"), (5, "c")]
    assert list(numbered_lines("")) == []


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_a_separator_within_a_text_ends_no_line(tmp_path, inside):
    text = f"one{inside}two"
    path = tmp_path / "rows.jsonl"

    def written(row: dict) -> None:
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")

    prompt = Prompt(messages=(Message(role="user", content=text),))
    written({"prompt": text, "answer": text})
    assert prompts_of(path) == [prompt]
    assert read_answers(path, [prompt]) == [text]
    written({"prompt": text, "instruction_id_list": [], "kwargs": []})
    assert [asked.prompt for asked in read_asked(path)] == [prompt]
    written({"prompt": text, "chosen": text, "rejected": "no"})
    assert len(read_items(path)) == 1
