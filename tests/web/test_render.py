"""Answers as HTML: what Markdown means, what is shown of the hidden, what is folded, what is compared."""

from __future__ import annotations

import html
import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.web_team import Page

from preftune.web import render
from preftune.web.diff import MOST_LINES, line_diff, matched_lines, words_marked

PIECES = [*"ab `*_#>-[]()!|~<>&\"'\\\n\t:/.0", "\u202e", "é", "ש", "😀", "```", "~~~", "http://", "&lt;", "<a href=", "</"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=80).map("".join)


def words(markup: str) -> str:
    return Page(markup).words


def restored(markup: str) -> str:
    """Return the text of some HTML, hidden characters as they were."""
    return words(re.sub(r'<span class="ctl"[^>]*>U\+([0-9A-F]+)</span>', lambda match: chr(int(match.group(1), 16)), markup))


def test_markdown_becomes_what_it_means():
    shown = render.markdown("# Title\n\nA *word* and `code`.\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    for piece in ('<h3 dir="auto">Title</h3>', "<em>word</em>", '<code dir="ltr">code</code>', '<li dir="auto">one</li>', ">1</td>"):
        assert piece in shown


def test_a_line_break_of_the_author_stays_one():
    assert "one<br>" in render.markdown("one\ntwo")


def test_headings_of_an_answer_stand_below_those_of_the_page():
    assert re.findall(r"<h(\d)", render.markdown("# a\n\n## b\n\n###### d")) == ["3", "4", "6"]
    assert re.findall(r"<h(\d)", render.markdown("### a\n\n#### b")) == ["3", "4"]
    assert re.findall(r"<h(\d)", render.markdown("# a\n\n## b", top=2)) == ["2", "3"]


def test_raw_html_stays_text():
    shown = render.markdown('<b onclick="x()">bold</b> and <script>alert(1)</script>\n\n<div><p>block</p></div>')
    assert {tag for tag, _ in Page(shown).elements} <= {"p", "br"}
    assert "alert(1)" in words(shown)
    assert '<b onclick="x()">bold</b>' in words(shown)


@pytest.mark.parametrize("address", ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "file:///x"])
def test_a_link_that_is_none_to_the_web_is_no_link(address):
    elements = Page(render.markdown(f"[here]({address}) <{address}>")).elements
    assert [a["href"] for _, a in elements if "href" in a] == []


def test_a_link_tells_nobody_where_it_was_read():
    (link,) = [a for tag, a in Page(render.markdown("[docs](https://example.org/a?b=c)")).elements if tag == "a"]
    assert link == {"href": "https://example.org/a?b=c", "rel": "noopener noreferrer nofollow"}


def test_an_image_is_named_and_not_loaded():
    shown = render.markdown("![a chart](https://tracker.example/p.png)")
    assert "img" not in {tag for tag, _ in Page(shown).elements}
    assert "[image: a chart, https://tracker.example/p.png]" in words(shown)


def test_code_gets_colours_and_keeps_every_character():
    code = 'def f(x: int) -> str:\n    """Doc & <b>."""\n    return f"{x}"  # why\n\n\n'
    shown = render.markdown(f"```python\n{code}```")
    assert '<span class="k">def</span>' in shown
    assert "style=" not in shown
    assert words(shown).rstrip("\n") == code.rstrip("\n")


def test_a_language_that_is_not_on_the_list_is_shown_plain():
    shown = render.markdown('```x" onmouseover="alert(1)\n1 + 1\n```\n\n```brainfuck\n+++\n```')
    assert not [attributes for _, attributes in Page(shown).elements if any(name.startswith("on") for name in attributes)]
    assert "1 + 1" in words(shown)


def test_every_language_of_the_list_has_a_lexer():
    assert [language for language in render.LANGUAGES if render._lexer(language) is None] == []


