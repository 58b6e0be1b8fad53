"""What mining found and what it left out, with examples that one can look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import unified_diff
from typing import Any

from preftune.data.mining.asking import MinedPair
from preftune.progress import counted

EXAMPLES = 3
SHOWN_CHARACTERS = 200
SHOWN_LINES = 14


@dataclass
class MiningReport:
    """What was mined, or would be (dry_run).

    commits = commits_used + the sum of commits_left_out. changes (of functions, in the commits used) = pairs + the sum of
    changes_left_out. functions_left_out: functions with a docstring at the tip that are no demonstrations. kinds: pairs by kind.
    records: new ones of each kind in the store. written: the file that holds them, if one was asked for. store_made: where a store is that
    was made for them.
    """

    repository: str
    tip: str
    dry_run: bool
    commits: int = 0
    commits_used: int = 0
    changes: int = 0
    pairs: int = 0
    demonstrations: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    commits_left_out: dict[str, int] = field(default_factory=dict)
    changes_left_out: dict[str, int] = field(default_factory=dict)
    functions_left_out: dict[str, int] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    written: str | None = None
    store_made: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines for a person."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"{self.repository} at {self.tip[:12]}: {counted(self.commits, 'commits')}, {self.commits_used:,} used",
            f"  {counted(self.pairs, 'pairs')} from {counted(self.changes, 'changed functions')}{f' ({kinds})' if kinds else ''}",
            f"  {counted(self.demonstrations, 'demonstrations')}",
        ]
        if self.records:
            new = ", ".join(f"{count:,} {kind}" for kind, count in self.records.items() if count) or "nothing"
            lines.append(f"  {'would be new' if self.dry_run else 'new'}: {new}")
        for what, reasons in (
            ("commits left out", self.commits_left_out),
            ("changed functions left out", self.changes_left_out),
            ("functions left out as demonstrations", self.functions_left_out),
        ):
            lines += [f"  {counted(count, what)}: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
        if self.store_made:
            lines.append(f"  made a new store: {self.store_made}")
        if self.written:
            lines.append(f"  written to {self.written}")
        if self.examples:
            lines += ["Some of the pairs (- the version before, rejected; + the one after, chosen):", *self.examples]
        return lines


def examples_of(pairs: Sequence[MinedPair]) -> list[str]:
    """Return some pairs, spread over the history, each with its prompt and the lines that changed."""
    step = max(1, len(pairs) // EXAMPLES)
    return [_example(pair) for pair in pairs[::step][:EXAMPLES]]


def kinds_of(pairs: Sequence[MinedPair]) -> dict[str, int]:
    """Return how many pairs there are of each kind."""
    return dict(Counter(pair.kind for pair in pairs))


def _example(pair: MinedPair) -> str:
    asked = " ".join(pair.prompt.text.split())
    shown = asked if len(asked) <= SHOWN_CHARACTERS else f"{asked[:SHOWN_CHARACTERS]}…"
    difference = list(unified_diff(pair.before.text.split("\n"), pair.after.text.split("\n"), lineterm="", n=1))[2:]
    changed = [line for line in difference if not line.startswith("@@")]
    more = [f"… {len(changed) - SHOWN_LINES} more lines"] if len(changed) > SHOWN_LINES else []
    return "\n".join([f"{pair.where}", f"  {shown}", *(f"  {line}" for line in [*changed[:SHOWN_LINES], *more])])
