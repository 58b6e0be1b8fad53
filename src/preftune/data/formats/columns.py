"""Tables with columns of the team's own: CSV, TSV, Parquet, or JSON, with a map from our keys to the columns.

    preftune import answers.csv --map prompt=Question --map chosen=Better --map rejected=Worse

The keys are those of our own rows (see own): prompt, system, chosen, rejected, completion, kind, check, rater, strength, id. Without a map,
columns with usual names ("Question", "preferred", "worse answer"…) are taken for what they say, and the report tells which; not so where
another column rates the answers (label, score, rank…), since then nobody can guess what they mean.

Direction: chosen over rejected, as the map says.
Left out: columns that are not mapped (counted in the report); rows without a prompt or an answer.
Source: this project.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from preftune.data.formats import own
from preftune.data.formats.rows import Item, Row, SetAside
from preftune.errors import ConfigError

KEYS = own.KEYS - {"answers", "ranking"}
USUAL = {
    "prompt": {"prompt", "question", "instruction", "query", "request", "input", "task"},
    "system": {"system", "system_prompt"},
    "chosen": {"chosen", "preferred", "better", "best", "accepted", "good"},
    "rejected": {"rejected", "dispreferred", "worse", "worst", "declined", "bad"},
    "completion": {"completion", "answer", "response", "output", "ideal", "reference"},
    "rater": {"rater", "annotator", "judge", "reviewer"},
}
ENDINGS = ("_answer", "_response", "_completion", "_output", "_text")
RATES = {"label", "labels", "score", "scores", "rating", "rank", "ranking", "kto_tag", "thumb", "winner", "preference"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether the columns have usual names."""
    return guess(fields) is not None


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row whose columns have been renamed. Raises BadRow where it is not as the module says."""
    return own.rows(line, fields)


def guess(names: Iterable[str]) -> dict[str, str] | None:
    """Return which columns are which of our keys, by their names, or None where that would be more than guessing."""
    found: dict[str, str] = {}
    plain = {name: re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in names}
    for ours, usual in USUAL.items():
        fitting = [name for name, said in plain.items() if said in usual or any(said == f"{u}{end}" for u in usual for end in ENDINGS)]
        if len(fitting) > 1:
            return None
        if fitting:
            found[ours] = fitting[0]
    if RATES & {said for name, said in plain.items() if name not in found.values()}:
        return None
    is_pair = {"chosen", "rejected"} <= found.keys()
    if "prompt" not in found or is_pair == ("completion" in found) or (not is_pair and {"chosen", "rejected"} & found.keys()):
        return None
    return found


def parse_map(words: Iterable[str]) -> dict[str, str] | None:
    """Return a map of our keys to columns from words like "prompt=Question", several of which may stand in one; None where there are none.

    Raises ConfigError where a word is no such thing.
    """
    found: dict[str, str] = {}
    for word in words:
        parts = re.split(rf"[\s,]+(?=(?:{'|'.join(sorted(KEYS))})=)", word.strip())
        for part in parts:
            ours, equals, name = part.partition("=")
            if not equals or not name.strip() or ours.strip() not in KEYS:
                raise ConfigError(f'--map "{part}" is not KEY=COLUMN with a key of ours', "", f"The keys are {', '.join(sorted(KEYS))}.")
            found[ours.strip()] = name.strip()
    return found or None


def renamed(items: Iterator[Item | SetAside], columns: dict[str, str]) -> Iterator[Item | SetAside]:
    """Yield items with their columns under our names. columns: our key → the column's name."""
    for item in items:
        if isinstance(item, SetAside) or not isinstance(item.value, dict):
            yield item
            continue
        rest = {name: value for name, value in item.value.items() if name not in columns.values()}
        mapped = {ours: item.value.get(name) for ours, name in columns.items()}
        yield Item(item.line, {**rest, **mapped}, item.text)
