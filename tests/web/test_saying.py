"""Whatever raters do in whatever order, what stands in the store is what they said last: a model of plain dicts says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select, update

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Candidate, Message, Prompt, standing
from preftune.web import assign, choosing
from preftune.web.assign import Answer, Assignment
from preftune.web.persons import Person
from preftune.web.settings import LabelSettings

SETTINGS = LabelSettings(overlap=2, overlap_share=0, gold_share=0, retest_share=0)
RATERS, PROMPTS = 3, 4
ANSWERS = st.one_of(
    st.permutations([0, 1, 2]).map(lambda order: Answer(ranking=[[place] for place in order])),
    st.permutations([0, 1, 2]).map(lambda order: Answer(ranking=[[order[0]], sorted(order[1:])])),
    st.permutations([0, 1, 2]).map(lambda order: Answer(ranking=[[order[0]], [order[1]]], acceptable=[order[0]])),
    st.just(Answer(acceptable=[])),
)


@pytest.fixture(scope="module")
def with_items(empty_store: bytes) -> Iterator[bytes]:
    """The file of a store with three raters and four items of three answers, two raters each."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.db"
        path.write_bytes(empty_store)
        with Store.open(path) as store:
            prompts = [Prompt(messages=(Message(role="user", content=f"question {n}"),)) for n in range(PROMPTS)]
            store.add(prompts, [Candidate(prompt_id=p.id, text=t) for p in prompts for t in "abc"])
            assign.fill_items(store, SETTINGS)
            with store.writer() as writer:
                row = {"role": "rater", "password_hash": "", "disabled": False, "created": datetime.now(UTC)}
                people = [{**row, "id": f"p{n}", "name": f"p{n}", "name_key": f"p{n}", "pseudonym": f"r_{n}"} for n in range(RATERS)]
                writer.connection.execute(tables.people.insert(), people)
                choosing.secret(writer.connection, "presentation")  # drawn once for all examples, so that each can be played again
            store.checkpoint()
        yield path.read_bytes()


def machine(file: bytes) -> Callable[[], RuleBasedStateMachine]:
    """Return the machine that plays on copies of a store's file."""

    class Raters(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.stack = ExitStack()
            path = Path(self.stack.enter_context(TemporaryDirectory())) / "s.db"
            path.write_bytes(file)
            self.store = self.stack.enter_context(Store.open(path))
            self.people = [Person(f"p{n}", f"p{n}", "rater", f"r_{n}", disabled=False) for n in range(RATERS)]
            self.presses = 0
            self.given: dict[str, tuple[int, list[str]]] = {}  # assignment → (rater, candidate ids in the order shown)
            self.stands: dict[str, Answer] = {}  # assignment → what was said last and not taken back
            self.done: dict[int, list[str]] = {n: [] for n in range(RATERS)}  # submitted or skipped, the last one last
            self.open: list[str] = []
            self.pressed: dict[str, tuple[str, Answer]] = {}  # submission id → (assignment, what it said)

        def teardown(self) -> None:
            self.stack.close()

        @initialize()
        def begin(self) -> None:
            for n in range(RATERS):
                self.take(n)

        @rule(n=st.integers(0, RATERS - 1))
        def take(self, n: int) -> None:
            task = assign.next_assignment(self.store, self.people[n], SETTINGS)
            if isinstance(task, Assignment):
                shown = [c.id for c in task.candidates]
                assert self.given.setdefault(task.id, (n, shown)) == (n, shown)
                assert task.id not in self.done[n]
                if task.id not in self.open:
                    self.open.append(task.id)

        @precondition(lambda self: self.given)
        @rule(answer=ANSWERS, data=st.data())
        def submit(self, answer: Answer, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(list(self.given)))  # open, late, skipped, or an edit
            n, _ = self.given[name]
            self.presses += 1
            press = f"submission-{self.presses}"
            assign.submit(self.store, self.people[n], name, press, answer)
            self.pressed[press] = (name, answer)
            self.stands[name] = answer
            self._is_done(n, name)

        @precondition(lambda self: self.pressed)
        @rule(data=st.data())
        def press_again(self, data: st.DataObject) -> None:
            press = data.draw(st.sampled_from(list(self.pressed)))
            name, answer = self.pressed[press]
            n, shown = self.given[name]
            said = assign.submit(self.store, self.people[n], name, press, Answer(acceptable=[0]))
            assert assign.answer_of(said, shown) == answer

        @precondition(lambda self: self.open)
        @rule(data=st.data())
        def skip(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(self.open))
            n, _ = self.given[name]
            assign.skip(self.store, self.people[n], name, "other")
            self._is_done(n, name)

        @rule(n=st.integers(0, RATERS - 1))
        def undo(self, n: int) -> None:
            expected = self.done[n].pop() if self.done[n] else None
            assert assign.undo(self.store, self.people[n]) == expected
            if expected is not None:
                said = self.stands.pop(expected, None)
                self.open.append(expected)
                draft = assign.load_assignment(self.store, self.people[n], expected).draft
                assert said is None or (draft is not None and Answer.model_validate(draft) == said)

        @precondition(lambda self: self.open)
        @rule(data=st.data())
        def save_a_draft(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(self.open))
            person = self.people[self.given[name][0]]
            version = assign.load_assignment(self.store, person, name).draft_version
            assert assign.save_draft(self.store, person, name, version, {}) == version + 1

        @rule()
        def let_leases_run_out(self) -> None:
            with self.store.writer() as writer:
                writer.connection.execute(update(tables.assignments).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))

        def _is_done(self, n: int, name: str) -> None:
            if name in self.open:
                self.open.remove(name)
            if name in self.done[n]:
                self.done[n].remove(name)
            self.done[n].append(name)

        @invariant()
        def what_stands_is_what_was_said_last(self) -> None:
            model = []
            for name, answer in self.stands.items():
                n, shown = self.given[name]
                ranking = tuple(tuple(shown[place] for place in sorted(tier)) for tier in answer.ranking)
                acceptable = None if answer.acceptable is None else tuple(shown[place] for place in sorted(answer.acceptable))
                model.append((f"r_{n}", tuple(shown), ranking, acceptable))
            says = [j for j in standing(self.store.judgements()) if j.ranking or j.acceptable is not None]
            assert sorted((j.rater, j.presentation, j.ranking, j.acceptable) for j in says) == sorted(model)

        @invariant()
        def slots_are_counted_right(self) -> None:
            table = tables.assignments
            with self.store.reading() as connection:
                held: dict[str, int] = {}
                for row in connection.execute(select(table).where(table.c.holds.is_(True))):
                    held[row.item_id] = held.get(row.item_id, 0) + 1
                for item in connection.execute(select(tables.items)):
                    assert item.taken == held.get(item.id, 0)
                    full = item.taken >= item.wanted
                    assert item.queue == ("closed" if full else "started" if item.taken else "fresh")

    return Raters


def test_what_stands_is_always_what_the_raters_said_last(with_items: bytes) -> None:
    checks: list[Any] = [HealthCheck.too_slow, HealthCheck.data_too_large]
    rules = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(machine(with_items), settings=rules)
