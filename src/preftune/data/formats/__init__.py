"""Reading preference data of any known format: found by looking at the content, streamed, with what is broken set aside.

A format is one file with `recognises(fields)` and `row(line, fields)`, and one line below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from preftune.data.formats import hh, own
from preftune.data.formats.reading import BadRow, Row, SetAside, objects
from preftune.errors import DataError

__all__ = ["FORMATS", "Row", "SetAside", "detect", "read"]

FORMATS = {"own": own, "hh": hh}
LOOKED_AT_ROWS = 100


def detect(path: Path) -> str:
    """Return the name of a file's format, by its first rows. Raises DataError where none of ours fits."""
    votes: Counter[str] = Counter()
    seen: list[str] = []
    first = None
    for item in islice(objects(path), LOOKED_AT_ROWS):
        if isinstance(item, SetAside):
            first = first or item
        elif isinstance(item[1], dict):
            seen = seen or sorted(item[1])
            votes.update(name for name, form in FORMATS.items() if form.recognises(item[1]))
    if votes:
        return votes.most_common(1)[0][0]
    known = "The formats are own (prompt with chosen and rejected, with answers and ranking, or with completion) and hh (transcripts)."
    if seen:
        raise DataError(f"no format that we know has rows with the keys {', '.join(seen[:10])}", str(path), known)
    if first:
        raise DataError(f"no row can be read; line {first.line}: {first.reason}", str(path), known)
    if not any(True for _ in objects(path)):
        raise DataError("the file has no rows", str(path), known)
    raise DataError("the rows are no JSON objects", str(path), known)


def read(path: Path, format: str | None = None) -> Iterator[Row | SetAside]:
    """Yield every row of a file, in order: its records, or why it was set aside.

    format: a name in FORMATS; found by looking where it is not given. Raises DataError where the file cannot be read at all.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f'there is no format "{format}"', str(path), f"Known are {', '.join(FORMATS)}.")
    form = FORMATS[format or detect(path)]
    for item in objects(path):
        if isinstance(item, SetAside):
            yield item
            continue
        line, value, text = item
        try:
            if not isinstance(value, dict):
                raise BadRow("the row is no JSON object")
            yield form.row(line, value)
        except BadRow as bad:
            yield SetAside(line, bad.reason, text, bad.detail)
