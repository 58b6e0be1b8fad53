"""UltraFeedback: ratings that are texts, a rating that is none, and means as ranks."""

from __future__ import annotations

from preftune.data.formats.ultrafeedback import NOT_RATED


def answer(text, **ratings):
    annotations = {aspect: {"Rating": rating, "Rationale": "…"} for aspect, rating in ratings.items()}
    return {"response": text, "model": f"model {text}", "annotations": annotations, "overall_score": 1.0}


def test_answers_are_ranked_by_the_mean_rating_higher_is_better(taken, ranked):
    answers = [answer("low", help="2", truth="1"), answer("high", help="5", truth="4"), answer("tied", help="1", truth="2")]
    [row], [] = taken([{"instruction": "Ask.", "source": "x", "models": [], "completions": answers}])
    assert ranked(row) == [["high"], ["low", "tied"]]
    by_text = {candidate.text: candidate for candidate in row.candidates}
    assert row.judgements[0].aspects["help"][by_text["high"].id] == 5.0
    assert by_text["high"].source == "model high"


def test_a_rating_that_is_no_number_is_left_out_for_all_and_told(taken, ranked):
    # By help alone "a" is better; by both it would not be.
    answers = [answer("a", help="4", truth="N/A"), answer("b", help="3", truth="5")]
    [row], [] = taken([{"instruction": "Ask.", "completions": answers}])
    assert ranked(row) == [["a"], ["b"]]
    assert row.notes.count(NOT_RATED) == 1
    [row], [aside] = taken(
        [{"instruction": "Ask.", "completions": [answer("a", x="N/A"), answer("b", x="1")]}, {"instruction": "A", "completions": answers}]
    )
    assert aside.reason == "fewer than two answers are rated on the same aspect"


def test_empty_and_equal_answers_leave_the_ranking_of_the_others(taken, ranked):
    answers = [answer("a", x="1"), answer("", x="5"), answer("b", x="2"), answer("c", x="3"), answer("c ", x="4")]
    [row], [] = taken([{"instruction": "Ask.", "completions": answers}])
    assert ranked(row) == [["b"], ["a"]]
    assert "an empty answer is left out of a ranking" in row.notes
    assert row.notes.count("an answer that comes twice is left out of a ranking") == 2


def test_the_binarised_form_is_a_pair_of_conversations_with_scores(taken, ranked):
    chosen, rejected = ([{"role": "user", "content": "Ask."}, {"role": "assistant", "content": text}] for text in ("a", "b"))
    fields = {"prompt": "Ask.", "prompt_id": "0", "messages": chosen, "chosen": chosen, "rejected": rejected}
    rows, [] = taken([{**fields, "score_chosen": 8.5, "score_rejected": 5.0}, {**fields, "score_chosen": 7, "score_rejected": 7}])
    assert [ranked(row) for row in rows] == [[["a"], ["b"]], [["a", "b"]]]
    assert not any(row.unused for row in rows)
