"""The store: idempotent, whole or not at all, upgraded by migrations alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, text
from tests.processes import READY

from preftune.data import database, tables
from preftune.data.database import VERSION_TABLE, engine_for, revisions, upgrade, url_of, writing
from preftune.data.store import Store
from preftune.errors import DataError, PreftuneError
from preftune.records import GOLD, RETEST, Candidate, Demonstration, Judgement, Message, Prompt


def asked(words: str, **fields: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=words),), **fields)


def judged(prompt: Prompt, *tiers: str, rater: str = "ann", **fields: object) -> tuple[list[Candidate], Judgement]:
    """Return candidates and a judgement from tiers such as "good", "fair=so so", "bad" (ties joined by =)."""
    candidates = [[Candidate(prompt_id=prompt.id, text=answer) for answer in tier.split("=")] for tier in tiers]
    ranking = tuple(tuple(c.id for c in tier) for tier in candidates)
    return [c for tier in candidates for c in tier], Judgement(prompt_id=prompt.id, ranking=ranking, rater=rater, **fields)


def fill(store: Store, number: int) -> None:
    for n in range(number):
        prompt = asked(f"question {n}")
        candidates, judgement = judged(prompt, "yes", "no")
        store.add([prompt], candidates, [judgement])


def test_what_was_added_is_read_back_as_it_was(tmp_path: Path) -> None:
    prompt = Prompt(
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="  ¿Qué?\r\n"),
            Message(role="assistant", content="שלום"),
            Message(role="user", content="😀\u2028x"),
        ),
        kind="chat",
        check="assert True",
    )
    candidates = [
        Candidate(prompt_id=prompt.id, text=t, source="model-a", sampling={"temperature": 0.7, "seed": 3}) for t in ("a", "b", "c")
    ]
    a, b, c = (candidate.id for candidate in candidates)
    judgement = Judgement(
        prompt_id=prompt.id,
        ranking=((a,), (b, c)),
        strength=2,
        acceptable=(),
        rewrite="better",
        rationale="why",
        aspects={"tone": {"a": 4.0}},
        rater="ann",
        active_seconds=12.5,
        presentation=(c, a, b),
        picked_by="random",
        picked_probability=0.25,
        created=datetime(2025, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=5))),
    )
    undone = Judgement(prompt_id=prompt.id, ranking=((b,), (a,)), rater="ann", supersedes=judgement.id, acceptable=None)
    demonstration = Demonstration(prompt_id=prompt.id, text="so", author="bob")
    with Store.create(tmp_path / "s.db") as store:
        assert store.add([prompt], candidates, [judgement, undone], [demonstration]) == {
            "prompts": 1,
            "candidates": 3,
            "judgements": 2,
            "demonstrations": 1,
        }
    with Store.open(tmp_path / "s.db") as store:
        assert list(store.prompts()) == [prompt]
        assert list(store.candidates(prompt.id)) == candidates
        assert list(store.candidates("0" * 16)) == []
        assert list(store.judgements()) == [judgement, undone]
        assert list(store.demonstrations()) == [demonstration]


def test_a_judgement_keeps_the_id_it_came_with_so_that_what_took_it_back_still_does(tmp_path):
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    a, b = (Candidate(prompt_id=prompt.id, text=text) for text in "ab")
    said = Judgement(prompt_id=prompt.id, ranking=((a.id,), (b.id,)), rater="ann")
    undone = Judgement(prompt_id=prompt.id, rater="ann", supersedes=said.id)
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt], [a, b], [said, undone])
        with store.writer() as writer:
            writer.connection.execute(tables.judgements.update().values(rater="somebody"))
        assert [j.id for j in store.judgements()] == [said.id, undone.id]
        assert list(store.pairs()) == []


def test_adding_twice_adds_nothing(tmp_path: Path) -> None:
    prompt = asked("one")
    candidates, judgement = judged(prompt, "yes", "no")
    again = judgement.model_copy(update={"created": datetime.now(UTC)})
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt, prompt], [*candidates, *candidates], [judgement, again])
        before = store.counts()
        assert store.add([prompt], candidates, [again]) == dict.fromkeys(before, 0)
        assert before == store.counts() == {"prompts": 1, "candidates": 2, "judgements": 1, "demonstrations": 0}
        assert next(store.judgements()).created == judgement.created


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=2), st.sampled_from(["x", "y", "z"])), max_size=12))
@settings(max_examples=15, deadline=None)
def test_counts_are_those_of_distinct_records_in_any_order(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    prompts = [asked(question) for question, _ in rows]
    candidates = [Candidate(prompt_id=asked(question).id, text=answer) for question, answer in rows]
    with Store.create(tmp_path_factory.mktemp("store") / "s.db") as store:
        new = [store.add([p], [c]) for p, c in zip(prompts, candidates, strict=True)]
        assert sum(n["prompts"] for n in new) == store.counts()["prompts"] == len({q for q, _ in rows})
        assert sum(n["candidates"] for n in new) == store.counts()["candidates"] == len(set(rows))


def test_a_later_record_fills_an_empty_kind_or_check_and_changes_no_other(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store:
        store.add([asked("a"), asked("a", kind="maths"), asked("b", kind="code")])
        store.add([asked("a", kind="other", check="assert f()"), asked("b", kind="other")])
        assert [(p.kind, p.check) for p in store.prompts()] == [("maths", "assert f()"), ("code", "")]


def test_pairs_come_from_the_majority_with_the_prompts_fields(tmp_path: Path) -> None:
    prompt = asked("which", kind="code", check="assert True")
    first, ann = judged(prompt, "a", "b=c")
    _, bob = judged(prompt, "a", "b", rater="bob")
    _, cem = judged(prompt, "b", "a", rater="cem")
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt, asked("unjudged")], first, [ann, bob, cem])
        pairs = {(p.chosen, p.rejected): p for p in store.pairs()}
    # a over b: 2 of 3 votes, so 2/3 − 1/3; a over c: one vote of one; b and c tie.
    assert set(pairs) == {("a", "b"), ("a", "c")}
    assert pairs["a", "b"].weight == pytest.approx(1 / 3)
    assert pairs["a", "c"].weight == 1
    assert {(p.group, p.kind, p.check, p.messages) for p in pairs.values()} == {(prompt.id, "code", "assert True", prompt.messages)}


def test_reading_goes_over_many_pages_in_order_of_arrival(tmp_path: Path) -> None:
    prompts = [asked(f"{n}") for n in range(1203)]
    with Store.create(tmp_path / "s.db") as store:
        store.add(prompts)
        assert [p.text for p in store.prompts()] == [f"{n}" for n in range(1203)]
        assert store.known("prompts", [prompts[5].id, "0" * 16]) == {prompts[5].id}


ORPHANS: dict[str, dict[str, list[object]]] = {
    "a candidate of an unknown prompt": {"candidates": [Candidate(prompt_id="0" * 16, text="x")]},
    "a demonstration of an unknown prompt": {"demonstrations": [Demonstration(prompt_id="0" * 16, text="x")]},
    "a ranking of a candidate that is not there": {"judgements": [judged(asked("known"), "a", "new")[1]]},
    "a ranking of another prompt's candidates": {
        "judgements": [judged(asked("known"), "a", "b")[1].model_copy(update={"prompt_id": asked("other").id})]
    },
    "a judgement that supersedes an unknown one": {
        "judgements": [judged(asked("known"), "a", "b")[1].model_copy(update={"supersedes": "0" * 16})]
    },
}


@pytest.mark.parametrize("case", ORPHANS)
def test_a_record_of_something_unknown_is_refused_and_nothing_is_stored(tmp_path: Path, case: str) -> None:
    known = judged(asked("known"), "a", "b")[0]
    extra = ORPHANS[case]
    with Store.create(tmp_path / "s.db") as store:
        with pytest.raises(DataError, match=r"not in the store|not one of prompt"):
            store.add(
                [asked("known"), asked("other")],
                [*known, *extra.get("candidates", [])],
                extra.get("judgements", []),
                extra.get("demonstrations", []),
            )
        assert set(store.counts().values()) == {0}


def test_judgements_that_check_a_rater_are_kept_and_are_no_votes(tmp_path: Path) -> None:
    prompt = asked("which")
    candidates, vote = judged(prompt, "a", "b")
    checks = [judged(prompt, "b", "a", picked_by=purpose)[1] for purpose in (GOLD, RETEST)]
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt, asked("gold alone")], candidates, [vote])
        before = store.fingerprint()
        other, alone = judged(asked("gold alone"), "x", "y", picked_by=GOLD)
        store.add([], other, [*checks, alone])
        assert store.counts()["judgements"] == 4
        assert [(p.chosen, p.rejected, p.weight) for p in store.pairs()] == [("a", "b", 1.0)]
        assert [(p.text, said) for p, said, _ in store.judged()] == [("which", [vote])]
        assert store.fingerprint() == before


def test_a_frozen_store_does_not_see_what_others_write(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store, Store.open(tmp_path / "s.db") as other:
        store.add([asked("a")])
        with store.frozen():
            assert store.counts()["prompts"] == 1
            other.add([asked("b")])
            assert [p.text for p in store.prompts()] == ["a"]
        assert store.counts()["prompts"] == 2


def test_the_fingerprint_hangs_on_content_and_prompt_order_alone(tmp_path: Path) -> None:
    one, two = asked("one"), asked("two")
    (first, said), (second, other) = judged(one, "a", "b"), judged(two, "a", "b")
    prints = []
    for name, prompts, judgements in (("x", [one, two], [said, other]), ("y", [one, two], [other, said]), ("z", [two, one], [said, other])):
        with Store.create(tmp_path / name) as store:
            store.add(prompts, [*first, *second], judgements)
            prints.append(store.fingerprint())
    assert prints[0] == prints[1] != prints[2]


# Opening and versions


def test_opening_what_is_no_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("hello, this is no database")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE photos (id)")
    other.close()
    for name, sentence in {
        "nothing.db": "there is no store here",
        "empty.db": "this file is empty",
        "text.db": "this file is not a store",
        "other.db": "no store in it",
        "": "this is a folder",
    }.items():
        with pytest.raises(DataError, match=sentence):
            Store.open(tmp_path / name)
    assert not (tmp_path / "nothing.db").exists()


def test_creating_never_takes_over_another_file(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello, this is no database")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE photos (id)")
    other.close()
    with pytest.raises(DataError, match="not a store"):
        Store.create(tmp_path / "text.db")
    with pytest.raises(DataError, match="belongs to another program \\(it holds photos\\)"):
        Store.create(tmp_path / "other.db")
    assert (tmp_path / "text.db").read_text() == "hello, this is no database"


def test_an_empty_file_becomes_a_store_and_a_store_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "100%" / "s.db"
    path.parent.mkdir()
    path.touch()
    with Store.create(path) as store:
        store.add([asked("a")])
    with Store.create(str(path)) as store:
        assert store.counts()["prompts"] == 1


@pytest.mark.parametrize("url", ["sqlite://", "mysql://host/name", "://"])
def test_a_url_that_cannot_hold_a_store_is_refused(url: str) -> None:
    with pytest.raises(DataError):
        Store.open(url)


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    Store.create(tmp_path / "s.db").close()
    engine = engine_for(url_of(tmp_path / "s.db"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "version_table": VERSION_TABLE})
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


# Rows as each version of the schema wrote them, in plain SQL. A new version adds its own.
WRITTEN_BY = {
    "0001": [
        """INSERT INTO prompts (id, messages, kind, check_code)
           VALUES ('ID', '[{"role": "user", "content": "hi"}]', 'chat', 'assert 1')""",
        "INSERT INTO candidates (id, prompt_id, text, source, sampling) VALUES ('aaaa', 'ID', 'yes', 'm', '{\"seed\": 1}')",
        "INSERT INTO candidates (id, prompt_id, text, source, sampling) VALUES ('bbbb', 'ID', 'no', 'm', '{}')",
        """INSERT INTO judgements (id, prompt_id, ranking, strength, acceptable, aspects, rater, presentation, picked_by, created)
           VALUES ('cccc', 'ID', '[["aaaa"], ["bbbb"]]', 1, NULL, '{}', 'ann', '[]', 'import', '2025-01-02 03:04:05.000000')""",
        "INSERT INTO demonstrations (id, prompt_id, text, author) VALUES ('dddd', 'ID', 'hello', 'bob')",
    ],
}
WRITTEN_BY["0002"] = [
    *WRITTEN_BY["0001"],
    "UPDATE judgements SET rewrite_of = NULL",
]
WRITTEN_BY["0003"] = [
    *WRITTEN_BY["0002"],
    """INSERT INTO people (id, name, name_key, role, pseudonym, password_hash, disabled, created)
       VALUES ('p1', 'Ann', 'ann', 'rater', 'r_1', 'hash', 0, '2026-01-02 03:04:05.000000')""",
    """INSERT INTO items (id, prompt_id, candidate_ids, task, purpose, picked_by, priority, wanted, taken, queue, shuffle, created)
       VALUES ('i1', 'ID', '["aaaa", "bbbb"]', 'pair', 'normal', 'random', 0, 1, 1, 'closed', 7, '2026-01-02 03:04:05.000000')""",
    """INSERT INTO assignments (id, item_id, person_id, purpose, presentation, state, holds, lease_until, lease_seconds, draft_version,
                                judgement_id, head_id, created, updated)
       VALUES ('a1', 'i1', 'p1', 'normal', '["aaaa", "bbbb"]', 'submitted', 1, '2026-01-02 03:04:05.000000', 1800, 1,
               'cccc', 'cccc', '2026-01-02 03:04:05.000000', '2026-01-02 03:04:05.000000')""",
    "INSERT INTO submissions (assignment_id, id, judgement_id, created) VALUES ('a1', 'once', 'cccc', '2026-01-02 03:04:05.000000')",
]
WRITTEN_BY["0004"] = [
    *WRITTEN_BY["0003"],
    "INSERT INTO consents (id, text, created) VALUES ('k1', 'It is kept.', '2026-01-02 03:04:05.000000')",
    """INSERT INTO feedback (about, kind, rater, prompt_id, judgement_id, said, candidate_ids, models, made, consent_id, created, expires)
       VALUES ('eeee', 'better', 'user-1', 'ID', 'cccc', 'cccc', '["aaaa", "bbbb"]', '["m", "n"]', '[]', 'k1',
               '2026-01-02 03:04:05.000000', '2026-03-02 03:04:05.000000')""",
]
WRITTEN_BY["0005"] = WRITTEN_BY["0004"]  # it has other indices alone


def test_every_version_of_the_schema_has_rows_to_upgrade_from() -> None:
    assert list(WRITTEN_BY) == revisions()


@pytest.mark.parametrize("version", WRITTEN_BY)
def test_a_store_of_each_version_is_upgraded_with_its_data(tmp_path: Path, version: str) -> None:
    engine = engine_for(url_of(tmp_path / "old.db"))
    upgrade(engine, "old.db", version)
    with writing(engine, "old.db") as connection:
        for statement in WRITTEN_BY[version]:
            connection.execute(text(statement.replace("'ID'", f"'{asked('hi').id}'").replace(":", "\\:")))
    engine.dispose()
    with Store.open(tmp_path / "old.db") as store:
        assert list(store.prompts()) == [asked("hi", kind="chat", check="assert 1")]
        assert [(p.chosen, p.rejected) for p in store.pairs()] == [("yes", "no")]
        assert next(store.judgements()).created == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert [(d.text, d.author) for d in store.demonstrations()] == [("hello", "bob")]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "s.db").close()
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    raw.close()
    for way in (Store.open, Store.create):
        with pytest.raises(DataError, match=r"newer preftune \(its schema is 9999, this one knows up to 0005\).*Upgrade preftune"):
            way(tmp_path / "s.db")


# Faults


def test_threads_of_one_process_write_in_turn_and_lose_nothing(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store, ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda n: store.add([asked(f"question {n}"), asked("the same")]), range(100)))
        assert store.counts()["prompts"] == 101


def test_a_thread_that_waits_too_long_for_another_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with Store.create(tmp_path / "s.db") as store, ThreadPoolExecutor(1) as other:
        with store.writer(), pytest.raises(PreftuneError, match=r"another program has been writing .* 0.1 seconds"):
            other.submit(store.add, [asked("a")]).result()
        other.submit(store.add, [asked("a")]).result()
        assert store.counts()["prompts"] == 1


def test_what_one_thread_froze_does_not_hold_for_others(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store, ThreadPoolExecutor(1) as other, store.frozen():
        assert store.counts()["prompts"] == 0
        other.submit(store.add, [asked("a")]).result()
        assert other.submit(store.counts).result()["prompts"] == 1
        assert store.counts()["prompts"] == 0


def test_a_commit_is_on_the_disk_and_what_is_deleted_is_overwritten(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store:
        with store.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        store.add([asked("the secret of Xanadu")])
        with store.writer() as writer:
            writer.connection.execute(delete(tables.prompts))
        store.checkpoint()
        assert b"Xanadu" not in (tmp_path / "s.db").read_bytes()
        assert (tmp_path / "s.db-wal").read_bytes() == b""


def test_the_file_is_in_wal_mode_and_keeps_foreign_keys(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store, writing(store._engine, store.where) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_full_disk_becomes_a_sentence_and_nothing_half_is_there(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store:
        with store._engine.connect() as connection:  # the file may not grow: what SQLite says of a full disk
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
        with pytest.raises(PreftuneError, match=r"the disk is full \(\d+ MiB free\)\. Make room\."):
            store.add([asked("x" * 5000 + str(n)) for n in range(2000)])
    with Store.open(tmp_path / "s.db") as store:
        assert store.counts()["prompts"] == 0


def test_a_locked_store_becomes_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.create(tmp_path / "s.db").close()
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    raw = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with Store.open(tmp_path / "s.db") as store, pytest.raises(PreftuneError, match=r"another program has been writing .* 0.1 seconds"):
        store.add([asked("a")])
    raw.close()


def test_a_damaged_file_becomes_a_sentence(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store:
        fill(store, 20)
    damaged = bytearray((tmp_path / "s.db").read_bytes())
    damaged[100:] = b"\xff" * (len(damaged) - 100)
    (tmp_path / "s.db").write_bytes(damaged)
    with pytest.raises(DataError, match="damaged or not a store"):
        Store.open(tmp_path / "s.db")


def _create_and_add(path: str, name: str, ready: object) -> None:
    ready.wait()  # type: ignore[attr-defined]
    with Store.create(path) as store:
        for n in range(25):
            store.add([asked(f"{name} {n}"), asked(f"both {n}")])


@pytest.mark.slow
def test_two_processes_at_once_make_one_store_and_lose_nothing(tmp_path: Path) -> None:
    ready = READY.Barrier(2)
    workers = [READY.Process(target=_create_and_add, args=(str(tmp_path / "s.db"), name, ready)) for name in ("one", "two")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    with Store.open(tmp_path / "s.db") as store:
        assert store.counts()["prompts"] == 75


def _add_without_end(path: str, started: object) -> None:
    with Store.open(path) as store, store.writer() as writer:
        writer.add([asked(f"half {n}") for n in range(2000)])
        started.set()  # type: ignore[attr-defined]
        time.sleep(60)


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_half(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as store:
        fill(store, 3)
    started = READY.Event()
    worker = READY.Process(target=_add_without_end, args=(str(tmp_path / "s.db"), started))
    worker.start()
    assert started.wait(60)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with Store.open(tmp_path / "s.db") as store:
        assert store.counts() == {"prompts": 3, "candidates": 6, "judgements": 3, "demonstrations": 0}
        store.add([asked("and on")])


def test_a_postgresql_store_does_the_same(tmp_path: Path, fresh_postgres: Callable[[], str]) -> None:
    with Store.create(fresh_postgres()) as store, Store.create(tmp_path / "s.db") as file:
        for each in (store, file):
            fill(each, 3)
            fill(each, 3)
        assert store.counts() == file.counts() == {"prompts": 3, "candidates": 6, "judgements": 3, "demonstrations": 0}
        assert list(store.pairs()) == list(file.pairs())
        assert store.fingerprint() == file.fingerprint()
        with pytest.raises(DataError, match="not in the store"):
            store.add([], [Candidate(prompt_id="0" * 16, text="x")])
