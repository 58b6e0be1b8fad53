"""Many raters at once, in threads and in processes, and large stores."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, insert, select
from tests.processes import READY

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Prompt
from preftune.web import assign
from preftune.web.assign import Answer, Assignment, Empty
from preftune.web.auth import Person
from preftune.web.settings import LabelSettings

ASSIGNMENTS, ITEMS = tables.assignments, tables.items
FIRST = Answer(ranking=[[0], [1]])
Ask, Rater = Callable[..., Prompt], Callable[..., Person]


def _rate_all(store: Store, people: list[Person], settings: LabelSettings, threads: int) -> None:
    def work(person: Person) -> int:
        done = 0
        while True:
            task = assign.next_assignment(store, person, settings)
            if isinstance(task, Empty):
                if task.reason == "waiting":
                    time.sleep(0.01)
                    continue
                return done
            assign.save_draft(store, person, task.id, task.draft_version, {"rationale": "hm"})
            assign.submit(store, person, task.id, f"submission-{task.id[:20]}", FIRST)
            done += 1

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(work, people)) == store.counts()["judgements"]


def test_twenty_raters_at_once_share_the_slots_exactly(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, consistent: Any
) -> None:
    settings = plain.model_copy(update={"overlap": 2})
    people = [rater(any_store, f"rater {n}") for n in range(20)]
    for n in range(30):
        ask(any_store, f"question {n}", "a", "b")
    assign.fill_items(any_store, settings)
    _rate_all(any_store, people, settings, 20)
    by_item = Counter((j.prompt_id, j.rater) for j in any_store.judgements())
    assert set(by_item.values()) == {1}
    assert set(Counter(prompt for prompt, _ in by_item).values()) == {2}
    consistent(any_store)


def test_two_who_ask_for_the_last_slot_at_once_do_not_both_get_it(
    any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, consistent: Any
) -> None:
    people = [rater(any_store, f"rater {n}") for n in range(8)]
    for n in range(5):
        ask(any_store, f"question {n}", "a", "b")
        assign.fill_items(any_store, plain)
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda person: assign.next_assignment(any_store, person, plain), people))
        won = [task for task in got if isinstance(task, Assignment)]
        assert len(won) == 1
        assert all(found == Empty("waiting") for found in got if isinstance(found, Empty))
        winner = next(person for person in people if person.id == won[0].person_id)
        assign.submit(any_store, winner, won[0].id, "submission-1", FIRST)
    consistent(any_store)


def test_one_rater_in_many_tabs_has_one_task(any_store: Store, rater: Rater, ask: Ask, plain: LabelSettings, consistent: Any) -> None:
    ann = rater(any_store, "Ann")
    for n in range(8):
        ask(any_store, f"question {n}", "a", "b")
    assign.fill_items(any_store, plain)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: assign.next_assignment(any_store, ann, plain), range(8)))
    assert len({task.id for task in got if isinstance(task, Assignment)}) == 1
    consistent(any_store)


def _work_in_a_process(path: str, name: str) -> None:
    with Store.open(path) as store:
        with store.reading() as connection:
            row = connection.execute(select(tables.people).where(tables.people.c.name == name)).one()
        _rate_all_of_one(store, Person(row.id, row.name, row.role, row.pseudonym, row.disabled))


def _rate_all_of_one(store: Store, person: Person) -> None:
    settings = LabelSettings(overlap=2, overlap_share=0, gold_share=0, retest_share=0)
    while True:
        task = assign.next_assignment(store, person, settings)
        if isinstance(task, Assignment):
            assign.submit(store, person, task.id, f"submission-{task.id[:20]}", FIRST)
        elif task.reason == "waiting":
            time.sleep(0.01)
        else:
            return


@pytest.mark.slow
def test_processes_share_the_slots_exactly_too(store: Store, rater: Rater, ask: Ask, consistent: Any) -> None:
    names = ["Ann", "Bob", "Cem"]
    for name in names:
        rater(store, name)
    for n in range(30):
        ask(store, f"question {n}", "a", "b")
    assign.fill_items(store, LabelSettings(overlap=2, overlap_share=0))
    workers = [READY.Process(target=_work_in_a_process, args=(str(store.path), name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert set(Counter(j.prompt_id for j in store.judgements()).values()) == {2}
    consistent(store)


@pytest.fixture
def large(store: Store, ask: Ask) -> Store:
    """A store with 100,000 items of one prompt, 30,000 of them begun."""
    prompt = ask(store, "which?", "a", "b")
    ids = [c.id for c in store.candidates(prompt.id)]
    row = {
        "prompt_id": prompt.id,
        "candidate_ids": ids,
        "task": "pair",
        "purpose": "normal",
        "picked_by": "random",
        "priority": 0,
        "wanted": 2,
    }
    with store.writer() as writer:
        rows = [
            {**row, "id": f"item{n}", "taken": int(n < 30_000), "queue": "started" if n < 30_000 else "fresh", "shuffle": n * 7919 % 2**31}
            for n in range(100_000)
        ]
        now = datetime.now(UTC)
        writer.connection.execute(insert(ITEMS), [{**each, "created": now} for each in rows])
    return store


@pytest.mark.slow
def test_nothing_is_searched_from_end_to_end_among_100_000_items(large: Store, ann: Person, take: Any) -> None:
    settings = LabelSettings(overlap=2, gold_share=0.5, retest_share=0)
    with large.writer() as writer:  # Ann has done all that is begun: the longest way to an item
        now = datetime.now(UTC)
        mine = {"person_id": ann.id, "purpose": "normal", "presentation": [], "holds": True, "lease_until": now, "lease_seconds": 1}
        mine |= {"draft_version": 0, "created": now, "updated": now, "submitted": now, "state": "submitted"}
        writer.connection.execute(insert(ASSIGNMENTS), [{**mine, "id": f"a{n}", "item_id": f"item{n}"} for n in range(30_000)])
    statements: list[tuple[str, Any]] = []
    engine = large._engine

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    seconds = []
    for n in range(3):
        started = time.thread_time()
        task = take(large, ann, settings)
        seconds.append(time.thread_time() - started)
        assign.save_draft(large, ann, task.id, 0, {"a": 1})
        assign.submit(large, ann, task.id, f"submission-{n}", FIRST)
        assign.undo(large, ann)
        assign.skip(large, ann, task.id, "other")
    assign.give_back_expired(large)
    event.remove(engine, "before_cursor_execute", note)
    plans = set()
    with large.reading() as connection:
        for statement, parameters in statements:
            if statement.split()[0] in ("SELECT", "UPDATE", "DELETE"):
                plans |= {row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)}
    full = {plan for plan in plans if re.match(r"SCAN (?!CONSTANT ROW|\(subquery)", plan)}
    assert not full
    assert any("SEARCH items USING INDEX ix_items_queue" in plan for plan in plans)
    assert min(seconds) < 0.15, seconds  # of this thread, so that a busy machine does not matter


@pytest.mark.slow
def test_progress_among_100_000_items_is_quick(large: Store, ann: Person) -> None:
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        assert assign.own_progress(large, ann).remaining == 100_000
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.1, seconds
