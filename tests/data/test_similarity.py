"""When two answers count as the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.similarity import edit_similarity, same_answer


def slow_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


@given(st.text("abc\n", max_size=12), st.text("abc\n", max_size=12))
def test_the_similarity_is_one_less_the_share_of_edits(a, b):
    longer = max(len(a), len(b))
    assert edit_similarity(a, b) == pytest.approx(1 - slow_distance(a, b) / longer if longer else 1.0)


@given(st.text("abcde", max_size=12), st.text("abcde", max_size=12))
def test_what_is_returned_early_is_never_below_the_similarity(a, b):
    assert edit_similarity(a, b, at_least=0.9) >= edit_similarity(a, b) - 1e-12
    assert (edit_similarity(a, b, at_least=0.9) > 0.9) == (edit_similarity(a, b) > 0.9)


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("", "abc", 3), ("intention", "execution", 5)]
)
def test_textbook_distances(a, b, edits):
    assert edit_similarity(a, b) == pytest.approx(1 - edits / max(len(a), len(b)))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("def f():\n    return 1\n", "def f():\n        return 1", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("Yes.", "No.", False),
        ("x" * 100, "x" * 96 + "yyyy", True),
        ("x" * 100, "x" * 95 + "yyyyy", False),  # exactly 95 % alike is not more than that
        ("4", "5", False),
    ],
)
def test_answers_are_the_same_when_they_differ_in_white_space_or_in_less_than_a_twentieth(a, b, same):
    assert same_answer(a, b) is same
