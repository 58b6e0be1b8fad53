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
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from preftune.data.formats import Row, SetAside, detect, read
from preftune.data.store import KINDS, Store
from preftune.errors import DataError
from preftune.manifest import disk_errors, hash_file

EXAMPLES = 3
SHOWN_CHARACTERS = 200
BATCH_ROWS = 500


@dataclass
class ImportReport:
    """What an import did, or would do (dry_run).

    rows = new + already_there + the sum of set_aside; a row counts as new where any of its records is. already_there: in the store, or
    earlier in the file. records: the new ones of each kind. set_aside: rows by reason. unused: rows by a key that we made nothing of.
    """

    source: str
    format: str
    dry_run: bool
    rows: int = 0
    new: int = 0
    already_there: int = 0
    records: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    set_aside: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    set_aside_file: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines for a person."""
        would = "would be " if self.dry_run else ""
        lines = [f"{self.source} ({self.format}): {self.rows:,} rows, {self.new:,} {would}new, {self.already_there:,} already there"]
        lines += [f"  {count:,} new {kind}" for kind, count in self.records.items() if count]
        lines += [f"  {count:,} set aside: {reason}" for reason, count in sorted(self.set_aside.items(), key=lambda item: -item[1])]
        lines += [f"  {count:,} rows have a key that is not used: {key}" for key, count in self.unused.items()]
        if self.set_aside_file:
            lines.append(f"  what was set aside: {self.set_aside_file}")
        if self.examples:
            lines += ["The first of them, so that you can see that better and worse are the right way round:", *self.examples]
        return lines


def import_preferences(source: Path, store: Store | Path | str, *, format: str | None = None, dry_run: bool = False) -> ImportReport:
    """Import a file of preferences, demonstrations or prompts into a store and return what happened.

    store: an open one, or the path or URL of one, which is made where it is not there. format: "own" or "hh"; found by looking where it
    is not given. dry_run: nothing is written, no store made.
    Raises DataError where the file cannot be read, or no row of it is good.
    """
    source = Path(source)
    name = format or detect(source)
    report = ImportReport(str(source), name, dry_run)
    _check_usable(source, name)  # before any store is made or changed
    if dry_run:
        _look(source, report, store)
    elif isinstance(store, Store):
        _take(source, report, store)
    else:
        with Store.create(store) as made:
            _take(source, report, made)
    return report


def set_aside_path(store: Store) -> Path:
    """Return where the rows that were set aside lie for this store."""
    return store.path.with_name(f"{store.path.name}.set-aside.jsonl") if store.path else Path("set-aside.jsonl")


def _check_usable(source: Path, name: str) -> None:
    reasons: Counter[str] = Counter()
    for item in read(source, name):
        if isinstance(item, Row):
            return
        reasons[item.reason] += 1
    told = "; ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(3)) or "the file has none"
    raise DataError(f"no row can be used ({told})", str(source), "Mend the file, or say which --format it has.")


def _look(source: Path, report: ImportReport, store: Store | Path | str) -> None:
    seen: dict[str, set[str]] = {kind: set() for kind in KINDS}
    with ExitStack() as stack:
        if isinstance(store, Store):
            opened: Store | None = store
        else:
            is_there = "://" in str(store) or Path(store).exists()
            opened = stack.enter_context(Store.open(store)) if is_there else None
        for rows, aside in _batches(source, report):
            _count_aside(report, aside)
            new: dict[str, set[str]] = {}
            for kind, ids in _ids(rows).items():
                new[kind] = ids - seen[kind] - (opened.known(kind, ids) if opened else set())
                seen[kind] |= ids
            _count(report, rows, new)


def _take(source: Path, report: ImportReport, store: Store) -> None:
    sha256 = hash_file(source)
    with _set_aside_file(report, store) as file, store.writer() as writer:
        for rows, aside in _batches(source, report):
            for item in aside:
                file.write(json.dumps({"source": report.source, **asdict(item)}) + "\n")
            _count_aside(report, aside)
            new = writer.add(
                [row.prompt for row in rows],
                [candidate for row in rows for candidate in row.candidates],
                [row.judgement for row in rows if row.judgement],
                [row.demonstration for row in rows if row.demonstration],
            )
            _count(report, rows, new)
        set_aside = sum(report.set_aside.values())
        writer.record_import(report.source, sha256, report.format, rows_read=report.rows, rows_new=report.new, rows_set_aside=set_aside)
        file.flush()
        os.fsync(file.fileno())  # before the store keeps anything, so that a full disk stops both


def _batches(source: Path, report: ImportReport) -> Iterator[tuple[list[Row], list[SetAside]]]:
    items = read(source, report.format)
    while batch := list(islice(items, BATCH_ROWS)):
        yield [item for item in batch if isinstance(item, Row)], [item for item in batch if isinstance(item, SetAside)]


def _ids_of(row: Row) -> Iterator[tuple[str, str]]:
    yield "prompts", row.prompt.id
    yield from (("candidates", candidate.id) for candidate in row.candidates)
    if row.judgement:
        yield "judgements", row.judgement.id
    if row.demonstration:
        yield "demonstrations", row.demonstration.id


def _ids(rows: Iterable[Row]) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for row in rows:
        for kind, record_id in _ids_of(row):
            ids[kind].add(record_id)
    return ids


def _count_aside(report: ImportReport, aside: list[SetAside]) -> None:
    report.rows += len(aside)
    for item in aside:
        report.set_aside[item.reason] = report.set_aside.get(item.reason, 0) + 1


def _count(report: ImportReport, rows: list[Row], new: dict[str, set[str]]) -> None:
    left = {kind: set(ids) for kind, ids in new.items()}
    for kind, ids in new.items():
        report.records[kind] += len(ids)
    for row in rows:
        report.rows += 1
        is_new = False
        for kind, record_id in _ids_of(row):
            if record_id in left[kind]:
                left[kind].remove(record_id)  # the next row of the same content is a duplicate
                is_new = True
        report.new += is_new
        report.already_there += not is_new
        for key in row.unused:
            report.unused[key] = report.unused.get(key, 0) + 1
        if row.judgement and len(report.examples) < EXAMPLES:
            report.examples.append(_example(row))


def _example(row: Row) -> str:
    assert row.judgement is not None
    texts = {candidate.id: candidate.text for candidate in row.candidates}
    lines = [f"line {row.line}, {message.role}: {_shown(message.content)}" for message in row.prompt.messages[-1:]]
    places = ["better", "worse"] if len(row.judgement.ranking) == 2 else [f"place {n + 1}" for n in range(len(row.judgement.ranking))]
    for place, tier in zip(places, row.judgement.ranking, strict=True):
        lines += [f"  {place}: {_shown(texts[candidate])}" for candidate in tier]
    return "\n".join(lines)


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


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
