"""A form's fields, the answer that they say, and back again."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.web.answers import Answer, check_answer
from preftune.web.forms import PAIR, FormError, fields_of_answer, order_of, read_back, read_form
from preftune.web.words import duration, excerpt, sentence

ASPECTS = ["correct", "clear"]


@st.composite
def said(draw: st.DrawFn) -> tuple[str, int, Answer]:
    """A task, its number of answers, and something that can be said of them."""
    task = draw(st.sampled_from(["pair", "rank", "best_worst"]))
    count = 2 if task == "pair" else draw(st.integers(3, 9))
    places = list(range(count))
    strength = None
    if task == "pair":
        ranking, strength = draw(st.sampled_from(list(PAIR.values())))
    elif task == "rank":
        tier_of = draw(st.lists(st.integers(0, count), min_size=count, max_size=count).filter(lambda tiers: sum(map(bool, tiers)) != 1))
        ranking = [[i for i in places if tier_of[i] == tier] for tier in sorted({*tier_of} - {0})]
    else:
        best, worst = draw(st.permutations(places))[:2]
        between = [i for i in places if i not in (best, worst)]
        ranking = [[best], between, [worst]]
    acceptable = draw(st.none() | st.lists(st.sampled_from(places), unique=True).map(sorted))
    if not ranking and acceptable is None:
        acceptable = []
    rewrite = draw(st.none() | st.text("ab\n \t<é😀", min_size=1).filter(str.strip))
    rated = draw(st.dictionaries(st.sampled_from(ASPECTS), st.dictionaries(st.sampled_from(places), st.integers(1, 5), min_size=1)))
    answer = Answer(
        ranking=[list(tier) for tier in ranking],
        strength=strength,
        acceptable=acceptable,
        rewrite=rewrite,
        rewrite_of=None if rewrite is None else draw(st.sampled_from(places)),
        rationale=draw(st.none() | st.text("ab \n", min_size=1).map(str.strip).filter(bool)),
        aspects=rated,
        active_seconds=draw(st.none() | st.floats(0, 1e6)),
    )
    return task, count, answer


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(said())
def test_what_can_be_said_goes_through_the_form_unchanged(example):
    task, count, answer = example
    again = read_form(task, count, ASPECTS, fields_of_answer(task, count, ASPECTS, answer))
    assert again == answer
    check_answer(again, count)


NAMES = ["choice", "place-0", "place-1", "place-2", "best", "worst", "good-0", "all_bad", "rewrite", "rewrite_of", "aspect-0-0"]
VALUES = ["", "0", "1", "2", "3", "9", "-1", "x", "１", "1.5", "9999", "nan"]


@given(st.sampled_from(["pair", "rank", "best_worst"]), st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES)))
def test_any_form_says_something_sound_or_gets_a_sentence(task, fields):
    count = 2 if task == "pair" else 3
    with suppress(FormError):
        check_answer(read_form(task, count, ASPECTS, fields), count)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(ranking=[[2], [0, 1]]), "C > A = B (D not compared)"),
        (Answer(ranking=[[3], [2], [1], [0]], acceptable=[3], rationale="r"), "D > C > B > A; good enough: D; with your reason"),
        (Answer(acceptable=[]), "none is good enough"),
        (
            Answer(ranking=[[0], [1]], rewrite="x", rewrite_of=0, aspects={"clear": {0: 1}}),
            "A > B (C, D not compared); you rewrote A; rated by clear",
        ),
    ],
)
def test_what_was_stored_is_read_back_in_words(answer, words):
    assert read_back("rank", 4, answer) == words


def test_a_pair_is_read_back_as_it_was_chosen():
    assert [read_back("pair", 2, Answer(ranking=ranking, strength=strength)) for ranking, strength in PAIR.values()] == [
        "A is much better", "A is better", "A is slightly better", "A and B are equally good",
        "B is slightly better", "B is better", "B is much better",
    ]  # fmt: skip
    assert order_of([[1], [0]]) == "B > A"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3599, "59 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86_340, "23 h 59 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_a_long_text_is_cut_for_a_list_and_shows_that_it_was():
    assert excerpt("a\n  b") == "a b"
    assert excerpt("x" * 200) == "x" * 139 + "…"
    assert sentence("the name is taken") == "The name is taken"
