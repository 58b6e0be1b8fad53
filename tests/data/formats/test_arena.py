"""Battles: who won, what a tie says, and conversations that went apart."""

from __future__ import annotations

import json

import pytest


def turns(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, texts, strict=False)]


def battle(winner, a=("Ask.", "one"), b=("Ask.", "two"), **more):
    about = {"question_id": "q", "model_a": "x", "model_b": "y", "judge": "user_1"}
    return {**about, "winner": winner, "conversation_a": turns(*a), "conversation_b": turns(*b), **more}


@pytest.mark.parametrize(
    ("winner", "ranking", "acceptable"),
    [
        ("model_a", [["one"], ["two"]], None),
        ("model_b", [["two"], ["one"]], None),
        ("tie", [["one", "two"]], None),
        ("tie (inconsistent)", [["one", "two"]], None),
        ("tie (bothbad)", [["one", "two"]], ()),
        ("both_bad", [["one", "two"]], ()),
    ],
)
def test_the_winner_is_the_better_one_and_both_bad_is_more_than_a_tie(taken, ranked, winner, ranking, acceptable):
    [row], [] = taken([battle(winner, tstamp=1682351448.5)])
    [said] = row.judgements
    assert (ranked(row), said.acceptable, said.rater, said.created.year) == (ranking, acceptable, "user_1", 2023)
    assert said.presentation == tuple(candidate.id for candidate in row.candidates)
    assert [candidate.source for candidate in row.candidates] == ["x", "y"]


def test_conversations_that_went_apart_have_no_prompt_in_common(taken):
    apart = battle("model_a", ("Ask.", "one", "More.", "three"), ("Ask.", "two", "More.", "four"))
    rows, aside = taken([battle("tie"), apart, battle("model_a", anony=False), battle("nobody")])
    assert len(rows) == 1
    assert [item.reason for item in aside] == [
        "the two conversations differ before the last answer", "the rater saw the models' names (anony is false)",
        'field "winner" is none that we know',
    ]  # fmt: skip


def test_what_comes_after_the_judged_turn_is_cut_off_and_a_judge_may_be_a_list(taken, messages):
    rows, [] = taken([battle("model_a", ("Ask.", "one", "More.", "x"), ("Ask.", "two", "More.", "y"), turn=1, judge=["gpt-4", "pair-v2"])])
    assert messages(rows[0]) == [("user", "Ask.")]
    assert rows[0].judgements[0].rater == "gpt-4/pair-v2"


def test_the_140k_form_has_its_texts_in_parts(taken, ranked):
    fields = battle("model_b", evaluation_session_id="s")
    for side in ("conversation_a", "conversation_b"):
        fields[side] = [{"role": m["role"], "content": [{"type": "text", "text": m["content"], "image": None}]} for m in fields[side]]
    [row], [] = taken([fields])
    assert ranked(row) == [["two"], ["one"]]


def kaggle(a, b, tie, asked=("Ask.",), one=("one",), two=("two",)):
    return {
        "id": 1, "model_a": "x", "model_b": "y", "prompt": json.dumps(asked), "response_a": json.dumps(one), "response_b": json.dumps(two),
        "winner_model_a": a, "winner_model_b": b, "winner_tie": tie,
    }  # fmt: skip


def test_the_kaggle_form_has_lists_in_texts_and_marks_one_winner(taken, ranked):
    rows, aside = taken(
        [kaggle(1, 0, 0), kaggle("0", "1", "0"), kaggle(0, 0, 1), kaggle(1, 1, 0), kaggle(0, 0, 0), kaggle(1, 0, 0, one=(None,))]
    )
    assert [ranked(row) for row in rows] == [[["one"], ["two"]], [["two"], ["one"]], [["one", "two"]]]
    assert [item.reason for item in aside] == ["the row has not one winner"] * 2 + ['field "prompt" is not text']


def test_a_long_kaggle_conversation_is_its_last_turn_if_all_before_is_shared(taken, messages):
    same, other = ("a", "one"), ("b", "two")
    [row], [aside] = taken([kaggle(1, 0, 0, ("Q1", "Q2"), same, ("a", "two")), kaggle(1, 0, 0, ("Q1", "Q2"), same, other)])
    assert messages(row) == [("user", "Q1"), ("assistant", "a"), ("user", "Q2")]
    assert aside.reason == "the two conversations differ before the last answer"
