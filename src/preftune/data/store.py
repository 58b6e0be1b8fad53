"""The store: every prompt, candidate, judgement and demonstration of a team, in an SQLite file or a PostgreSQL database.

Records are known by their content: adding one twice adds nothing, and nothing is ever changed, but for an empty `kind` or
`check` of a prompt, which a later record of the same prompt fills. Reading gives records in the order in which they came.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, Table, any_, bindparam, func, select, update

from preftune.data import database, tables
from preftune.data.aggregate import ONE_WORD, Preference, by_votes
from preftune.data.database import (
    check_file,
    database_errors,
    engine_for,
    insert_new,
    reading,
    revision_of,
    revisions,
    upgrade,
    url_of,
    where_of,
    writing,
)
from preftune.errors import DataError
from preftune.records import CHECKS, Candidate, Demonstration, Judgement, Pair, Prompt, pairs_of, standing

CHUNK = 500  # records a statement
STREAMED = 5_000  # rows of a large answer in memory at a time
KINDS = {
    "prompts": tables.prompts,
    "candidates": tables.candidates,
    "judgements": tables.judgements,
    "demonstrations": tables.demonstrations,
}
JUDGEMENT_COLUMNS = tables.judgements.c.keys()
T = TypeVar("T")


class Store:
    """An open store; close it, or use it in a `with`. Make one by `Store.create` or `Store.open`.

    where: how messages name it. path: its file, or None where it lives in PostgreSQL. made: where it is, if this opening made it.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self.where = where
        self.path = Path(where) if engine.dialect.name == "sqlite" else None
        self.made: str | None = None
        self._engine = engine
        self._frozen = threading.local()
        self._turn = threading.Lock()

    @classmethod
    def create(cls, path_or_url: Path | str) -> Store:
        """Return the store at a path or URL, made where there is none yet (an empty file or database counts as none).

        Raises DataError where something else is there.
        """
        return cls._at(path_or_url, new=True)

    @classmethod
    def open(cls, path_or_url: Path | str) -> Store:
        """Return the store at a path or URL; one of an older version of preftune is upgraded first.

        Raises DataError where there is none, where the file is something else, or where a newer version has written it.
        """
        return cls._at(path_or_url, new=False)

    @classmethod
    def _at(cls, path_or_url: Path | str, *, new: bool) -> Store:
        url = url_of(path_or_url)
        where = where_of(url)
        if url.get_backend_name() == "sqlite":
            check_file(Path(where), new=new)
        store = cls(engine_for(url), where)
        try:
            store._check_version(new=new)
        except BaseException:
            store.close()
            raise
        return store

    def _check_version(self, *, new: bool) -> None:
        found, known = revision_of(self._engine, self.where, is_new=new), revisions()
        if found is None and not new:
            raise DataError("there is a database here, but no store in it", self.where, "Make one with preftune init, or give another.")
        if found is not None and found not in known:
            raise DataError(
                f"the store was written by a newer preftune (its schema is {found}, this one knows up to {known[-1]})",
                self.where,
                "Upgrade preftune: pip install -U preftune.",
            )
        if found != known[-1]:
            upgrade(self._engine, self.where)
        if found is None:
            self.made = str(self.path.resolve()) if self.path else self.where

    def checkpoint(self) -> None:
        """Write what an SQLite file's log still holds into the file and empty the log; a PostgreSQL database sees to it itself."""
        if self.path is not None:
            with self._one_at_a_time(), database_errors(self.where), self._engine.connect().execution_options(begin="") as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Yield a Writer; all that it adds is there at the end of the `with`, or nothing."""
        with self._one_at_a_time(), writing(self._engine, self.where) as connection:
            yield Writer(connection, self.where)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        # SQLite has one writer at a time. Threads of one process wait for each other here, where the next one goes on at once;
        # in the database they would sleep, up to a tenth of a second each time, and look again.
        if self.path is None:
            yield
        elif self._turn.acquire(timeout=database.BUSY_SECONDS):
            try:
                yield
            finally:
                self._turn.release()
        else:
            raise database.locked(self.where)

    def add(
        self,
        prompts: Iterable[Prompt] = (),
        candidates: Iterable[Candidate] = (),
        judgements: Iterable[Judgement] = (),
        demonstrations: Iterable[Demonstration] = (),
    ) -> dict[str, int]:
        """Add records in one transaction and return how many of each kind were new.

        Raises DataError where a record speaks of a prompt, candidate or judgement that is not there.
        """
        with self.writer() as writer:
            new = writer.add(prompts, candidates, judgements, demonstrations)
        return {kind: len(ids) for kind, ids in new.items()}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let all reading inside the `with` see one state of the store, whatever others write meanwhile (in this thread)."""
        with reading(self._engine, self.where) as connection:
            connection.execute(select(tables.prompts.c.number).limit(1)).first()  # a database fixes the state at the first look
            self._frozen.connection = connection
            try:
                yield
            finally:
                del self._frozen.connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of the store; for what the methods here do not give."""
        frozen: Connection | None = getattr(self._frozen, "connection", None)
        if frozen is not None:
            yield frozen
        else:
            with reading(self._engine, self.where) as connection:
                yield connection

    def known(self, kind: str, ids: Iterable[str]) -> set[str]:
        """Return those of these ids that the store holds. kind: "prompts", "candidates", "judgements" or "demonstrations"."""
        with self.reading() as connection:
            return {found for chunk in _chunks(ids) for found in _known(connection, KINDS[kind], chunk)}

    def counts(self) -> dict[str, int]:
        """Return the number of records of each kind."""
        with self.reading() as connection:
            return {kind: int(connection.execute(select(func.count()).select_from(table)).scalar_one()) for kind, table in KINDS.items()}

    def fingerprint(self) -> str:
        """Return a sha256 of all that a snapshot is made from: prompts in their order, judgements and demonstrations in any.

        Judgements that check a rater (`records.CHECKS`) are no part of it.
        """
        digest = hashlib.sha256()
        judgements, prompts = tables.judgements.c, tables.prompts.c
        with self.reading() as connection:
            for rows in _stream(connection, select(prompts.id, prompts.kind, prompts.check_code).order_by(prompts.number)):
                digest.update("".join(json.dumps([*prompt]) for prompt in rows).encode())
            said = select(judgements.id, judgements.rewrite, judgements.rewrite_of).where(judgements.picked_by.not_in(CHECKS))
            for rows in _stream(connection, said.order_by(_bytes_of(connection, judgements.id))):
                digest.update("".join(json.dumps([*judgement]) for judgement in rows).encode())
            wished = tables.demonstrations.c.id
            for rows in _stream(connection, select(wished).order_by(_bytes_of(connection, wished))):
                digest.update("".join(demonstration.id for demonstration in rows).encode())
        return digest.hexdigest()

    def details_fingerprint(self) -> str:
        """Return a sha256 of what no id depends on: when and how each judgement came to be, and the source of each candidate."""
        digest = hashlib.sha256()
        judgements, candidates = tables.judgements.c, tables.candidates.c
        with self.reading() as connection:
            made = select(judgements.id, judgements.picked_by, judgements.created).order_by(_bytes_of(connection, judgements.id))
            for rows in _stream(connection, made):
                told = (json.dumps([row.id, row.picked_by, _utc(row.created).isoformat()]) for row in rows)
                digest.update("".join(told).encode())
            sources = select(candidates.id, candidates.source).order_by(_bytes_of(connection, candidates.id))
            for rows in _stream(connection, sources):
                digest.update("".join(json.dumps([*candidate]) for candidate in rows).encode())
        return digest.hexdigest()

    def prompts(self) -> Iterator[Prompt]:
        """Yield every prompt, oldest first."""
        return map(prompt_from_row, self._rows(tables.prompts))

    def candidates(self, prompt_id: str | None = None) -> Iterator[Candidate]:
        """Yield the candidates of one prompt, or all, oldest first."""
        return map(candidate_from_row, self._rows(tables.candidates, prompt_id))

    def judgements(self, prompt_id: str | None = None) -> Iterator[Judgement]:
        """Yield the judgements on one prompt, or all, superseded ones included, oldest first."""
        return map(judgement_from_row, self._rows(tables.judgements, prompt_id))

    def demonstrations(self) -> Iterator[Demonstration]:
        """Yield every demonstration, oldest first."""
        return map(_demonstration, self._rows(tables.demonstrations))

    def imports(self) -> Iterator[dict[str, Any]]:
        """Yield what was imported, oldest first: source, sha256, format, rows_read, rows_new, rows_set_aside, created."""
        for row in self._rows(tables.imports):
            yield {**row._mapping, "created": _utc(row.created)}

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs that the judgements give over all raters (`aggregate.by_votes`); `group` is the prompt's id."""
        for prompt, judgements, texts in self.judged():
            yield from pairs_from(prompt, judgements, texts)

    def judged(self) -> Iterator[tuple[Prompt, list[Judgement], dict[str, str]]]:
        """Yield each prompt that has judgements, with them and with the text of each of its candidates by id.

        Judgements that check a rater (`records.CHECKS`) are left out: they are no votes.
        """
        votes = tables.judgements.c.picked_by.not_in(CHECKS)
        for rows in _chunks(self._rows(tables.prompts)):
            with self.reading() as connection:
                judgements = _by_prompt(connection, tables.judgements, rows, votes)
                judged = [row for row in rows if row.id in judgements]
                texts = _texts(connection, judged) if judged else {}
            for row in judged:
                yield prompt_from_row(row), [judgement_from_row(j) for j in judgements[row.id]], texts.get(row.id, {})

    def contents(self) -> Iterator[tuple[Prompt, list[Candidate], list[Judgement], list[Demonstration]]]:
        """Yield each prompt, oldest first, with its candidates, its judgements (superseded ones included) and its demonstrations."""
        for rows in _chunks(self._rows(tables.prompts)):
            with self.reading() as connection:
                judgements = _by_prompt(connection, tables.judgements, rows)
                candidates = _by_prompt(connection, tables.candidates, rows)
                demonstrations = _by_prompt(connection, tables.demonstrations, rows)
            for row in rows:
                yield (
                    prompt_from_row(row),
                    [candidate_from_row(c) for c in candidates.get(row.id, [])],
                    [judgement_from_row(j) for j in judgements.get(row.id, [])],
                    [_demonstration(d) for d in demonstrations.get(row.id, [])],
                )

    def _rows(self, table: Table, prompt_id: str | None = None) -> Iterator[Row[Any]]:
        # By pages, so that no transaction stays open while the caller works.
        last = 0
        while True:
            query = select(table).where(table.c.number > last).order_by(table.c.number).limit(CHUNK)
            if prompt_id is not None:
                query = query.where(table.c.prompt_id == prompt_id)
            with self.reading() as connection:
                rows = connection.execute(query).all()
            yield from rows
            if len(rows) < CHUNK:
                return
            last = rows[-1].number


