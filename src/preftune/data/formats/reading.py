"""The values in a file as they are in the wild: JSON lines, one JSON array, CSV or TSV, Parquet; gzip and zstd are unpacked.

A line that cannot be read is set aside with its number and the reason; the good ones go on. Nothing is repaired in silence.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO

from preftune.data.formats.opening import MAX_UNPACKED_BYTES, PARQUET, Damaged, opened
from preftune.data.formats.rows import Item, SetAside
from preftune.data.formats.tables import delimiter_of, parquet_rows, table_rows

MAX_LINE_BYTES = 8 * 2**20  # far over any prompt that a model could take; keeps memory bounded
SHOWN_CHARACTERS = 1000  # how much of a line that is too long is kept in the list of what was set aside
ITEMS_BETWEEN_PLACES = 100


@dataclass
class Place:
    """How far a file was read, in bytes of the file as it lies on disk; the reader keeps it, for whoever shows progress."""

    bytes_read: int = 0


def items(path: Path, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES, place: Place | None = None) -> Iterator[Item | SetAside]:
    """Yield every value of a file, in order: a JSON value a line or an array's element, or a table's row by its column names.

    max_unpacked_bytes: what a compressed file may unpack to. Raises DataError where the file cannot be opened or is nothing that
    can be read, or unpacks to too much.
    """
    place = place or Place()
    line = 0
    with opened(path, max_unpacked_bytes=max_unpacked_bytes) as (file, raw), closing(_found(path, file, raw)) as found:
        try:
            for number, item in enumerate(found):
                line = item.line
                if number % ITEMS_BETWEEN_PLACES == 0:
                    place.bytes_read = raw.tell()
                yield item
        except Damaged as error:
            yield SetAside(line + 1, "the compressed file breaks off or is damaged here", "", str(error))


def _found(path: Path, file: BufferedReader, raw: IO[bytes]) -> Generator[Item | SetAside, None, None]:
    head = file.peek(1)
    if raw is file and head.startswith(PARQUET):
        yield from parquet_rows(path)
        return
    if (delimiter := delimiter_of(head)) is not None:
        yield from table_rows(file, delimiter, MAX_LINE_BYTES)
        return
    line = 0
    first = file.readline(MAX_LINE_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    while first and not first.strip():
        line += 1
        first = file.readline(MAX_LINE_BYTES + 1)
    yield from _array(file, first, line + 1) if first.lstrip().startswith(b"[") else _lines(file, first, line + 1)


def _lines(file: IO[bytes], raw: bytes, number: int) -> Iterator[Item | SetAside]:
    while raw:
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            shown = raw[: SHOWN_CHARACTERS * 4].decode(errors="replace")[:SHOWN_CHARACTERS]
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
            yield SetAside(number, f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB", shown)
        elif raw.strip():
            yield _line(raw.rstrip(b"\r\n"), number)
        raw = file.readline(MAX_LINE_BYTES + 1)
        number += 1


def _line(raw: bytes, number: int) -> Item | SetAside:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return SetAside(number, "the line is not UTF-8", raw.decode(errors="replace"), f"at byte {error.start}")
    try:
        return Item(number, json.loads(text), text)
    except RecursionError:
        return SetAside(number, "the line is nested too deep", text)
    except ValueError as error:
        return SetAside(number, "the line is not JSON", text, str(error))


_BETWEEN = re.compile(r"[\s,]*")


def _array(file: IO[bytes], first: bytes, line: int) -> Iterator[Item | SetAside]:
    # Element by element, so that a large file is never held whole. After a syntax error there is no way back into step.
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    decoder = json.JSONDecoder()
    buffer, more = decode(first), True
    at = buffer.index("[") + 1
    while True:
        start = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        line += buffer.count("\n", at, start)
        at = start
        if buffer.startswith("]", at):
            if buffer[at + 1 :].strip() or file.read(SHOWN_CHARACTERS).strip():
                yield SetAside(line, "there is more after the end of the array", buffer[at + 1 : at + SHOWN_CHARACTERS])
            return
        try:
            value, end = decoder.raw_decode(buffer, at) if at < len(buffer) else (None, at)
            failure = "the array has no end"
        except (ValueError, RecursionError) as error:
            value, end, failure = None, at, str(error)
        # A number at the very end of what was read may go on, so look further first.
        if at < end < len(buffer):
            yield Item(line, value, buffer[at:end])
            line += buffer.count("\n", at, end)
            at = end
        elif more and len(buffer) - at <= MAX_LINE_BYTES:
            chunk = file.read(max(2**16, len(buffer) - at))
            more = bool(chunk)
            buffer, at = buffer[at:] + decode(chunk, final=not more), 0
        else:
            reason = "the array cannot be read from here on" if at < len(buffer) else "the array has no end"
            yield SetAside(line, reason, buffer[at : at + SHOWN_CHARACTERS], failure)
            return
