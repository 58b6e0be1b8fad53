"""Files of a team's own retention tasks: JSON lines, plain or packed, whose bad rows are set aside with line and reason."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from preftune.errors import DataError
from preftune.evaluate.json_lines import numbered_lines
from preftune.progress import counted

Item = TypeVar("Item")


class BadRow(ValueError):
    """Why a row cannot be used, in words."""


def read_items(path: Path, read: Callable[[dict[str, Any], int], Item | None]) -> tuple[list[Item], list[str]]:
    """Return the items of a .jsonl or .jsonl.gz file, and for each row that cannot be used "line N: why".

    read: makes an item of a row and its line number, None for a row that is none; it raises BadRow with the reason.
    Raises DataError where the file cannot be read or holds fewer than two good rows.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read ({error})", str(path), "Give a .jsonl or .jsonl.gz file in UTF-8.") from error
    items, set_aside = [], []
    for number, line in numbered_lines(text):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise BadRow("a row is a JSON object, and this is something else")
            item = read(row, number)
        except (BadRow, json.JSONDecodeError) as error:
            set_aside.append(f"line {number}: {error if isinstance(error, BadRow) else f'this is no JSON ({error})'}")
            continue
        if item is not None:
            items.append(item)
    if len(items) < 2:
        why = f"; {set_aside[0]}" if set_aside else ""
        raise DataError(
            f"it has {counted(len(items), 'rows')} that can be used, and two are the least{why}",
            str(path),
            "See docs/retention.md for its form.",
        )
    return items, set_aside


def text_of(row: dict[str, Any], *keys: str) -> str:
    """Return the text under the first of these keys that the row has. Raises BadRow where it is missing, empty or no text."""
    for key in keys:
        if key in row:
            if not isinstance(row[key], str) or not row[key].strip():
                raise BadRow(f'"{key}" is {json.dumps(row[key])[:80]}, and must be text')
            return str(row[key])
    raise BadRow(f"it has no {' or '.join(keys)}")
