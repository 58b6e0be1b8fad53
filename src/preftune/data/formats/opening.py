"""Opening a data file as bytes: what it is by its first bytes, gzip and zstd unpacked with a cap, and refusals with a reason.

A few kilobytes can unpack to terabytes, so that what is unpacked beyond 64 MiB may be at most 100 times what was read, and never more
than a limit that the caller may set.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from preftune.errors import DataError, PreftuneError

MAX_UNPACKED_BYTES = 16 * 2**30
FREE_BYTES = 64 * 2**20  # up to here any ratio is good: one repeated row packs a thousandfold
MAX_RATIO = 100
BUFFER_BYTES = 2**16
ZSTD_CHUNK_BYTES = 2**10  # a zstd block of 4 bytes may hold 128 KiB, so that this gives at most 32 MiB at once
ZSTD_WINDOW_BYTES = 2**27
PARQUET = b"PAR1"

# What a file may turn out to be, by its first bytes.
NOT_TEXT = {
    b"PK\x03\x04": ("a zip archive", "Unpack it; a single file may stay compressed by gzip or zstd."),
    b"BZh": ("compressed by bzip2", "Unpack it, or compress it by gzip or zstd."),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it, or compress it by gzip or zstd."),
    b"\xff\xfe": ("UTF-16 text", "Save it as UTF-8."),
    b"\xfe\xff": ("UTF-16 text", "Save it as UTF-8."),
    b"SQLite format 3": ("an SQLite database", "If it is a store, it needs no import."),
}


class Damaged(Exception):
    """A compressed file breaks off or is damaged; what came before is good."""


@contextmanager
def opened(path: Path, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """Yield a file's bytes, unpacked, and the file as it lies on disk (whose `tell` says how far it was read).

    Reading raises Damaged where a compressed file is broken, and DataError where it unpacks to too much.
    Raises DataError where the file cannot be opened or is nothing that can be read.
    """
    try:
        with path.open("rb") as raw:
            head = raw.peek(16)
            for magic, (what, fix) in NOT_TEXT.items():
                if head.startswith(magic):
                    raise DataError(f"the file is {what}", str(path), fix)
            if head.startswith(b"\x1f\x8b"):
                with gzip.open(raw) as source:
                    yield io.BufferedReader(_Unpacked(source.read1, raw, path, max_unpacked_bytes), BUFFER_BYTES), raw
            elif head.startswith(b"\x28\xb5\x2f\xfd"):
                yield io.BufferedReader(_Unpacked(_Zstd(raw).read, raw, path, max_unpacked_bytes), BUFFER_BYTES), raw
            else:
                yield raw, raw
    except FileNotFoundError:
        raise DataError("there is no such file", str(path), "Look at the path.") from None
    except OSError as error:
        raise DataError(f"the file cannot be read ({error.strerror})", str(path), "Give a file that you may read.") from error


class _Unpacked(io.RawIOBase):
    """What a compressed file unpacks to, refused where it grows out of all proportion. read: (size) → at most so many bytes."""

    def __init__(self, read: Callable[[int], bytes], raw: IO[bytes], path: Path, limit: int) -> None:
        self._read, self._raw, self._path, self._limit = read, raw, path, limit
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(str(error)) from error
        self._bytes += len(data)
        if self._bytes > self._limit:
            what = f"the file unpacks to more than {self._limit / 2**30:,.3g} GiB"
            raise DataError(what, str(self._path), "If it is meant to, allow more with --max-unpacked-gib.")
        if self._bytes > FREE_BYTES and self._bytes > MAX_RATIO * self._raw.tell():
            what = f"the file unpacks to more than {MAX_RATIO} times its size, as no honest data do"
            raise DataError(what, str(self._path), "Unpack it yourself if you know where it comes from.")
        buffer[: len(data)] = data
        return len(data)


class _Zstd:
    """A zstd file as a source of bytes; unlike the library's own reader it tells when the last frame has no end."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise PreftuneError("zstd files need the package zstandard", "", "pip install zstandard, or unpack the file.") from error
        self._raw = raw
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        self._frame = self._decompressor.decompressobj()
        self._is_inside, self._rest = False, b""
        self._ready, self._given = b"", 0  # what was unpacked, and how much of it has been read

    def read(self, size: int, /) -> bytes:
        while self._given == len(self._ready):
            packed, self._rest = self._rest or self._raw.read(ZSTD_CHUNK_BYTES), b""
            if not packed:
                if self._is_inside:
                    raise EOFError("the last frame has no end")
                return b""
            try:
                self._ready, self._given, self._is_inside = self._frame.decompress(packed), 0, True
            except self._error as error:
                raise EOFError(str(error)) from error
            if self._frame.eof:
                self._rest, self._is_inside = self._frame.unused_data, False
                self._frame = self._decompressor.decompressobj()
        data = self._ready[self._given : self._given + size]
        self._given += len(data)
        return data
