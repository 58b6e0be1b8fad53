"""Nectar: rank 1 is the best, which a widely used reader turns upside down."""

from __future__ import annotations

import pytest

from preftune.data.formats.preferences import CONTRADICTION
from preftune.errors import DataError


def fields(*ranks, scores=(), texts=("one", "two", "three"), prompt="Ask."):
    answers = [{"answer": text, "model": "m", "rank": rank} for text, rank in zip(texts, ranks, strict=False)]
    return {"prompt": prompt, "answers": [{**a, **({"score": scores[n]} if scores else {})} for n, a in enumerate(answers)]}


def test_rank_1_is_the_best_whatever_the_order_of_the_answers(taken, ranked):
    rows, [] = taken([fields(3, 1.0, 2), fields("1", "2", "2")])
    assert [ranked(row) for row in rows] == [[["two"], ["three"], ["one"]], [["one"], ["two", "three"]]]


def test_the_prompt_may_be_a_transcript_with_an_open_end(taken, messages):
    [row], [] = taken([fields(1, 2, prompt="\n\nHuman: Hi \n\nAssistant: Hello \n\nHuman: Bye \n\nAssistant: ")])
    assert messages(row) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]


def test_scores_that_go_the_other_way_refuse_the_file(taken, ranked):
    [row], [] = taken([fields(1, 2, 2, scores=(9, 4, 5))])
    assert ranked(row) == [["one"], ["two", "three"]]
    with pytest.raises(DataError, match="contradict themselves"):
        taken([fields(1, 2, 3, scores=(1, 5, 9))] * 3)
    _, aside = taken([*[fields(1, 2)] * 30, fields(1, 2, 3, scores=(9, 1, 2))])
    assert [item.reason for item in aside] == [CONTRADICTION]


def test_answers_that_cannot_be_compared_are_left_out_and_ten_are_cut_to_nine(taken, ranked):
    rows, [aside] = taken(
        [
            fields(1, 2, 3, texts=("a", "a", "b")),
            fields(*range(1, 11), texts=[f"t{n}" for n in range(10)]),
            fields(1, 2, 3, texts=("", "x", "y")),
        ]
    )
    assert aside.reason == "fewer than two answers can be compared"
    assert len(ranked(rows[0])) == 9
    assert rows[0].notes == ("only the 9 best of more answers are ranked",)
    assert len(rows[0].candidates) == 10
    assert ranked(rows[1]) == [["x"], ["y"]]


def test_a_rank_that_is_no_number_is_set_aside(taken):
    [_], [aside] = taken([fields(1, 2), fields(1, "N/A")])
    assert aside.reason == 'field "rank" is not a number'
