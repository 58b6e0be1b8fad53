"""The owner's page of exports: what each format cannot say, told before anything is downloaded, and the download.

An export is written to a nameless temporary file first, row by row, and sent from there: so an error is a page and not half a
file, and nothing stays on the disk. The trail keeps who took what, and the hash of it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import func, select

from preftune.data import tables
from preftune.data.exporting import ExportReport, export_text
from preftune.data.store import Store
from preftune.manifest import disk_errors
from preftune.records import CHECKS
from preftune.web import audit
from preftune.web.owner_parts import now, owner_page
from preftune.web.site import Form, Owner, PageError, store_of
from preftune.web.spreadsheet import csv_lines, leaving

router = APIRouter(prefix="/export")
PIECE = 1 << 16  # bytes
SPREADSHEET = "csv"


@dataclass(frozen=True)
class Kind:
    """A kind of export: how people call it, what it is for, the file's ending and media type."""

    title: str
    purpose: str
    ending: str
    media_type: str


LINES = ("jsonl", "application/x-ndjson")
KINDS = {
    "own": Kind("preftune", "Everything, a judgement a line; preftune import reads it back and loses nothing.", *LINES),
    "trl": Kind("TRL", "Pairs in the conversational form, with weights.", *LINES),
    "trl-unpaired": Kind("TRL, unpaired", "Single answers, good enough or not, as KTO learns from.", *LINES),
    "openai": Kind("OpenAI", "Pairs for preference fine-tuning.", *LINES),
    "llamafactory": Kind("LLaMA-Factory", "Pairs in the sharegpt ranking form.", *LINES),
    "argilla": Kind("Argilla 2", "Records with each rater's ranking.", "json", "application/json"),
    SPREADSHEET: Kind("Spreadsheet", "A judgement a row, to read; texts that look like formulas are made harmless.", "csv", "text/csv"),
}


@router.get("")
def choose(request: Request, format: str = "") -> Response:
    """Show the formats, and of one of them what it would say and leave out."""
    report = _written(store_of(request), format, lambda _: None) if format else None
    return owner_page(request, "export.html", kinds=KINDS, format=format, report=report)


@router.post("")
def download(request: Request, session: Owner, form: Form) -> Response:
    """Send an export as a file, and note it in the audit trail."""
    store, format = store_of(request), form.get("format", "")
    file = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it has been sent, by _sent
    try:
        with disk_errors(Path(tempfile.gettempdir())):
            report = _written(store, format, file.write)
        size = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        detail = {"format": format, "rows": report.rows, "judgements": report.judgements, "sha256": digest}
        audit.record(store, session.person.pseudonym, "export", format, detail)
    except BaseException:
        file.close()
        raise
    kind = KINDS[format]
    name = f"preferences-{format}-{now():%Y-%m-%d}.{kind.ending}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(size)}
    return StreamingResponse(_sent(file), media_type=kind.media_type, headers=headers)


def _sent(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece


def _written(store: Store, format: str, take: Callable[[bytes], object]) -> ExportReport:
    """Hand an export on piece by piece, and return what it says and leaves out.

    Raises PageError (422) where there is no such format, DataError where there is nothing that it could say.
    """
    if format not in KINDS:
        raise PageError(422, f"There is no export {format[:20]!r}", f"Choose one of {', '.join(KINDS)}.")
    report = _spreadsheet_report(store) if format == SPREADSHEET else ExportReport(format)
    pieces: Iterable[str] = csv_lines(store) if format == SPREADSHEET else export_text(store, format, report)
    for piece in pieces:
        take(piece.encode("utf-8"))
    return report


def _spreadsheet_report(store: Store) -> ExportReport:
    table = tables.judgements
    with store.reading() as connection:
        rows = connection.execute(select(func.count()).select_from(table).where(leaving())).scalar_one()
        checks = connection.execute(select(func.count()).select_from(table).where(table.c.picked_by.in_(CHECKS))).scalar_one()
        every = connection.execute(select(func.count()).select_from(table)).scalar_one()
    report = ExportReport(SPREADSHEET, rows=rows, judgements=every - checks)
    told = {
        "judgements that check a rater (gold items, items asked again) kept back": checks,
        "rows omitted that were taken back or changed, or do so": every - checks - rows,
    }
    report.left_out.update({what: count for what, count in told.items() if count})
    return report
