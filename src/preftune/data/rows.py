"""A list that can be longer than memory: past some thousand rows it lies in a file, and gives each row back when it is asked for.

What a stage makes of its snapshot (examples, tokens) is one of these, so that a stage is written as if all lay in memory, and small data
does. A row costs some microseconds to read. The file has no name and is gone with the list; it lies in the system's folder for temporary
files (set TMPDIR where that is too small).
"""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar, overload

from preftune.manifest import disk_errors

IN_MEMORY = 20_000  # rows; of 300 tokens each they take some 200 MiB as Python's numbers
T = TypeVar("T")


class Rows(Sequence[T]):
    """Rows in their order; they are only ever added. Equal to a list of the same rows."""

    def __init__(self, rows: Iterable[T] = ()) -> None:
        self._here: list[T] = []
        self._file: IO[bytes] | None = None
        self._ends = array("q", [0])  # in the file
        self._written = True
        for row in rows:
            self.append(row)

    def append(self, row: T) -> None:
        """Add a row at the end."""
        if self._file is not None:
            self._write(row)
            return
        self._here.append(row)
        if len(self._here) > IN_MEMORY:
            with disk_errors(Path(tempfile.gettempdir())):
                self._file = tempfile.TemporaryFile(prefix="preftune-rows-")  # noqa: SIM115 - it lives as long as the list
            weakref.finalize(self, self._file.close)
            for moved in self._here:
                self._write(moved)
            self._here = []

    def _write(self, row: T) -> None:
        assert self._file is not None
        said = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
        with disk_errors(Path(tempfile.gettempdir())):
            self._file.write(said)
        self._ends.append(self._ends[-1] + len(said))
        self._written = False

    def __len__(self) -> int:
        return len(self._here) if self._file is None else len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if self._file is None:
            return self._here[place]
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]  # from the end where it is negative; IndexError where there is none
        if not self._written:
            with disk_errors(Path(tempfile.gettempdir())):
                self._file.flush()
            self._written = True
        start, end = self._ends[number], self._ends[number + 1]
        row: T = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        return row

    def __iter__(self) -> Iterator[T]:
        return (self[number] for number in range(len(self))) if self._file is not None else iter(self._here)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | Rows):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it grows
