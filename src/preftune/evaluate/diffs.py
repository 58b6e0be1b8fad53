"""Two answers side by side: which words differ, and code in colours, as HTML in which every piece of text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

from markupsafe import Markup, escape

from preftune.code.style_source import parse

_WORD = re.compile(r"\w+|[^\w\s]")  # white space is no word: it is not compared
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*\n?", re.MULTILINE)
MOST_WORDS = 3_000  # comparing takes time with the square of it
REWRITTEN = 0.25  # below this likeness every word would be marked, which tells nothing

Span = tuple[int, int]


@dataclass(frozen=True)
class Diff:
    """Both answers as HTML, and a note where the words are not marked (equal, rewritten, too long)."""

    before: Markup
    after: Markup
    note: str = ""


def word_diff(before: str, after: str) -> Diff:
    """Return both answers with the words that differ in <del> and <ins>, code in colours where it is Python."""
    note = ""
    removed: list[Span] = []
    added: list[Span] = []
    first, second = _words(before), _words(after)
    if before == after:
        note = "Both answers are the same."
    elif max(len(first), len(second)) > MOST_WORDS:
        note = f"Too long to compare word by word (over {MOST_WORDS:,} words)."
    else:
        matcher = SequenceMatcher(None, [before[a:b] for a, b in first], [after[a:b] for a, b in second], autojunk=False)
        if matcher.ratio() < REWRITTEN:
            note = "The answers share so little that no words are marked."
        else:
            for tag, a, b, c, d in matcher.get_opcodes():
                if tag != "equal":
                    removed += first[a:b]
                    added += second[c:d]
            removed, added = _joined(before, removed), _joined(after, added)
            note = "" if removed or added else "They differ in white space alone."
    return Diff(marked(before, removed, "del"), marked(after, added, "ins"), note)


def _words(text: str) -> list[Span]:
    return [match.span() for match in _WORD.finditer(text)]


def _joined(text: str, words: list[Span]) -> list[Span]:
    """Return words as longer pieces, joined over the spaces of a line but not over its end."""
    pieces: list[Span] = []
    for start, stop in words:
        between = text[pieces[-1][1] : start] if pieces else "\n"
        if "\n" not in between and not between.strip():
            pieces[-1] = (pieces[-1][0], stop)
        else:
            pieces.append((start, stop))
    return pieces


def marked(text: str, spans: list[Span], tag: str) -> Markup:
    """Return a text as HTML: spans in an element of that tag, tokens of Python code in <span class="…">."""
    styles = [""] * len(text)
    changed = [False] * len(text)
    for start, stop, style in _tokens(text):
        styles[start:stop] = [style] * (stop - start)
    for start, stop in spans:
        changed[start:stop] = [True] * (stop - start)
    html = Markup()
    for is_changed, places in groupby(range(len(text)), key=changed.__getitem__):
        inside = Markup()
        for style, run in groupby(places, key=styles.__getitem__):
            piece = "".join(text[place] for place in run)
            inside += Markup('<span class="{}">{}</span>').format(style, piece) if style and piece.strip() else escape(piece)
        html += Markup("<{0}>{1}</{0}>").format(Markup(tag), inside) if is_changed else inside
    return html


def _tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, stop, class) of each token of the Python code in an answer."""
    for start, stop in _code(text):
        for index, kind, value in _lexed(text[start:stop]):
            if kind:
                yield start + index, start + index + len(value), kind


def _code(text: str) -> list[Span]:
    """Return where the code of an answer lies: between fences, or the whole text where it parses."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return [] if parse(text) is None else [(0, len(text))]
    ends = [fence.start() for fence in fences[1::2]]
    if len(fences) % 2:
        ends.append(len(text))  # a fence that is never closed: the answer was cut
    return [(opening.end(), end) for opening, end in zip(fences[::2], ends, strict=True)]


def _lexed(code: str) -> list[tuple[int, str, str]]:
    """Return (index, class, text) of each token; nothing where Pygments is not installed, so that code stays plain."""
    try:
        from pygments.lexers.python import PythonLexer
        from pygments.token import Comment, Keyword, Name, Number, Operator, String
    except ImportError:
        return []
    kinds = (
        (Comment, "c"), (Keyword, "k"), (Operator.Word, "k"), (String, "s"), (Number, "m"),
        (Name.Function, "f"), (Name.Class, "f"), (Name.Decorator, "f"), (Name.Builtin, "b"), (Name.Exception, "b"),
    )  # fmt: skip
    return [
        (index, next((short for family, short in kinds if token in family), ""), value)
        for index, token, value in PythonLexer().get_tokens_unprocessed(code)
    ]
