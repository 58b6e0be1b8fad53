"""The store: every prompt, candidate, judgement and demonstration of a team, in an SQLite file or a PostgreSQL database.

Records are known by their content: adding one twice adds nothing, and nothing is ever changed, but for an empty `kind` or
`check` of a prompt, which a later record of the same prompt fills. Reading gives records in the order in which they came.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, Row, Table, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from preftune.data import tables
from preftune.data.database import check_file, engine_for, reading, revision_of, revisions, upgrade, url_of, where_of, writing
from preftune.errors import DataError
from preftune.records import Candidate, Demonstration, Judgement, Message, Pair, Prompt, majority_pairs, standing

CHUNK = 500  # records a statement
KINDS = {
    "prompts": tables.prompts,
    "candidates": tables.candidates,
    "judgements": tables.judgements,
    "demonstrations": tables.demonstrations,
}
T = TypeVar("T")


class Store:
    """An open store; close it, or use it in a `with`. Make one by `Store.create` or `Store.open`.

    where: how messages name it. path: its file, or None where it lives in PostgreSQL.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self.where = where
        self.path = Path(where) if engine.dialect.name == "sqlite" else None
        self._engine = engine
        self._frozen: Connection | None = None

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
        with writing(self._engine, self.where) as connection:
            yield Writer(connection, self.where)

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
        """Let all reading inside the `with` see one state of the store, whatever others write meanwhile (one thread alone)."""
        with reading(self._engine, self.where) as connection:
            self._frozen = connection
            try:
                yield
            finally:
                self._frozen = None

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._frozen is not None:
            yield self._frozen
        else:
            with reading(self._engine, self.where) as connection:
                yield connection

    def known(self, kind: str, ids: Iterable[str]) -> set[str]:
        """Return those of these ids that the store holds. kind: "prompts", "candidates", "judgements" or "demonstrations"."""
        with self._reading() as connection:
            return {found for chunk in _chunks(ids) for found in _known(connection, KINDS[kind], chunk)}

    def counts(self) -> dict[str, int]:
        """Return the number of records of each kind."""
        with self._reading() as connection:
            return {kind: int(connection.execute(select(func.count()).select_from(table)).scalar_one()) for kind, table in KINDS.items()}

    def fingerprint(self) -> str:
        """Return a sha256 of all that a snapshot is made from: prompts in their order, judgements and demonstrations in any."""
        digest = hashlib.sha256()
        judgements, prompts = tables.judgements.c, tables.prompts.c
        with self._reading() as connection:
            for prompt in connection.execute(select(prompts.id, prompts.kind, prompts.check_code).order_by(prompts.number)):
                digest.update(json.dumps([*prompt]).encode())
            for judgement in sorted(connection.execute(select(judgements.id, judgements.rewrite)).all()):
                digest.update(json.dumps([*judgement]).encode())
            for found in sorted(connection.execute(select(tables.demonstrations.c.id)).scalars()):
                digest.update(found.encode())
        return digest.hexdigest()

    def prompts(self) -> Iterator[Prompt]:
        """Yield every prompt, oldest first."""
        return map(_prompt, self._rows(tables.prompts))

    def candidates(self, prompt_id: str | None = None) -> Iterator[Candidate]:
        """Yield the candidates of one prompt, or all, oldest first."""
        return map(_candidate, self._rows(tables.candidates, prompt_id))

    def judgements(self, prompt_id: str | None = None) -> Iterator[Judgement]:
        """Yield the judgements on one prompt, or all, superseded ones included, oldest first."""
        return map(_judgement, self._rows(tables.judgements, prompt_id))

    def demonstrations(self) -> Iterator[Demonstration]:
        """Yield every demonstration, oldest first."""
        return map(_demonstration, self._rows(tables.demonstrations))

    def imports(self) -> Iterator[dict[str, Any]]:
        """Yield what was imported, oldest first: source, sha256, format, rows_read, rows_new, rows_set_aside, created."""
        for row in self._rows(tables.imports):
            yield {**row._mapping, "created": _utc(row.created)}

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs that the judgements give over all raters (`records.majority_pairs`); `group` is the prompt's id."""
        for prompt, judgements, texts in self.judged():
            yield from pairs_from(prompt, judgements, texts)

    def judged(self) -> Iterator[tuple[Prompt, list[Judgement], dict[str, str]]]:
        """Yield each prompt that has judgements, with them and with the text of each of its candidates by id."""
        for rows in _chunks(self._rows(tables.prompts)):
            ids = [row.id for row in rows]
            with self._reading() as connection:
                judgements = _by_prompt(connection, tables.judgements, ids)
                candidates = _by_prompt(connection, tables.candidates, list(judgements))
            for row in rows:
                if row.id in judgements:
                    texts = {c.id: c.text for c in candidates.get(row.id, [])}
                    yield _prompt(row), [_judgement(j) for j in judgements[row.id]], texts

    def _rows(self, table: Table, prompt_id: str | None = None) -> Iterator[Row[Any]]:
        # By pages, so that no transaction stays open while the caller works.
        last = 0
        while True:
            query = select(table).where(table.c.number > last).order_by(table.c.number).limit(CHUNK)
            if prompt_id is not None:
                query = query.where(table.c.prompt_id == prompt_id)
            with self._reading() as connection:
                rows = connection.execute(query).all()
            yield from rows
            if len(rows) < CHUNK:
                return
            last = rows[-1].number


