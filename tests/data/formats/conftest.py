"""What the tests of formats share: writing a file, reading it, and what a row says in plain texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.data.formats import Row, SetAside, read


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that writes bytes, text, or values as JSON lines into a file."""

    def write(content: Any) -> Path:
        if isinstance(content, list):
            content = "".join(json.dumps(value) + "\n" for value in content)
        path = tmp_path / "data.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def taken(written: Callable[[Any], Path]) -> Callable[..., tuple[list[Row], list[SetAside]]]:
    """Return a function that writes values and reads them by looking (or as a format): the rows, and what was set aside."""

    def take(values: Any, format: str | None = None, **options: Any) -> tuple[list[Row], list[SetAside]]:
        items = list(read(written(values), format, **options))
        return [i for i in items if isinstance(i, Row)], [i for i in items if isinstance(i, SetAside)]

    return take


@pytest.fixture
def ranked() -> Callable[..., list[list[str]]]:
    """Return a function that gives one judgement of a row as the texts of its ranking, best first."""

    def texts(row: Row, number: int = 0) -> list[list[str]]:
        by_id = {candidate.id: candidate.text for candidate in row.candidates}
        return [[by_id[name] for name in tier] for tier in row.judgements[number].ranking]

    return texts


@pytest.fixture
def messages() -> Callable[[Row], list[tuple[str, str]]]:
    """Return a function that gives the prompt of a row as (role, content)."""
    return lambda row: [(m.role, m.content) for m in row.prompt.messages]
