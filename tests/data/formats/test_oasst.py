"""Open Assistant: one ranking a parent, rank 0 first, in trees and in flat messages."""

from __future__ import annotations

from preftune.data.formats.oasst import LEFT_OUT


def node(name, text, *replies, role="prompter", **more):
    inner = "assistant" if role == "prompter" else "prompter"
    return {"message_id": name, "text": text, "role": role, **more, "replies": [{**reply, "role": inner} for reply in replies]}


def tree():
    follow = node("q2", "More?", node("b1", "x", role="assistant", rank=0), node("b2", "y", role="assistant", rank=1))
    first = node("a1", "second best", role="assistant", rank=1)
    best = node("a2", "best", follow, role="assistant", rank=0)
    unranked = node("a3", "nobody looked", role="assistant")
    return {"message_tree_id": "q1", "tree_state": "ready_for_export", "prompt": node("q1", "Ask.", first, best, unranked)}


def flat(value, parent=None):
    yield {**{key: part for key, part in value.items() if key != "replies"}, "parent_id": parent}
    for reply in value["replies"]:
        yield from flat(reply, value["message_id"])


def test_rank_0_is_best_and_a_reply_without_rank_was_not_judged(taken, ranked, messages):
    rows, [] = taken([tree()])
    assert ranked(rows[0]) == [["best"], ["second best"]]
    assert [candidate.text for candidate in rows[0].candidates] == ["second best", "best", "nobody looked"]
    assert messages(rows[1]) == [("user", "Ask."), ("assistant", "best"), ("user", "More?")]
    assert ranked(rows[1]) == [["x"], ["y"]]


def test_flat_messages_give_the_same_in_any_order(taken):
    nested, [] = taken([tree()])
    lines = list(flat(tree()["prompt"]))
    for order in (lines, lines[::-1]):
        rows, [] = taken(order)
        assert {r.prompt.id for r in rows} == {r.prompt.id for r in nested}
        assert {j.id for r in rows for j in r.judgements} == {j.id for r in nested for j in r.judgements}


def test_messages_without_their_beginning_are_set_aside_with_all_that_follow(taken):
    lines = [line for line in flat(tree()["prompt"]) if line["message_id"] != "a2"]
    loop = [{"message_id": f"l{n}", "parent_id": f"l{1 - n}", "text": "x", "role": "prompter"} for n in (0, 1)]
    rows, aside = taken([*lines, *loop])
    assert len(rows) == 1
    assert {item.reason for item in aside} == {"the conversation of this message does not begin in the file"}
    assert len(aside) == 5  # More? with its two answers, and the loop


def test_deleted_messages_are_left_out_with_all_below_them(taken, ranked):
    value = tree()
    value["prompt"]["replies"][1]["deleted"] = True
    [row], [] = taken([value])
    assert (row.notes, row.judgements, len(row.candidates)) == ((LEFT_OUT,), (), 2)


def test_broken_trees_are_set_aside(taken):
    same_speaker = tree()
    same_speaker["prompt"]["replies"][0]["role"] = "prompter"
    from_assistant = {"prompt": node("a", "x", role="assistant")}
    rows, aside = taken([tree(), same_speaker, from_assistant, {"prompt": {**node("q", "x"), "deleted": True}}])
    assert len(rows) == 2
    assert [item.reason for item in aside] == [
        "a reply is of the same speaker as what it answers", "the tree does not start with the prompter",
        "the tree's first message was deleted or did not pass review",
    ]  # fmt: skip


def test_a_very_deep_tree_is_set_aside_without_recursion(taken):
    roles = ("prompter", "assistant")
    chain = [{"message_id": f"m{n}", "parent_id": f"m{n - 1}" if n else None, "text": f"{n}", "role": roles[n % 2]} for n in range(3000)]
    _, aside = taken(chain)
    assert [item.reason for item in aside] == ["the tree is deeper than 500 messages"]
