"""What a form says and the judgement that it becomes: nothing made up, nothing that makes no sense, nothing cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Judgement, Prompt
from preftune.web import assign
from preftune.web.answers import MAX_ACTIVE_SECONDS, answer_of, check_answer, judgement_from
from preftune.web.assign import Answer, BadAnswer
from preftune.web.auth import Person
from preftune.web.settings import LabelSettings

ASSIGNMENTS, ITEMS = tables.assignments, tables.items
FIRST = Answer(ranking=[[0], [1]])
Ask, Rater = Callable[..., Prompt], Callable[..., Person]


BAD = {
    "nothing was said yet. Rank the answers, or say which are good enough.": Answer(),
    "nothing was said yet. Rank the answers, or say which are good enough. ": Answer(rationale="hm", aspects={"tone": {0: 3}}),
    "only one answer is ranked. Rank at least two, or none.": Answer(ranking=[[0]]),
    "an answer is ranked twice, or a rank is empty. Give each answer one rank.": Answer(ranking=[[0], [0]]),
    "an answer is ranked twice, or a rank is empty. Give each answer one rank. ": Answer(ranking=[[0], [], [1]]),
    "place 3 is named, but there are 2 answers. Open the task again.": Answer(ranking=[[0], [2]]),
    "place 9 is named, but there are 2 answers. Open the task again.": Answer(acceptable=[8]),
    "place 4 is named, but there are 2 answers. Open the task again.": Answer(ranking=[[0], [1]], aspects={"tone": {3: 1}}),
    "a strength was given for other than two ranked answers. Leave it out.": Answer(acceptable=[], strength=1),
    "a tie cannot be clear. Say tie, or which answer is better.": Answer(ranking=[[0, 1]], strength=2),
    "it is not said which answer was rewritten. Say which one.": Answer(ranking=[[0, 1]], rewrite="so"),
    "the rewrite holds the character U+0000, which cannot be kept. Take it out.": Answer(ranking=[[0], [1]], rewrite="a\0b"),
    "the reason holds the character U+0000, which cannot be kept. Take it out.": Answer(ranking=[[0], [1]], rationale="a\0b"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_an_answer_that_says_nothing_or_makes_no_sense_is_refused_and_nothing_is_stored(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, sentence: str, take: Any
) -> None:
    ask(store, "which?", "a", "b")
    assign.fill_items(store, plain)
    task = take(store, ann, plain)
    with pytest.raises(BadAnswer) as refused:
        assign.submit(store, ann, task.id, "submission-1", BAD[sentence])
    assert str(refused.value) == sentence.strip()
    assert store.counts()["judgements"] == 0
    assert assign.load_assignment(store, ann, task.id).state == "leased"


@pytest.mark.parametrize("submission", ["", "short", "x" * 65, "with space in it", "'; DROP TABLE x", "ünïcode-id"])
def test_a_submission_id_is_letters_and_digits(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, submission: str, take: Any
) -> None:
    ask(store, "which?", "a", "b")
    assign.fill_items(store, plain)
    with pytest.raises(BadAnswer, match="submission id of 8 to 64 letters and digits"):
        assign.submit(store, ann, take(store, ann, plain).id, submission, FIRST)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranking": [[-1], [0]]}, {"ranking": [[9], [0]]}, {"ranking": "ab"}, {"strength": 4}, {"strength": -1},
        {"aspects": {"tone": {0: 6}}}, {"aspects": {"": {0: 1}}},
        {"aspects": {"x" * 41: {0: 1}}}, {"rewrite": "x" * 200_001}, {"rationale": "x" * 20_001}, {"rationale": "half\ud83d"},
        {"active_seconds": -1}, {"active_seconds": math.inf}, {"active_seconds": math.nan}, {"rater": "someone else"},
        {"aspects": {f"aspect {n}": {0: 1} for n in range(13)}},
    ],
)  # fmt: skip
def test_what_no_form_of_ours_sends_is_no_answer(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Answer.model_validate({"ranking": [[0], [1]], **wrong})


NASTY = [
    "'; DROP TABLE judgements; --",
    '"',
    "\\",
    "%s",
    "{{7*7}}",
    "$(id)",
    "<script>alert(1)</script>",
    "\u202eabc",
    "a\r\nb",
    "😀" * 1000,
    "=1+1",
]


def test_texts_are_kept_to_the_character(any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, take: Any) -> None:
    ann = rater(any_store, "Ann")
    for n in range(len(NASTY) + 1):
        ask(any_store, f"question {n}", "a", "b")
    assign.fill_items(any_store, plain)
    texts = [*NASTY, "x" * 200_000]
    for n, text in enumerate(texts):
        task = take(any_store, ann, plain)
        answer = Answer(ranking=[[0], [1]], rewrite=text, rationale=text[:20_000], aspects={"a 'tone' \"x\"": {0: 1}})
        assign.submit(any_store, ann, task.id, f"submission-{n}", answer)
    kept = list(any_store.judgements())
    assert [j.rewrite for j in kept] == texts
    assert [j.rationale for j in kept] == [text[:20_000] for text in texts]
    assert len({p.chosen for p in any_store.pairs()} & set(texts)) == len(texts)  # each rewrite beats what it rewrote


def test_a_rewrite_that_changes_nothing_is_none_and_the_best_one_is_meant_where_none_is_named(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, take: Any
) -> None:
    for n in range(4):
        ask(store, f"question {n}", "the one", "the other")
    assign.fill_items(store, plain)

    def said(**fields: Any) -> tuple[str | None, bool | None]:
        task = take(store, ann, plain)
        shown = [c.id for c in task.candidates]
        texts = {c.text: place for place, c in enumerate(task.candidates)}
        answer = Answer(ranking=[[texts["the other"]], [texts["the one"]]], **fields)
        judgement = assign.submit(store, ann, task.id, "submission-1", answer)
        return judgement.rewrite, None if judgement.rewrite_of is None else shown.index(judgement.rewrite_of) == texts["the other"]

    assert said(rewrite=" the other\n") == (None, None)
    assert said(rewrite="  ") == (None, None)
    assert said(rewrite="the other, mended") == ("the other, mended", True)
    assert said(rationale="  ")[0] is None


def test_the_time_is_capped_and_none_where_none_was_measured(store: Store, ann: Person, ask: Ask, plain: LabelSettings, take: Any) -> None:
    for n in range(3):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, plain)
    for seconds, kept in ((86400.0, MAX_ACTIVE_SECONDS), (None, None), (3.5, 3.5)):
        task = take(store, ann, plain)
        said = assign.submit(store, ann, task.id, "submission-1", Answer(ranking=[[0], [1]], active_seconds=seconds))
        assert said.active_seconds == kept


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, Answer]:
    count = draw(st.integers(2, 9))
    places = st.lists(st.integers(0, count - 1), unique=True)
    ranked = draw(st.permutations(range(count)))[: draw(st.integers(2, count))]
    cuts = sorted(draw(st.sets(st.integers(1, len(ranked) - 1))))
    tiers = [sorted(ranked[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ranked)], strict=True)]
    aspects = draw(
        st.dictionaries(st.sampled_from(["tone", "right"]), st.dictionaries(st.integers(0, count - 1), st.integers(1, 5), min_size=1))
    )
    acceptable = draw(st.none() | places.map(sorted))
    rewrite_of = draw(st.none() | st.integers(0, count - 1))
    return count, Answer(
        ranking=tiers,
        strength=draw(st.none() | st.integers(1, 3)) if len(ranked) == len(tiers) == 2 else None,
        acceptable=acceptable,
        rewrite=None if rewrite_of is None else "mine",
        rewrite_of=rewrite_of,
        aspects=aspects,
    )


@given(answers())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_form_becomes_a_judgement_and_a_form_again(case: tuple[int, Answer]) -> None:
    count, answer = case
    shown = [f"c{n}" for n in range(count)][::-1]
    check_answer(answer, count)
    said = judgement_from(answer, shown, "prompt", dict.fromkeys(shown, "theirs"), rater="r_1")
    assert answer_of(said, shown) == answer
    assert answer_of(Judgement.model_validate_json(said.model_dump_json()), shown) == answer
