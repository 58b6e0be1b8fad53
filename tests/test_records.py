"""Records, and the pairs that follow from judgements."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from preftune.records import Candidate, Demonstration, Judgement, KWise, Message, Prompt, majority_pairs, pairs_of, standing, votes_of


def prompt(text: str = "Sort a list.") -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


def judgement(*tiers: str, rater: str = "r1", **fields) -> Judgement:
    """judgement("b", "ac") ranks b before a and c, which are level."""
    return Judgement(prompt_id="p", ranking=tuple(tuple(tier) for tier in tiers), rater=rater, **fields)


def test_a_prompt_must_end_with_the_user():
    with pytest.raises(ValidationError, match="must be the user's"):
        Prompt(messages=(Message(role="user", content="hi"), Message(role="assistant", content="hello")))


def test_a_prompt_needs_a_message():
    with pytest.raises(ValidationError):
        Prompt(messages=())


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="extra"):
        Message(role="user", content="hi", name="x")


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        prompt().kind = "other"


def test_the_same_content_has_the_same_id_whatever_file_it_came_from():
    assert prompt().id == Prompt(messages=(Message(role="user", content="Sort a list."),), kind="lists").id
    assert prompt().id != prompt("Sort a list. ").id
    assert Candidate(prompt_id="p", text="x", source="a").id == Candidate(prompt_id="p", text="x", source="b").id
    assert Demonstration(prompt_id="p", text="x").id != Candidate(prompt_id="p", text="x").id


def test_an_id_tells_the_roles_and_the_parts_apart():
    one = Prompt(messages=(Message(role="system", content="a"), Message(role="user", content="b")))
    other = Prompt(messages=(Message(role="user", content="a"), Message(role="user", content="b")))
    assert one.id != other.id
    assert Candidate(prompt_id="ab", text="c").id != Candidate(prompt_id="a", text="bc").id


def test_the_clock_does_not_change_what_a_rater_said():
    early, late = (judgement("a", "b", created=datetime(year, 1, 1, tzinfo=UTC)) for year in (2024, 2025))
    assert early.id == late.id
    assert early.id != judgement("b", "a").id
    assert early.id != judgement("a", "b", rater="r2").id


@pytest.mark.parametrize("tiers", [("a",), ("abcdefghij",), ()])
def test_a_ranking_has_two_to_nine_candidates(tiers):
    with pytest.raises(ValidationError):
        judgement(*tiers)


def test_a_thumb_judges_one_candidate_and_a_withdrawal_none():
    assert (
        Judgement(prompt_id="p", ranking=(("a",),), acceptable=()).id != Judgement(prompt_id="p", ranking=(("a",),), acceptable=("a",)).id
    )
    withdrawn = judgement("a", "b")
    taken_back = Judgement(prompt_id="p", supersedes=withdrawn.id)
    assert standing([withdrawn, taken_back]) == [taken_back]
    assert majority_pairs([withdrawn, taken_back]) == []


def test_a_candidate_that_is_ranked_twice_is_named():
    with pytest.raises(ValidationError, match='candidate "c" is ranked twice'):
        judgement("c", "ac")


@pytest.mark.parametrize(
    ("tiers", "pairs"),
    [
        (("a", "b"), [("a", "b")]),
        (("ab",), []),
        (("c", "ab", "d"), [("c", "a"), ("c", "b"), ("c", "d"), ("a", "d"), ("b", "d")]),
    ],
)
def test_the_strict_preferences_of_a_ranking_become_pairs_and_ties_do_not(tiers, pairs):
    assert pairs_of(judgement(*tiers)) == pairs


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=3), min_size=1, max_size=4))
def test_pairs_and_ties_of_a_ranking_are_all_its_two_element_subsets(shape):
    names = iter("abcdefghijklmnop")
    tiers = ["".join(next(names) for _ in tier) for tier in shape]
    count = sum(map(len, tiers))
    if not 2 <= count <= 9:
        return
    ties = sum(len(t) * (len(t) - 1) // 2 for t in tiers)
    pairs = pairs_of(judgement(*tiers))
    assert len(pairs) == len(set(pairs)) == count * (count - 1) // 2 - ties


def test_raters_who_agree_give_a_pair_its_whole_weight():
    assert majority_pairs([judgement("a", "b", rater="r1"), judgement("a", "b", rater="r2")]) == [("a", "b", 1.0)]


def test_a_contested_pair_goes_with_the_majority_and_counts_less():
    votes = [judgement("a", "b", rater="r1"), judgement("a", "b", rater="r2"), judgement("b", "a", rater="r3")]
    assert majority_pairs(votes) == [("a", "b", pytest.approx(1 / 3))]  # 2/3 for, 1/3 against


def test_an_even_split_gives_no_pair():
    assert majority_pairs([judgement("a", "b", rater="r1"), judgement("b", "a", rater="r2")]) == []


def test_a_tie_is_half_a_vote_each_way():
    assert majority_pairs([judgement("a", "b", rater="r1"), judgement("ab", rater="r2")]) == [("a", "b", 0.5)]  # 3/4 − 1/4


def test_a_judgement_that_was_superseded_no_longer_counts():
    first = judgement("a", "b")
    assert majority_pairs([first, judgement("b", "a", supersedes=first.id)]) == [("b", "a", 1.0)]


def test_the_order_of_the_judgements_is_nothing():
    rows = [judgement("a", "b", "c", rater="r1"), judgement("c", "ab", rater="r2"), judgement("b", "a", rater="r3")]
    assert majority_pairs(rows) == majority_pairs(rows[::-1])


def test_a_settling_word_decides_what_it_compares_and_nothing_else():
    rows = [judgement("a", "b", "c", rater="r1"), judgement("a", "b", "c", rater="r2"), judgement("b", "a", rater="settled:owner")]
    assert majority_pairs(rows) == [("a", "c", 1.0), ("b", "a", 1.0), ("b", "c", 1.0)]
    assert majority_pairs([*rows, judgement("a", "b", rater="settled:other")]) == [("a", "c", 1.0), ("b", "c", 1.0)]


def test_votes_count_as_much_as_the_rater_weighs():
    rows = [judgement("a", "b", rater="r1"), judgement("ab", rater="r2"), judgement("b", "a", rater="r3")]
    assert votes_of(rows, {"r1": 2.0, "r3": 0.0}) == {("a", "b"): 2.5, ("b", "a"): 0.5}


@pytest.mark.parametrize("ranks", [(1, 2), (2, 3, 4), (1, 3, 3), (1, 2, 1), (0, 1, 2)])
def test_the_ranks_of_an_order_go_up_from_one(ranks):
    asked = (Message(role="user", content="p"),)
    assert KWise(messages=asked, completions=("a", "b", "c"), ranks=(1, 1, 2)).ranks == (1, 1, 2)
    with pytest.raises(ValidationError, match="do not go up from 1|at least 3"):
        KWise(messages=asked, completions=("a", "b", "c"), ranks=ranks)
