"""Expected numbers are worked out by hand, come from the maths reference, or are those published with the data."""

import json
import math
from collections import Counter

import pytest

from preftune.errors import DataError
from preftune.evaluate.orders import agreement_with, cohen_kappa, fleiss_kappa, orders, settle


def test_what_both_orders_say_counts_and_a_difference_is_a_tie():
    assert [settle(1, 1), settle(0, 0), settle(0.5, 0.5)] == [1, 0, 0.5]
    assert [settle(1, 0), settle(0, 1), settle(1, 0.5), settle(0.5, 0)] == [0.5] * 4
    assert settle(None, 1) is settle(1, None) is None


def test_a_judge_that_likes_the_first_place_is_found_out():
    # Three times the first, whichever it is; once B; one reply cannot be read.
    found = orders([1, 1, 1, 0, None], [0, 0, 0, 0, 1])
    assert found.consistency is not None
    assert found.first is not None
    assert (found.consistency.value, found.consistency.n) == (0.25, 4)
    assert (found.first.value, found.first.n) == (7 / 9, 9)  # of the fifth, the one verdict read is for A, shown second
    assert (found.unread, found.asked) == (1, 10)
    assert found.loose


def test_a_judge_without_a_liking_for_a_place():
    found = orders([1, 0, 0.5], [1, 0, 0.5])
    assert found.consistency is not None
    assert found.first is not None
    assert (found.consistency.value, found.first.value, found.first.n) == (1.0, 0.5, 4)
    assert not found.loose


def test_nothing_read_leaves_nothing_to_say():
    found = orders([None], [None])
    assert (found.consistency, found.first, found.unread) == (None, None, 2)
    assert not found.loose


def test_known_kappas():
    assert cohen_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    assert math.isnan(cohen_kappa([[5, 0], [0, 0]]))
    assert fleiss_kappa([[3, 0, 0], [2, 1, 0], [0, 3, 0], [1, 1, 1]]) == pytest.approx(0.268293, abs=1e-6)
    with pytest.raises(DataError, match="same number of raters"):
        fleiss_kappa([[3, 0], [1, 1]])
    with pytest.raises(DataError, match="no table"):
        cohen_kappa([[1, 2, 3]])


def test_agreement_with_people_has_intervals_and_says_when_it_is_too_little():
    judge = [1.0] * 20 + [1.0] * 5 + [0.0] * 10 + [0.0] * 15
    people = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    found = agreement_with(judge, people)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.kappa.low < 0.3 < 0.5 < found.kappa.high
    assert found.agreement.value == pytest.approx(0.7)
    assert found.told
    assert not agreement_with(judge[:10], people[:10]).told
    with pytest.raises(DataError, match="not 1, 0.5 or 0"):
        agreement_with([0.7], [1.0])


def test_the_published_consistency_of_two_judges(shared_data):
    rows = [json.loads(line) for line in shared_data("eval/llmbar_judge_verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    about_the_first = {"1": 1.0, "2": 0.0}
    found = {}
    for judge, prompting in {(row["judge"], row["prompting"]) for row in rows}:
        own = [row for row in rows if (row["judge"], row["prompting"]) == (judge, prompting)]
        found[judge, prompting] = orders(*([about_the_first.get(row[key]) for row in own] for key in ("winner", "winner_swapped")))
    shares = {name: one.consistency for name, one in found.items() if one.consistency}
    assert round(100 * shares["GPT-4", "Vanilla"].value) == 93
    assert round(100 * shares["ChatGPT", "Vanilla"].value) == 66
    # With chain of thought five items lack a verdict: of the 414 read in both orders 59 % stay, of all 419 the 58 % that are published.
    thought = shares["ChatGPT", "CoT"]
    assert thought.n == 414
    assert round(100 * thought.value) == 59
    assert round(100 * thought.value * thought.n / 419) == 58
    assert (found["ChatGPT", "CoT"].unread, found["GPT-4", "Vanilla"].unread) == (5, 0)


def test_the_published_agreement_of_three_people(shared_data):
    rows = json.loads(shared_data("eval/pandalm_testset_3_annotators.json").read_text(encoding="utf-8"))
    counts = [[Counter(row[f"annotator{i}"] for i in (1, 2, 3))[label] for label in (0, 1, 2)] for row in rows]
    assert len(counts) == 999
    assert fleiss_kappa(counts) == pytest.approx(0.864, abs=5e-4)
