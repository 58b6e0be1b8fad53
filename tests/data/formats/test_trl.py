"""TRL's types: where the prompt is, what a label says, and contradictions between a choice and its scores."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.data.formats import trl
from preftune.data.formats.preferences import CONTRADICTION
from preftune.data.formats.rows import BadRow
from preftune.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_explicit_and_implicit_prompts_give_the_same(taken, ranked):
    before = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("Bye")]
    rows, [] = taken(
        [
            {"prompt": before, "chosen": [assistant("See you")], "rejected": [assistant("What")]},
            {"chosen": [*before, assistant("See you")], "rejected": [*before, assistant("What")]},
        ]
    )
    assert rows[0].prompt == rows[1].prompt
    assert len(rows[0].prompt.messages) == 4
    assert ranked(rows[0]) == ranked(rows[1]) == [["See you"], ["What"]]


@pytest.mark.parametrize(
    ("chosen", "rejected", "asked", "answers"),
    [
        ("Name it. `ValueError`", "Name it. `TypeError`", "Name it.", ("`ValueError`", "`TypeError`")),
        ("Add.\n```python\na\n```", "Add.\n```python\nb\n```", "Add.", ("```python\na\n```", "```python\nb\n```")),
        ("Was? über", "Was? übel", "Was?", ("über", "übel")),
        ("What is it?  One", "What is it?  Two", "What is it?", ("One", "Two")),
    ],
)
def test_a_common_beginning_is_cut_at_a_white_space_outside_code(chosen, rejected, asked, answers):
    assert trl.split_common(chosen, rejected) == (asked, *answers)
    [row] = trl.rows(1, {"chosen": chosen, "rejected": rejected})
    assert row.notes == (trl.IMPLICIT,)


@pytest.mark.parametrize(("chosen", "rejected"), [("abc", "xyz"), ("Yes", "Yesterday"), ("```a b", "```a c")])
def test_two_texts_without_a_common_prompt_are_set_aside(chosen, rejected):
    with pytest.raises(BadRow, match="no beginning in common"):
        trl.split_common(chosen, rejected)


@pytest.mark.parametrize(("label", "good"), [(True, True), (False, False), (1, True), (0, False), ("true", True), (-1, False)])
def test_a_label_is_a_thumb_on_one_answer(taken, ranked, label, good):
    [row], [] = taken([{"prompt": "Hi", "completion": "Hello", "label": label}])
    [said] = row.judgements
    assert (ranked(row), said.acceptable) == ([["Hello"]], (row.candidates[0].id,) if good else ())
    assert not row.demonstrations


def test_a_label_that_is_neither_is_set_aside(taken):
    rows = [{"prompt": "Hi", "completion": "Hello", "label": label} for label in ("maybe", 2, True)]
    [_], aside = taken(rows)
    assert [item.reason for item in aside] == ['field "label" is neither true nor false'] * 2


ASIDE: list[tuple[str, dict[str, Any]]] = [
    ("the two prompts differ", {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]}),
    ("the answer is in several messages", {
        "prompt": [user("a")], "chosen": [assistant("b"), assistant("c")], "rejected": [assistant("d")]}),
    ("the answer is in two turns", {"chosen": [user("a"), assistant("b"), assistant("c")], "rejected": [user("a"), assistant("d")]}),
    ("an answer is not the assistant's", {"prompt": [user("a")], "chosen": [user("b")], "rejected": [assistant("d")]}),
    ("a message calls a tool, which cannot be kept", {
        "prompt": [user("a")], "chosen": [{**assistant(""), "tool_calls": [{}]}], "rejected": [assistant("d")]}),
    ("a message holds more than text", {
        "prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": [assistant("b")], "rejected": [assistant("d")]}),
    ('key "rejected" is missing', {"prompt": [user("a")], "chosen": [assistant("b")]}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "fields"), ASIDE)
def test_what_cannot_be_compared_is_set_aside(reason, fields):
    with pytest.raises(BadRow) as bad:
        trl.rows(1, fields)
    assert bad.value.reason == reason


PAIR = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}


@pytest.mark.parametrize(
    "scores", [{"score_chosen": 1, "score_rejected": 2}, {"chosen_score": "3", "rejected_score": "4"}, {"margin": -0.5}]
)
def test_a_score_that_says_the_reverse_is_a_contradiction(scores):
    with pytest.raises(BadRow) as bad:
        trl.rows(1, {**PAIR, **scores})
    assert bad.value.reason == CONTRADICTION


def test_a_file_of_contradictions_is_refused_and_one_bad_row_in_many_is_set_aside(taken):
    scored = {**PAIR, "chosen_score": 5, "rejected_score": 1}
    upside_down = {**PAIR, "chosen_score": 1, "rejected_score": 5}
    rows, aside = taken([*[scored] * 30, upside_down])
    assert (len(rows), [item.reason for item in aside]) == (30, [CONTRADICTION])
    with pytest.raises(DataError, match=r"2 of 12 rows contradict themselves \(line 11: chosen_score 1 is below rejected_score 5\)"):
        taken([*[scored] * 10, *[upside_down] * 2])


def test_equal_scores_are_a_tie_and_told(taken, ranked):
    [row], [] = taken([{**PAIR, "chosen_score": 5, "rejected_score": 5.0}])
    assert ranked(row) == [["b", "c"]]
    assert row.notes == ("the scores are equal, so that chosen and rejected are taken for a tie",)
