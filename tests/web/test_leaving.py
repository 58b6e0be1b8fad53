"""A person who goes: what is said before, what is deleted, what stays, and that no trace is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, text

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Demonstration
from preftune.web import assign, audit, auth, erasure
from preftune.web.auth import AuthError, Person
from preftune.web.settings import LabelSettings

PASSWORD = "a few words in a row"
HERE = "192.0.2.7"


def rows(store: Store, table: Any) -> list[Any]:
    with store.reading() as connection:
        return list(connection.execute(select(table)))


@pytest.fixture
def leaver(any_store: Store, rater: Callable[..., Person], ask: Callable[..., Any], plain: LabelSettings) -> tuple[Store, Person, Person]:
    """An owner, and a rater who has judged with words, edited, withdrawn, skipped and left something open; another has judged too."""
    store = any_store
    boss, ann, bob = rater(store, "Olga", "owner"), rater(store, "Anneliese Maier"), rater(store, "Bob")
    for n in range(7):
        ask(store, f"question {n}", "yes", "no")
    assign.fill_items(store, plain)
    for n in range(3):
        task = assign.next_assignment(store, ann, plain)
        assert isinstance(task, assign.Assignment)
        answer = assign.Answer(ranking=[[0], [1]], rationale=f"Anneliese says so {n}", rewrite="Maier's version", active_seconds=5)
        assign.submit(store, ann, task.id, f"submission-{n}", answer)
    assign.submit(store, ann, task.id, "submission-edited", assign.Answer(ranking=[[1], [0]], rationale="Maier thinks again"))
    assign.undo(store, ann)
    task = assign.next_assignment(store, ann, plain)
    assert isinstance(task, assign.Assignment)
    assign.skip(store, ann, task.id, "other")
    task = assign.next_assignment(store, ann, plain)
    assert isinstance(task, assign.Assignment)
    assign.save_draft(store, ann, task.id, 0, {"rationale": "Maier has not finished"})
    other = assign.next_assignment(store, bob, plain)
    assert isinstance(other, assign.Assignment)
    assign.submit(store, bob, other.id, "submission-0", assign.Answer(ranking=[[0], [1]]))
    store.add([], [], [], [Demonstration(prompt_id=other.prompt.id, text="as Anneliese would", author=ann.pseudonym)])
    auth.log_in(store, "Anneliese Maier", PASSWORD, address=HERE)
    return store, boss, ann


def taken_is_what_is_held(store: Store) -> None:
    with store.reading() as connection:
        for item in connection.execute(select(tables.items)).all():
            held = select(tables.assignments.c.id).where(tables.assignments.c.item_id == item.id, tables.assignments.c.holds.is_(True))
            assert item.taken == len(connection.execute(held).all())


def test_before_it_goes_it_is_said_what_goes(leaver: tuple[Store, Person, Person]) -> None:
    store, _, ann = leaver
    assert erasure.personal_data(store, ann.id) == erasure.PersonalData(
        judgements=5, texts=4, demonstrations=1, open_tasks=1, skipped=1, sessions=1
    )  # 3 and the edit and the withdrawal; the undone one is the open one, then skipped


def test_a_person_who_goes_leaves_judgements_without_a_name(leaver: tuple[Store, Person, Person]) -> None:
    store, boss, ann = leaver
    before = list(store.judgements())
    auth.delete_person(store, boss, ann.id, judgements="keep_anonymous")
    assert list(store.judgements()) == before
    assert [p.name for p in auth.people(store)] == ["Olga", "Bob"]
    with pytest.raises(AuthError, match="wrong"):
        auth.log_in(store, "Anneliese Maier", PASSWORD, address=HERE)
    with pytest.raises(AuthError, match="no such person"):
        auth.delete_person(store, boss, ann.id, judgements="delete")
    taken_is_what_is_held(store)
    assert {row.state for row in rows(store, tables.assignments)} == {"submitted"}
    assert rows(store, tables.sessions) == []
    assert audit.verify(store) == []
    assert auth.accept_invitation(store, auth.invite(store, boss, "rater"), "Anneliese Maier", PASSWORD)  # the name is free


def test_a_person_who_goes_with_everything_leaves_no_trace(leaver: tuple[Store, Person, Person]) -> None:
    store, boss, ann = leaver
    auth.delete_person(store, boss, ann.id, judgements="delete")
    assert [j.rater for j in store.judgements()] == [p.pseudonym for p in auth.people(store) if p.name == "Bob"]
    assert list(store.demonstrations()) == []
    taken_is_what_is_held(store)
    assert [row.taken for row in rows(store, tables.items) if row.taken] == [1]
    assert audit.verify(store) == []
    with store.reading() as connection:
        for table in tables.metadata.sorted_tables:
            kept = " ".join(str(row) for row in connection.execute(select(table))).lower()
            assert "anneliese" not in kept, table.name
            assert "maier" not in kept, table.name
    if store.path:
        for file in store.path.parent.glob(f"{store.path.name}*"):
            assert b"maier" not in file.read_bytes().lower(), file.name
            assert b"anneliese" not in file.read_bytes().lower(), file.name


def test_the_audit_trail_names_nobody(leaver: tuple[Store, Person, Person]) -> None:
    store, boss, ann = leaver
    auth.disable(store, boss, ann.id)
    said = " ".join(f"{e.actor} {e.action} {e.object} {e.detail}" for e in audit.entries(store))
    assert "add person" in said
    assert "log in" in said
    for secret in ("olga", "anneliese", "maier", HERE, PASSWORD):
        assert secret not in said.lower()
    with store.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM audit")).scalar() == len(audit.entries(store, limit=1000))
