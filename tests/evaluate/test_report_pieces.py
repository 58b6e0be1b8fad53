"""The report's parts one by one: numbers in words, word-level differences, drawings, the choice of answers, and the colours."""

from __future__ import annotations

import html
import importlib.resources
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.evaluate import plots
from preftune.evaluate.answers import choose
from preftune.evaluate.diffs import MOST_WORDS, Diff, word_diff
from preftune.evaluate.sources import as_text
from preftune.evaluate.story import Measured, measured
from preftune.evaluate.wording import NONE, duration, full, gib, listed, plain

SHARE = Measured(0.62, 0.58, 0.66, 100)


def spaced(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (full(SHARE, "share"), "62.0 % (95 % CI 58.0–66.0, n = 100)"),
        (full(Measured(-0.01, -0.05, 0.03), "points"), "−1.0 points (95 % CI −5.0 to +3.0)"),
        (full(Measured(-0.2, -0.5, 0.1), "score"), "−0.20 (95 % CI −0.50 to 0.10)"),
        (full(Measured(1234.0), "tokens"), "1,234.0 tokens"),
        (plain(-0.00001, "points"), "0.0 points"),
        (plain(1.0214, "bits"), "1.0214 bits a byte"),
        (plain(None, "nats"), NONE),
        (duration(3.21), "3.2 s"),
        (duration(119.0), "119 s"),
        (duration(754.0), "13 min"),
        (duration(7500.0), "2 h 05 min"),
        (gib(2.349), "2.3 GiB"),
        (listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_have_unit_and_spread(said, words):
    assert spaced(said) == words


@pytest.mark.parametrize("value", [None, {}, {"value": None}, {"value": float("nan")}, {"value": float("inf")}, "0.5", True])
def test_what_is_no_finite_number_is_not_measured(value):
    assert measured(value) is None


def test_an_interval_with_an_end_that_is_not_finite_is_no_interval():
    assert measured({"value": 0.5, "low": float("nan"), "high": 0.6, "n": 3}) == Measured(0.5, None, None, 3)


def test_manifest_values_are_cut_and_counted_and_never_nan():
    assert as_text({"margins": list(range(40))}).endswith('10, 11, "… 40 in all"]}')
    assert as_text([float("nan"), float("-inf"), 1.5]) == '["–", "–", 1.5]'


def marked_words(diff: Diff) -> tuple[list[str], list[str]]:
    found = [re.findall(rf"<{tag}>(.*?)</{tag}>", side, flags=re.DOTALL) for side, tag in ((diff.before, "del"), (diff.after, "ins"))]
    return tuple([html.unescape(re.sub("<[^>]+>", "", word)) for word in words] for words in found)


def test_the_words_that_differ_are_marked_and_no_others():
    diff = word_diff("```python\nx = 'a' + str(y)\n```", '```python\nx = f"a{y}"\n```')
    assert marked_words(diff) == (["'", "' + str(", ")"], ['f"', "{", '}"'])
    assert diff.note == ""


def test_marked_words_are_joined_over_spaces_but_not_over_lines():
    diff = word_diff("def f(x):\n    return x\n", "def f(x):\n    one two\n    three\n    return x\n")
    assert marked_words(diff) == ([], ["one two", "three"])


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        ("same", "same", "Both answers are the same."),
        ("a b", "a  b", "They differ in white space alone."),
        ("one two three four", "five six seven eight 9 10 11 12 13", "The answers share so little that no words are marked."),
        ("word " * (MOST_WORDS + 1), "word", "Too long to compare word by word (over 3,000 words)."),
    ],
)
def test_where_nothing_is_marked_the_reason_is_said(before, after, note):
    diff = word_diff(before, after)
    assert diff.note == note
    assert "<del>" not in diff.before
    assert "<ins>" not in diff.after


PIECES = st.lists(
    st.sampled_from(["```python\n", "```", "~~~", "def f(x):\n", "    return '<b>'", "&amp;", "</style>", "\n", " ", "\t", "ß", "\\d", '"'])
)