def test_long_blocks_and_long_lines_are_shown_without_colours():
    assert 'class="k"' not in render.markdown("```python\nx = '" + "a" * (render.LONGEST_COLOURED_LINE + 1) + "'\nimport os\n```")
    assert 'class="k"' not in render.markdown("```python\n" + "import os\n" * (render.MOST_COLOURED // 10 + 1) + "```")


def test_code_without_a_fence_is_shown_as_code():
    assert '<div class="code">' in render.answer("def f():\n    return __name__ * 2\n")
    assert "__name__" in words(render.answer("import os\nprint(__name__)\n"))
    assert '<div class="code">' not in render.answer("from my point of view\nthis is prose")


def test_code_that_turns_its_own_order_round_shows_that_it_does():
    # CVE-2021-42574: what a person reads is another program than the one that runs.
    shown = render.markdown("```python\nif level != 'user\u202e \u2066# only admins\u2069 \u2066':\n```")
    assert "\u202e" not in shown
    assert next(a["title"] for _, a in Page(shown).elements if a.get("class") == "ctl") == "right-to-left override"
    assert "U+202E" in words(shown)


def test_hidden_characters_are_shown_in_code_and_only_harmful_ones_in_prose():
    assert "U+200D" in words(render.markdown("`a\u200db`"))
    assert "U+200D" not in words(render.markdown("family: 👨\u200d👩"))
    assert "U+202E" in words(render.markdown("a\u202eb"))
    assert "U+200F" not in words(render.markdown("שלום\u200f"))
    assert "U+E0041" in words(render.markdown("tagged\U000e0041"))


def test_text_that_runs_from_right_to_left_finds_its_own_direction_and_code_does_not():
    shown = render.markdown("שלום עולם\n\n```\nx = 'שלום'\n```")
    assert '<p dir="auto">' in shown
    assert '<pre dir="ltr"' in shown


@settings(max_examples=150, deadline=None)
@given(TEXTS)
@example("[a]: javascript:x\n\n[a]")
@example("<a href='x'><svg/onload=alert(1)>")
def test_nothing_that_can_run_or_load_ever_comes_out(text):
    allowed = {name for names in render.ATTRIBUTES.values() for name in names} | {"class", "rel"}
    for tag, attributes in Page(render.answer(text)).elements:
        assert tag in render.TAGS
        assert attributes.keys() <= allowed
        assert attributes.get("href", "https:").startswith(("http:", "https:", "mailto:", "/", "#", "?")) or ":" not in attributes["href"]


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_the_text_as_written_loses_no_character(text):
    assert restored(render.plain(text)) == text + "\n"


# Folding


def visible_lines(markup: str) -> int:
    without = re.sub(r'<span class="line beyond">.*?\n</span>', "", markup, flags=re.DOTALL)
    return without.count('<span class="line">')


def test_long_answers_are_folded_after_the_same_number_of_lines():
    short, long = "\n".join(f"s{i}" for i in range(60)), "\n".join(f"l{i}" for i in range(300))
    shown = render.shown([short, long, "one line"])
    assert [s.lines for s in shown] == [60, 300, 1]
    assert [s.hidden for s in shown] == [20, 260, 0]
    assert [visible_lines(s.raw) for s in shown] == [40, 40, 1]


def test_nothing_is_folded_where_no_answer_is_much_longer_than_the_fold():
    shown = render.shown(["\n".join("x" * 1 for _ in range(render.FOLD_LINES + render.FOLD_SLACK)), "y"])
    assert [s.hidden for s in shown] == [0, 0]
    assert "beyond" not in shown[0].formatted


def test_a_fold_goes_through_the_middle_of_a_block_of_code_and_hides_what_comes_after():
    text = "Intro\n\n```python\n" + "\n".join(f"x{i} = {i}" for i in range(60)) + "\n```\n\nThe end."
    (shown,) = render.shown([text])
    # Lines 1 to 40 of the source: the intro, an empty line, the fence, and 37 lines of code.
    assert visible_lines(shown.formatted) == 37
    assert '<p dir="auto" class="beyond">The end.</p>' in shown.formatted
    assert "x59" in words(shown.formatted)


def test_folding_hides_the_later_items_of_one_long_list():
    (shown,) = render.shown(["\n".join(f"- item {i}" for i in range(60))])
    assert len(re.findall(r'<li[^>]*class="beyond"', shown.formatted)) == 20


# Comparing


def test_lines_that_are_in_one_answer_alone_are_told_from_those_that_differ():
    diff = line_diff("a\nsame\nold = 1\nz", "same\nold = 2\nz\nnew")
    assert [row.kind for row in diff.rows] == ["left", "same", "changed", "same", "right"]
    assert [(row.left_number, row.right_number) for row in diff.rows] == [(1, None), (2, 1), (3, 2), (4, 3), (None, 4)]
    assert (diff.rows[2].left, diff.rows[2].right) == ("old = <mark>1</mark>", "old = <mark>2</mark>")
    assert diff.note == "3 of 5 lines differ."


def test_lines_that_share_next_to_nothing_are_not_marked_word_by_word():
    assert words_marked("return total", "for x in values:") == ("return total", "for x in values:")


def test_equal_answers_and_answers_that_differ_in_space_alone_are_said_to_be():
    assert line_diff("a\nb", "a\nb").note == "Both answers are the same."
    assert line_diff("a  b\nc", "a b\nc ").note == "Only white space differs."


def test_answers_that_would_take_long_to_compare_are_set_side_by_side():
    many = "\n".join(str(i) for i in range(MOST_LINES + 1))
    diff = line_diff(many, many + "\nx")
    assert "too many to compare" in diff.note
    assert len(diff.rows) == MOST_LINES + 2


@pytest.mark.parametrize("period", [2, 3, 7])
def test_answers_of_many_equal_lines_are_compared_in_no_time(period):
    left = "\n".join("same" if i % period else f"left {i}" for i in range(2_500))
    started = time.process_time()
    diff = line_diff(left, left.replace("left", "right"))
    assert time.process_time() - started < 3.0
    assert len(diff.rows) >= 2_500


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=14), st.lists(st.sampled_from("abcdef"), max_size=14))
def test_matched_lines_are_equal_ascend_and_leave_no_pair_unmatched(left, right):
    matched = matched_lines(left, right)
    assert all(left[i] == right[j] for i, j in matched)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(matched))
    for (i, j), (k, m) in pairwise([(-1, -1), *matched, (len(left), len(right))]):
        assert not set(left[i + 1 : k]) & set(right[j + 1 : m])


def test_a_comparison_escapes_and_shows_what_is_hidden():
    diff = line_diff("<b>\u202ea", "<i>\u202ea")
    assert "<b>" not in diff.rows[0].left
    assert "U+202E" in diff.rows[0].left
    assert html.unescape(re.sub(r"<[^>]+>", "", diff.rows[0].left)) == "<b>U+202Ea"


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_a_comparison_has_every_line_of_both_answers_in_order(left, right):
    rows = line_diff(left, right).rows
    for side, number, text in (("left", "left_number", left), ("right", "right_number", right)):
        shown = [getattr(row, side) for row in rows if getattr(row, number) is not None]
        back = [restored(line) for line in shown]
        assert back == text.split("\n")
        assert [getattr(row, number) for row in rows if getattr(row, number)] == list(range(1, len(back) + 1))