def pairs_from(
    prompt: Prompt, judgements: Iterable[Judgement], texts: dict[str, str], preferences: Iterable[Preference] | None = None
) -> Iterator[Pair]:
    """Yield the pairs that all judgements on one prompt give. texts: the text of each candidate by id.

    Strict preferences by majority (or those given), and each rewrite over what it rewrote, as one rater's word.
    """
    rows = list(judgements)
    preferred = by_votes(rows) if preferences is None else preferences
    strengths: dict[tuple[str, str], list[int]] = {}
    for judgement in standing(rows):
        if judgement.strength is not None:
            for two in pairs_of(judgement):
                strengths.setdefault(two, []).append(judgement.strength)
    found: list[tuple[str, str, float, float, float | None]] = []
    for p in preferred:
        said = strengths.get((p.chosen, p.rejected))
        found.append((texts[p.chosen], texts[p.rejected], p.weight, p.confidence, sum(said) / len(said) if said else None))
    found += [(j.rewrite, texts[j.rewrite_of], 1.0, ONE_WORD, None) for j in standing(rows) if j.rewrite and j.rewrite_of]
    about = {"messages": prompt.messages, "group": prompt.id, "kind": prompt.kind, "check": prompt.check}
    for chosen, rejected, weight, confidence, strength in dict.fromkeys(found):
        yield Pair(chosen=chosen, rejected=rejected, weight=weight, confidence=confidence, strength=strength, **about)


