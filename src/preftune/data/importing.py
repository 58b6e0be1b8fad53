"""Importing a file into the store: whole or not at all, twice adds nothing, and what was set aside is told and kept.

The rows that were set aside lie next to the store in `<store>.set-aside.jsonl` (for a PostgreSQL store: `set-aside.jsonl` in the
current folder), each with its source, line, reason and text, so that they can be mended and imported again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO

from preftune.data.formats import MAX_UNPACKED_BYTES, Place, Row, SetAside, columns_of, detect, direction, read
from preftune.data.import_report import ImportReport, example
from preftune.data.store import KINDS, Store
from preftune.errors import ConfigError, DataError
from preftune.manifest import disk_errors, hash_file
from preftune.progress import Progress, Silent, Task

__all__ = ["ImportReport", "import_preferences", "set_aside_path"]

EXAMPLES = 3
BATCH_ROWS = 500
KIB = 1024


def import_preferences(
    source: Path,
    store: Store | Path | str,
    *,
    format: str | None = None,
    map_columns: dict[str, str] | None = None,
    dry_run: bool = False,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    progress: Progress | None = None,
) -> ImportReport:
    """Import a file of preferences, demonstrations or prompts into a store and return what happened.

    store: an open one, or the path or URL of one, which is made where it is not there. format: a name in `formats.FORMATS`; found by
    looking where it is not given. map_columns: for a table, our key → its column ("prompt", "chosen", …). dry_run: nothing is written,
    no store made. max_unpacked_bytes: what a compressed file may unpack to.
    Raises DataError where the file cannot be read, no row of it is good, or it contradicts itself; nothing is stored then. Raises
    ConfigError where a map and a format are given that do not go together.
    """
    source = Path(source)
    if map_columns and format not in (None, "columns"):
        raise ConfigError(f'a map of columns does not go with the format "{format}"', str(source), "Give one of the two.")
    name = "columns" if map_columns else format or detect(source)
    report = ImportReport(str(source), name, dry_run)
    rows = _Rows(report, source, format, map_columns, max_unpacked_bytes)
    _check_usable(source, rows.read())  # before any store is made or changed
    report.direction = direction(name)
    if name == "columns":
        report.columns = columns_of(source, map_columns)
    with (progress or Silent()).stage(f"reading {source.name}", total=source.stat().st_size // KIB, unit="KiB") as task:
        rows.task = task
        if dry_run:
            _look(rows, store)
        elif isinstance(store, Store):
            _take(rows, store)
        else:
            with Store.create(store) as opened:
                report.store_made = opened.made
                _take(rows, opened)
    return report


def set_aside_path(store: Store) -> Path:
    """Return where the rows that were set aside lie for this store."""
    return store.path.with_name(f"{store.path.name}.set-aside.jsonl") if store.path else Path("set-aside.jsonl")


class _Rows:
    """The rows of the file that is imported, in batches, with the report that counts them and the task that shows how far it is."""

    def __init__(self, report: ImportReport, source: Path, format: str | None, columns: dict[str, str] | None, limit: int) -> None:
        self.report, self.source = report, source
        self.task: Task | None = None
        self._format, self._columns, self._limit = format, columns, limit

    def read(self, place: Place | None = None) -> Iterator[Row | SetAside]:
        return read(self.source, self._format, map_columns=self._columns, max_unpacked_bytes=self._limit, place=place)

    def batches(self) -> Iterator[tuple[list[Row], list[SetAside]]]:
        place, shown = Place(), 0
        items = self.read(place)
        while batch := list(islice(items, BATCH_ROWS)):
            yield [item for item in batch if isinstance(item, Row)], [item for item in batch if isinstance(item, SetAside)]
            shown += self._advance(place.bytes_read // KIB - shown)
        self._advance(self.source.stat().st_size // KIB - shown)

    def _advance(self, kib: int) -> int:
        if self.task and kib > 0:
            self.task.advance(kib)
        return max(kib, 0)


def _check_usable(source: Path, rows: Iterator[Row | SetAside]) -> None:
    # The first rows alone, unless the file is short: a contradiction within them is found before a store is made.
    reasons: Counter[str] = Counter()
    is_usable = False
    for number, item in enumerate(rows):
        if isinstance(item, SetAside):
            reasons[item.reason] += 1
        is_usable = is_usable or isinstance(item, Row)
        if is_usable and number >= BATCH_ROWS:
            return
    if not is_usable:
        told = "; ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(3)) or "the file has none"
        raise DataError(f"no row can be used ({told})", str(source), "Mend the file, or say which --format it has.")


def _look(rows: _Rows, store: Store | Path | str) -> None:
    report = rows.report
    seen: dict[str, set[str]] = {kind: set() for kind in KINDS}
    with ExitStack() as stack:
        if isinstance(store, Store):
            opened: Store | None = store
        else:
            is_there = "://" in str(store) or Path(store).exists()
            opened = stack.enter_context(Store.open(store)) if is_there else None
        for batch, aside in rows.batches():
            report.count_aside(aside)
            new: dict[str, set[str]] = {}
            for kind, ids in _ids(batch).items():
                new[kind] = ids - seen[kind] - (opened.known(kind, ids) if opened else set())
                seen[kind] |= ids
            _count(report, batch, new)


def _take(rows: _Rows, store: Store) -> None:
    report = rows.report
    sha256 = hash_file(rows.source)
    with _set_aside_file(report, store) as file, store.writer() as writer:
        for batch, aside in rows.batches():
            for item in aside:
                file.write(json.dumps({"source": report.source, **asdict(item)}) + "\n")
            report.count_aside(aside)
            new = writer.add(
                [row.prompt for row in batch],
                [candidate for row in batch for candidate in row.candidates],
                [judgement for row in batch for judgement in row.judgements],
                [demonstration for row in batch for demonstration in row.demonstrations],
            )
            _count(report, batch, new)
        set_aside = sum(report.set_aside.values())
        writer.record_import(report.source, sha256, report.format, rows_read=report.rows, rows_new=report.new, rows_set_aside=set_aside)
        file.flush()
        os.fsync(file.fileno())  # before the store keeps anything, so that a full disk stops both


def _ids_of(row: Row) -> Iterator[tuple[str, str]]:
    yield "prompts", row.prompt.id
    for candidate in row.candidates:
        yield "candidates", candidate.id
    for judgement in row.judgements:
        yield "judgements", judgement.id
    for demonstration in row.demonstrations:
        yield "demonstrations", demonstration.id


def _ids(rows: Iterable[Row]) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for row in rows:
        for kind, record_id in _ids_of(row):
            ids[kind].add(record_id)
    return ids


def _count(report: ImportReport, rows: list[Row], new: dict[str, set[str]]) -> None:
    left = {kind: set(ids) for kind, ids in new.items()}
    for kind, ids in new.items():
        report.records[kind] += len(ids)
    for row in rows:
        is_new = False
        for kind, record_id in _ids_of(row):
            if record_id in left[kind]:
                left[kind].remove(record_id)  # the next row of the same content is a duplicate
                is_new = True
        report.count_row(row, is_new=is_new)
        is_telling = row.judgements or row.demonstrations or not row.candidates  # unlike answers that nobody has compared yet
        if is_telling and len(report.examples) < EXAMPLES:
            report.examples.append(example(row))


@contextmanager
def _set_aside_file(report: ImportReport, store: Store) -> Iterator[IO[str]]:
    # Rows set aside from other sources stay; those of this source are written anew. The list gets its name once all is stored.
    final = set_aside_path(store)
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    try:
        with disk_errors(final):
            with temporary.open("w", encoding="utf-8") as file:
                if final.exists():
                    with final.open(encoding="utf-8") as old:
                        file.writelines(line for line in old if json.loads(line)["source"] != report.source)
                yield file
            if temporary.stat().st_size:
                temporary.replace(final)
            else:
                final.unlink(missing_ok=True)
        report.set_aside_file = str(final) if report.set_aside else None
    finally:
        temporary.unlink(missing_ok=True)
