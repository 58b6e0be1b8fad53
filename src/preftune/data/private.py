"""Hints at what should not be trained on: keys and passwords, e-mail addresses, phone numbers, bank accounts.

Each finding says what it seems to be and in which line; the value itself is never returned, so that no report can show it. Keys are
found by detect-secrets (its detectors and its heuristics against false alarms, its checks over the network left out, its in-line
permissions not heeded) and by the prefixes of some newer kinds. All of it is a hint: neither does it find everything, nor is all that
it finds private.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

EMAIL, PHONE, IBAN = "e-mail address", "phone number", "bank account (IBAN)"
KEY = "key by its prefix"

_BY_NAME = "Secret Keyword"  # the detector of what is assigned to a name such as password
_NAMES = re.compile(  # the names that it knows
    "(?:api|auth|service|account|db|database|priv|private|client)_?key|(?:db|database|key)_?pass|password|passwd|pwd|secret|contrase"
)
_QUOTES, _SIGNS = re.compile("['\"`]"), re.compile("[:=;(]")  # which it needs beside one
_LONG = 9  # the shortest run that the detectors of random strings and of known keys take
_LONG_RUN = re.compile(r"[\w+/=.\-]{9}")
_LONG_CAPITALS = 16
_DIGIT, _CAPITALS = re.compile("[0-9]"), re.compile(r"[A-Z]{16}")
_RANDOM = 23  # so many different characters are in a string of more than 4.5 bits a character, from which on one counts as random
_PREFIXED = re.compile(r"\b(?:sk-(?:ant-|proj-)?|github_pat_|hf_|AIza|ya29\.)[\w\-]{24,}")

_EMAIL = re.compile(r"(?<![\w.+/-])[\w.+-]{1,64}@((?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24})\b")
_EXAMPLE_DOMAIN = re.compile(r"(?:^|\.)(?:example\.(?:com|org|net)|example|test|invalid|localhost|local)$", re.IGNORECASE)
_SHARED_MAILBOX = re.compile(r"(?:git|no-?reply|[\w.+-]*\+?noreply)@", re.IGNORECASE)
_DIGITS = re.compile("[0-9][0-9]")
_PHONE = re.compile(
    r"(?<![\w.+@/-])(?:\+\d{1,3}|\(\d{2,5}\)|\d{2,5})(?:[ ./-]{1,2}(?:\(\d{1,5}\)|\d{2,10})){1,5}(?![\w@/-]|\.\d)|(?<!\w)\+\d{9,15}\b"
)
_NORTH_AMERICAN = re.compile(r"\(?[2-9]\d\d\)?[ .-]{1,2}[2-9]\d\d[ .-]\d{4}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")


@dataclass(frozen=True, order=True)
class Finding:
    """Something private seems to be in a line (counted from 1). It does not hold the value."""

    line: int
    kind: str


def find_private(text: str) -> list[Finding]:
    """Return what seems private in a text, each kind once a line, in the order of lines."""
    return sorted({*find_secrets(text), *find_personal(text)})


def find_secrets(text: str) -> set[Finding]:
    """Return the lines of a text that seem to hold a key or a password."""
    low = text.lower()
    if not _may_hold_a_secret(text, low):
        return set()
    found = set()
    for number, line in enumerate(text.split("\n"), 1):
        if _may_hold_a_secret(line, line.lower()):
            found |= {Finding(number, kind) for kind in _kinds_of_secret(line)}
    return found


def find_personal(text: str) -> set[Finding]:
    """Return the lines of a text that seem to hold an e-mail address, a phone number or an IBAN.

    Addresses in domains that are meant for examples, and those of no person, are not counted.
    """
    places: list[tuple[int, str]] = []
    if "@" in text:
        places += [(match.start(), EMAIL) for match in _EMAIL.finditer(text) if _is_of_a_person(match)]
    if _DIGITS.search(text):
        places += [(match.start(), PHONE) for match in _PHONE.finditer(text) if _is_phone(match[0])]
        places += [(match.start(), IBAN) for match in _IBAN.finditer(text) if _is_iban(match[0])]
    return {Finding(text.count("\n", 0, start) + 1, kind) for start, kind in places}


def _may_hold_a_secret(text: str, low: str) -> bool:
    # A quick look that leaves out no line in which a detector could find something: they are slow, and nearly all lines are plain.
    if "://" in low or "private key" in low or "puttygen" in low or _names_one(text, low):
        return True
    least = _LONG if _DIGIT.search(text) else _LONG_CAPITALS
    return any(_is_suspicious(word) for word in text.split() if len(word) >= least)


def _names_one(text: str, low: str) -> bool:
    # Written out, as most texts end here and a loop over the words takes three times as long.
    if not ("key" in low or "pass" in low or "pwd" in low or "secret" in low or "contrase" in low) or not _NAMES.search(low):
        return False
    return _QUOTES.search(text) is not None and _SIGNS.search(text) is not None


def _is_suspicious(word: str) -> bool:
    # Keys have digits, but for one in some hundred whose letters are all capitals or are as many as only chance brings together.
    if not _LONG_RUN.search(word):
        return False
    return _DIGIT.search(word) is not None or _CAPITALS.search(word) is not None or len(set(word)) >= _RANDOM


def _kinds_of_secret(line: str) -> Iterator[str]:
    from detect_secrets.filters import heuristic

    if _PREFIXED.search(line):
        yield KEY
    doubts: tuple[Callable[[str], bool], ...] = (
        heuristic.is_sequential_string,
        heuristic.is_potential_uuid,
        heuristic.is_templated_secret,
        heuristic.is_prefixed_with_dollar_sign,
        heuristic.is_not_alphanumeric_string,
    )
    for detector in _detectors():
        is_by_name = detector.secret_type == _BY_NAME
        for part in _parts(line, 500, 200) if is_by_name else _parts(line, 5000, 1200):
            if is_by_name and (not _names_one(part, part.lower()) or heuristic.is_indirect_reference(part)):
                continue  # slow, so only where it can find something
            # analyze_string and not analyze_line, which may ask the network whether the key works.
            for value in detector.analyze_string(part):
                is_random = not hasattr(detector, "entropy_limit") or detector.calculate_shannon_entropy(value) > detector.entropy_limit
                doubtful = not value or any(doubt(value) for doubt in doubts) or heuristic.is_likely_id_string(value, part, detector)
                if is_random and not doubtful:
                    yield detector.secret_type


def _parts(line: str, size: int, overlap: int) -> Iterator[str]:
    # Some patterns take time that grows with the second or third power of a line of their own words.
    for start in range(0, max(1, len(line) - overlap), size - overlap):
        yield line[start : start + size]


@cache
def _detectors() -> tuple[Any, ...]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds: dict[str, Any] = get_mapping_from_secret_type_to_class()
    # Addresses of machines are no secrets, and four numbers with dots between them are often a version.
    return tuple(kind() for name, kind in sorted(kinds.items()) if "IP" not in name)


def _is_of_a_person(match: re.Match[str]) -> bool:
    return not _EXAMPLE_DOMAIN.search(match[1]) and not _SHARED_MAILBOX.match(match[0])


def _is_phone(text: str) -> bool:
    digits = sum(character.isdigit() for character in text)
    if text.startswith("+"):
        return 8 <= digits <= 15
    if text.startswith(("0", "(0")):
        return 9 <= digits <= 13 and "." not in text[:2]
    return _NORTH_AMERICAN.fullmatch(text) is not None


def _is_iban(text: str) -> bool:
    """Return whether the check digits are right (ISO 13616: the number, letters as two digits, leaves 1 when divided by 97)."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1