class Writer:
    """Adds records inside one write transaction; `Store.writer` gives it. connection: the transaction's, for other tables."""

    def __init__(self, connection: Connection, where: str) -> None:
        self.connection = connection
        self._where = where

    def add(
        self,
        prompts: Iterable[Prompt] = (),
        candidates: Iterable[Candidate] = (),
        judgements: Iterable[Judgement] = (),
        demonstrations: Iterable[Demonstration] = (),
    ) -> dict[str, set[str]]:
        """Add records and return the ids of the new ones by kind. Raises DataError where a ranked candidate is not there."""
        prompt_of: dict[str, str] = {}  # of the candidates in this call, which need not be looked up again

        def noted() -> Iterator[Candidate]:
            for candidate in candidates:
                prompt_of[candidate.id] = candidate.prompt_id
                yield candidate

        return {
            "prompts": {i for chunk in _chunks(prompts) for i in self._add_prompts(chunk)},
            "candidates": {i for chunk in _chunks(noted()) for i in self._insert(tables.candidates, chunk, _columns)},
            "judgements": {i for chunk in _chunks(judgements) for i in self._add_judgements(chunk, prompt_of)},
            "demonstrations": {i for chunk in _chunks(demonstrations) for i in self._insert(tables.demonstrations, chunk, _columns)},
        }

    def record_import(self, source: str, sha256: str, format_name: str, *, rows_read: int, rows_new: int, rows_set_aside: int) -> None:
        """Note where records came from."""
        counts = {"rows_read": rows_read, "rows_new": rows_new, "rows_set_aside": rows_set_aside}
        row = {"source": source, "sha256": sha256, "format": format_name, **counts, "created": datetime.now(UTC)}
        self.connection.execute(tables.imports.insert(), [row])

    def _insert(self, table: Table, records: Sequence[Any], to_columns: Callable[[list[Any]], dict[str, list[Any]]]) -> set[str]:
        by_id: dict[str, Any] = {}
        for record in records:
            by_id.setdefault(record.id, record)  # of two alike the first stays
        known = _known(self.connection, table, list(by_id))
        new = {i: record for i, record in by_id.items() if i not in known} if known else by_id
        if new:
            insert_new(self.connection, table, {"id": list(new), **to_columns(list(new.values()))})
        return set(new)

    def _add_prompts(self, prompts: Sequence[Prompt]) -> set[str]:
        new = self._insert(tables.prompts, prompts, _prompt_columns)
        table, inserted = tables.prompts, set(new)
        for prompt in prompts:
            if prompt.id in inserted:
                inserted.remove(prompt.id)  # this very record was written; a later one of the same prompt may fill it
                continue
            for column, value in ((table.c.kind, prompt.kind), (table.c.check_code, prompt.check)):
                if value:
                    self.connection.execute(update(table).where(table.c.id == prompt.id, column == "").values({column: value}))
        return new

    def _add_judgements(self, judgements: Sequence[Judgement], prompt_of: dict[str, str]) -> set[str]:
        if missing := {candidate for j in judgements for tier in j.ranking for candidate in tier} - prompt_of.keys():
            found = self.connection.execute(_prompt_ids(), {"ids": list(missing)})
            prompt_of |= {row.id: row.prompt_id for row in found}
        for judgement in judgements:
            for candidate in (c for tier in judgement.ranking for c in tier):
                if prompt_of.get(candidate) != judgement.prompt_id:
                    raise DataError(
                        f'a judgement ranks candidate "{candidate}", which is not one of prompt "{judgement.prompt_id}" in the store',
                        self._where,
                        "Add the candidates in the same call, or before.",
                    )
        return self._insert(tables.judgements, judgements, _judgement_columns)


