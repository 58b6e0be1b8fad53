"""Two answers line by line: which lines are in one alone, and inside of changed lines which words.

The marks say "only here", never "wrong": neither answer is the older one, so nothing is called removed or added.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from preftune.web.render import visible

MOST_LINES = 3_000  # of one answer
MOST_MATCHES = 20_000  # pairs of equal lines that are weighed where no line occurs just once; half a second
LONGEST_LINE = 600  # characters in which words are compared
ALIKE = 0.4  # below this likeness every word of two lines would be marked, which tells nothing
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True)
class Row:
    """One line of the comparison. left_number, right_number: from 1; None where this answer has no such line."""

    kind: Literal["same", "changed", "left", "right"]
    left_number: int | None
    left: Markup
    right_number: int | None
    right: Markup


@dataclass(frozen=True)
class LineDiff:
    """The lines of two answers, and a sentence where there is something to say of them or why they are not compared."""

    rows: tuple[Row, ...]
    note: str = ""


@lru_cache(128)
def line_diff(left: str, right: str) -> LineDiff:
    """Compare two answers line by line. Every line of both is in the result, in order."""
    a, b = left.split("\n"), right.split("\n")
    if left == right:
        return LineDiff(tuple(_rows(a, b, [(i, i) for i in range(len(a))])), "Both answers are the same.")
    if max(len(a), len(b)) > MOST_LINES:
        return LineDiff(tuple(_rows(a, b, [])), f"Over {MOST_LINES:,} lines are too many to compare: they are only set side by side.")
    rows = tuple(_rows(a, b, matched_lines(a, b)))
    if [" ".join(line.split()) for line in a] == [" ".join(line.split()) for line in b]:
        return LineDiff(rows, "Only white space differs.")
    return LineDiff(rows, f"{sum(row.kind != 'same' for row in rows)} of {len(rows)} lines differ.")


def matched_lines(a: list[str], b: list[str]) -> list[tuple[int, int]]:
    """Return pairs (line of a, line of b) of equal lines, both ascending.

    Lines that occur once in both are the fixed points, and what lies between them is matched in turn (Bram Cohen's patience diff);
    where there are none, the longest run of equal lines decides (difflib), unless there are too many to weigh.
    """
    found: list[tuple[int, int]] = []
    budget, waiting = MOST_MATCHES, [(0, len(a), 0, len(b))]
    while waiting:
        i, i_end, j, j_end = waiting.pop()
        while i < i_end and j < j_end and a[i] == b[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        while i < i_end and j < j_end and a[i_end - 1] == b[j_end - 1]:
            i_end, j_end = i_end - 1, j_end - 1
            found.append((i_end, j_end))
        counts_a, counts_b = Counter(a[i:i_end]), Counter(b[j:j_end])
        where = {line: place for place, line in enumerate(b[j:j_end], j) if counts_b[line] == 1}
        fixed = _ascending([(place, where[line]) for place, line in enumerate(a[i:i_end], i) if counts_a[line] == 1 and line in where])
        if fixed:
            found += fixed
            edges = [(i - 1, j - 1), *fixed, (i_end, j_end)]
            waiting += [(p + 1, p_end, q + 1, q_end) for (p, q), (p_end, q_end) in pairwise(edges) if p + 1 < p_end and q + 1 < q_end]
            continue
        matches = sum(count * counts_b[line] for line, count in counts_a.items())
        if 0 < matches <= budget:
            budget -= matches
            # No line is junk: an empty line is as much part of an answer as any.
            for block in SequenceMatcher(None, a[i:i_end], b[j:j_end], autojunk=False).get_matching_blocks():
                found += [(i + block.a + step, j + block.b + step) for step in range(block.size)]
    return sorted(found)


def _ascending(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest part of pairs, sorted by their first number, whose second numbers ascend too."""
    ends: list[int] = []  # the smallest second number at which a run of each length ends
    at: list[int] = []
    before: list[int] = []
    for number, (_, second) in enumerate(pairs):
        length = bisect_left(ends, second)
        before.append(at[length - 1] if length else -1)
        ends[length : length + 1] = [second]
        at[length : length + 1] = [number]
    run, number = [], at[-1] if at else -1
    while number >= 0:
        run.append(pairs[number])
        number = before[number]
    return run[::-1]


def _row(kind: Literal["same", "changed", "left", "right"], i: int, left: str | None, j: int, right: str | None) -> Row:
    return Row(
        kind,
        None if left is None else i + 1,
        Markup("") if left is None else visible(left),
        None if right is None else j + 1,
        Markup("") if right is None else visible(right),
    )


def _rows(a: list[str], b: list[str], matched: list[tuple[int, int]]) -> Iterator[Row]:
    i = j = 0
    for i_end, j_end in [*matched, (len(a), len(b))]:
        # What lies between two matched lines is set side by side.
        for step in range(max(i_end - i, j_end - j)):
            left = a[i + step] if i + step < i_end else None
            right = b[j + step] if j + step < j_end else None
            if left is not None and right is not None:
                marked_left, marked_right = words_marked(left, right)
                yield Row("changed", i + step + 1, marked_left, j + step + 1, marked_right)
            else:
                yield _row("right" if left is None else "left", i + step, left, j + step, right)
        if i_end < len(a) and j_end < len(b):
            yield _row("same", i_end, a[i_end], j_end, b[j_end])
        i, j = i_end + 1, j_end + 1


def words_marked(left: str, right: str) -> tuple[Markup, Markup]:
    """Return two lines as HTML, the words that only one of them has in <mark>; unmarked where they share next to nothing."""
    if max(len(left), len(right)) > LONGEST_LINE:
        return visible(left), visible(right)
    a, b = _WORD.findall(left), _WORD.findall(right)
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.ratio() < ALIKE:
        return visible(left), visible(right)
    marked_left, marked_right = Markup(), Markup()
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        for pieces, start, end, side in ((a, i, i_end, "left"), (b, j, j_end, "right")):
            html = visible("".join(pieces[start:end]))
            if tag != "equal" and html:
                html = Markup("<mark>{}</mark>").format(html)
            if side == "left":
                marked_left += html
            else:
                marked_right += html
    return marked_left, marked_right
