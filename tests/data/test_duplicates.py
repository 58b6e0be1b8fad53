"""Near-duplicate prompts: none is missed, and what is linked stays together."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import duplicates
from preftune.data.duplicates import EXACT_WORDS, NearDuplicates, linked, near_duplicate_groups, shingle_numbers, words_of
from preftune.records import Message


def shingles(messages: tuple[Message, ...]) -> frozenset[tuple[str, ...]]:
    """The word 3-shingles of a conversation as sets of words: what the numbers in the program stand for."""
    words = words_of(messages)
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> Fraction:
    return Fraction(len(a & b), len(a | b))


def asked(text: str, system: str = "") -> tuple[Message, ...]:
    before = (Message(role="system", content=system),) if system else ()
    return (*before, Message(role="user", content=text))


def slow_groups(texts: dict[str, tuple[Message, ...]]) -> set[frozenset[str]]:
    """Group by comparing each two, and joining until nothing changes."""
    groups = [{name} for name in texts]
    sets = {name: shingles(messages) for name, messages in texts.items()}
    for a in texts:
        for b in texts:
            if jaccard(sets[a], sets[b]) >= Fraction(4, 5):
                one, other = (next(g for g in groups if n in g) for n in (a, b))
                if one is not other:
                    groups.remove(other)
                    one |= other
    return {frozenset(g) for g in groups}


# 10 words make 8 shingles. Another last word changes 1 of them: 7 common, 9 in all. Another word in the middle changes 3: 5 of 11.
TEN = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("a", "b", "similarity"),
    [
        (TEN, TEN.upper() + "!", Fraction(1)),
        (TEN, TEN.replace("ten", "X"), Fraction(7, 9)),
        (TEN, TEN.replace("five", "X"), Fraction(5, 11)),
        (TEN, TEN + " eleven", Fraction(8, 9)),
        ("hi", "hi there", Fraction(0)),
        ("???", "???", Fraction(1)),
        ("???", "!!!", Fraction(0)),
        ("これは何ですか", "これは何ですか？", Fraction(1)),
        ("これは何ですか", "これは何でしたか", Fraction(3, 8)),  # 7 characters make 5 shingles, 8 make 6; 3 are common
        ("ﬁle ＡＢＣ ok", "file abc OK", Fraction(1)),
    ],
)
def test_the_similarity_is_that_of_word_shingles(a: str, b: str, similarity: Fraction) -> None:
    assert jaccard(shingles(asked(a)), shingles(asked(b))) == similarity
    together = len(set(near_duplicate_groups({"a": asked(a), "b": asked(b)}).values())) == 1
    assert together is (similarity >= Fraction(4, 5))


def test_system_messages_do_not_make_prompts_alike() -> None:
    system = " ".join(f"rule {n}" for n in range(200))
    assert len(set(near_duplicate_groups({"a": asked("Sort a list.", system), "b": asked("Open the file.", system)}).values())) == 2


def test_a_group_is_named_by_its_first_prompt_and_links_go_on() -> None:
    words = [f"w{n}" for n in range(30)]
    chain = {f"{n}": asked(" ".join(words[n : n + 20])) for n in range(4)}  # next to each other 17 of 19 shingles, the ends 15 of 21
    assert jaccard(shingles(chain["0"]), shingles(chain["3"])) < Fraction(4, 5) < jaccard(shingles(chain["0"]), shingles(chain["1"]))
    groups = near_duplicate_groups({"3": chain["3"], "x": asked("else"), **chain})
    assert groups == {"3": "3", "x": "x", "0": "3", "1": "3", "2": "3"}


def test_a_conversation_that_goes_on_from_another_past_an_answer_is_in_its_group() -> None:
    turns = [f"turn {n} with so many words of its own {n * 7} {n * 11}" for n in range(7)]
    talk = tuple(Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(turns))
    system = Message(role="system", content="Be brief.")
    prompts = {
        "one": talk[:1],
        "seven": talk,
        "three": (system, *talk[:3]),
        "other": (*talk[:2], Message(role="user", content="No, else.")),
    }
    assert near_duplicate_groups(prompts) == {"one": "one", "seven": "seven", "three": "seven", "other": "other"}


texts = st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=25).map(" ".join)
edited = st.tuples(texts, st.lists(st.tuples(st.integers(0, 24), st.sampled_from("abcx")), max_size=3)).map(
    lambda pair: [pair[0], " ".join(dict(pair[1]).get(n, w) for n, w in enumerate(pair[0].split()))]
)


@given(st.lists(edited, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_the_groups_are_those_of_comparing_each_two(pairs: list[list[str]]) -> None:
    prompts = {f"{n}": asked(text) for n, text in enumerate(text for pair in pairs for text in pair)}
    found: dict[str, set[str]] = {}
    for name, group in near_duplicate_groups(prompts).items():
        found.setdefault(group, set()).add(name)
    assert {frozenset(names) for names in found.values()} == slow_groups(prompts)
    assert all(group == min(names, key=int) for group, names in found.items())


def test_blocks_do_not_change_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    # Some the same, some nearly, some longer than a block.
    texts = [" ".join(f"w{(n % 7) * 40 + i}" for i in range(20 + n % 5)) for n in range(60)] + ["w1 w2 w3", "w1 W2 w3", "w1"]
    prompts = {f"{n}": asked(text) for n, text in enumerate(texts)}
    whole = near_duplicate_groups(prompts)
    monkeypatch.setattr(duplicates, "BLOCK", 16)
    assert near_duplicate_groups(prompts) == whole
    found: dict[str, set[str]] = {}
    for name, group in whole.items():
        found.setdefault(group, set()).add(name)
    assert {frozenset(names) for names in found.values()} == slow_groups(prompts)


def test_linked_finds_what_is_alike_on_the_other_side() -> None:
    ours = {"a": asked(TEN), "b": asked("else"), "c": asked("Same text.")}
    theirs = {"a": asked("quite another"), "z": asked(TEN + " eleven"), "c": asked("same TEXT")}
    assert linked(ours, theirs) == {"a", "c"}
    assert linked(ours, {}) == linked({}, theirs) == set()


def test_numbers_of_shingles_are_equal_where_the_shingles_are_also_beyond_what_fits_side_by_side() -> None:
    words = np.array([5, 6, 7, 5, 6, 7, 8, 0], np.int32)
    for vocabulary in (8, EXACT_WORDS * 4):
        numbers = shingle_numbers(words, vocabulary)
        assert len(numbers) == 6
        assert (numbers[0] == numbers[3], len(set(numbers.tolist()))) == (True, 5)
    assert len(shingle_numbers(words[:2], 8)) == 0


def test_prompts_may_be_given_one_by_one_and_asked_for_more_than_once() -> None:
    finder = NearDuplicates()
    assert finder.groups() == {}
    finder.add("a", asked(TEN))
    assert finder.groups() == {"a": "a"}
    finder.add("b", asked(TEN + " eleven"))
    finder.add("c", (Message(role="system", content="nothing else"),))
    assert finder.groups() == {"a": "a", "b": "a", "c": "c"}


def test_many_prompts_with_a_common_text_are_compared_in_time() -> None:
    common = " ".join(f"word{n}" for n in range(60))
    prompts = {f"{n}": asked(f"{common} {n % 40} {n * 7} {n * 11} a b c d e f g h {n}") for n in range(1500)}
    assert len(set(near_duplicate_groups(prompts).values())) == 1