def pairs_from(prompt: Prompt, judgements: Iterable[Judgement], texts: dict[str, str]) -> Iterator[Pair]:
    """Yield the pairs that all judgements on one prompt give. texts: the text of each candidate by id.

    Strict preferences by majority, and each rewrite over what it rewrote.
    """
    rows = list(judgements)
    found = [(texts[chosen], texts[rejected], weight) for chosen, rejected, weight in majority_pairs(rows)]
    found += [(j.rewrite, texts[j.rewrite_of], 1.0) for j in standing(rows) if j.rewrite and j.rewrite_of]
    about = {"messages": prompt.messages, "group": prompt.id, "kind": prompt.kind, "check": prompt.check}
    for chosen, rejected, weight in dict.fromkeys(found):
        yield Pair(chosen=chosen, rejected=rejected, weight=weight, **about)


class Writer:
    """Adds records inside one write transaction; `Store.writer` gives it."""

    def __init__(self, connection: Connection, where: str) -> None:
        self._connection = connection
        self._where = where

    def add(
        self,
        prompts: Iterable[Prompt] = (),
        candidates: Iterable[Candidate] = (),
        judgements: Iterable[Judgement] = (),
        demonstrations: Iterable[Demonstration] = (),
    ) -> dict[str, set[str]]:
        """Add records and return the ids of the new ones by kind. Raises DataError where a ranked candidate is not there."""
        return {
            "prompts": {i for chunk in _chunks(prompts) for i in self._add_prompts(chunk)},
            "candidates": {i for chunk in _chunks(candidates) for i in self._insert(tables.candidates, chunk, _fields)},
            "judgements": {i for chunk in _chunks(judgements) for i in self._add_judgements(chunk)},
            "demonstrations": {i for chunk in _chunks(demonstrations) for i in self._insert(tables.demonstrations, chunk, _fields)},
        }

    def record_import(self, source: str, sha256: str, format_name: str, *, rows_read: int, rows_new: int, rows_set_aside: int) -> None:
        """Note where records came from."""
        counts = {"rows_read": rows_read, "rows_new": rows_new, "rows_set_aside": rows_set_aside}
        row = {"source": source, "sha256": sha256, "format": format_name, **counts, "created": datetime.now(UTC)}
        self._connection.execute(tables.imports.insert(), [row])

    def _insert(self, table: Table, records: Sequence[Any], to_row: Callable[[Any], dict[str, Any]]) -> set[str]:
        by_id = {record.id: record for record in reversed(records)}  # of two alike the first stays
        known = _known(self._connection, table, list(by_id))
        rows = [{"id": i, **to_row(by_id[i])} for i in dict.fromkeys(r.id for r in records) if i not in known]
        if rows:
            insert = postgresql.insert(table) if self._connection.dialect.name == "postgresql" else sqlite.insert(table)
            self._connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]), rows)
        return by_id.keys() - known

    def _add_prompts(self, prompts: Sequence[Prompt]) -> set[str]:
        new = self._insert(tables.prompts, prompts, _prompt_row)
        table, inserted = tables.prompts, set(new)
        for prompt in prompts:
            if prompt.id in inserted:
                inserted.remove(prompt.id)  # this very record was written; a later one of the same prompt may fill it
                continue
            for column, value in ((table.c.kind, prompt.kind), (table.c.check_code, prompt.check)):
                if value:
                    self._connection.execute(update(table).where(table.c.id == prompt.id, column == "").values({column: value}))
        return new

    def _add_judgements(self, judgements: Sequence[Judgement]) -> set[str]:
        table = tables.candidates
        ranked = {candidate for j in judgements for tier in j.ranking for candidate in tier}
        query = select(table.c.id, table.c.prompt_id).where(table.c.id.in_(ranked))
        prompt_of = {row.id: row.prompt_id for row in self._connection.execute(query)}
        for judgement in judgements:
            for candidate in (c for tier in judgement.ranking for c in tier):
                if prompt_of.get(candidate) != judgement.prompt_id:
                    raise DataError(
                        f'a judgement ranks candidate "{candidate}", which is not one of prompt "{judgement.prompt_id}" in the store',
                        self._where,
                        "Add the candidates in the same call, or before.",
                    )
        return self._insert(tables.judgements, judgements, _judgement_row)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _known(connection: Connection, table: Table, ids: Sequence[str]) -> set[str]:
    return set(connection.execute(select(table.c.id).where(table.c.id.in_(ids))).scalars())


def _by_prompt(connection: Connection, table: Table, ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(select(table).where(table.c.prompt_id.in_(ids)).order_by(table.c.number)):
        found.setdefault(row.prompt_id, []).append(row)
    return found


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return {"messages": messages, "kind": prompt.kind, "check_code": prompt.check}


def _fields(record: Candidate | Demonstration) -> dict[str, Any]:
    return record.model_dump()


def _judgement_row(judgement: Judgement) -> dict[str, Any]:
    # SQLite keeps no time zone, so UTC is what is written.
    return {**judgement.model_dump(), "created": judgement.created.astimezone(UTC)}


def _prompt(row: Row[Any]) -> Prompt:
    return Prompt(messages=tuple(Message(**m) for m in row.messages), kind=row.kind, check=row.check_code)


def _candidate(row: Row[Any]) -> Candidate:
    return Candidate(prompt_id=row.prompt_id, text=row.text, source=row.source, sampling=row.sampling)


def _judgement(row: Row[Any]) -> Judgement:
    fields = {key: value for key, value in row._mapping.items() if key not in ("number", "id")}
    return Judgement.model_validate({**fields, "created": _utc(row.created)})


def _demonstration(row: Row[Any]) -> Demonstration:
    return Demonstration(prompt_id=row.prompt_id, text=row.text, author=row.author)
