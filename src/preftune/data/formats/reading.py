"""What every format shares: a Row, a SetAside, and the reading of JSON lines (or one JSON array) from files as they are in the wild.

A line that cannot be read is set aside with its number and the reason; the good ones go on. Nothing is repaired in silence.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from preftune.errors import DataError
from preftune.records import Candidate, Demonstration, Judgement, Prompt

MAX_LINE_BYTES = 8 * 2**20  # far over any prompt that a model could take; keeps memory bounded
SHOWN_CHARACTERS = 1000  # how much of a line that is too long is kept in the list of what was set aside

# What a file may turn out to be, by its first bytes.
NOT_TEXT = {
    b"PK\x03\x04": ("a zip archive", "Unpack it."),
    b"PAR1": ("a parquet file", "Write it out as JSON lines."),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Unpack it, or compress it by gzip."),
    b"BZh": ("compressed by bzip2", "Unpack it, or compress it by gzip."),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it, or compress it by gzip."),
    b"\xff\xfe": ("UTF-16 text", "Save it as UTF-8."),
    b"\xfe\xff": ("UTF-16 text", "Save it as UTF-8."),
    b"SQLite format 3": ("an SQLite database", "If it is a store, it needs no import."),
}


@dataclass(frozen=True)
class Row:
    """The records that one row of a file gives. unused: the keys in it that we make nothing of."""

    line: int
    prompt: Prompt
    candidates: tuple[Candidate, ...] = ()
    judgement: Judgement | None = None
    demonstration: Demonstration | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class SetAside:
    """A row that was not taken: its line, why (the same words for the same fault), the text, and more on the fault if there is."""

    line: int
    reason: str
    text: str
    detail: str = ""


class BadRow(Exception):
    """Raised by a format for a row that it cannot take; `formats.read` makes a SetAside of it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def text_of(fields: dict[str, Any], key: str, default: str | None = None) -> str:
    """Return a field that must be text. Raises BadRow where it is missing (and has no default), no text, or holds what no text may."""
    value = fields.get(key, default)
    if value is None:
        raise BadRow(f'key "{key}" is missing')
    return checked_text(value, key)


def checked_text(value: Any, key: str) -> str:
    """Return a value that must be storable text. Raises BadRow if not."""
    if not isinstance(value, str):
        raise BadRow(f'field "{key}" is not text', f"it is {json.dumps(value)[:80]}")
    if "\0" in value:
        raise BadRow(f'field "{key}" holds a NUL character', f"at character {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        reason = f'field "{key}" holds bytes that are not UTF-8, or half of a surrogate pair'
        raise BadRow(reason, f"at character {error.start}") from error
    return value


def check_answers(*answers: str) -> None:
    """Check that answers are worth comparing. Raises BadRow where one is empty, or two are equal."""
    if not all(answer.strip() for answer in answers):
        raise BadRow("an answer is empty")
    stripped = {answer.strip() for answer in answers}
    if len(stripped) < len(answers):
        if len(set(answers)) == len(answers):
            raise BadRow("two answers differ only in the white space around them")
        raise BadRow("there is nothing to learn from two equal answers")


def objects(path: Path) -> Iterator[tuple[int, Any, str] | SetAside]:
    """Yield (line, value, its text) of every JSON line or of every element of a JSON array, in order; gzip is unpacked.

    Raises DataError where the file cannot be opened or is no text.
    """
    with _opened(path) as file:
        line = 0
        try:
            first = file.readline(MAX_LINE_BYTES + 1).removeprefix(codecs.BOM_UTF8)
            while first and not first.strip():
                line += 1
                first = file.readline(MAX_LINE_BYTES + 1)
            values = _array(file, first, line + 1) if first.lstrip().startswith(b"[") else _lines(file, first, line + 1)
            for value in values:
                line = value.line if isinstance(value, SetAside) else value[0]
                yield value
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield SetAside(line + 1, "the compressed file breaks off or is damaged here", "", str(error))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as raw:
            head = raw.read(16)
            raw.seek(0)
            for magic, (what, fix) in NOT_TEXT.items():
                if head.startswith(magic):
                    raise DataError(f"the file is {what}", str(path), fix)
            if head.startswith(b"\x1f\x8b"):
                with gzip.open(raw) as unpacked:
                    yield unpacked  # type: ignore[misc]  # GzipFile reads bytes like any other
            else:
                yield raw
    except FileNotFoundError:
        raise DataError("there is no such file", str(path), "Look at the path.") from None
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        raise DataError(f"the file cannot be read ({error.strerror})", str(path), "Give a file that you may read.") from error


def _lines(file: IO[bytes], raw: bytes, number: int) -> Iterator[tuple[int, Any, str] | SetAside]:
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


def _line(raw: bytes, number: int) -> tuple[int, Any, str] | SetAside:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return SetAside(number, "the line is not UTF-8", raw.decode(errors="replace"), f"at byte {error.start}")
    try:
        return number, json.loads(text), text
    except RecursionError:
        return SetAside(number, "the line is nested too deep", text)
    except ValueError as error:
        return SetAside(number, "the line is not JSON", text, str(error))


_BETWEEN = re.compile(r"[\s,]*")


def _array(file: IO[bytes], first: bytes, line: int) -> Iterator[tuple[int, Any, str] | SetAside]:
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
            yield line, value, buffer[at:end]
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
