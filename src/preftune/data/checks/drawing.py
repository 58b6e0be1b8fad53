"""Plots of the checks as inline SVG: text stays text, colours are the page's variables, so that one drawing serves light and dark.

matplotlib draws with stand-in colours, which are then replaced. Every plot has a title and a description for those who do not see it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from preftune.data.intervals import Estimate, Share

INK, MUTED, GRID, FIRST, SECOND = "#010101", "#020202", "#030303", "#0a0a01", "#0a0a02"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", FIRST: "--plot-1", SECOND: "--plot-2"}
_SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "preftune", "font.size": 10.5,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.6, "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 10.5,
}  # fmt: skip
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.0f} %")
WIDTH = 5.0


@dataclass(frozen=True)
class Plot:
    """A drawing, and what to say below it."""

    title: str
    note: str
    drawing: Markup


def histogram(name: str, title: str, note: str, counts: Mapping[str, Sequence[float]]) -> Plot:
    """Return the lengths of chosen (solid) and rejected (dashed) answers. counts: "edges" in characters, "chosen", "rejected"."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        edges = [edge + 1 for edge in counts["edges"]]  # from 1, as the axis is logarithmic
        for part, colour, dash in (("chosen", FIRST, "-"), ("rejected", SECOND, "--")):
            axes.stairs(counts[part], edges, color=colour, linestyle=dash, linewidth=1.8, label=part)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda length, _: f"{length:,.0f}"))
        axes.set_xlabel("characters")
        axes.set_ylabel("answers")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.legend(loc="outside upper left", ncols=2, labelcolor=INK, handlelength=2.2, borderaxespad=0.2)
        rows = [f"{part}: {sum(counts[part]):,.0f} answers" for part in ("chosen", "rejected")]
        return Plot(title, note, _svg(figure, name, title, "; ".join(rows)))


def estimates(name: str, title: str, note: str, rows: Sequence[tuple[str, Share | Estimate]], *, centre: float) -> Plot:
    """Return one row an estimate, the first at the bottom: a point with its interval, beside a line at what would mean nothing."""
    with matplotlib.rc_context(_SETTINGS | {"axes.grid.axis": "x", "axes.spines.left": False}):
        figure = Figure(figsize=(WIDTH, 0.85 + 0.34 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(centre, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
        for place, (_, share) in enumerate(rows):
            axes.plot([share.low, share.high], [place, place], color=FIRST, linewidth=2.4, solid_capstyle="butt")
            axes.plot([share.value], [place], marker="o", markersize=6.5, color=FIRST, linestyle="none")
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_PERCENT)
        told = "; ".join(f"{label}: {share.value:.1%} (95 % CI {share.low:.1%} to {share.high:.1%})" for label, share in rows)
        return Plot(title, note, _svg(figure, name, title, told))


def bars(name: str, title: str, note: str, rows: Sequence[tuple[str, float]]) -> Plot:
    """Return one bar a row, the first at the bottom."""
    with matplotlib.rc_context(_SETTINGS | {"axes.grid.axis": "x", "axes.spines.left": False}):
        figure = Figure(figsize=(WIDTH, 0.85 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh([label for label, _ in rows], [share for _, share in rows], height=0.55, color=FIRST)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_PERCENT)
        return Plot(title, note, _svg(figure, name, title, "; ".join(f"{label}: {share:.1%}" for label, share in rows)))


def _svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = buffer.getvalue()
    size = re.search(r'viewBox="([^"]+)"', drawing)
    body = drawing[drawing.index("<g id=") : drawing.rindex("</svg>")]
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r' font-family: [^;"]+;', "", body)
    body = re.sub(r"\s+", " ", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return Markup(
        '<svg class="plot" role="img" aria-labelledby="{0}-title {0}-desc" viewBox="{1}"><title id="{0}-title">{2}</title>'
        '<desc id="{0}-desc">{3}</desc>{4}</svg>'
    ).format(name, size[1] if size else "0 0 320 200", title, description, Markup(body))
