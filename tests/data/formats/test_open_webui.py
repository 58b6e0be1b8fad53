"""Open WebUI: a thumb is a thumb, and only the arena compares."""

from __future__ import annotations

from preftune.data.formats.open_webui import BOTH_ALIKE


def message(name, parent, role, text, **more):
    return {"id": name, "parentId": parent, "role": role, "content": text, **more}


def feedback(rating, *, rated="a", arena=False, user="u", siblings=("other",), **more):
    messages = [
        message("q0", None, "user", "Hi"), message("h", "q0", "assistant", "Hello"), message("q", "h", "user", "Ask."),
        message("a", "q", "assistant", "one", model="arena-model", selectedModelId="m1"), message("b", "q", "assistant", "two", model="m2"),
    ]  # fmt: skip
    return {
        "id": "f", "user_id": user, "type": "rating",
        "data": {"rating": rating, "model_id": "x", "sibling_model_ids": list(siblings), **more},
        "meta": {"arena": arena, "chat_id": "c", "message_id": rated},
        "snapshot": {"chat": {"chat": {"history": {"messages": {m["id"]: m for m in messages}}}}}, "updated_at": 1730000100,
    }  # fmt: skip


def test_a_thumb_judges_one_answer_and_no_loss_is_inferred(taken, ranked, messages):
    """Outside the arena a sibling was not compared (open-webui#6643)."""
    [row], [] = taken([feedback(1, reason="accurate", comment="clear", details={"rating": 9})])
    [said] = row.judgements
    [rated] = row.candidates
    assert (ranked(row), said.acceptable, said.rationale, said.aspects) == (
        [["one"]],
        (rated.id,),
        "accurate: clear",
        {"rating": {rated.id: 9.0}},
    )
    assert (rated.source, said.rater, said.created.year) == ("m1", "u", 2024)
    assert messages(row) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Ask.")]


def test_a_thumb_down_is_no_acceptable_answer(taken):
    rows, [] = taken([feedback(-1), feedback("-1")])
    assert [row.judgements[0].acceptable for row in rows] == [(), ()]


def test_the_arena_compares_an_answer_with_its_sibling(taken, ranked):
    rows, [] = taken([feedback(-1, arena=True)])
    assert [ranked(row) for row in rows] == [[["one"]], [["two"], ["one"]]]


def test_two_answers_that_one_rater_likes_are_not_compared(taken, ranked):
    rows, [] = taken([feedback(1, arena=True), feedback(1, rated="b", arena=True)])
    assert [ranked(row) for row in rows if row.judgements] == [[["one"]], [["two"]]]
    assert [row.notes for row in rows if not row.judgements] == [(BOTH_ALIKE,)]
    # Another rater's thumb on the sibling does not matter.
    rows, [] = taken([feedback(1, arena=True), feedback(1, rated="b", arena=False, user="v")])
    assert [ranked(row) for row in rows] == [[["one"]], [["two"]], [["one"], ["two"]]]


def test_feedback_without_what_was_rated_is_set_aside(taken):
    """Older exports leave the snapshot out (open-webui#15998)."""
    without = {key: value for key, value in feedback(1).items() if key != "snapshot"}
    looped = feedback(1)
    looped["snapshot"]["chat"]["chat"]["history"]["messages"]["q0"]["parentId"] = "q"
    _, aside = taken([without, feedback(1, rated="gone"), looped, feedback("soso"), {**feedback(1), "type": "other"}], "open_webui")
    assert [item.reason for item in aside] == [
        "the entry has no snapshot of its chat, so that nobody can say what was rated",
        "the rated message is not in the snapshot of its chat",
        "the turns before the rated message are not in the snapshot, or without end", 'field "rating" is neither true nor false',
        "the entry is no rating",
    ]  # fmt: skip
