"""Print the figures of several demo folders as one Markdown table: each seed, and mean and range over the seeds.

python scripts/demo_table.py demo-full demo-full-1 demo-full-2
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = {"n", "seed"}


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float | str]]:
    """Yield (dotted name, value) of every number and verdict in a summary."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in LEFT_OUT:
                yield from numbers(inner, f"{name}.{key}" if name else key)
    elif (isinstance(value, (int, float)) and not isinstance(value, bool)) or name.endswith("verdict"):
        yield name, value


def cell(value: float | str | None) -> str:
    """Return a number with four digits, a verdict as it is."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


def over_seeds(values: list[float | str | None]) -> str:
    """Return "mean (least to greatest)" of numbers, or the distinct verdicts."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, (int, float)) for v in known):
        figures = [float(v) for v in known]
        return f"{cell(sum(figures) / len(figures))} ({cell(min(figures))} to {cell(max(figures))})"
    return ", ".join(sorted({str(v) for v in known}))


def table(folders: list[Path]) -> str:
    """Return the table of these demo folders."""
    columns = [dict(numbers(json.loads((folder / "summary.json").read_text(encoding="utf-8")))) for folder in folders]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = ["| figure | " + " | ".join(folder.name for folder in folders) + " | over the seeds |", "|---" * (len(folders) + 2) + "|"]
    for name in names:
        values = [column.get(name) for column in columns]
        lines.append(f"| `{name}` | " + " | ".join(map(cell, values)) + f" | {over_seeds(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(name) for name in sys.argv[1:]]))
