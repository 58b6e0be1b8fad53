"""Conversations with a better and a worse answer, or with a thumb."""

from __future__ import annotations

import pytest

ASKED = [{"from": "human", "value": "Ask."}]
OPENAI = [{"role": "user", "content": "Ask."}]


def said(text, **more):
    return {"from": "gpt", "value": text, **more}


@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": ASKED, "chosen": said("one"), "rejected": said("two")},
        {"messages": OPENAI, "chosen": {"role": "assistant", "content": "one"}, "rejected": {"role": "assistant", "content": "two"}},
        {"chosen_messages": [*ASKED, said("one", loss_weight=1.0)], "rejected_messages": [*ASKED, said("two")]},
        {"messages": [*OPENAI, {"role": "assistant", "content": "one"}], "rejected_response": "two"},
    ],
)
def test_every_form_says_that_one_is_better_than_two(taken, ranked, messages, fields):
    [row], [] = taken([fields])
    assert (ranked(row), messages(row), row.unused) == ([["one"], ["two"]], [("user", "Ask.")], ())


@pytest.mark.parametrize("tag", ["kto_tag", "label"])
def test_a_tag_is_a_thumb_on_the_last_answer(taken, ranked, messages, tag):
    rows, [] = taken([{"conversations": [*ASKED, said("Hm"), *ASKED, said("one")], tag: good} for good in (True, False)])
    assert [ranked(row) for row in rows] == [[["one"]], [["one"]]]
    assert [bool(row.judgements[0].acceptable) for row in rows] == [True, False]
    assert len(messages(rows[0])) == 3


def test_tool_calls_and_prompts_that_differ_are_set_aside(taken):
    other = [{"from": "human", "value": "Other."}, said("two")]
    rows, aside = taken(
        [
            {"conversations": ASKED, "chosen": said("one"), "rejected": said("two")},
            {"conversations": [*ASKED, {"from": "function_call", "value": "{}"}], "chosen": said("one"), "rejected": said("two")},
            {"chosen_messages": [*ASKED, said("one")], "rejected_messages": other},
        ]
    )
    assert len(rows) == 1
    assert [item.reason for item in aside] == ["a message has no role that we know (system, user or assistant)", "the two prompts differ"]
