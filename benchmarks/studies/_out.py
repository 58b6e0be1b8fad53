"""What every study leaves: a table as JSON and Markdown, a plot as SVG, and one line of JSON on stdout."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from scipy.stats import t as student

matplotlib.use("svg")
import matplotlib.pyplot as plt

INK = "#7f7f7f"  # legible on white and on black
# Okabe and Ito's colours, told apart by colour-blind readers; the marker says it once more.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6bb1", "#999933"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
plt.rcParams.update(
    {"svg.hashsalt": "preftune", "svg.fonttype": "path", "savefig.transparent": True, "font.size": 9, "legend.frameon": False}
    | {key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
)


def arguments(what: str) -> argparse.Namespace:
    """Return --quick and --out."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--quick", action="store_true", help="a few small runs, under a minute: shows that it works, not what it finds")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the plot")
    return parser.parse_args()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half-width of its 95 % interval by Student's t over the seeds); nan for a single value."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.fmean(values), float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def told(values: Sequence[float], digits: int = 3) -> str:
    """Return "mean ± half-width" of `spread`."""
    mean, half = spread(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def rounded(value: Any) -> Any:
    """Return a number to five digits, all else as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Return rows of the same columns as a table."""
    heads = list(rows[0])
    return "\n".join(
        ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(row.values()) + " |" for row in rows)]
    )


def write(
    out: Path,
    name: str,
    rows: Sequence[dict[str, Any]],
    shown: Sequence[dict[str, str]],
    figure: Any,
    summary: dict[str, Any],
    more: Sequence[Sequence[dict[str, str]]] = (),
) -> None:
    """Write NAME.json (every run, and the summary), NAME.md (the tables as shown) and NAME.svg; print the summary."""
    out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps({key: rounded(value) for key, value in row.items()}) for row in rows)
    (out / f"{name}.json").write_text(f'{{"summary": {json.dumps(summary)},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    (out / f"{name}.md").write_text("\n\n".join(map(markdown, [shown, *more])) + "\n", encoding="utf-8")
    if figure is not None:
        figure.savefig(out / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    print(json.dumps({"study": name} | summary))
