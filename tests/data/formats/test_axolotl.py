"""Axolotl's names for a prompt."""

from __future__ import annotations

import pytest

TALK = [{"role": "user", "content": "Ask."}]


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "Ask.", "chosen": "one", "rejected": "two"},
        {"instruction": "Ask.", "chosen_response": "one", "rejected_response": "two"},
        {"input": "Ask.", "chosen": "one", "rejected": "two"},
        {"prompt": "Ask.", **{k: [*TALK, {"role": "assistant", "content": v}] for k, v in (("chosen", "one"), ("rejected", "two"))}},
    ],
)
def test_every_kind_says_that_one_is_better_than_two_after_its_system_prompt(taken, ranked, messages, fields):
    rows, [] = taken([fields, {**fields, "system": "Be brief."}])
    assert [ranked(row) for row in rows] == [[["one"], ["two"]]] * 2
    assert [messages(row) for row in rows] == [[("user", "Ask.")], [("system", "Be brief."), ("user", "Ask.")]]


def test_a_prompt_that_the_conversations_do_not_have_is_set_aside(taken):
    talks = {k: [*TALK, {"role": "assistant", "content": v}] for k, v in (("chosen", "one"), ("rejected", "two"))}
    _, [aside] = taken([{"prompt": "Another.", **talks}])
    assert aside.reason == "the two prompts differ"
