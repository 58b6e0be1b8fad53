"""From an answer's text to HTML that is safe to show: Markdown and code, nothing of which can run, load or hide.

Three lines of defence: raw HTML in Markdown stays text, what comes out is cut down to a list of elements and attributes (nh3), and the
content security policy (app.py) forbids whatever could still slip through. Images are not loaded: they would tell their
server who reads, and may say which model wrote. Characters that turn the order of text round, or are not to be seen, are shown.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String
from pygments.util import ClassNotFound

FOLD_LINES = 40  # an answer is folded after so many lines of its source, where the longest of its item has clearly more
FOLD_SLACK = 8
MOST_COLOURED = 100_000  # characters of one block; colouring takes time with them
LONGEST_COLOURED_LINE = 2_000  # some lexers need the square of a line's length
CACHED = 256  # texts kept as HTML

# Languages that answers come in. A name that is not here is shown plain, so no text of a model picks which lexer runs.
LANGUAGES = (
    "python py py3 python3 pycon console bash sh shell zsh powershell javascript js typescript ts jsx tsx json yaml yml toml ini html xml "
    "css scss sql postgresql c cpp c++ csharp cs java kotlin scala go rust rs swift ruby rb php perl lua r julia haskell elixir erlang "
    "clojure dart diff docker dockerfile makefile make cmake nginx graphql protobuf proto hcl terraform vim latex tex matlab fortran"
).split()
STYLES: tuple[tuple[Any, str], ...] = (
    (Comment, "c"), (Keyword, "k"), (Operator.Word, "k"), (String, "s"), (Number, "m"),
    (Name.Function, "f"), (Name.Class, "f"), (Name.Decorator, "f"), (Name.Tag, "f"), (Name.Builtin, "b"), (Name.Exception, "b"),
)  # fmt: skip
# Overrides, isolates and marks of direction; zero-width spaces, word joiners and the like; tags; other control characters.
_DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSEEN = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2064\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f"
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029"
_HIDDEN_IN_CODE = re.compile(f"[{_DIRECTION}{_UNSEEN}{_CONTROL}\u200c\u200d]")
# Prose in Hebrew, Arabic, Persian or with emoji needs marks and joiners; overrides and tags it does not.
_HIDDEN_IN_PROSE = re.compile(f"[\u202a-\u202e\u2066-\u2069{_UNSEEN}{_CONTROL}]")
_LOOKS_LIKE_CODE = re.compile(r"\s*(?:def \w+\(|async def |class \w+[(:]|import \w|from [\w.]+ import |@\w+|#!)")

TAGS = {
    "p", "br", "hr", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "a", "table",
    "thead", "tbody", "tr", "th", "td", "span", "div",
}  # fmt: skip
ATTRIBUTES = {
    **{tag: {"dir"} for tag in TAGS},
    "a": {"href", "dir"},
    "pre": {"dir", "tabindex"},
    "span": {"title"},
    "ol": {"start", "dir"},
}
BLOCKS = ("p", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "table", "tr", "hr", "pre", "div")
CLASSES = {
    **{tag: {"beyond"} for tag in BLOCKS},
    "span": {"beyond", "line", "ctl", "image", *(style for _, style in STYLES)},
    "div": {"code", "beyond"},
}


@dataclass(frozen=True)
class Shown:
    """An answer as a page shows it. formatted, raw: HTML; lines: of its source; hidden: how many of them are folded away at first."""

    formatted: Markup
    raw: Markup
    lines: int
    hidden: int


def shown(texts: Sequence[str]) -> list[Shown]:
    """Return the answers to one prompt as HTML, all folded after the same number of lines where one is long."""
    lines = [_count(text) for text in texts]
    fold = FOLD_LINES if max(lines, default=0) > FOLD_LINES + FOLD_SLACK else None
    return [
        Shown(answer(text, fold), plain(text, fold), count, max(0, count - fold) if fold else 0)
        for text, count in zip(texts, lines, strict=True)
    ]


def answer(text: str, fold: int | None = None) -> Markup:
    """Return a model's answer as HTML: Markdown, or one block of code where it is code without a fence."""
    if "```" not in text and "~~~" not in text and "\n" in text.strip() and _LOOKS_LIKE_CODE.match(text):
        return _code_only(text, fold)
    return markdown(text, fold)


@lru_cache(CACHED)
def markdown(text: str, fold: int | None = None, *, top: int = 3) -> Markup:
    """Return Markdown as safe HTML.

    fold: blocks and lines of code from this line of the source on get the class "beyond". top: the level of the highest headings,
    whatever they are in the text, so that they stand below those of the page.
    """
    environment: dict[str, Any] = {"fold": fold}
    tokens = _MARKDOWN.parse(text, environment)
    highest = min((int(token.tag[1]) for token in tokens if token.type == "heading_open"), default=1)
    for token in tokens:
        _prepare(token, fold, top - highest)
    return _clean(str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, environment)))


@lru_cache(CACHED)
def plain(text: str, fold: int | None = None) -> Markup:
    """Return a text as it was written, in one block."""
    return Markup(_block(plain_lines(text), 0, fold))


@lru_cache(CACHED)
def _code_only(text: str, fold: int | None) -> Markup:
    return Markup(_block(coloured(text, "python"), 0, fold))


