"""Plots as inline SVG that follows the page: text stays text in the page's font, colours are the page's variables.

matplotlib draws with stand-in colours, which are then replaced by `var(--…)`, so one drawing serves light, dark and print. Every plot
has a title and a description for those who do not see it, and tells lines apart by dashes and markers, not by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from preftune.evaluate.story import Measured

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05")  # a sixth line takes the first colour with another dash
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "D", "^", "v")
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {c: f"--plot-{i}" for i, c in enumerate(SERIES, 1)}
_STEPS = [1, 2, 5, 10]  # of the ticks
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "preftune",  # the same story gives the same bytes
    "font.size": 10.5,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.6, "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 10.5,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of a plot over steps."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """One row of a plot of estimates."""

    label: str
    estimate: Measured


@dataclass(frozen=True)
class Point:
    """One named point with an uncertainty in height."""

    label: str
    x: float
    estimate: Measured


@dataclass(frozen=True)
class Track:
    """A measure with its uncertainty over something that was varied."""

    label: str
    xs: Sequence[float]
    estimates: Sequence[Measured]


def curves(
    name: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    *,
    unit: str,
    percent: bool = False,
    guide: tuple[float, str] | None = None,
) -> Markup:
    """Return lines over training steps: each step faint, the moving mean strong.

    name: prefix of its ids, one a page. guide: a level to compare with, and what it is. percent: values are shares.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(4.4, 2.75)
        for place, line in enumerate(lines):
            colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
            smooth = moving_mean(line.values)
            if len(line.values) > len(smooth) or list(smooth) != list(line.values):
                axes.plot(line.steps, line.values, color=colour, alpha=0.3, linewidth=0.9)
            marker = MARKERS[place % len(MARKERS)] if len(smooth) == 1 else None
            axes.plot(line.steps, smooth, color=colour, linestyle=dash, marker=marker, label=line.label)
        if guide is not None:
            axes.axhline(guide[0], color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)), label=guide[1])
        if len(lines) > 1 or guide is not None:
            figure.legend(loc="outside upper left", ncols=2, labelcolor=INK, handlelength=2.2, borderaxespad=0.2, columnspacing=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        if percent:
            _in_percent(axes)
        return _svg(figure, name, title, description)


def moving_mean(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours, a twentieth of all on each side; short series stay as they are."""
    reach = len(values) // 20
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - reach) : i + reach + 1])]


def estimates(name: str, title: str, description: str, marks: Sequence[Mark], *, unit: str, percent: bool = False) -> Markup:
    """Return one row an estimate: a point with its 95 % interval."""
    with matplotlib.rc_context(_SETTINGS | {"axes.grid.axis": "x", "axes.spines.left": False}):
        figure, axes = _axes(4.4, 0.85 + 0.36 * len(marks))
        rows = range(len(marks) - 1, -1, -1)
        for row, mark in zip(rows, marks, strict=True):
            colour, estimate = SERIES[0] if row < len(marks) - 1 else MUTED, mark.estimate
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot([estimate.value], [row], marker="o", markersize=6.5, color=colour, linestyle="none")
        axes.set_yticks(list(rows), [mark.label for mark in marks], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(marks) - 0.4)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        if percent:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        return _svg(figure, name, title, description)


def trade_off(name: str, title: str, description: str, points: Sequence[Point], *, x_unit: str) -> Markup:
    """Return named points: what was spent (across) and the style won (up, with its interval, in percentage points)."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(4.4, 2.9)
        for place, point in enumerate(points):
            colour, estimate = SERIES[place % len(SERIES)], point.estimate
            if estimate.low is not None and estimate.high is not None:
                axes.plot([point.x, point.x], [100 * estimate.low, 100 * estimate.high], color=colour, linewidth=1.6)
            marker = MARKERS[place % len(MARKERS)]
            axes.plot([point.x], [100 * estimate.value], marker=marker, markersize=7.5, color=colour, linestyle="none", label=point.label)
        figure.legend(loc="outside upper left", ncols=2, labelcolor=INK, handletextpad=0.3, borderaxespad=0.2, columnspacing=1.2)
        axes.set_xlabel(x_unit)
        axes.set_ylabel("style won, points")
        axes.set_xlim(min(0.0, *(point.x for point in points)), 1.06 * max(0.1, *(point.x for point in points)))
        axes.axhline(0, color=MUTED, linewidth=0.8)
        return _svg(figure, name, title, description)


def tracks(
    name: str,
    title: str,
    description: str,
    lines: Sequence[Track],
    *,
    x_unit: str,
    unit: str,
    guides: Sequence[tuple[float, str]] = (),
    chosen: float | None = None,
) -> Markup:
    """Return measures with their 95 % intervals over something that was varied.

    guides: levels to compare with, and what they are. chosen: the place across that was taken.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(4.4, 2.9)
        for place, line in enumerate(lines):
            colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            for x, estimate in zip(line.xs, line.estimates, strict=True):
                if estimate.low is not None and estimate.high is not None:
                    axes.plot([x, x], [estimate.low, estimate.high], color=colour, linewidth=1.2, alpha=0.6)
            values = [estimate.value for estimate in line.estimates]
            axes.plot(line.xs, values, color=colour, linestyle=DASHES[place % len(DASHES)], marker=marker, markersize=5, label=line.label)
        for level, meaning in guides:
            axes.axhline(level, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)), label=meaning)
        if chosen is not None:
            axes.axvline(chosen, color=MUTED, linewidth=1.4, label="chosen")
        figure.legend(loc="outside upper left", ncols=2, labelcolor=INK, handlelength=2.0, borderaxespad=0.2, columnspacing=1.2)
        axes.set_xlabel(x_unit)
        axes.set_ylabel(unit)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        return _svg(figure, name, title, description)


def calibration(
    name: str, title: str, description: str, bins: Sequence[tuple[float, float, int]], after: Sequence[tuple[float, float, int]] = ()
) -> Markup:
    """Return a reliability diagram of bins (mean confidence, share that was right, count); the diagonal is perfect calibration.

    after: the same with a temperature, where one was fitted.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(4.4, 3.2)
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)), label="as sure as right")
        axes.plot([b[0] for b in bins], [b[1] for b in bins], color=SERIES[0], marker="o", markersize=5.5, label="reward model")
        if after:
            places, shares = [b[0] for b in after], [b[1] for b in after]
            axes.plot(places, shares, color=SERIES[1], linestyle="--", marker="s", markersize=4.5, label="with its temperature")
        figure.legend(loc="outside upper left", ncols=2, labelcolor=INK, handlelength=2.0, borderaxespad=0.2)
        axes.set_xlabel("how sure")
        axes.set_ylabel("how often right")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        axes.set_ylim(top=1.04)
        _in_percent(axes)
        return _svg(figure, name, title, description)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))


def _svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = buffer.getvalue()
    size = re.search(r'viewBox="([^"]+)"', drawing)
    body = drawing[drawing.index("<g id=") : drawing.rindex("</svg>")]
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r' font-family: [^;"]+;| transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r"\s+", " ", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return Markup(
        '<svg class="plot" role="img" aria-labelledby="{0}-title {0}-desc" viewBox="{1}"><title id="{0}-title">{2}</title>'
        '<desc id="{0}-desc">{3}</desc>{4}</svg>'
    ).format(name, size[1] if size else "0 0 320 200", title, description, Markup(body))
