"""Commit messages: which speak of a review or a fix-up, which undo another commit, and what of them may be shown to a model."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TRAILER = re.compile(r"^[A-Z][A-Za-z-]{1,30}(?:-by|-to)?: .*$")
_KNOWN_TRAILER = re.compile(
    r"^(?:[\w-]+-by|cc|fixes|closes|resolves|refs?|references|see-also|link|change-id|bug|issue|ticket|jira|pr|pull-request|version|"
    r"differential revision|test plan|reviewers|subscribers|tags|tracking issue|cherry[- ]picked from)\b ?[:(#].*$",
    re.IGNORECASE,
)
_FIXUP = re.compile(r"^(?:(?:fixup|squash|amend)! ?)+")
_REVIEW = re.compile(
    r"""\b(?:
      (?:code[ -]?)?review(?:s|er|ers|ed)? | feedback | nit(?:s|pick|picks|picking)? | fix(?:ed|es)?[ -]?ups? | clean(?:s|ed|ing)?[ -]?ups?
    | tid(?:y|ies|ied)(?:[ -]?up)? | styl(?:e|ing|istic) | refactor(?:s|ed|ing)? | simplif(?:y|ies|ied|ication)
    | polish(?:es|ed)? | lint(?:s|er|ing)? | readab(?:le|ility) | idiomatic | pep[ -]?8 | ruff | pylint | flake8 | moderni[sz]e[sd]?
    | (?:address|apply|incorporate|handle)(?:es|ed|s|ing)?\ (?:[\w']+\ ){0,3}(?:comments?|suggestions?|remarks?|notes?)
    | suggestions?\ from | as\ (?:suggested|requested|discussed) | (?:more|less)\ (?:pythonic|verbose)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_REVERT = re.compile(r"^(?:Revert|Reapply|Back ?out|Roll ?back)\b", re.IGNORECASE)
_REVERTED = re.compile(r"\b(?:reverts|reverting|backs? out|rolls? back|undo(?:es)?)(?: (?:the )?commit)? ([0-9a-f]{7,40})\b", re.IGNORECASE)

# A key of a tracker such as ABC-123, which UTF-8 and its like are not.
_KEY = r"\b(?!(?:UTF|ISO|SHA|MD|PEP|RFC|AES|RSA|TLS|GPT|X)-)[A-Z][A-Z0-9]{1,9}-\d+\b"
_NUMBER = r"(?:\b(?i:issue|bug|ticket|pr|pull request|mr|gh)[ -]?)?[#!]\d+\b|\b(?i:gh)-\d+\b"
_RELATION = r"(?:\b(?i:fix(?:es|ed)?|close[sd]?|resolve[sd]?|refs?|see|part of|for|re)\b:? *)"
_ONE_TICKET = rf"{_RELATION}?(?:{_NUMBER}|{_KEY})"
_TICKET = re.compile(rf"\s*[\[(](?:{_ONE_TICKET}[, ]*)+[\])]:?|\s*{_ONE_TICKET}:?")
_URL = re.compile(r"<?\bhttps?://\S+>?")
_EMAIL = re.compile(r"<?[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+>?")
_MENTION = re.compile(r"(?<![\w/])@[A-Za-z][\w-]{0,38}\b")
_SHA = re.compile(r"\b(?:commit )?(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b")
_PREFIX = re.compile(
    r"^(?:feat|fix|docs|style|refactor|perf|test|tests|chore|build|ci|cleanup|nit|wip|review|mnt|maint|enh|bug|sty|tst)(?:\([^)]*\))?!?:\s*",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"[ \t]*[(\[]([^()\[\]]*)[)\]]")
# What a review leaves behind and that asks for nothing.
_EMPTY_WORDS = frozenset(
    "a an the and of in on to for from by with at as per this that it its all some more few small minor little tiny other "
    "various misc address addressed addresses addressing apply applied applies incorporate handle review reviews reviewer "
    "reviewers reviewed code pr comment comments feedback suggestion suggestions suggested remark remarks request requested "
    "requests changes change changed nit nits nitpick nitpicks fix fixes fixed fixup fixups up cleanup cleanups clean "
    "cleaned cleaning tidy tidied style styling lint linting linter refactor refactored refactoring polish wip update "
    "updates updated improve improved improvement improvements round second third again after first my your our s this see "
    "also part".split()
)
LEAST_WORDS = 2


def is_review(message: str) -> bool:
    """Return whether a commit is a fix-up or speaks of a review, style or cleaning up; its trailers do not count."""
    return bool(_FIXUP.match(message)) or bool(_REVIEW.search(without_trailers(message)))


def is_revert(message: str) -> bool:
    """Return whether a commit takes back another, or brings back what was taken back."""
    return bool(_REVERT.match(message)) or bool(_REVERTED.search(message))


def reverted_by(message: str) -> list[str]:
    """Return the (perhaps shortened) names of the commits that a message says it takes back."""
    return [found.lower() for found in _REVERTED.findall(message)]


def without_trailers(message: str) -> str:
    """Return a message without the lines at its end such as "Signed-off-by: …"."""
    lines = message.rstrip().split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or _KNOWN_TRAILER.match(lines[-1]) or (_ends_in_trailers(lines))):
        lines.pop()
    return "\n".join(line for line in lines if not _KNOWN_TRAILER.match(line) or line is lines[0])


def _ends_in_trailers(lines: list[str]) -> bool:
    # A last paragraph in which every line is "Key: value" is one of trailers, whatever the keys are.
    paragraph = []
    for line in reversed(lines[1:]):
        if not line.strip():
            break
        paragraph.append(line)
    return len(paragraph) < len(lines) - 1 and all(_TRAILER.match(line) for line in paragraph)


def cleaned(message: str, people: Iterable[str] = ()) -> str:
    """Return what a message asks for: its text without trailers, ticket numbers, links, addresses, mentions, names of commits and people.

    people: the full names that occur in the history. Empty where nothing is left but words such as "address review comments".
    """
    text = _FIXUP.sub("", without_trailers(message))
    for pattern in (_URL, _EMAIL, _MENTION, _SHA):
        text = pattern.sub("", text)
    text = "\n".join(_TICKET.sub("", line) for line in text.split("\n"))
    text = _without_people(text, people)
    text = _PREFIX.sub("", _BRACKETS.sub(lambda found: found[0] if _words_that_tell(found[1]) else "", text).strip())
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    told = [re.sub(r"\s+([.,;:)\]])", r"\1", part).strip(" -–:;,") for part in paragraphs]
    kept = "\n".join(part for part in told if _words_that_tell(part) >= LEAST_WORDS)
    return kept[:1].upper() + kept[1:]


def _words_that_tell(text: str) -> int:
    return sum(word not in _EMPTY_WORDS for word in re.findall(r"[^\W_]+", text.lower()))


def _without_people(text: str, people: Iterable[str]) -> str:
    full = sorted({name.strip() for name in people if len(name.strip()) >= 3}, key=len, reverse=True)
    parts = sorted({part for name in full for part in re.findall(r"[^\W\d_]{3,}", name)}, key=len, reverse=True)
    if full:
        names = "|".join(map(re.escape, full))
        text = re.sub(rf"(?:\b(?i:by|from|per|cc|thanks to|thanks|with|for) +)?(?<!\w)(?:{names})(?:'s|’s)?(?!\w)", "", text)
    if parts:
        # A first name alone is a word in many languages (Will, Mark), so only where it stands as a person does.
        single = "|".join(map(re.escape, parts))
        text = re.sub(rf"\b(?i:by|from|per|cc|thanks to|thanks|with) +(?:{single})(?:'s|’s)?(?!\w)", "", text)
        text = re.sub(rf"(?<!\w)(?:{single})(?:'s|’s)(?= )", "the", text)
        text = re.sub(rf"(?<!\w)(?:{single})(?= (?:suggest|ask|said|say|not|found|point|request|propos|want|prefer))", "the reviewer", text)
    return text
