"""Small charts as inline SVG, made on the server: a share with its interval, a row of bars.

They hold no style attribute, which the pages' content security policy forbids: colours come from classes in owner.css. Each
says in words what it shows (`aria-label`), so nothing is told by the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

WIDTH = 160  # of a share's chart, in user units
HEIGHT = 16
BAR_WIDTH = 14
BARS_HEIGHT = 60


def share_chart(share: float, low: float, high: float, *, reference: float | None = None, least: float = 0.0, most: float = 1.0) -> Markup:
    """Return a line from low to high with a dot at the share, and a tick where it should or might lie.

    share, low, high: on the scale from least to most; what lies outside is drawn at the scale's end. reference: where the tick is.
    """

    def x(value: float) -> str:
        inside = min(max(value, least), most)
        return f"{4 + (WIDTH - 8) * (inside - least) / (most - least):.1f}"

    middle = HEIGHT // 2
    tick = ""
    if reference is not None:
        tick = f'<line class="chart-reference" x1="{x(reference)}" x2="{x(reference)}" y1="1" y2="{HEIGHT - 1}"/>'
    words = f"{share:.2f}, from {low:.2f} to {high:.2f}" + ("" if reference is None else f", the mark is at {reference:.2f}")
    return Markup(
        f'<svg class="chart" role="img" aria-label="{words}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f'<line class="chart-axis" x1="4" x2="{WIDTH - 4}" y1="{middle}" y2="{middle}"/>{tick}'
        f'<line class="chart-range" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="chart-dot" cx="{x(share)}" cy="{middle}" r="4"/></svg>'
    )


def bar_chart(counts: Sequence[int], labels: Sequence[str], *, what: str) -> Markup:
    """Return a bar for each count, its label and number as its title. what: the chart in words, without the numbers."""
    top = max(counts, default=0) or 1
    bars = []
    for place, (count, label) in enumerate(zip(counts, labels, strict=True)):
        height = BARS_HEIGHT * count / top
        size = f'x="{place * BAR_WIDTH + 1}" y="{BARS_HEIGHT - height:.1f}" width="{BAR_WIDTH - 2}" height="{height:.1f}"'
        bars.append(Markup('<rect class="chart-bar" {}><title>{}: {:,}</title></rect>').format(Markup(size), label, count))
    width = BAR_WIDTH * max(1, len(counts))
    numbers = ", ".join(f"{label}: {count:,}" for count, label in zip(counts, labels, strict=True))
    head = Markup('<svg class="chart" role="img" aria-label="{}. {}" viewBox="0 0 {} {}" width="{}" height="{}">')
    axis = Markup('<line class="chart-axis" x1="0" x2="{}" y1="{}" y2="{}"/></svg>').format(width, BARS_HEIGHT, BARS_HEIGHT)
    return head.format(what, numbers, width, BARS_HEIGHT + 1, width, BARS_HEIGHT + 1) + Markup("").join(bars) + axis
