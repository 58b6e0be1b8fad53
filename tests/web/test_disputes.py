"""What raters disagree on, found from their judgements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.records import GOLD, RETEST, Judgement, Message, Prompt
from preftune.web.disputes import contests, dispute_of, in_letters, last_words, letters_of, ranking_from_places

PROMPT = Prompt(messages=(Message(role="user", content="Sort a list."),))


def said(rater: str, *tiers: str, **fields: Any) -> Judgement:
    """said("ann", "b", "ac") ranks b before a and c, which are level."""
    return Judgement(prompt_id=PROMPT.id, ranking=tuple(tuple(tier) for tier in tiers), rater=rater, **fields)


def counted(judgements: Sequence[Judgement]) -> list[tuple[str, str, int, int, int]]:
    return [(c.first, c.second, c.for_first, c.for_second, c.ties) for c in contests(judgements)]


def test_raters_who_say_the_same_differ_on_nothing():
    assert dispute_of(PROMPT, [said("ann", "a", "b"), said("bob", "a", "b")]) is None
    assert dispute_of(PROMPT, [said("ann", "a", "b"), said("bob", "b", "c")]) is None  # no two answers that both compared
    assert dispute_of(PROMPT, []) is None


def test_each_contested_two_is_counted_and_an_opposed_one_comes_first():
    # a-b: level against a before b. a-c: three for a. b-c: two for b, one for c.
    found = counted([said("ann", "a", "b", "c"), said("bob", "ab", "c"), said("cem", "a", "c", "b")])
    assert found == [("b", "c", 2, 1, 0), ("a", "b", 2, 0, 1)]


def test_the_split_counts_a_tie_as_half_a_vote_each_way():
    (even,) = contests([said("ann", "a", "b"), said("bob", "b", "a")])
    (level,) = contests([said("ann", "a", "b"), said("bob", "ab"), said("cem", "a", "b")])
    assert (even.split, even.is_opposed) == (0.5, True)
    assert (level.split, level.is_opposed) == (pytest.approx(1 / 6), False)


def test_only_the_last_standing_word_of_each_person_counts():
    first = said("ann", "a", "b")
    rows = [
        first,
        said("bob", "a", "b"),
        said("ann", "b", "a", supersedes=first.id),
        said("ann", "a", "b", picked_by=RETEST),
        said("bob", "b", "a", picked_by=GOLD),
        said("judge:gpt", "a", "b"),
        said("settled:eve", "a", "b"),
        said("cem", "a", acceptable=("a",)),
    ]
    assert [(j.rater, j.ranking) for j in last_words(rows)] == [("bob", (("a",), ("b",))), ("ann", (("b",), ("a",)))]


def test_a_dispute_is_open_until_an_owners_word_compares_what_is_contested():
    rows = [said("ann", "a", "b", "c"), said("bob", "b", "a", "c")]
    about = dispute_of(PROMPT, rows)
    elsewhere = dispute_of(PROMPT, [*rows, said("settled:eve", "a", "c")])
    word = said("settled:eve", "a", "b")
    decided = dispute_of(PROMPT, [*rows, word])
    withdrawn = dispute_of(PROMPT, [*rows, word, Judgement(prompt_id=PROMPT.id, rater="settled:eve", supersedes=word.id)])
    found = (about, elsewhere, decided, withdrawn)
    assert [d is not None and d.is_open for d in found] == [True, True, False, True]


@given(st.lists(st.lists(st.integers(1, 3), min_size=3, max_size=3), min_size=1, max_size=5))
def test_contests_are_what_a_slow_count_of_verdicts_finds(places: list[list[int]]):
    rows = []
    for number, place in enumerate(places):
        tiers = ["".join(c for c, p in zip("abc", place, strict=True) if p == n) for n in (1, 2, 3)]
        rows.append(said(f"r{number}", *filter(None, tiers)))
    slow = {}
    for (i, a), (j, b) in combinations(enumerate("abc"), 2):
        verdicts = [(p[i] > p[j]) - (p[i] < p[j]) for p in places]
        if len(set(verdicts)) > 1:
            slow[a, b] = (verdicts.count(-1), verdicts.count(1), verdicts.count(0))
    assert {(a, b): tuple(rest) for a, b, *rest in counted(rows)} == slow


def test_letters_follow_the_ids_and_go_on_after_z():
    letters = letters_of(["f0", "0a", "9b"])
    assert letters == {"0a": "A", "9b": "B", "f0": "C"}
    many = letters_of(f"{n:02d}" for n in range(60))
    assert (many["25"], many["26"], many["52"]) == ("Z", "A1", "A2")
    assert len(set(many.values())) == 60
    assert in_letters([["9b"], ["f0", "0a"], ["unknown"]], letters) == "B > A = C > ?"


def test_places_become_a_weak_order_whatever_gaps_they_leave():
    assert ranking_from_places({"a": "3", "b": "1", "c": "3", "d": ""}) == (("b",), ("a", "c"))
    assert ranking_from_places({"a": "", "b": ""}) == ()


@pytest.mark.parametrize("place", ["0", "10", "12", "-1", "x", "²", "١"])
def test_a_place_that_is_no_digit_from_1_to_9_is_refused(place: str):
    with pytest.raises(ValueError, match="is not a number from 1 to 9"):
        ranking_from_places({"a": place})


def test_every_weak_order_of_three_survives_the_form():
    for places in product("123", repeat=3):
        ranking = ranking_from_places(dict(zip("abc", places, strict=True)))
        tier_of = {c: n for n, tier in enumerate(ranking) for c in tier}
        for (a, p), (b, q) in combinations(zip("abc", places, strict=True), 2):
            assert (tier_of[a] > tier_of[b]) - (tier_of[a] < tier_of[b]) == (p > q) - (p < q)
