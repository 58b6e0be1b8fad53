"""The files of a snapshot: Parquet shards with zstd, written and read in a stream, whatever the number of rows.

A part (say "train") is one or more files `train-00000.parquet`, `train-00001.parquet` … Rows leave the writer's memory in row groups of
at most 5,000 rows or about 16 MiB of text, and a shard holds about 500,000 rows or 1 GiB of text at most. The manifest names each file with
its number of rows, so that a missing or cut one is noticed. Snapshots of older versions hold one `<part>.jsonl` each and are read as well.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from preftune.errors import PreftuneError
from preftune.manifest import disk_errors
from preftune.records import KWise, Message, Pair, Prompt, Record, Thumb, Tie

GROUP_ROWS, GROUP_BYTES = 5_000, 2**24
SHARD_ROWS, SHARD_BYTES = 500_000, 2**30
BATCH_ROWS = 1_000
GROUPS_KEPT = 2  # row groups of a part that stay in memory where single records are asked for
AGAIN = "Make the snapshot anew."
R = TypeVar("R", bound=Record)


class Example(Record):
    """A prompt and a completion to learn from, as a demonstration; `group` is the prompt's id."""

    messages: tuple[Message, ...]
    completion: str
    group: str = ""
    kind: str = ""
    check: str = ""


PARTS: dict[str, type[Record]] = {
    "train": Pair,
    "held_out": Pair,
    "demonstrations": Example,
    "demonstrations_held_out": Example,
    "prompts": Prompt,
    "prompts_held_out": Prompt,
    "kwise": KWise,
    "kwise_held_out": KWise,
    "ties": Tie,
    "ties_held_out": Tie,
    "thumbs": Thumb,
    "thumbs_held_out": Thumb,
}
NEW_PARTS = ("kwise", "kwise_held_out", "ties", "ties_held_out", "thumbs", "thumbs_held_out")  # which snapshots of JSON lines do not have
_MESSAGES = ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))
_TAIL = [("group", pa.string()), ("kind", pa.string()), ("check", pa.string())]
SCHEMAS: dict[type[Record], pa.Schema] = {
    Pair: pa.schema(
        [
            _MESSAGES,
            ("chosen", pa.string()),
            ("rejected", pa.string()),
            ("weight", pa.float64()),
            ("confidence", pa.float64()),
            ("strength", pa.float64()),
            *_TAIL,
        ]
    ),
    Example: pa.schema([_MESSAGES, ("completion", pa.string()), *_TAIL]),
    Prompt: pa.schema([_MESSAGES, ("kind", pa.string()), ("check", pa.string())]),
    KWise: pa.schema(
        [_MESSAGES, ("completions", pa.list_(pa.string())), ("ranks", pa.list_(pa.int32())), ("weight", pa.float64()), *_TAIL]
    ),
    Tie: pa.schema([_MESSAGES, ("completions", pa.list_(pa.string())), ("weight", pa.float64()), *_TAIL]),
    Thumb: pa.schema([_MESSAGES, ("completion", pa.string()), ("desirable", pa.bool_()), ("weight", pa.float64()), *_TAIL]),
}


