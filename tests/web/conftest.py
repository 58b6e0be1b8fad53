"""Stores and people for the tests of the ranking app."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Candidate, Message, Prompt, standing
from preftune.web import assign, auth, passwords
from preftune.web.assign import Answer, Assignment, Empty
from preftune.web.settings import LabelSettings

PASSWORD = "a few words in a row"
ASSIGNMENTS, ITEMS = tables.assignments, tables.items


@pytest.fixture(autouse=True)
def _quick_passwords(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hash at the least cost: what it costs in earnest is the library's affair."""
    monkeypatch.setattr(passwords, "HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    passwords.hash_of_nobody.cache_clear()
    yield
    passwords.hash_of_nobody.cache_clear()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of an empty store: copying it is quicker than making one."""
    path = tmp_path_factory.mktemp("empty") / "s.db"
    with Store.create(path) as store:
        store.checkpoint()
    return path.read_bytes()


@pytest.fixture
def store(tmp_path: Path, empty_store: bytes) -> Iterator[Store]:
    """An empty SQLite store."""
    (tmp_path / "s.db").write_bytes(empty_store)
    with Store.open(tmp_path / "s.db") as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres"])
def any_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store in each of the databases that one can live in."""
    if request.param == "sqlite":
        yield request.getfixturevalue("store")
        return
    with Store.create(request.getfixturevalue("fresh_postgres")()) as opened:
        yield opened


@pytest.fixture
def plain() -> LabelSettings:
    """One rater an item, no checks in between: what comes next is what is there."""
    return LabelSettings(overlap_share=0, gold_share=0, retest_share=0)


@pytest.fixture(scope="session")
def rater() -> Callable[..., auth.Person]:
    """Return a new person: rater(store, "ann"), rater(store, "bob", "owner"). Their password is "a few words in a row"."""

    def make(store: Store, name: str, role: auth.Role = "rater") -> auth.Person:
        return auth.add_person(store, name, PASSWORD, role)

    return make


@pytest.fixture(scope="session")
def ask() -> Callable[..., Prompt]:
    """Add a prompt with answers and return it: ask(store, "which?", "a", "b")."""

    def add(store: Store, words: str, *answers: str, **about: Any) -> Prompt:
        prompt = Prompt(messages=(Message(role="user", content=words),))
        store.add([prompt], [Candidate(prompt_id=prompt.id, text=answer, **about) for answer in answers])
        return prompt

    return add


@pytest.fixture
def ann(store: Store, rater: Callable[..., auth.Person]) -> auth.Person:
    """A rater."""
    return rater(store, "Ann")


@pytest.fixture
def bob(store: Store, rater: Callable[..., auth.Person]) -> auth.Person:
    """Another rater."""
    return rater(store, "Bob")


@pytest.fixture
def olga(store: Store, rater: Callable[..., auth.Person]) -> auth.Person:
    """An owner."""
    return rater(store, "Olga", "owner")


@pytest.fixture(scope="session")
def take() -> Callable[[Store, auth.Person, LabelSettings], Assignment]:
    """Return the next assignment of a person, who must get one: take(store, person, settings)."""

    def next_one(store: Store, person: auth.Person, settings: LabelSettings) -> Assignment:
        found = assign.next_assignment(store, person, settings)
        assert isinstance(found, Assignment), found
        return found

    return next_one


@pytest.fixture(scope="session")
def why_none() -> Callable[[Store, auth.Person, LabelSettings], str]:
    """Return the reason why a person gets nothing, who must get nothing."""

    def reason(store: Store, person: auth.Person, settings: LabelSettings) -> str:
        found = assign.next_assignment(store, person, settings)
        assert isinstance(found, Empty), found
        return found.reason

    return reason


@pytest.fixture(scope="session")
def judge_all() -> Callable[..., list[Assignment]]:
    """Let a person judge until there is nothing left, and return what was given."""

    def judge(store: Store, person: auth.Person, settings: LabelSettings, answer: Answer | None = None) -> list[Assignment]:
        given = []
        while isinstance(task := assign.next_assignment(store, person, settings), Assignment):
            given.append(task)
            assign.submit(store, person, task.id, f"submission-{task.id[:20]}", answer or Answer(ranking=[[0], [1]]))
        return given

    return judge


@pytest.fixture(scope="session")
def run_out() -> Callable[[Store], None]:
    """Let all leases have run out a second ago."""

    def age(store: Store) -> None:
        with store.writer() as writer:
            writer.connection.execute(update(ASSIGNMENTS).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))

    return age


@pytest.fixture(scope="session")
def consistent() -> Callable[[Store], None]:
    """Check what must hold of every store at any time, by counting the slow way."""
    return _check


def _check(store: Store) -> None:
    judgements = list(store.judgements())
    stands = {j.id for j in standing(judgements)}
    with store.reading() as connection:
        rows = connection.execute(select(ASSIGNMENTS)).all()
        for item in connection.execute(select(ITEMS)).all():
            held = [row for row in rows if row.item_id == item.id and row.holds]
            assert item.taken == len(held), "a slot is counted that nobody holds, or one that is held is not"
            if item.purpose == "normal":
                full = item.taken >= item.wanted
                assert item.queue == ("closed" if full else "started" if item.taken else "fresh")
        for row in rows:
            assert (row.state == "submitted") == (row.judgement_id is not None)
            assert row.judgement_id is None or row.judgement_id in stands
            assert row.head_id is None or row.head_id in stands
            assert row.state != "submitted" or row.holds or row.purpose != "normal"
            assert row.state != "skipped" or not row.holds
        said = set(connection.execute(select(tables.submissions.c.judgement_id)).scalars())
    assert len({j.id for j in judgements}) == len(judgements) >= len(said)
