"""The checks as one HTML file: the problems first, then plots and tables. No network, no script; no text of the data is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preftune.data.checks.report import DataReport, length_rule
from preftune.data.pages import write_html

if TYPE_CHECKING:
    from preftune.data.checks.drawing import Plot

SHOWN_PLACES = 100


def write_page(report: DataReport, path: Path) -> Path:
    """Write the report to an HTML file, whole or not at all, and return its path."""
    contents = {"report": report, "plots": _plots(report), "lines": report.lines()}
    return write_html(Path(path), "check.html.j2", "preftune.data", **contents, shown_places=report.private.places[:SHOWN_PLACES])


def _plots(report: DataReport) -> list[Plot]:
    from preftune.data.checks import drawing

    bias = report.bias
    if bias is None:
        return []
    told = {
        "the longer wins": bias.longer_wins,
        "length": bias.by_length,
        "looks": bias.by_looks,
        "length and looks": bias.by_both,
    }
    if report.agreement:
        told["two raters agree"] = report.agreement
    alone = [(label, share) for label, share in told.items() if share]
    looks = [(look.feature, look.difference) for look in sorted(bias.looks, key=lambda look: look.difference.value)]
    most = sorted(report.languages.items(), key=lambda item: -item[1])[:12]
    plots = [
        drawing.histogram(
            "lengths",
            "Length of the answers",
            "Where the two lines differ, length tells chosen from rejected.",
            bias.histogram,
        ),
        drawing.estimates(
            "alone",
            "What little things alone tell",
            "How often each rule picks the chosen answer on prompts that it was not fitted to; one half is chance. "
            f"By length, {length_rule(bias)}. A reward model that is no better has learned no more.",
            alone,
            centre=0.5,
        ),
    ]
    if looks:
        plots.append(
            drawing.estimates(
                "looks",
                "Looks: chosen minus rejected",
                "Difference of the shares of answers that have it; the bars hold for all rows at once (95 %).",
                looks,
                centre=0.0,
            )
        )
    if len(most) > 1:
        shares = [(name, count / report.prompts) for name, count in reversed(most)]
        note = "By a guess from script and common words; ? where too little speaks for any."
        plots.append(drawing.bars("languages", "Languages of the prompts", note, shares))
    return plots
