"""Tables as rows by column name: CSV and TSV with a header line, and Parquet.

In CSV an empty cell is a missing one, and every cell is text. Lines are counted from 1, the header included; in Parquet rows are.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from preftune.data.formats.rows import Item, SetAside
from preftune.errors import DataError, PreftuneError

DELIMITERS = ",\t;"
LONGEST_NAME = 100  # characters of a column's name; a line of prose is no header
PARQUET_ROWS_AT_ONCE = 256


def delimiter_of(head: bytes) -> str | None:
    """Return what separates the cells of a table that begins with these bytes, or None where they begin no table (as JSON does)."""
    text = head.decode("utf-8-sig", errors="replace").lstrip("\r\n")
    first = text.split("\n", 1)[0].strip()
    if not first or first[0] in "{[" or _is_json(first):
        return None
    widths = {delimiter: _width(text, delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: widths[delimiter])
    return best if widths[best] > 1 else None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _width(text: str, delimiter: str) -> int:
    # How many columns the first two rows have, if these are alike and the first can be a header; else 0.
    try:
        rows = list(islice((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row), 2))
    except csv.Error:
        return 0
    header = rows[0] if rows else []
    is_header = len(set(header)) == len(header) and all(name.strip() and len(name) <= LONGEST_NAME for name in header)
    # The second row may go on beyond what was looked at, so that it may have fewer cells here than it has.
    return len(header) if is_header and (len(rows) < 2 or len(rows[1]) <= len(header)) else 0


def table_rows(file: IO[bytes], delimiter: str, longest: int) -> Iterator[Item | SetAside]:
    """Yield the rows of a CSV or TSV file; a row whose cells do not fit the header is set aside. longest: characters of a cell."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        csv.field_size_limit(longest)  # for the whole process: the module has no other way, and its own limit is 128 KiB
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield SetAside(line, "the line is no row of a table", "", str(error))
                continue
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
            elif len(cells) != len(header):
                detail = f"{len(cells)} cells under {len(header)} columns"
                yield SetAside(line, "the row has more or fewer cells than the header", delimiter.join(cells), detail)
            else:
                yield Item(line, {name: cell for name, cell in zip(header, cells, strict=True) if cell}, "")
    finally:
        text.detach()  # else it would close the file, which is not ours


def parquet_rows(path: Path) -> Iterator[Item | SetAside]:
    """Yield the rows of a Parquet file, some hundred in memory at once. Raises DataError where it is none."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise PreftuneError("Parquet files need the package pyarrow", str(path), "pip install pyarrow, or write JSON lines.") from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS_AT_ONCE, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield Item(number, row, "")
    except (ArrowException, OSError) as error:
        if number == 0:
            raise DataError(f"the Parquet file cannot be read ({error})", str(path), "Write it anew, or as JSON lines.") from error
        yield SetAside(number + 1, "the Parquet file breaks off or is damaged here", "", str(error))
