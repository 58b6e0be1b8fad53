"""Which items there are, who gets which one, and in which order the answers are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from preftune.data import tables
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.records import Judgement, Prompt
from preftune.web import assign, choosing, items
from preftune.web.assign import Answer, Assignment
from preftune.web.auth import Person
from preftune.web.settings import LabelSettings

ASSIGNMENTS, ITEMS = tables.assignments, tables.items
FIRST = Answer(ranking=[[0], [1]])
Ask, Rater = Callable[..., Prompt], Callable[..., Person]


@pytest.mark.parametrize(
    ("task", "count", "asked"),
    [("auto", 2, "pair"), ("auto", 3, "rank"), ("rank", 2, "pair"), ("rank", 9, "rank"), ("best_worst", 2, "pair"),
     ("best_worst", 4, "best_worst"), ("pair", 2, "pair")],
)  # fmt: skip
def test_what_is_asked_hangs_on_the_settings_and_the_number_of_answers(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, task: Any, count: int, asked: str, take: Any
) -> None:
    settings = plain.model_copy(update={"task": task})
    ask(store, "which?", *"abcdefghi"[:count])
    assign.fill_items(store, settings)
    given = take(store, ann, settings)
    assert (given.task, len(given.candidates)) == (asked, count)


def test_a_pair_of_many_answers_is_drawn_evenly_and_its_probability_is_kept(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, take: Any
) -> None:
    settings = plain.model_copy(update={"task": "pair"})
    for n in range(300):
        ask(store, f"question {n}", "a", "b", "c", "d")
    assert assign.fill_items(store, settings) == 300
    with store.reading() as connection:
        rows = connection.execute(select(ITEMS)).all()
        text = {row.id: row.text for row in connection.execute(select(tables.candidates))}
    assert {round(row.picked_probability, 9) for row in rows} == {round(1 / 6, 9)}
    drawn = Counter("".join(sorted(text[c] for c in row.candidate_ids)) for row in rows)
    assert len(drawn) == 6
    assert all(25 <= n <= 75 for n in drawn.values())  # 50 ± 4 standard deviations
    assert take(store, ann, settings).task == "pair"


def test_prompts_with_one_answer_or_more_than_nine_are_no_items_and_filling_twice_adds_nothing(
    store: Store, ask: Ask, plain: LabelSettings
) -> None:
    ask(store, "one", "a")
    ask(store, "none")
    ask(store, "ten", *"abcdefghij")
    ask(store, "two", "a", "b")
    assert [assign.fill_items(store, plain) for _ in range(2)] == [1, 0]
    ask(store, "one", "b")
    assert [assign.fill_items(store, plain) for _ in range(2)] == [1, 0]


def test_filling_goes_over_many_pages(store: Store, plain: LabelSettings) -> None:
    from preftune.records import Candidate, Message

    prompts = [Prompt(messages=(Message(role="user", content=f"{n}"),)) for n in range(1203)]
    store.add(prompts, [Candidate(prompt_id=p.id, text=t) for p in prompts for t in "ab"])
    assert [assign.fill_items(store, plain) for _ in range(2)] == [1203, 0]


def test_what_nobody_has_judged_goes_before_what_was_imported_with_judgements(
    store: Store, ann: Person, ask: Ask, plain: LabelSettings, judge_all: Any
) -> None:
    for n in range(10):
        prompt = ask(store, f"old {n}", "a", "b")
        first, second = store.candidates(prompt.id)
        store.add([], [], [Judgement(prompt_id=prompt.id, ranking=((first.id,), (second.id,)))])
        ask(store, f"new {n}", "a", "b")
    assign.fill_items(store, plain)
    assert [task.prompt.text.split()[0] for task in judge_all(store, ann, plain)] == ["new"] * 10 + ["old"] * 10


def test_a_share_of_the_items_is_judged_by_more_and_the_settings_can_change(store: Store, ask: Ask, olga: Person, consistent: Any) -> None:
    settings = LabelSettings(overlap=1, overlap_share=0.3, overlap_extra=3)
    for n in range(200):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, settings)

    def wanted() -> Counter[int]:
        with store.reading() as connection:
            return Counter(connection.execute(select(ITEMS.c.wanted)).scalars())

    before = wanted()
    assert before[1] + before[3] == 200
    assert 35 <= before[3] <= 85  # 60 ± 4 standard deviations
    with store.reading() as connection:
        one = connection.execute(select(ITEMS.c.id).where(ITEMS.c.wanted == 1).limit(1)).scalar_one()
    items.set_overlap(store, olga, one, 5, settings)
    assign.fill_items(store, settings.model_copy(update={"overlap": 2}))
    assert wanted() == {2: before[1] - 1, 3: before[3], 5: 1}
    items.set_overlap(store, olga, one, None, settings)
    assert wanted() == {2: before[1] - 1, 3: before[3], 1: 1}
    consistent(store)


def test_what_others_have_begun_is_finished_first_and_a_priority_goes_before_that(
    store: Store, ann: Person, bob: Person, olga: Person, ask: Ask, plain: LabelSettings, take: Any
) -> None:
    settings = plain.model_copy(update={"overlap": 2})
    for n in range(20):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, settings)
    begun = []
    for n in range(3):
        begun.append(take(store, ann, settings))
        assign.submit(store, ann, begun[-1].id, f"submission-{n}", FIRST)
    with store.reading() as connection:
        fresh = connection.execute(select(ITEMS.c.id).where(ITEMS.c.queue == "fresh").limit(1)).scalar_one()
    items.set_priority(store, olga, fresh, 5)
    got = []
    for n in range(4):
        got.append(take(store, bob, settings))
        assign.submit(store, bob, got[-1].id, f"submission-{n}", FIRST)
    assert got[0].item_id == fresh
    assert {task.item_id for task in got[1:]} == {task.item_id for task in begun}
    for wrong in (items.MAX_PRIORITY + 1, -items.MAX_PRIORITY - 1):
        with pytest.raises(DataError, match="out of bounds"):
            items.set_priority(store, olga, fresh, wrong)
    with pytest.raises(DataError, match='there is no item "x"'):
        items.set_priority(store, olga, "x", 1)
    with pytest.raises(DataError, match="an overlap of 0 is out of bounds"):
        items.set_overlap(store, olga, fresh, 0, settings)


def test_an_item_of_too_few_or_too_many_candidates_is_refused(store: Store, plain: LabelSettings) -> None:
    for wrong in (("a",), ("a", "a"), tuple("abcdefghij")):
        with pytest.raises(DataError, match="an item has 2 to 9 different candidates"), store.writer() as writer:
            items.add_items(writer, [items.Pick("p", wrong)], plain)


@pytest.mark.parametrize("count", range(2, 10))
def test_over_all_orders_each_answer_stands_in_each_place_and_behind_each_other_equally_often(count: int) -> None:
    rows = choosing.orders(count)
    assert len(rows) == (count if count % 2 == 0 else 2 * count)
    places = Counter((place, answer) for row in rows for place, answer in enumerate(row))
    follows = Counter(pair for row in rows for pair in pairwise(row))
    assert set(places.values()) == {len(rows) // count}
    assert len(places) == count**2
    assert set(follows.values()) == {len(rows) // count}
    assert len(follows) == count * (count - 1)


def test_the_next_rater_of_an_item_sees_another_order_and_no_side_is_favoured(
    store: Store, rater: Rater, ask: Ask, plain: LabelSettings, judge_all: Any
) -> None:
    settings = plain.model_copy(update={"overlap": 2})
    ann, bob = rater(store, "Ann"), rater(store, "Bob")
    for n in range(64):
        ask(store, f"question {n}", "first in the file", "second")
    assign.fill_items(store, settings)
    orders = [{task.item_id: [c.text for c in task.candidates] for task in judge_all(store, person, settings)} for person in (ann, bob)]
    assert all(orders[0][item] == orders[1][item][::-1] for item in orders[0])
    left = sum(order[0] == "second" for order in orders[0].values())
    assert 16 <= left <= 48  # 32 ± 4 standard deviations
    assert [list(j.presentation) for j in store.judgements()] == [
        row.presentation for row in _rows(store, select(ASSIGNMENTS).order_by(ASSIGNMENTS.c.submitted))
    ]


def test_the_order_comes_from_the_stores_own_seed(tmp_path: Path, rater: Rater, ask: Ask, plain: LabelSettings, judge_all: Any) -> None:
    seen = []
    for name in ("one", "two"):
        with Store.create(tmp_path / name) as store:
            ann = rater(store, "Ann")
            for n in range(40):
                ask(store, f"question {n}", "a", "b")
            assign.fill_items(store, plain)
            seen.append({task.item_id: [c.text for c in task.candidates] for task in judge_all(store, ann, plain)})
            assert [row.name for row in _rows(store, select(tables.secrets))] == ["presentation"]
    assert seen[0].keys() == seen[1].keys()
    assert seen[0] != seen[1]


def _rows(store: Store, query: Any) -> list[Any]:
    with store.reading() as connection:
        return list(connection.execute(query))


def test_gold_comes_in_between_unseen_is_met_once_and_teaches_no_model(
    store: Store, olga: Person, ann: Person, bob: Person, ask: Ask, judge_all: Any, consistent: Any
) -> None:
    settings = LabelSettings(overlap=2, gold_share=0.3, retest_share=0)
    for n in range(60):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, settings)
    gold = []
    for n in range(6):
        prompt = ask(store, f"gold {n}", "right", "wrong")
        right, wrong = (c.id for c in store.candidates(prompt.id))
        gold.append(assign.add_gold(store, olga, prompt.id, [right, wrong], [[right], [wrong]], "plainly wrong"))
    assert assign.fill_items(store, settings) == 0  # a gold prompt is no item of another kind
    before = store.fingerprint()
    for person in (ann, bob):
        given = judge_all(store, person, settings)
        met = [n for n, task in enumerate(given) if task.purpose == "gold"]
        assert len(met) == 6
        assert max(met) < 50  # by a share of 0.3 all six come long before the end
        assert {given[n].item_id for n in met} == set(gold)
        assert {given[n].task for n in met} == {"pair"}
    said = [j for j in store.judgements() if j.picked_by == "gold"]
    assert len(said) == 12
    assert {prompt.text.split()[0] for prompt, _, _ in store.judged()} == {"question"}
    assert {pair.messages[-1].content.split()[0] for pair in store.pairs()} <= {"question"}
    assert store.fingerprint() != before  # by the others
    consistent(store)
    items.retire_gold(store, olga, gold[0])
    with pytest.raises(DataError, match='there is no gold item "nothing"'):
        items.retire_gold(store, olga, "nothing")


def test_gold_of_a_prompt_that_a_rater_has_judged_is_not_asked_of_them_nor_the_other_way_round(
    store: Store, olga: Person, ann: Person, bob: Person, ask: Ask, why_none: Any, judge_all: Any, consistent: Any
) -> None:
    settings = LabelSettings(overlap=2, overlap_share=0, gold_share=0.5, retest_share=0)
    prompts = [ask(store, f"question {n}", "a", "b") for n in range(30)]
    assign.fill_items(store, settings)
    judged = {task.prompt.id for task in judge_all(store, ann, settings)}
    assert judged == {p.id for p in prompts}
    for prompt in prompts[:10]:
        good, bad = (c.id for c in store.candidates(prompt.id))
        assign.add_gold(store, olga, prompt.id, [good, bad], [[good], [bad]])
    assert why_none(store, ann, settings) == "finished"
    met = Counter(task.prompt.id for task in judge_all(store, bob, settings))
    assert set(met.values()) == {1}
    assert all(a.skip_reason != assign.BARRED for a in assign.history(store, bob, 100))
    consistent(store)


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        ([["a"]], "must have each candidate once"),
        ([["a"], ["b"], ["b"]], "must have each candidate once"),
        ([["a"], [], ["b"]], "must have each candidate once"),
        ([["a", "b"]], "of which one is better"),
    ],
)
def test_a_gold_item_needs_a_whole_ranking_of_its_own_candidates(
    store: Store, olga: Person, ask: Ask, expected: Any, sentence: str
) -> None:
    prompt = ask(store, "which?", "a", "b")
    ids = {c.text: c.id for c in store.candidates(prompt.id)}
    ranking = [[ids[text] for text in tier] for tier in expected]
    with pytest.raises(DataError, match=sentence):
        assign.add_gold(store, olga, prompt.id, list(ids.values()), ranking)
    other = ask(store, "another", "c", "d")
    theirs = [c.id for c in store.candidates(other.id)]
    with pytest.raises(DataError, match="not one of this prompt's in the store"):
        assign.add_gold(store, olga, prompt.id, theirs, [[c] for c in theirs])


def test_a_retest_comes_later_in_another_order_and_is_no_second_vote(
    store: Store, ann: Person, ask: Ask, judge_all: Any, consistent: Any
) -> None:
    settings = LabelSettings(overlap_share=0, gold_share=0, retest_share=0.5)
    for n in range(60):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, settings)
    given = judge_all(store, ann, settings, Answer(ranking=[[0, 1]], strength=0))
    first: dict[str, tuple[int, list[str]]] = {}
    retests = 0
    for n, task in enumerate(given):
        shown = [c.id for c in task.candidates]
        if task.purpose == "retest":
            retests += 1
            before, order = first[task.item_id]
            assert n - before > choosing.RETEST_AFTER
            assert shown == order[::-1]
        else:
            assert task.item_id not in first
            first[task.item_id] = (n, shown)
    assert len(first) == 60
    assert 15 <= retests <= 60
    assert Counter(j.picked_by for j in store.judgements()) == {"random": 60, "retest": retests}
    assert sum(len(js) for _, js, _ in store.judged()) == 60
    consistent(store)


def test_who_wrote_an_answer_never_judges_it(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, why_none: Any, judge_all: Any, consistent: Any
) -> None:
    ann, bob = rater(any_store, "Ann"), rater(any_store, "Bob")
    prompt = ask(any_store, "write it better", "good", "bad")
    ask(any_store, "something else", "a", "b")
    assign.fill_items(any_store, plain)
    while isinstance(task := assign.next_assignment(any_store, ann, plain), Assignment):
        assign.submit(any_store, ann, task.id, "submission-1", Answer(ranking=[[0], [1]], rewrite="Ann's own"))
    ask(any_store, "write it better", "Ann's own")
    ask(any_store, "by name", "theirs", "hers", source=ann.pseudonym)
    shown = {c.text: c.id for c in any_store.candidates(prompt.id)}
    with any_store.writer() as writer:
        items.add_items(writer, [items.Pick(prompt.id, (shown["Ann's own"], shown["good"]))], plain)
    assert assign.fill_items(any_store, plain) == 1
    assert why_none(any_store, ann, plain) == "finished"
    assert all(a.state == "submitted" for a in assign.history(any_store, ann))
    assert assign.own_progress(any_store, ann).skipped == 0
    assert {task.prompt.text for task in judge_all(any_store, bob, plain)} == {"write it better", "by name"}
    assert assign.undo(any_store, ann) is not None  # her own last one, not what she was kept from
    consistent(any_store)
