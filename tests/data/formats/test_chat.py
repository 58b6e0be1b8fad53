"""Whole conversations: which turns are learned from, and with what before them."""

from __future__ import annotations

TALK = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")]


def openai(weights=(None, None)):
    given = iter(weights)
    return {
        "messages": [
            {"role": r, "content": c, **({"weight": w} if r == "assistant" and (w := next(given)) is not None else {})} for r, c in TALK
        ]
    }


def test_each_turn_of_the_assistant_is_a_demonstration_with_all_before_it(taken, messages):
    rows, [] = taken([openai()])
    assert [(messages(row), row.demonstrations[0].text) for row in rows] == [(TALK[:1], "Hello"), (TALK[:3], "See you")]
    assert {row.line for row in rows} == {1}
    assert not any(row.judgements or row.candidates for row in rows)


def test_a_turn_of_weight_0_is_context_alone(taken, messages):
    rows, [] = taken([openai((0, 1))])
    assert [(messages(row), row.demonstrations[0].text) for row in rows] == [(TALK[:3], "See you")]


def test_sharegpt_is_the_same_in_other_words_and_a_last_question_is_left(taken, messages):
    names = {"user": "human", "assistant": "gpt"}
    talk = [{"from": names[r], "value": c} for r, c in TALK]
    rows, [] = taken([{"id": "x", "system": "Be brief.", "conversations": [*talk, {"from": "human", "value": "Wait"}]}])
    assert [messages(row) for row in rows] == [[("system", "Be brief."), *TALK[:1]], [("system", "Be brief."), *TALK[:3]]]


def test_conversations_that_teach_nothing_are_set_aside(taken):
    values = [
        openai(),
        openai((0, 0)),
        {"messages": [{"role": "assistant", "content": "Hi"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
    ]
    rows, aside = taken(values)
    assert len(rows) == 2
    assert [item.reason for item in aside] == [
        "the conversation has no answer to learn from", "the prompt, or one of its messages, is empty",
        "a message has no role that we know (system, user or assistant)",
    ]  # fmt: skip