def _stream(connection: Connection, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    # A few thousand rows at a time, by a cursor of the server where there is one.
    return connection.execute(query, execution_options={"yield_per": STREAMED}).partitions()


def _bytes_of(connection: Connection, column: ColumnElement[str]) -> ColumnElement[str]:
    # Sorted by the database, in the order in which Python sorts text; a PostgreSQL database has an order of its own.
    return column.collate("C") if connection.dialect.name == "postgresql" else column


def _on(connection: Connection, table: Table, prompts: Sequence[Row[Any]]) -> ColumnElement[bool]:
    # Whether a row of a table is on one of these prompts, or of those whose number is between theirs. Asked so and not by all the ids, the
    # statement is short and always the same: a long one takes the driver of PostgreSQL as long as reading what it finds.
    numbers = tables.prompts.c.number.between(prompts[0].number, prompts[-1].number)
    ids = select(tables.prompts.c.id).where(numbers)
    if connection.dialect.name == "postgresql":
        # The values of an array are looked up by the index even while nothing is known of what the table holds, as after an import;
        # `IN` lets the whole table be read then, for each page.
        return table.c.prompt_id == any_(func.array(ids.scalar_subquery()))
    return table.c.prompt_id.in_(ids)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _known(connection: Connection, table: Table, ids: Sequence[str]) -> set[str]:
    return set(connection.execute(_ids_of(table), {"ids": ids}).scalars())


# Built once, as building a statement takes longer than running it.


@cache
def _ids_of(table: Table) -> Select[Any]:
    return select(table.c.id).where(table.c.id.in_(bindparam("ids", expanding=True)))


@cache
def _prompt_ids() -> Select[Any]:
    columns = tables.candidates.c
    return select(columns.id, columns.prompt_id).where(columns.id.in_(bindparam("ids", expanding=True)))


def _by_prompt(connection: Connection, table: Table, prompts: Sequence[Row[Any]], *only: ColumnElement[bool]) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {}
    query = select(table).where(_on(connection, table, prompts), *only).order_by(table.c.number)
    for row in connection.execute(query).all():  # at once: row by row takes twice as long
        found.setdefault(row.prompt_id, []).append(row)
    return found


def _texts(connection: Connection, prompts: Sequence[Row[Any]]) -> dict[str, dict[str, str]]:
    # Without the columns of JSON, whose decoding takes longer than all else here.
    table = tables.candidates
    found: dict[str, dict[str, str]] = {}
    query = select(table.c.prompt_id, table.c.id, table.c.text).where(_on(connection, table, prompts)).order_by(table.c.number)
    for prompt_id, candidate, text in connection.execute(query):
        found.setdefault(prompt_id, {})[candidate] = text
    return found


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _columns(records: Sequence[Candidate] | Sequence[Judgement] | Sequence[Demonstration]) -> dict[str, list[Any]]:
    return {name: [getattr(record, name) for record in records] for name in type(records[0]).model_fields}


def _prompt_columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    messages = [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in prompts]
    return {"messages": messages, "kind": [prompt.kind for prompt in prompts], "check_code": [prompt.check for prompt in prompts]}


def _judgement_columns(judgements: Sequence[Judgement]) -> dict[str, list[Any]]:
    # SQLite keeps no time zone, so UTC is what is written.
    return {**_columns(judgements), "created": [judgement.created.astimezone(UTC) for judgement in judgements]}


def prompt_from_row(row: Row[Any]) -> Prompt:
    """Return the prompt that a row of its table holds."""
    prompt = Prompt.model_validate({"messages": row.messages, "kind": row.kind, "check": row.check_code})
    prompt.__dict__["id"] = row.id  # the hash of what never changes, so that it need not be worked out again
    return prompt


def candidate_from_row(row: Row[Any]) -> Candidate:
    """Return the candidate that a row of its table holds."""
    candidate = Candidate(prompt_id=row.prompt_id, text=row.text, source=row.source, sampling=row.sampling)
    candidate.__dict__["id"] = row.id
    return candidate


def judgement_from_row(row: Row[Any]) -> Judgement:
    """Return the judgement that a row of its table holds."""
    fields = dict(zip(JUDGEMENT_COLUMNS, row, strict=True))
    del fields["number"]
    name, fields["created"] = fields.pop("id"), _utc(fields["created"])
    judgement = Judgement.model_validate(fields)
    judgement.__dict__["id"] = name
    return judgement


def _demonstration(row: Row[Any]) -> Demonstration:
    return Demonstration(prompt_id=row.prompt_id, text=row.text, author=row.author)
