"""Files that we know and do not take, each with the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LARGEST_MAP_BYTES = 2**20


class Refusal(NamedTuple):
    """What a file is, and what to do instead."""

    what: str
    fix: str


def refusal_of(path: Path, keys: Sequence[str]) -> Refusal | None:
    """Return why a file with rows of these keys is not taken, or None where we do not know it."""
    if {"prompt", "completions", "labels"} <= set(keys):
        return Refusal(
            "the rows judge the steps of one answer (stepwise supervision), and we know judgements of whole answers alone",
            "Import data in which whole answers are compared, ranked or liked.",
        )
    if set(keys) == {"text"}:
        return Refusal(
            "the rows are plain text (language modelling), in which nothing says where the prompt ends and the answer begins",
            'Write rows with "prompt" and "completion", or with "messages".',
        )
    if not keys and _is_column_map(path):
        return Refusal(
            "this is LLaMA-Factory's dataset_info.json, which describes other files", "Import the files that it names under file_name."
        )
    if not keys and _is_one_object(path):
        return Refusal("the file is one JSON object over many lines", "Write one object a line, or an array of objects.")
    return None


def _is_one_object(path: Path) -> bool:
    return isinstance(_small_json(path), dict)


def _is_column_map(path: Path) -> bool:
    value = _small_json(path)
    return isinstance(value, dict) and bool(value) and all(isinstance(part, dict) and "file_name" in part for part in value.values())


def _small_json(path: Path) -> object:
    if path.stat().st_size > LARGEST_MAP_BYTES:
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
