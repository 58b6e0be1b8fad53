"""The small charts: where things are drawn, and that no text of a stranger gets in."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from preftune.web.charts import bar_chart, share_chart


def drawn(svg: str, kind: str) -> dict[str, str]:
    found = [e for e in ElementTree.fromstring(svg).iter() if e.get("class") == kind]
    assert len(found) == 1
    return dict(found[0].attrib)


def test_a_share_is_drawn_on_a_scale_from_0_to_1():
    svg = share_chart(0.5, 0.25, 1.0, reference=0.0)
    # 160 wide with 4 at each side: 0 is at 4, 1 at 156.
    assert drawn(svg, "chart-dot")["cx"] == "80.0"
    assert (drawn(svg, "chart-range")["x1"], drawn(svg, "chart-range")["x2"]) == ("42.0", "156.0")
    assert drawn(svg, "chart-reference")["x1"] == "4.0"
    assert 'aria-label="0.50, from 0.25 to 1.00, the mark is at 0.00"' in svg


def test_another_scale_and_what_lies_outside_of_it():
    svg = share_chart(0, -2, 0.5, least=-1)
    assert drawn(svg, "chart-dot")["cx"] == "80.0"
    assert drawn(svg, "chart-range")["x1"] == "4.0"
    assert "chart-reference" not in svg


def test_bars_are_as_high_as_their_counts_and_say_their_numbers():
    svg = bar_chart([5, 10, 0], ["a", "b", "c"], what="Counts")
    bars = [e for e in ElementTree.fromstring(svg).iter() if e.get("class") == "chart-bar"]
    assert [float(bar.get("height", "")) for bar in bars] == [30, 60, 0]
    assert 'aria-label="Counts. a: 5, b: 10, c: 0"' in svg
    ElementTree.fromstring(bar_chart([], [], what="Nothing"))
    ElementTree.fromstring(bar_chart([0], ["none"], what="Zero"))


def test_labels_are_escaped():
    svg = bar_chart([1], ['"><script>alert(1)</script>'], what='" onload="x')
    assert "<script" not in svg
    assert 'onload="' not in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("svg", [share_chart(0.1, 0, 0.2), bar_chart([1, 2], ["x", "y"], what="w")])
def test_no_chart_needs_a_style_that_the_policy_forbids(svg: str):
    assert not re.search(r"\bstyle\b|\bon[a-z]+=", svg)
