"""The audit trail: in order, in one chain, and no change goes unseen."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, insert, select, update

from preftune.data import tables
from preftune.data.store import Store
from preftune.web import audit

AUDIT = tables.audit


@pytest.fixture
def trail(store: Store) -> Store:
    for number in range(1, 6):
        audit.record(store, "r_1", "do", f"thing {number}", {"n": number, "share": 0.1})
    return store


def change(store: Store, statement: object) -> None:
    with store.writer() as writer:
        writer.connection.execute(statement)  # type: ignore[call-overload]


def test_entries_come_in_order_and_by_pages(trail: Store) -> None:
    assert [(e.number, e.object, e.detail["n"]) for e in audit.entries(trail, limit=2)] == [(1, "thing 1", 1), (2, "thing 2", 2)]
    assert [e.number for e in audit.entries(trail, after=3)] == [4, 5]
    assert audit.last_number(trail) == 5
    assert audit.verify(trail) == []


def test_an_empty_trail_is_whole(store: Store) -> None:
    assert audit.verify(store) == audit.entries(store) == []
    assert audit.last_number(store) == 0


def test_each_hash_is_that_of_the_one_before_and_of_what_the_entry_says(trail: Store) -> None:
    with trail.reading() as connection:
        rows = connection.execute(select(AUDIT).order_by(AUDIT.c.number)).all()
    previous = "0" * 64
    for row in rows:
        said = [previous, row.number, row.at.isoformat(timespec="microseconds"), row.actor, row.action, row.object, row.detail]
        previous = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        assert row.hash == previous


@pytest.mark.parametrize(
    ("column", "value"),
    [("actor", "r_2"), ("action", "undo"), ("object", "thing 9"), ("detail", {"n": 3, "share": 0.2}), ("hash", "f" * 64)],
)
def test_a_changed_entry_is_seen(trail: Store, column: str, value: object) -> None:
    change(trail, update(AUDIT).where(AUDIT.c.number == 3).values({column: value}))
    assert any("entry 3 was changed" in line for line in audit.verify(trail))


def test_a_changed_entry_with_a_hash_made_anew_is_seen_at_the_next(trail: Store) -> None:
    with trail.reading() as connection:
        row = connection.execute(select(AUDIT).where(AUDIT.c.number == 3)).one()
    said = [row.previous_hash, 3, row.at.isoformat(timespec="microseconds"), "r_2", row.action, row.object, row.detail]
    forged = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    change(trail, update(AUDIT).where(AUDIT.c.number == 3).values(actor="r_2", hash=forged))
    assert audit.verify(trail) == ["entry 4 does not follow on entry 3: one of both was replaced"]


def test_entries_that_are_taken_out_are_missed(trail: Store) -> None:
    change(trail, delete(AUDIT).where(AUDIT.c.number == 2))
    assert audit.verify(trail) == ["entry 2 is missing"]
    change(trail, delete(AUDIT).where(AUDIT.c.number == 3))
    assert audit.verify(trail) == ["entries 2 to 3 are missing"]


def test_an_entry_put_in_at_the_end_by_hand_does_not_follow(trail: Store) -> None:
    with trail.reading() as connection:
        row = connection.execute(select(AUDIT).where(AUDIT.c.number == 2)).one()
    change(trail, insert(AUDIT).values({**row._mapping, "number": 6}))
    assert audit.verify(trail) == [
        "entry 6 does not follow on entry 5: one of both was replaced",
        "entry 6 was changed after it was written",
    ]


def test_an_entry_is_there_with_the_transaction_that_it_speaks_of_or_not_at_all(store: Store) -> None:
    with pytest.raises(RuntimeError), store.writer() as writer:
        audit.record(writer.connection, "r_1", "do")
        raise RuntimeError
    assert audit.entries(store) == []


def test_many_at_once_make_one_chain(any_store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: audit.record(any_store, f"r_{n}", "do"), range(40)))
    assert audit.verify(any_store) == []
    assert [e.number for e in audit.entries(any_store)] == list(range(1, 41))
