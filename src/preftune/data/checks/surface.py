"""What an answer looks like, whatever it says: lists, headings, refusals, polite openings. Each is a yes or no that one can look up."""

from __future__ import annotations

import re
from functools import lru_cache

HEAD_CHARACTERS = 300  # a refusal or an apology comes early
TAIL_CHARACTERS = 250

_FENCED = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_LIST = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,2}[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
_TABLE = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)
_EMOJI = re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]")
_OPENING = re.compile(
    r"\W*(?:sure|certainly|of course|absolutely|definitely|gladly|great question|good question|happy to help|(?:i'd|i would) be happy|"
    r"here(?:'s| is| are))\b"
)
_REFUSALS = (
    "i can't", "i cannot", "i can not", "i won't", "i will not", "i'm not able to", "i am not able to", "i'm unable", "i am unable",
    "as an ai", "as a language model", "i'm not comfortable", "i am not comfortable", "i don't think i should", "i'd rather not",
)  # fmt: skip
_CLOSINGS = ("let me know", "hope this helps", "hope that helps", "feel free to", "happy to help", "any other questions")

# In the order of what `surface` returns.
FEATURES = (
    "code block",
    "list",
    "heading, or line with #",
    "table",
    "bold text",
    "link",
    "emoji",
    "exclamation mark",
    "question at the end",
    "several paragraphs",
    "refusal",
    "apology",
    'opening such as "Sure!"',
    "offer at the end",
)


@lru_cache(maxsize=64)  # an answer of a ranking is in several pairs
def surface(text: str) -> tuple[bool, ...]:
    """Return for each of FEATURES whether the text has it. Words are looked for in English alone."""
    low = text.lower().replace("’", "'")
    head, tail = low[:HEAD_CHARACTERS], low[-TAIL_CHARACTERS:]
    has_code = "```" in text
    prose = _FENCED.sub("", text) if has_code else text  # a comment in code is no heading
    several_lines = "\n" in prose
    return (
        has_code,
        several_lines and _LIST.search(prose) is not None,
        "#" in prose and _HEADING.search(prose) is not None,
        several_lines and "|" in prose and _TABLE.search(prose) is not None,
        "**" in prose,
        "http://" in low or "https://" in low,
        not text.isascii() and _EMOJI.search(text) is not None,
        "!" in prose,
        text.rstrip().endswith("?"),
        "\n\n" in prose.strip(),
        any(phrase in head for phrase in _REFUSALS),
        "sorry" in head or "apolog" in head,
        _OPENING.match(head) is not None,
        any(phrase in tail for phrase in _CLOSINGS),
    )
