"""HelpSteer2: two lines a prompt, and the sign of a strength."""

from __future__ import annotations

import pytest


def rated(prompt, text, helpfulness, **more):
    return {
        "prompt": prompt,
        "response": text,
        "helpfulness": helpfulness,
        "correctness": 3,
        "coherence": 4,
        "complexity": 1,
        "verbosity": 4,
        **more,
    }


def test_lines_of_one_prompt_are_ranked_by_helpfulness(taken, ranked):
    rows, [aside] = taken([rated("A", "one", 1), rated("A", "two", 4), rated("B", "x", 2), rated("B", "y", 2), rated("C", "alone", 4)])
    assert [ranked(row) for row in rows] == [[["two"], ["one"]], [["x", "y"]]]
    assert sorted(rows[0].judgements[0].aspects) == ["coherence", "correctness", "helpfulness"]
    assert (aside.line, aside.reason) == (5, "fewer than two answers to a prompt can be compared")


@pytest.mark.parametrize(("strength", "ranking"), [(-3, [["one"], ["two"]]), (2, [["two"], ["one"]]), (0, [["two", "one"]])])
def test_a_negative_strength_says_that_the_first_is_better(taken, ranked, strength, ranking):
    [row], [] = taken([{"prompt": "A", "response_1": "one", "response_2": "two", "preference_strength": strength, "split": "train"}])
    assert ranked(row) == ranking
    assert row.judgements[0].strength == abs(strength)


def test_a_strength_out_of_bounds_is_set_aside(taken):
    fields = {"prompt": "A", "response_1": "one", "response_2": "two"}
    [_], [aside] = taken([{**fields, "preference_strength": 1}, {**fields, "preference_strength": 4}])
    assert "from −3 to 3" in aside.reason
