"""One pass over the pairs: what is counted at once, and per pair a few numbers from which the rest is computed. No text is kept."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from preftune.data.checks.language import CODE, UNKNOWN, guess_language
from preftune.data.checks.surface import FEATURES, surface
from preftune.data.checks.tokens import TokenCount
from preftune.data.duplicates import NearDuplicates
from preftune.data.private import Finding, find_private
from preftune.records import Message, Pair, content_id

PLACES_KEPT = 1000
NEARLY_EQUAL = 0.95  # so much of the longer answer is a start and an end that both have


@dataclass(frozen=True)
class Place:
    """Where something private seems to be: which prompt (its id), which part of it, which line of that part, and what it seems to be."""

    prompt: str
    part: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} in prompt {self.prompt}, {self.part}, line {self.line}"


@dataclass
class Private:
    """What seems private: how many lines of each kind, and the first places. The values themselves are not kept."""

    counts: dict[str, int] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)

    def add(self, prompt: str, part: str, findings: list[Finding]) -> None:
        """Take the findings in one text."""
        for finding in findings:
            self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
            if len(self.places) < PLACES_KEPT:
                self.places.append(Place(prompt, part, finding.line, finding.kind))


class Gathered:
    """What `add` has seen of the pairs. tokens: counts those that are too long, where it is given."""

    def __init__(self, tokens: TokenCount | None = None) -> None:
        self.tokens = tokens
        self.counts: Counter[str] = Counter()
        self.names: list[str] = []  # the ids of the prompts
        self.seen: Counter[tuple[int, int, int]] = Counter()  # prompt, chosen, rejected
        self.private = Private()
        self.languages: Counter[str] = Counter()  # of the prompts
        self.near = NearDuplicates()
        self._places: dict[str, int] = {}
        self._prompt_languages: list[str] = []
        self._texts: set[tuple[int, int]] = set()
        self._pairs = array("i")
        self._lengths = {"prompt": array("i"), "chosen": array("i"), "rejected": array("i")}
        self._surfaces = {"chosen": bytearray(), "rejected": bytearray()}

    def add(self, pair: Pair) -> None:
        """Take a pair."""
        place = self._prompt(pair.messages)
        chosen, rejected = _number(pair.chosen), _number(pair.rejected)
        self.seen[place, chosen, rejected] += 1
        self.counts["empty"] += not pair.chosen.strip() or not pair.rejected.strip()
        self.counts["equal"] += pair.chosen == pair.rejected
        self.counts["nearly equal"] += pair.chosen != pair.rejected and _nearly_equal(pair.chosen, pair.rejected)
        self.counts["contested"] += pair.weight < 1
        self._pairs.append(place)
        self._lengths["prompt"].append(sum(len(message.content) for message in pair.messages))
        self._answer("chosen", place, pair.chosen, chosen)
        self._answer("rejected", place, pair.rejected, rejected)
        if self.tokens:
            self.tokens.add(pair)

    def _prompt(self, messages: tuple[Message, ...]) -> int:
        name = content_id("prompt", [(message.role, message.content) for message in messages])  # as Prompt.id
        place = self._places.setdefault(name, len(self._places))
        if place == len(self.names):
            self.names.append(name)
            self.near.add(name, messages)
            language = guess_language(messages[-1].content)
            self._prompt_languages.append(language)
            self.languages[language] += 1
            for turn, message in enumerate(messages, 1):
                self.private.add(name, f"turn {turn} ({message.role})", find_private(message.content))
        return place

    def _answer(self, part: str, place: int, text: str, number: int) -> None:
        self._lengths[part].append(len(text))
        self._surfaces[part].extend(surface(text))
        asked_in = self._prompt_languages[place]
        if asked_in not in (UNKNOWN, CODE):
            self.counts[f"{part} in another language"] += _language(text) not in (UNKNOWN, CODE, asked_in)
        if (place, number) not in self._texts:  # an answer of a ranking is in several pairs
            self._texts.add((place, number))
            self.private.add(self.names[place], f"{part} answer", find_private(text))

    @property
    def num_pairs(self) -> int:
        """How many pairs were added."""
        return len(self._pairs)

    def prompt_of_pair(self) -> NDArray[np.int32]:
        """Return the place in `names` of each pair's prompt."""
        return np.array(self._pairs, np.int32)

    def lengths(self, part: str) -> NDArray[np.int32]:
        """Return the characters of each pair's "prompt", "chosen" or "rejected"."""
        return np.array(self._lengths[part], np.int32)

    def surfaces(self, part: str) -> NDArray[np.uint8]:
        """Return which of FEATURES each pair's "chosen" or "rejected" answer has: 0 or 1 [pairs, features]."""
        return np.frombuffer(bytes(self._surfaces[part]), np.uint8).reshape(-1, len(FEATURES))


_language = lru_cache(maxsize=64)(guess_language)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _nearly_equal(a: str, b: str) -> bool:
    longer, shorter = max(len(a), len(b)), min(len(a), len(b))
    if shorter < NEARLY_EQUAL * longer:
        return False
    start = _common_start(a, b)
    return start + _common_start(a[start:][::-1], b[start:][::-1]) >= NEARLY_EQUAL * longer


def _common_start(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices is faster than going from character to character
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
