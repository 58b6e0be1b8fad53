"""Assignments: leases, drafts, submissions, undo: nothing that was said is lost, doubled or overwritten."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Prompt, pairs_of, standing
from preftune.web import assign
from preftune.web.assign import Answer, BadAnswer, Conflict, NotYours
from preftune.web.auth import Person
from preftune.web.settings import LabelSettings

ASSIGNMENTS, ITEMS = tables.assignments, tables.items
FIRST = Answer(ranking=[[0], [1]])
Ask, Rater = Callable[..., Prompt], Callable[..., Person]


def test_a_rater_gets_an_item_with_all_its_answers_and_keeps_it_until_it_is_done(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, take: Any, consistent: Any
) -> None:
    ann, prompt = rater(any_store, "Ann"), ask(any_store, "which?", "a", "b", "c")
    assert assign.fill_items(any_store, plain) == 1
    task = take(any_store, ann, plain)
    assert (task.state, task.task, task.purpose, task.prompt, task.draft) == ("leased", "rank", "normal", prompt, None)
    assert sorted(c.text for c in task.candidates) == ["a", "b", "c"]
    assert timedelta(minutes=29) < task.expires - datetime.now(UTC) <= timedelta(minutes=30)
    assert take(any_store, ann, plain).id == task.id == assign.load_assignment(any_store, ann, task.id).id
    said = assign.submit(any_store, ann, task.id, "submission-1", Answer(ranking=[[2], [0, 1]], active_seconds=12.5))
    shown = [c.id for c in task.candidates]
    assert said.ranking == ((shown[2],), (shown[0], shown[1]))
    assert (said.rater, said.presentation, said.active_seconds) == (ann.pseudonym, tuple(shown), 12.5)
    assert (said.picked_by, said.picked_probability) == ("random", 1.0)
    assert list(any_store.judgements()) == [said]
    again = assign.load_assignment(any_store, ann, task.id)
    assert (again.state, again.judgement, again.candidates) == ("submitted", said, task.candidates)
    assert again.answer == Answer(ranking=[[2], [0, 1]], active_seconds=12.5)
    consistent(any_store)


def test_the_three_reasons_for_getting_nothing_are_told_apart(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, take: Any, why_none: Any
) -> None:
    ann, bob = rater(any_store, "Ann"), rater(any_store, "Bob")
    assert why_none(any_store, ann, plain) == "nothing"
    ask(any_store, "which?", "a", "b")
    assign.fill_items(any_store, plain)
    task = take(any_store, ann, plain)
    assert why_none(any_store, bob, plain) == "waiting"
    assign.submit(any_store, ann, task.id, "submission-1", FIRST)
    assert why_none(any_store, bob, plain) == why_none(any_store, ann, plain) == "finished"


def test_an_item_is_judged_by_as_many_as_are_wanted_and_by_nobody_twice(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, judge_all: Any, consistent: Any
) -> None:
    settings = plain.model_copy(update={"overlap": 2})
    people = [rater(any_store, name) for name in ("Ann", "Bob", "Cem")]
    for n in range(4):
        ask(any_store, f"question {n}", "a", "b")
    assign.fill_items(any_store, settings)
    given = [len(judge_all(any_store, person, settings)) for person in people]
    assert given == [4, 4, 0]
    assert Counter(j.prompt_id for j in any_store.judgements()) == dict.fromkeys((p.id for p in any_store.prompts()), 2)
    consistent(any_store)


def test_a_lease_that_ran_out_goes_to_another_and_the_late_submission_is_still_taken(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, take: Any, why_none: Any, run_out: Any, consistent: Any
) -> None:
    ann, bob = rater(any_store, "Ann"), rater(any_store, "Bob")
    ask(any_store, "which?", "a", "b")
    assign.fill_items(any_store, plain)
    slow = take(any_store, ann, plain)
    assign.save_draft(any_store, ann, slow.id, 0, {"ranking": [[1]]})
    run_out(any_store)
    quick = take(any_store, bob, plain)
    assert quick.item_id == slow.item_id
    assert why_none(any_store, ann, plain) == "waiting"  # the slot is Bob's now
    assign.submit(any_store, bob, quick.id, "submission-1", FIRST)
    assert assign.load_assignment(any_store, ann, slow.id).draft == {"ranking": [[1]]}
    late = assign.submit(any_store, ann, slow.id, "submission-1", FIRST)
    assert late in list(any_store.judgements())
    assert any_store.counts()["judgements"] == 2
    consistent(any_store)
    assert why_none(any_store, ann, plain) == "finished"


def test_a_lease_that_ran_out_while_nobody_else_came_is_taken_up_with_its_draft(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, take: Any, run_out: Any, consistent: Any
) -> None:
    for n in range(3):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, plain)
    task = take(store, ann, plain)
    assign.save_draft(store, ann, task.id, 0, {"rationale": "half"})
    run_out(store)
    assert assign.give_back_expired(store) == 1
    assert assign.give_back_expired(store) == 0
    consistent(store)
    again = take(store, ann, plain)
    assert (again.id, again.draft, again.state) == (task.id, {"rationale": "half"}, "draft")
    assert again.expires > datetime.now(UTC)
    consistent(store)


def test_a_draft_renews_the_lease_and_takes_the_slot_again_where_it_is_free(
    store: Store, ann: Person, bob: Person, ask: Ask, plain: LabelSettings, take: Any, why_none: Any, run_out: Any, consistent: Any
) -> None:
    ask(store, "which?", "a", "b")
    assign.fill_items(store, plain)
    task = take(store, ann, plain)
    run_out(store)
    assign.give_back_expired(store)
    assert assign.save_draft(store, ann, task.id, 0, {}) == 1
    assert assign.load_assignment(store, ann, task.id).expires > datetime.now(UTC) + timedelta(minutes=29)
    assert why_none(store, bob, plain) == "waiting"
    run_out(store)
    other = take(store, bob, plain)
    assert assign.save_draft(store, ann, task.id, 1, {"a": "b"}) == 2  # kept, without a slot
    assert why_none(store, ann, plain) == "waiting"
    assign.skip(store, bob, other.id, "other")
    assert take(store, ann, plain).id == task.id
    consistent(store)


def test_a_submission_that_is_sent_again_is_stored_once(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, take: Any, consistent: Any
) -> None:
    ann = rater(any_store, "Ann")
    ask(any_store, "which?", "a", "b")
    assign.fill_items(any_store, plain)
    task = take(any_store, ann, plain)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: assign.submit(any_store, ann, task.id, "double-click", FIRST), range(8)))
    assert len({j.id for j in said}) == 1
    assert any_store.counts()["judgements"] == 1
    other = assign.submit(any_store, ann, task.id, "double-click", Answer(ranking=[[1], [0]]))
    assert other.ranking == said[0].ranking  # what was stored under this id, not what came with it later
    consistent(any_store)


def test_an_edit_supersedes_and_an_old_submission_sent_again_changes_nothing(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, take: Any, consistent: Any
) -> None:
    ask(store, "which?", "a", "b")
    assign.fill_items(store, plain)
    task = take(store, ann, plain)
    first = assign.submit(store, ann, task.id, "submission-1", FIRST)
    edited = assign.submit(store, ann, task.id, "submission-2", Answer(ranking=[[1], [0]]))
    assert edited.supersedes == first.id
    assert assign.submit(store, ann, task.id, "submission-1", FIRST) == first
    back = assign.submit(store, ann, task.id, "submission-3", FIRST)  # the first answer again is a row of its own
    assert list(store.judgements()) == [first, edited, back]
    assert standing(store.judgements()) == [back]
    assert assign.load_assignment(store, ann, task.id).judgement == back
    consistent(store)


def test_undo_takes_the_last_one_back_and_opens_it_with_what_was_said(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, take: Any, consistent: Any
) -> None:
    ann = rater(any_store, "Ann")
    for n in range(3):
        ask(any_store, f"question {n}", "a", "b")
    assign.fill_items(any_store, plain)
    assert assign.undo(any_store, ann) is None
    answer = Answer(ranking=[[1], [0]], strength=2, acceptable=[1], rationale="so", aspects={"tone": {0: 2, 1: 5}}, active_seconds=7)
    done = []
    for n in range(2):
        done.append(take(any_store, ann, plain))
        assign.submit(any_store, ann, done[-1].id, f"submission-{n}", answer)
    assert assign.undo(any_store, ann) == done[1].id
    assert assign.undo(any_store, ann) == done[0].id
    assert assign.undo(any_store, ann) is None
    assert standing(any_store.judgements()) != []
    assert [pairs_of(j) for j in standing(any_store.judgements())] == [[], []]  # what stands are withdrawals, which say nothing
    assert list(any_store.pairs()) == []
    again = take(any_store, ann, plain)
    assert (again.id, again.state) == (done[0].id, "draft")
    assert again.draft is not None
    assert Answer.model_validate(again.draft) == answer
    assert assign.submit(any_store, ann, again.id, "submission-0", answer).supersedes is None  # the old press: nothing comes back by it
    assert [pairs_of(j) for j in standing(any_store.judgements())] == [[], []]
    assign.submit(any_store, ann, again.id, "submission-new", answer)
    assert len(list(any_store.pairs())) == 1
    consistent(any_store)


def test_a_skip_frees_the_slot_and_can_be_undone_with_its_draft(
    store: Store, ann: Person, bob: Person, ask: Ask, plain: LabelSettings, take: Any, why_none: Any, consistent: Any
) -> None:
    ask(store, "which?", "a", "b")
    assign.fill_items(store, plain)
    task = take(store, ann, plain)
    assign.save_draft(store, ann, task.id, 0, {"rationale": "an hour's text"})
    assign.skip(store, ann, task.id, "too long")
    assert why_none(store, ann, plain) == "finished"  # it is not asked again
    assert [(a.state, a.skip_reason) for a in assign.history(store, ann)] == [("skipped", "too long")]
    assert assign.undo(store, ann) == task.id
    assert take(store, ann, plain).draft == {"rationale": "an hour's text"}
    assign.skip(store, ann, task.id, "other", {"rationale": "an hour's text, and a word"})
    other = take(store, bob, plain)
    assert assign.undo(store, ann) == task.id  # the slot is Bob's; Ann's word is taken too
    assert assign.load_assignment(store, ann, task.id).draft == {"rationale": "an hour's text, and a word"}
    assert why_none(store, ann, plain) == "waiting"
    assign.submit(store, bob, other.id, "submission-1", FIRST)
    assign.submit(store, ann, task.id, "submission-1", FIRST)
    consistent(store)
    with pytest.raises(BadAnswer, match=r"this task was judged already\. Undo that first\."):
        assign.skip(store, ann, task.id, "other")
    with pytest.raises(BadAnswer, match='"because" is no reason to skip'):
        assign.skip(store, ann, task.id, "because")


def test_undo_can_name_an_older_one(store: Store, ann: Person, ask: Ask, plain: LabelSettings, judge_all: Any) -> None:
    for n in range(3):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, plain)
    given = judge_all(store, ann, plain)
    assert [task.id for task in assign.history(store, ann)] == [task.id for task in given[::-1]]
    assert assign.undo(store, ann, given[0].id) == given[0].id
    assert assign.undo(store, ann, given[0].id) is None  # it is open
    assert len(list(store.pairs())) == 2


def test_a_newer_draft_of_another_tab_is_not_overwritten(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, take: Any, consistent: Any
) -> None:
    ask(store, "which?", "a", "b")
    assign.fill_items(store, plain)
    task = take(store, ann, plain)
    assert assign.save_draft(store, ann, task.id, 0, {"rationale": "one"}) == 1
    with pytest.raises(
        Conflict, match=r"changed in another tab since you opened it here\. Keep the one version or the other\."
    ) as conflict:
        assign.save_draft(store, ann, task.id, 0, {"rationale": "two"})
    assert (conflict.value.version, conflict.value.draft, conflict.value.yours) == (1, {"rationale": "one"}, {"rationale": "two"})
    assert assign.save_draft(store, ann, task.id, 1, {"rationale": "two"}) == 2
    assign.submit(store, ann, task.id, "submission-1", FIRST)
    with pytest.raises(Conflict):
        assign.save_draft(store, ann, task.id, 2, {"rationale": "three"})
    with pytest.raises(BadAnswer, match=r"the draft has 500,017 characters\. Use at most 500,000\."):  # {"rationale": "…"}
        assign.save_draft(store, ann, task.id, 3, {"rationale": "x" * 500_000})
    consistent(store)


def test_anothers_assignment_and_none_are_refused_in_the_same_words(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, take: Any, consistent: Any
) -> None:
    ann, eve = rater(any_store, "Ann"), rater(any_store, "Eve")
    ask(any_store, "which?", "a", "b")
    ask(any_store, "and here?", "a", "b")
    assign.fill_items(any_store, plain)
    task, mine = take(any_store, ann, plain), take(any_store, eve, plain)
    assign.submit(any_store, ann, task.id, "submission-1", FIRST)
    before = list(any_store.judgements())
    sentences = set()
    for name in (task.id, "nothing", "", "' OR '1'='1", "%", task.item_id, mine.id + " "):
        tries: list[Callable[[], object]] = [
            lambda name=name: assign.load_assignment(any_store, eve, name),  # type: ignore[misc]
            lambda name=name: assign.save_draft(any_store, eve, name, 0, {}),  # type: ignore[misc]
            lambda name=name: assign.submit(any_store, eve, name, "submission-1", FIRST),  # type: ignore[misc]
            lambda name=name: assign.skip(any_store, eve, name, "other"),  # type: ignore[misc]
            lambda name=name: assign.undo(any_store, eve, name),  # type: ignore[misc]
        ]
        for attempt in tries:
            with pytest.raises(NotYours) as refused:
                attempt()
            sentences.add(str(refused.value))
    assert sentences == {"this task is not one of yours. Go back to the start and take the next one."}
    assert list(any_store.judgements()) == before
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", task.id)  # 128 random bits
    consistent(any_store)


def test_progress_is_ones_own(store: Store, ann: Person, bob: Person, ask: Ask, plain: LabelSettings, take: Any) -> None:
    nothing = assign.own_progress(store, ann)
    assert nothing == assign.OwnProgress(done=0, skipped=0, remaining=0, today=0, median_seconds=None, eta_seconds=None)
    for n in range(6):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, plain)
    for seconds in (4.0, 10.0, 6.0):
        task = take(store, ann, plain)
        assign.submit(store, ann, task.id, "submission-1", Answer(ranking=[[0], [1]], active_seconds=seconds))
    assign.skip(store, ann, take(store, ann, plain).id, "other")
    assert assign.own_progress(store, ann) == assign.OwnProgress(3, 1, 2, 3, 6.0, 12.0)
    take(store, ann, plain)  # an open one is still to do
    assert assign.own_progress(store, ann).remaining == 2
    take(store, bob, plain)
    assert assign.own_progress(store, bob) == assign.OwnProgress(0, 0, 2, 0, None, None)  # the one that Ann skipped, and his open one
    with store.writer() as writer:
        writer.connection.execute(
            update(ASSIGNMENTS).where(ASSIGNMENTS.c.state == "submitted").values(submitted=datetime(2026, 1, 1, tzinfo=UTC))
        )
    assert assign.own_progress(store, ann).today == 0


def test_a_draft_is_any_json(store: Store, ann: Person, ask: Ask, plain: LabelSettings, take: Any) -> None:
    ask(store, "which?", "a", "b")
    assign.fill_items(store, plain)
    task = take(store, ann, plain)
    draft = {"fields": {"choice": "3", "rationale": "'; DROP TABLE x; -- \ud83d\ude00 שלום"}, "n": [1, None, {"x": 0.5}]}
    assign.save_draft(store, ann, task.id, 0, draft)
    assert assign.load_assignment(store, ann, task.id).draft == json.loads(json.dumps(draft))
    with store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(ASSIGNMENTS)).scalar() == 1