class PartsWriter:
    """Writes records to the parts of a snapshot; use it in a `with`. `files`: rows by file name, complete once it is closed."""

    def __init__(self, folder: Path) -> None:
        for left in folder.glob("*.parquet"):  # of an attempt that was killed
            left.unlink()
        self.files: dict[str, int] = {}
        self._parts = {part: _Part(folder, part, SCHEMAS[model], self.files) for part, model in PARTS.items()}

    def add(self, part: str, record: Record) -> None:
        """Add one record to a part."""
        self._parts[part].add(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for part in self._parts.values():
            if error is None:
                part.close()
            else:
                part.abandon()


class _Part:
    """One part in the making: rows waiting for their row group, by column, and the open shard."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, files: dict[str, int]) -> None:
        self._folder, self._name, self._schema, self._files = folder, name, schema, files
        self._texts = [column for column in ("chosen", "rejected", "completion", "check") if column in schema.names]
        self._columns: dict[str, list[Any]] = {column: [] for column in schema.names}
        self._waiting = self._waiting_bytes = self._shard_bytes = self._shards = 0
        self._messages: tuple[tuple[Message, ...], tuple[tuple[str, str], ...], int] | None = None
        self._writer: pq.ParquetWriter | None = None

    def add(self, record: Record) -> None:
        values = record.__dict__
        for name, column in self._columns.items():
            column.append(values[name])
        messages, size = self._plain(values["messages"])
        self._columns["messages"][-1] = messages
        self._waiting += 1
        # About, in characters: what is long in a record are its texts.
        texts = sum([len(values[name]) for name in self._texts]) + sum(map(len, values.get("completions", ())))
        self._waiting_bytes += 8 + size + texts
        if self._waiting >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
            self._flush()

    def _plain(self, messages: tuple[Message, ...]) -> tuple[tuple[tuple[str, str], ...], int]:
        # As Arrow takes them, and how many characters they have; the rows of one prompt come one after the other and hold the same.
        if self._messages is None or self._messages[0] is not messages:
            self._messages = (messages, tuple((m.role, m.content) for m in messages), sum(len(m.content) for m in messages))
        return self._messages[1:]

    def close(self) -> None:
        if self._waiting or not self._shards:  # a part without rows has one empty file: so none is forgotten
            self._flush()
        self._close_shard()

    def abandon(self) -> None:
        """Let go of the open file; its folder is not finished, so nobody will read it."""
        if self._writer is not None:
            with suppress(OSError, pa.ArrowException):  # what went wrong first is what is told
                self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._shards += 1
            self._files[self._path.name] = 0
            with disk_errors(self._path):
                self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", write_statistics=False)
        with disk_errors(self._path):
            if self._waiting:
                arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
                self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._files[self._path.name] += self._waiting
        self._shard_bytes += self._waiting_bytes
        self._waiting = self._waiting_bytes = 0
        for column in self._columns.values():
            column.clear()
        if self._files[self._path.name] >= SHARD_ROWS or self._shard_bytes >= SHARD_BYTES:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            with disk_errors(self._path):
                self._writer.close()
        self._writer, self._shard_bytes = None, 0

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}-{self._shards - 1:05d}.parquet"


def read_part(folder: Path, manifest: dict[str, Any], part: str, model: type[R]) -> Iterator[R]:
    """Yield the records of a part in their order, a thousand in memory at a time. manifest: the folder's.

    Raises PreftuneError where a file is missing, damaged or cut.
    """
    if "files" not in manifest:
        yield from _json_lines(folder, part, model)
        return
    for path, rows in _shards(folder, manifest, part):
        for place, row in enumerate(_rows(path, None, rows), 1):
            try:
                yield model.model_validate(row)
            except ValidationError as error:
                raise PreftuneError(f"the row is damaged ({error.errors()[0]['msg']})", f"{path} row {place}", AGAIN) from error


class StoredPart(Sequence[R]):
    """A part that stays in its files: going through it reads it in a stream, asking for one record reads its row group.

    Raises PreftuneError where a file is missing, damaged or cut.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], part: str, model: type[R]) -> None:
        self._source = (folder, manifest, part, model)
        self._model = model
        self._groups: list[tuple[Path, int]] = []  # the file of each row group, and its number there
        self._ends: list[int] = []
        for path, rows in _shards(folder, manifest, part):
            with _opened(path, rows) as file:
                for number in range(file.metadata.num_row_groups):
                    self._groups.append((path, number))
                    self._ends.append((self._ends[-1] if self._ends else 0) + file.metadata.row_group(number).num_rows)
        self._read = lru_cache(GROUPS_KEPT)(self._row_group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[R]:
        return read_part(*self._source)

    @overload
    def __getitem__(self, place: int) -> R: ...
    @overload
    def __getitem__(self, place: slice) -> list[R]: ...
    def __getitem__(self, place: int | slice) -> R | list[R]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]  # from the end where it is negative; IndexError where there is none
        which = bisect_right(self._ends, number)
        before = self._ends[which - 1] if which else 0
        (row,) = self._read(which).slice(number - before, 1).to_pylist()
        return self._model.model_validate(row)

    def _row_group(self, which: int) -> pa.Table:
        path, number = self._groups[which]
        with _opened(path) as file, _damage(path):
            return file.read_row_group(number)


def read_column(folder: Path, manifest: dict[str, Any], part: str, column: str) -> Iterator[Any]:
    """Yield one column of a part alone, without reading the others."""
    if "files" not in manifest:
        for place, line in enumerate(_lines(folder / f"{part}.jsonl"), 1):
            try:
                yield json.loads(line).get(column)
            except ValueError as error:
                raise PreftuneError(f"the line is damaged ({error})", f"{folder / part}.jsonl line {place}", AGAIN) from error
        return
    for path, rows in _shards(folder, manifest, part):
        yield from (row[column] for row in _rows(path, [column], rows))


def _shards(folder: Path, manifest: dict[str, Any], part: str) -> Iterator[tuple[Path, int]]:
    for name, rows in manifest["files"].items():
        if name.rpartition("-")[0] == part:
            yield folder / name, rows


def _rows(path: Path, columns: list[str] | None, rows: int) -> Iterator[dict[str, Any]]:
    found = 0
    with _opened(path, rows) as file:
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
        while True:
            with _damage(path, f" after row {found:,}"):
                batch = next(batches, None)
            if batch is None:
                return
            found += len(batch)
            yield from batch.to_pylist()


@contextmanager
def _opened(path: Path, rows: int | None = None) -> Iterator[pq.ParquetFile]:
    # rows: that it must have.
    with _damage(path, " after row 0"):
        file = pq.ParquetFile(path)
    with file:
        if rows is not None and file.metadata.num_rows != rows:
            raise PreftuneError(f"the file has {file.metadata.num_rows:,} rows, the manifest says {rows:,}", str(path), AGAIN)
        yield file


@contextmanager
def _damage(path: Path, place: str = "") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise PreftuneError("a file of the snapshot is missing", str(path), AGAIN) from None
    except (pa.ArrowException, OSError) as error:
        raise PreftuneError(f"the file is damaged{place} ({' '.join(str(error).split())})", str(path), AGAIN) from error


def _json_lines(folder: Path, part: str, model: type[R]) -> Iterator[R]:
    path = folder / f"{part}.jsonl"
    if part in NEW_PARTS:
        return
    for place, line in enumerate(_lines(path), 1):
        try:
            yield model.model_validate_json(line)
        except ValidationError as error:
            raise PreftuneError(f"the line is damaged ({error.errors()[0]['msg']})", f"{path} line {place}", AGAIN) from error


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except FileNotFoundError:
        raise PreftuneError("a file of the snapshot is missing", str(path), AGAIN) from None
