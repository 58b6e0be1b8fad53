"""Judgements as CSV for a spreadsheet: to read, not to import again (NDJSON is for that).

A cell that a spreadsheet would take for a formula gets an apostrophe before it, as it may be the text of a stranger.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, exists, select

from preftune.data import tables
from preftune.data.store import CHUNK, Store, judgement_from_row
from preftune.records import CHECKS

COLUMNS = (
    "judgement_id", "created", "rater", "kind", "prompt", "ranking", "strength", "acceptable", "rationale", "rewrite", "rewrite_of",
    "active_seconds", "picked_by", "picked_probability",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def guarded(cell: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe; numbers stay."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def leaving() -> ColumnElement[bool]:
    """Return which rows of the judgements leave the store here: those that stand and say something, and check no rater."""
    table = tables.judgements
    later = table.alias("later")
    takes_back = and_(table.c.supersedes.is_not(None), cast(table.c.ranking, Text) == "[]", table.c.acceptable.is_(None))
    return and_(table.c.picked_by.not_in(CHECKS), ~exists().where(later.c.supersedes == table.c.id), ~takes_back)


def csv_lines(store: Store) -> Iterator[str]:
    """Yield the CSV in pieces, its header first; rows in order of arrival."""
    yield f"\ufeff{_written([COLUMNS])}"  # the mark by which spreadsheets know UTF-8
    table, prompts, last = tables.judgements, tables.prompts.c, 0
    while True:
        query = select(table).where(table.c.number > last, leaving()).order_by(table.c.number).limit(CHUNK)
        with store.reading() as connection:
            rows = connection.execute(query).all()
            asked = select(prompts.id, prompts.kind, prompts.messages).where(prompts.id.in_({row.prompt_id for row in rows}))
            about = {row.id: row for row in connection.execute(asked)}
        yield _written([_cells(row, about[row.prompt_id]) for row in rows])
        if len(rows) < CHUNK:
            return
        last = rows[-1].number


def _cells(row: Any, prompt: Any) -> list[Any]:
    # row, prompt: of their tables.
    judgement = judgement_from_row(row)
    good = None if judgement.acceptable is None else " ".join(judgement.acceptable) or "none"
    return [
        row.id,
        judgement.created.isoformat(timespec="seconds"),
        judgement.rater,
        prompt.kind,
        prompt.messages[-1]["content"],
        " > ".join(" = ".join(tier) for tier in judgement.ranking),
        judgement.strength,
        good,
        judgement.rationale,
        judgement.rewrite,
        judgement.rewrite_of,
        judgement.active_seconds,
        judgement.picked_by,
        judgement.picked_probability,
    ]


def _written(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([[guarded(cell) for cell in row] for row in rows])
    return text.getvalue()
