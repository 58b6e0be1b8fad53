"""Expected numbers are counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import DataError
from preftune.evaluate.drift import diversity, drift, looks, refuses


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "Sorry, I am unable to do that.",
        "As an AI language model, I cannot give legal advice.",
        "Unfortunately, I won’t be able to.",
        "I must decline.",
    ],
)
def test_refusals_are_seen(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry to hear that. Here is what helps:",
        "I cannot recommend this book enough!",
        "Here is how to say I can't help you.",
        "Sure.",
    ],
)
def test_what_is_no_refusal_is_not(text):
    assert not refuses(text)


def test_what_an_answer_looks_like_is_counted():
    seen = looks("# Title\n- one\n- **two**\n```\nx = 1\n```")
    assert (seen.heading, seen.lists, seen.bold, seen.code) == (True, True, True, True)
    plain = looks("a b c d a b c d a b c d")
    assert (plain.words, plain.characters, plain.lists) == (12, 23, False)
    assert plain.repetition == pytest.approx(1 - 4 / 9)  # nine runs of four words, four of them different
    assert looks("a b c").repetition == 0


def test_diversity_of_known_texts():
    found = diversity(["a b c d", "a b c e", "x"])
    assert found.distinct[0] == pytest.approx(6 / 9)
    assert found.distinct[1] == pytest.approx(4 / 6)  # ab bc cd, ab bc ce
    assert found.similarity == pytest.approx(1 / 3)  # abc bcd against abc bce; "x" has no run of three
    assert diversity(["same words here", "same words here"]).similarity == 1
    assert diversity(["x"]).similarity is None


def test_a_change_is_taken_prompt_by_prompt():
    found = drift(["I cannot help with that."] * 3 + ["yes"], ["yes"] * 4)
    assert found["refuses"]["value"] == found["refuses"]["change"]["value"] == 0.75
    assert found["characters"]["change"]["value"] == pytest.approx(0.75 * 21)
    assert found["diversity"]["before"]["distinct"] == (0.25, 0.0, 0.0)
    assert "change" not in drift(["one", "two"])["words"]


def test_answers_to_the_same_prompts_are_asked_for():
    with pytest.raises(DataError, match="2 answers and 1 before"):
        drift(["a", "b"], ["a"])
    with pytest.raises(DataError, match="1 answers"):
        drift(["a"])


@given(st.text(max_size=200))
def test_any_text_has_looks_within_bounds(text):
    seen = looks(text)
    assert 0 <= seen.repetition < 1
    assert seen.words <= seen.characters == len(text)
    assert seen.empty == (not text.strip())