@settings(max_examples=100, deadline=None)
@given(PIECES, PIECES)
def test_no_character_is_lost_or_left_unescaped(first, second):
    before, after = "".join(first), "".join(second)
    diff = word_diff(before, after)
    for side, text in ((diff.before, before), (diff.after, after)):
        assert set(re.findall(r"<[^>]*>", side)) <= {"<del>", "</del>", "<ins>", "</ins>", "</span>"} | {
            f'<span class="{c}">' for c in "kscmfb"
        }
        assert html.unescape(re.sub("<[^>]+>", "", side)) == text


def test_python_is_coloured_inside_its_fence_and_nowhere_else():
    diff = word_diff("for you:\n```python\nfor x in y: pass\n```\nfor me", "")
    assert diff.before.count('<span class="k">for</span>') == 1
    assert '<span class="k">for</span>' in word_diff("for x in y: pass", "").before


def test_without_pygments_code_stays_plain(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygments.lexers.python", None)
    assert "<span" not in word_diff("def f(): pass", "def g(): pass").before


def answers(changes: dict[str, float], new: tuple[str, ...] = ()) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [({"id": n, "kind": n[:3], "new_kind": n in new, "adherence": 0.5}, {"id": n, "adherence": 0.5 + c}) for n, c in changes.items()]


def test_answers_are_chosen_by_rule():
    changes = {f"str-{i:02}": 0.01 * i - 0.05 for i in range(30)}
    picked = choose(answers(changes, new=("str-20",)))
    assert len(picked) == 12
    assert [name for name, why in picked.items() if why == "among the biggest gains"] == ["str-29", "str-28", "str-27"]
    assert [name for name, why in picked.items() if why == "among the biggest losses"] == ["str-00", "str-01", "str-02"]
    assert picked["str-14"] == "the median"
    assert picked["str-20"] == "of a kind that was not trained on: str"
    assert [name for name, why in picked.items() if why == "the next by id"] == ["str-03", "str-04", "str-05", "str-06"]


def test_where_nothing_was_lost_no_answer_is_called_a_loss():
    picked = choose(answers({"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.0, "e": 0.0, "f": 0.0, "g": 0.0}))
    assert [why for why in picked.values() if "loss" in why] == []
    assert picked["d"] == "nothing lost more"
    assert choose([]) == {}


def test_a_drawing_keeps_its_ids_to_itself_and_points_at_them_only():
    lines = [plots.Line("a <b>", [1, 2, 3], [0.1, 0.2, 0.3]), plots.Line("c", [1, 2], [0.3, 0.1])]
    drawings = [plots.curves(name, "A & B", "d", lines, unit="nats", guide=(0.2, "level")) for name in ("one", "two")]
    ids = [set(re.findall(r' id="([^"]+)"', drawing)) for drawing in drawings]
    assert not ids[0] & ids[1]
    for drawing, own in zip(drawings, ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing)) <= own
        assert "a &lt;b&gt;" in drawing
        assert "A &amp; B" in drawing
        assert "http" not in drawing


def test_the_moving_mean_keeps_length_and_level():
    assert plots.moving_mean([2.0] * 50) == [2.0] * 50
    assert plots.moving_mean([0.0, 3.0]) == [0.0, 3.0]
    assert plots.moving_mean(list(range(20)))[:2] == [0.5, 1.0]  # one neighbour on each side


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_has_the_contrast_of_wcag_aa_in_every_scheme(scheme):
    css = (importlib.resources.files("preftune.evaluate") / "templates" / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    shown = colours(blocks[("light", "dark", "print").index(scheme)])
    text = {"paper": ["ink", "muted", "link", "good", "bad", "open"], "card": ["ink", "muted"], "warn": ["ink", "open"]}
    code = [name for name in shown if name.startswith("code-")]
    text |= {"add": ["ink", *code], "cut": ["ink", *code]}
    text["card"] += code
    weak = {(on, name): round(contrast(shown[on], shown[name]), 2) for on, names in text.items() for name in names}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}
    lines = {name: contrast(shown["paper"], value) for name, value in shown.items() if name.startswith("plot-")}
    assert min(lines.values()) >= 3  # WCAG 1.4.11, graphics
