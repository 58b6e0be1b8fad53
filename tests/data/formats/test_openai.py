"""OpenAI's preference rows."""

from __future__ import annotations


def fields(better="one", worse="two", **more):
    asked = {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Ask."}], **more}
    outputs = {
        key: [{"role": "assistant", "content": text}] for key, text in (("preferred_output", better), ("non_preferred_output", worse))
    }
    return {"input": asked, **outputs}


def test_the_preferred_output_is_the_better_one(taken, ranked, messages):
    [row], [] = taken([fields(tools=[], parallel_tool_calls=True)])
    assert ranked(row) == [["one"], ["two"]]
    assert messages(row) == [("system", "Be brief."), ("user", "Ask.")]
    assert row.notes == ()


def test_tools_are_told_and_broken_rows_set_aside(taken):
    many = {**fields(), "preferred_output": [{"role": "assistant", "content": "a"}] * 2}
    calls = {**fields(), "preferred_output": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}
    rows, aside = taken([fields(tools=[{"type": "function"}]), many, calls, fields("same", "same"), {**fields(), "input": {}}])
    assert [row.notes for row in rows] == [("the tools that the model could call are left out",)]
    assert [item.reason for item in aside] == [
        "the answer is in several messages", "a message calls a tool, which cannot be kept",
        "there is nothing to learn from two equal answers", 'field "input" has no list of messages',
    ]  # fmt: skip
