"""Reading preference data of any known format: found by looking at the content, streamed, with what is broken set aside.

A format is one file and one line below. It has `recognises(fields)` and `rows(line, fields)` (fields: a row's keys without the nulls), and
says at its top what it reads, which way ranks and scores go, what it leaves out and where that is written. A format in which a row
cannot be understood alone has `whole(items, where)` too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from preftune.data.formats import (
    alpaca,
    arena,
    argilla,
    axolotl,
    canonical,
    chat,
    columns,
    helpsteer,
    hh,
    label_studio,
    nectar,
    oasst,
    open_webui,
    openai,
    own,
    sharegpt,
    trl,
    ultrafeedback,
)
from preftune.data.formats.opening import MAX_UNPACKED_BYTES
from preftune.data.formats.preferences import CONTRADICTION
from preftune.data.formats.reading import Place, items
from preftune.data.formats.refused import refusal_of
from preftune.data.formats.rows import Item, Row, SetAside, each, fields_of
from preftune.errors import DataError

__all__ = ["FORMATS", "MAX_UNPACKED_BYTES", "Place", "Row", "SetAside", "columns_of", "detect", "direction", "read"]

FORMATS: dict[str, ModuleType] = {
    "own": own,
    "preftune": canonical,
    "hh": hh,
    "trl": trl,
    "ultrafeedback": ultrafeedback,
    "argilla": argilla,
    "label_studio": label_studio,
    "arena": arena,
    "openai": openai,
    "chat": chat,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "axolotl": axolotl,
    "nectar": nectar,
    "oasst": oasst,
    "open_webui": open_webui,
    "helpsteer": helpsteer,
    "columns": columns,
}
LOOKED_AT_ROWS = 100
CONTRADICTIONS = 0.05  # share of a file's rows from which on we doubt its direction instead of single rows


def direction(format: str) -> str:
    """Return the sentence in which a format says which way its ranks and scores go."""
    told = str(FORMATS[format].__doc__).split("\nDirection: ", 1)[1].split("\nLeft out", 1)[0]
    return " ".join(told.split())


def detect(path: Path) -> str:
    """Return the name of a file's format, by its first rows. Raises DataError where none of ours fits."""
    votes: Counter[str] = Counter()
    keys: dict[str, None] = {}
    first: SetAside | None = None
    is_table = is_empty = True
    for item in islice(items(path), LOOKED_AT_ROWS):
        is_empty = False
        if isinstance(item, SetAside):
            first = first or item
        elif isinstance(item.value, dict):
            fields = {key: value for key, value in item.value.items() if value is not None}
            is_table = is_table and not item.text
            keys |= dict.fromkeys(fields)
            votes.update(_formats_of(fields))
    if votes:
        return votes.most_common(1)[0][0]
    if keys and is_table and columns.guess(keys):
        return "columns"
    raise _not_ours(path, list(keys), first, is_table=is_table, is_empty=is_empty)


def _formats_of(fields: dict[str, Any]) -> list[str]:
    return [name for name, form in FORMATS.items() if form is not columns and form.recognises(fields)]


def _not_ours(path: Path, keys: list[str], first: SetAside | None, *, is_table: bool, is_empty: bool) -> DataError:
    known = f"The formats are {', '.join(FORMATS)}: see docs/formats.md."
    if refused := refusal_of(path, keys):
        return DataError(refused.what, str(path), refused.fix)
    if keys and is_table:
        what = f"no format that we know has the columns {', '.join(keys[:10])}"
        return DataError(what, str(path), "Say which is which: --map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN.")
    if keys:
        what = f"no format that we know has rows with the keys {', '.join(sorted(keys)[:10])}"
        named = "Say which key is which: --map prompt=KEY --map chosen=KEY --map rejected=KEY, or --map prompt=KEY --map completion=KEY."
        return DataError(what, str(path), f"{named} {known}")
    if first:
        return DataError(f"no row can be read; line {first.line}: {first.reason}", str(path), known)
    return DataError("the file has no rows" if is_empty else "the rows are no JSON objects", str(path), known)


def columns_of(path: Path, given: dict[str, str] | None = None) -> dict[str, str]:
    """Return which columns of a file are which of our keys: as given, or guessed by usual names.

    Raises DataError where a given one is not there, or is no key of ours, or none can be guessed.
    """
    names: dict[str, None] = {}
    for item in islice(items(path), LOOKED_AT_ROWS):
        names |= dict.fromkeys(item.value) if isinstance(item, Item) and isinstance(item.value, dict) else {}
    listed = f"The columns are {', '.join(names)}."
    for ours, name in (given or {}).items():
        if ours not in columns.KEYS:
            raise DataError(f"--map {ours}: there is no such key of ours", str(path), f"Known are {', '.join(sorted(columns.KEYS))}.")
        if name not in names:
            raise DataError(f'there is no column "{name}" in the first {LOOKED_AT_ROWS} rows', str(path), listed)
    found = given or columns.guess(names)
    if not found:
        raise DataError("the columns have no names from which to guess", str(path), f"Give --map. {listed}")
    return found


def read(
    path: Path,
    format: str | None = None,
    *,
    map_columns: dict[str, str] | None = None,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    place: Place | None = None,
) -> Iterator[Row | SetAside]:
    """Yield every row of a file, in order: its records, or why it was set aside.

    format: a name in FORMATS; found by looking where it is not given, and then a row of another format is set aside as such.
    map_columns: our key → the file's column, for "columns". max_unpacked_bytes: what a compressed file may unpack to.
    Raises DataError where the file cannot be read at all, and at its end where it contradicts itself.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f'there is no format "{format}"', str(path), f"Known are {', '.join(FORMATS)}.")
    name = "columns" if map_columns else format or detect(path)
    form = FORMATS[name]
    found = items(path, max_unpacked_bytes=max_unpacked_bytes, place=place)
    if form is columns:
        found = columns.renamed(found, columns_of(path, map_columns))
    elif format is None:
        found = _of_one_format(found, name)
    whole = getattr(form, "whole", None)
    yield from _consistent(whole(found, str(path)) if whole else each(found, form.rows), path)


def _of_one_format(found: Iterator[Item | SetAside], name: str) -> Iterator[Item | SetAside]:
    # Sets aside what is clearly of another format, so that a mixed file is told.
    recognises = FORMATS[name].recognises
    for item in found:
        if isinstance(item, Item) and isinstance(item.value, dict) and not recognises(item.value):
            fields = fields_of(item.value)
            if not recognises(fields) and (others := _formats_of(fields)):
                yield item.set_aside(f"the row is of another format ({others[0]})", f"most of the file is {name}")
                continue
        yield item


def _consistent(rows: Iterator[Row | SetAside], path: Path) -> Iterator[Row | SetAside]:
    # Raises at the end, when it is known how many rows say one thing by a rank and another by a score.
    good = contradictions = 0
    example = ""
    for item in rows:
        if isinstance(item, Row):
            good += 1
        elif item.reason == CONTRADICTION:
            contradictions += 1
            example = example or f"line {item.line}: {item.detail}"
        yield item
    if contradictions > CONTRADICTIONS * (good + contradictions):
        what = f"{contradictions:,} of {good + contradictions:,} rows contradict themselves ({example}), so the direction is in doubt"
        raise DataError(what, str(path), "Find out which of the two is right, and leave the other key out.")
