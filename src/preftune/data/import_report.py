"""What an import did, or would do: counts, what was set aside and why, and examples by which a person sees which way ranks are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from preftune.data.formats.rows import Row, SetAside
from preftune.data.store import KINDS
from preftune.progress import counted
from preftune.records import Judgement

SHOWN_CHARACTERS = 200
SHOWN_LINES = 3
MOST_KINDS = 100  # of reasons, notes or keys; a hostile file could have a new one in every row
OTHERS = "(others)"


@dataclass
class ImportReport:
    """What an import did, or would do (dry_run).

    rows = new + already_there + the sum of set_aside; a row counts as new where any of its records is. A line may give several rows.
    already_there: in the store, or earlier in the file. records: the new ones of each kind. set_aside: rows by reason, and
    set_aside_lines the first lines of each. notes: what else must be told, such as parts of rows that were left out, with how often.
    unused: rows by a key that we made nothing of. direction: which way ranks and scores are read. columns: our key → the table's column.
    store_made: where a store is that was made for this import.
    """

    source: str
    format: str
    dry_run: bool
    rows: int = 0
    new: int = 0
    already_there: int = 0
    records: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    set_aside: dict[str, int] = field(default_factory=dict)
    set_aside_lines: dict[str, list[int]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    direction: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    set_aside_file: str | None = None
    store_made: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def count_aside(self, aside: Iterable[SetAside]) -> None:
        """Count rows that were set aside."""
        for item in aside:
            self.rows += 1
            reason = _tally(self.set_aside, item.reason)
            lines = self.set_aside_lines.setdefault(reason, [])
            if len(lines) < SHOWN_LINES:
                lines.append(item.line)

    def count_row(self, row: Row, *, is_new: bool) -> None:
        """Count a row that was taken."""
        self.rows += 1
        self.new += is_new
        self.already_there += not is_new
        for key in row.unused:
            _tally(self.unused, key)
        for note in row.notes:
            _tally(self.notes, note)

    def lines(self) -> list[str]:
        """Return the report as lines for a person."""
        would = "would be " if self.dry_run else ""
        rows = counted(self.rows, "rows")
        lines = [f"{self.source} ({self.format}): {rows}, {self.new:,} {would}new, {self.already_there:,} already there"]
        lines += [f"  made a new store: {self.store_made}"] if self.store_made else []
        lines += [f"  {counted(count, f'new {kind}')}" for kind, count in self.records.items() if count]
        for reason, count in sorted(self.set_aside.items(), key=lambda item: -item[1]):
            shown = ", ".join(f"{line:,}" for line in self.set_aside_lines[reason])
            more = ", …" if count > SHOWN_LINES else ""
            lines.append(f"  {count:,} set aside: {reason} ({'line' if count == 1 else 'lines'} {shown}{more})")
        lines += [f"  {count:,} × {note}" for note, count in sorted(self.notes.items(), key=lambda item: -item[1])]
        lines += [f"  {counted(n, 'rows have')} a key that is not used: {key}" for key, n in self.unused.items()]
        if self.columns:
            lines.append(f"  columns: {', '.join(f'{ours} = {name}' for ours, name in self.columns.items())} (--map says otherwise)")
        if self.set_aside_file:
            lines.append(f"  what was set aside: {self.set_aside_file}")
        if self.examples:
            lines.append(f"Direction: {self.direction}")
            lines += ["The first of them, so that you can see that better and worse are the right way round:", *self.examples]
        return lines


def _tally(counts: dict[str, int], key: str) -> str:
    name = plain(key)
    name = name if name in counts or len(counts) < MOST_KINDS else OTHERS
    counts[name] = counts.get(name, 0) + 1
    return name


def example(row: Row) -> str:
    """Return a row as lines for a person: the last user's turn, and what is said of each answer, or the wish, if any."""
    lines = [f"line {row.line}, {message.role}: {shown(message.content)}" for message in row.prompt.messages[-1:]]
    if not row.judgements and not row.demonstrations:
        return "\n".join([*lines, "  (a prompt alone)"])
    if not row.judgements:
        return "\n".join([*lines, *(f"  wished: {shown(wished.text)}" for wished in row.demonstrations)])
    judgement = row.judgements[0]
    texts = {candidate.id: candidate.text for candidate in row.candidates}
    for place, tier in zip(_places(judgement), judgement.ranking, strict=True):
        lines += [f"  {place}: {shown(texts[candidate])}" for candidate in tier]
    return "\n".join(lines)


def _places(judgement: Judgement) -> list[str]:
    ranking = judgement.ranking
    if len(ranking) == 1:
        if judgement.acceptable is None:
            return ["alike"]
        return ["good" if judgement.acceptable else "bad" if len(ranking[0]) == 1 else "alike, and bad"]
    return ["better", "worse"] if len(ranking) == 2 else [f"place {n + 1}" for n in range(len(ranking))]


def shown(text: str) -> str:
    """Return a text on one line, cut to what fits a report."""
    text = " ".join(text[: SHOWN_CHARACTERS * 10].split())
    return plain(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")


def plain(text: str) -> str:
    """Return a text whose control characters are replaced: what a file holds does not steer the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
