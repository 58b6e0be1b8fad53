"""Argilla: several raters a record, drafts, ties, and the export that has lost its ranking."""

from __future__ import annotations

import pytest

from preftune.data.formats.argilla_record import ORDER_ALONE
from preftune.errors import DataError

FIELDS = {"prompt": "Ask.", "response-1": "one", "response-2": "two", "response-3": "three"}


def ranks(*values):
    return [{"value": f"response-{n + 1}", "rank": rank} for n, rank in enumerate(values)]


def of(user, value, question="ranking", status="submitted"):
    return {"user_id": user, "status": status, "values": {question: {"value": value}}}


def v2(number, *orders, fields=FIELDS):
    answers = [{"value": [f"response-{n}" for n in order], "user_id": f"u{n}"} for n, order in enumerate(orders)]
    return {"id": str(number), "fields": {**fields, "prompt": f"Ask {number}."}, "responses": {"ranking": answers}}


def test_rank_1_is_best_ties_stay_and_every_rater_counts(taken, ranked):
    [row], [] = taken([{"fields": FIELDS, "responses": [of("ann", ranks(2, 1, 2)), of("bob", ranks(3, 2, 1))]}])
    assert [ranked(row, n) for n in (0, 1)] == [[["two"], ["one", "three"]], [["three"], ["two"], ["one"]]]
    assert [said.rater for said in row.judgements] == ["ann", "bob"]


def test_a_draft_or_discarded_response_and_a_suggestion_are_left_out_and_told(taken):
    responses = [of("ann", ranks(1, 2, 3)), of("bob", ranks(3, 2, 1), status="draft"), of("cat", ranks(3, 2, 1), status="discarded")]
    [row], [] = taken([{"fields": FIELDS, "responses": responses, "suggestions": [{"question_name": "ranking"}]}])
    assert len(row.judgements) == 1
    assert sorted(row.notes) == ["a discarded response is left out", "a draft response is left out", "a suggestion of a model is left out"]


def test_a_partial_ranking_says_nothing_of_the_others(taken, ranked):
    [row], [] = taken([{"fields": FIELDS, "responses": [of("ann", ranks(1, 2)), of("bob", ranks(1, 2, 3))]}])
    assert ranked(row, 0) == [["one"], ["two"]]


def test_a_comment_is_the_rationale_and_a_correct_response_a_demonstration(taken):
    both = {"values": {"ranking": {"value": ranks(1, 2, 3)}, "comment": {"value": "Shorter."}, "correct-response": {"value": "Better."}}}
    [row], [] = taken([{"fields": FIELDS, "responses": [{"user_id": "ann", "status": "submitted", **both}]}])
    assert row.judgements[0].rationale == "Shorter."
    assert [(wished.text, wished.author) for wished in row.demonstrations] == [("Better.", "ann")]


def test_a_choice_of_two_answers_is_a_pair_or_a_tie(taken, ranked):
    fields = {"prompt": "Ask.", "response_1": "one", "response_2": "two"}
    answers = [{"value": "response_2", "user_id": "ann"}, {"value": "tie", "user_id": "bob"}]
    [row], [] = taken([{"fields": fields, "responses": {"preference": answers}}])
    assert [ranked(row, n) for n in (0, 1)] == [[["two"], ["one"]], [["one", "two"]]]


def test_a_list_is_best_first_and_its_unknown_ties_are_told(taken, ranked):
    [row], [] = taken([v2(1, (3, 1, 2))])
    assert ranked(row) == [["three"], ["one"], ["two"]]
    assert row.notes == (ORDER_ALONE,)


def test_a_file_in_which_every_ranking_is_the_order_of_the_fields_is_refused(taken):
    """The interface saved what was displayed (argilla-io/argilla#5712). There are 6 orders of three: 4 rows are no chance."""
    with pytest.raises(DataError, match="each of the 4 rankings is the order of the fields itself"):
        taken([v2(n, (1, 2, 3)) for n in range(4)])
    assert len(taken([v2(n, (1, 2, 3)) for n in range(3)])[0]) == 3
    assert len(taken([*(v2(n, (1, 2, 3)) for n in range(9)), v2(9, (1, 3, 2)), v2(10, (1, 2, 3))])[0]) == 11


def test_ranks_in_the_order_of_the_fields_are_believed(taken):
    rows, [] = taken([{"fields": {**FIELDS, "prompt": f"Ask {n}."}, "responses": [of("ann", ranks(1, 2, 3))]} for n in range(9)])
    assert len(rows) == 9


def test_the_flat_form_says_the_same_as_the_nested_one(taken, ranked):
    flat = {
        **FIELDS, "id": "1", "source": "web",
        "ranking.responses": [["response-2", "response-1", "response-3"], ["response-1", "response-2"]],
        "ranking.responses.users": ["ann", "bob"], "ranking.responses.status": ["submitted", "draft"], "comment.responses": None,
    }  # fmt: skip
    [row], [] = taken([flat])
    assert ranked(row) == [["two"], ["one"], ["three"]]
    assert (len(row.judgements), row.unused, "a draft response is left out" in row.notes) == (1, ("source",), True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**FIELDS, "ranking.responses": [["response-1", "response-2"]], "ranking.responses.users": []}, "not of one length"),
        (
            {"fields": FIELDS, "responses": [of("ann", [*ranks(1, 2), {"value": "response-9", "rank": 3}])]},
            "one that is not among the fields",
        ),
        ({"fields": {"a": "x", "b": "y"}, "responses": []}, "nothing says which fields are the answers"),
        ({"fields": {"x": "p", "y": "q", "r_1": "a", "r_2": "b"}, "responses": []}, "nothing says which field is the prompt"),
    ],
)
def test_a_record_that_cannot_be_understood_is_set_aside(taken, fields, reason):
    _, [aside] = taken([fields], "argilla")
    assert reason in aside.reason