def _clean(dirty: str) -> Markup:
    """Cut HTML down to what is on the lists: no script, style, form, frame, picture, id or handler, and links to the web alone."""
    return Markup(
        nh3.clean(
            dirty,
            tags=TAGS,
            clean_content_tags={"script", "style"},
            attributes=ATTRIBUTES,
            allowed_classes=CLASSES,
            url_schemes={"http", "https", "mailto"},
            link_rel="noopener noreferrer nofollow",
        )
    )


def _prepare(token: Token, fold: int | None, shift: int) -> None:
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(6, int(token.tag[1]) + shift)}"
    if token.nesting == 1:
        if token.tag in ("p", "h2", "h3", "h4", "h5", "h6", "li", "blockquote", "th", "td"):
            token.attrSet("dir", "auto")
        token.attrs.pop("style", None)  # the alignment of a table's column: the policy forbids it
    if fold is not None and token.map and token.map[0] >= fold and token.nesting >= 0 and token.tag != "code":
        token.attrJoin("class", "beyond")


def coloured(code: str, language: str) -> list[str]:
    """Return the lines of a piece of code as HTML, its tokens in <span class="…">; plain where the language is not one of ours."""
    lexer = _lexer(language.lower())
    if lexer is None or len(code) > MOST_COLOURED or max(map(len, code.split("\n"))) > LONGEST_COLOURED_LINE:
        return plain_lines(code)
    lines, styles = [""], dict[Any, str]()
    for _, kind, value in lexer.get_tokens_unprocessed(code):
        style = styles.get(kind)
        if style is None:
            style = styles[kind] = next((short for family, short in STYLES if kind in family), "")
        for number, piece in enumerate(value.split("\n")):
            if number:
                lines.append("")
            if piece:
                inside = _visible(piece, _HIDDEN_IN_CODE)
                lines[-1] += f'<span class="{style}">{inside}</span>' if style and not piece.isspace() else inside
    return lines


def plain_lines(text: str) -> list[str]:
    """Return the lines of a text as HTML, every hidden character shown."""
    return [_visible(line, _HIDDEN_IN_CODE) for line in text.split("\n")]


def visible(text: str) -> Markup:
    """Return a text as HTML in which characters that cannot be seen stand as their code points."""
    return Markup(_visible(text, _HIDDEN_IN_CODE))


# Plain strings from here on, not Markup: an answer has thousands of pieces, and each is escaped here, where it can be read.


def _visible(text: str, hidden: re.Pattern[str]) -> str:
    if not hidden.search(text):
        return html.escape(text)
    pieces, last = [], 0
    for match in hidden.finditer(text):
        pieces += [html.escape(text[last : match.start()]), _mark(match.group())]
        last = match.end()
    return "".join([*pieces, html.escape(text[last:])])


def _mark(character: str) -> str:
    name = unicodedata.name(character, "control character").lower()
    return f'<span class="ctl" title="{html.escape(name)}">U+{ord(character):04X}</span>'


def _block(lines: Sequence[str], first: int, fold: int | None) -> str:
    """Return lines of code as a block. first: the line of the answer's source that they begin at."""
    seen = len(lines) if fold is None else max(0, fold - first)
    inside = "".join(f'<span class="{"line" if i < seen else "line beyond"}">{line}\n</span>' for i, line in enumerate(lines))
    return f'<div class="{"code" if seen or not lines else "code beyond"}"><pre dir="ltr" tabindex="0"><code>{inside}</code></pre></div>'


@lru_cache(len(LANGUAGES))
def _lexer(language: str) -> Lexer | None:
    if language not in LANGUAGES:
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def _count(text: str) -> int:
    return text.rstrip("\n").count("\n") + 1


def _fence(_renderer: Any, tokens: Sequence[Token], index: int, _options: Any, environment: dict[str, Any]) -> str:
    token = tokens[index]
    words = token.info.split()
    first = (token.map[0] if token.map else 0) + (token.type == "fence")
    lines = coloured(token.content.removesuffix("\n"), words[0] if words else "")
    return _block(lines, first, environment["fold"])


def _code_inline(_renderer: Any, tokens: Sequence[Token], index: int, _options: Any, _environment: Any) -> str:
    return f'<code dir="ltr">{_visible(tokens[index].content, _HIDDEN_IN_CODE)}</code>'


def _text(_renderer: Any, tokens: Sequence[Token], index: int, _options: Any, _environment: Any) -> str:
    return _visible(tokens[index].content, _HIDDEN_IN_PROSE)


def _image(_renderer: Any, tokens: Sequence[Token], index: int, _options: Any, _environment: Any) -> str:
    token = tokens[index]
    words = f"[image: {token.content or 'without a description'}, {token.attrGet('src')}]"
    return f'<span class="image">{_visible(words, _HIDDEN_IN_CODE)}</span>'


def _parser() -> MarkdownIt:
    # breaks: models write a line a thought, and joining lines would show another text than the one to be judged.
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False, "breaks": True, "maxNesting": 20})
    parser.enable(["table", "strikethrough"])
    for name, rule in {"fence": _fence, "code_block": _fence, "code_inline": _code_inline, "text": _text, "image": _image}.items():
        parser.add_render_rule(name, rule)
    return parser


_MARKDOWN = _parser()
