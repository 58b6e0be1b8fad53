"""Near-duplicate prompts, exactly: none is missed, so that none can leak from the training side to the held-out one.

Two prompts are near-duplicates where the word 3-shingles of what user and assistant say have a Jaccard similarity of at least 0.8.
A prompt that goes on from another one, past an answer, counts as its near-duplicate too: it holds what was answered there.
System messages are left out: one that a whole team shares would make all its prompts alike. What near-duplicates link, directly
or through others, is one group.

The texts are not kept, only numbers: about 12 bytes a word, so that some hundred thousand prompts fit beside everything else.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from preftune.progress import Progress, Silent
from preftune.records import Message

THRESHOLD = Fraction(4, 5)
SHINGLE_WORDS = 3
EXACT_WORDS = 2**21  # three numbers below this fit into 64 bits side by side
MIXER = 0x9E3779B97F4A7C15  # an odd number; beyond that many different words a shingle is a 64-bit hash instead
BUCKETS = 2**22
BLOCK = 2**20
DIGEST = 16  # bytes

# A word; each character of a script that is written without spaces is one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")

# ASCII text has its words between these: a look-up instead of a search, a third of the time.
_ASCII_WORDS = bytes(byte if chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(128)) + bytes(128)

Numbers = NDArray[np.uint64]
Places = NDArray[np.int64]


def near_duplicate_groups(prompts: Mapping[str, Sequence[Message]]) -> dict[str, str]:
    """Return for each prompt id the first id (in the order given) of its group: all that near-duplicates link, directly or not."""
    finder = NearDuplicates()
    for name, messages in prompts.items():
        finder.add(name, messages)
    return finder.groups()


def linked(of: Mapping[str, Sequence[Message]], among: Mapping[str, Sequence[Message]]) -> set[str]:
    """Return the ids of those prompts in `of` that are in one near-duplicate group with a prompt in `among`."""
    both = {f"among {name}": messages for name, messages in among.items()} | {f"of {name}": messages for name, messages in of.items()}
    groups = near_duplicate_groups(both)
    there = {groups[f"among {name}"] for name in among}
    return {name for name in of if groups[f"of {name}"] in there}


def words_of(messages: Sequence[Message]) -> list[str]:
    """Return the words of a conversation without its system messages; a text without any is one word."""
    text = "\n".join(message.content for message in messages if message.role != "system")
    if text.isascii():
        normal = text.lower()
        words = normal.encode().translate(_ASCII_WORDS).decode().split()
    else:
        normal = unicodedata.normalize("NFKC", text).casefold()
        words = _WORD.findall(normal)
    return words or [normal.strip()]


class NearDuplicates:
    """Takes prompts one by one, so that no text has to be kept, and then says which of them are near-duplicates."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: defaultdict[str, int] = defaultdict(count(1).__next__)  # 0 stands for "no word here"
        self._words = array("i")
        self._ends = array("q", [0])
        self._spoken = bytearray()  # the digest of each prompt's conversation, one after the other
        self._goes_on: list[tuple[bytes, int]] = []

    def add(self, name: str, messages: Sequence[Message]) -> None:
        """Take a prompt; each name is given once."""
        place = len(self._names)
        self._names.append(name)
        words = words_of(messages)
        self._words.extend(map(self._numbers.__getitem__, words))
        self._words.extend([0] * (SHINGLE_WORDS - len(words)))  # a shorter text is a single shingle
        self._ends.append(len(self._words))
        spoken = [message for message in messages if message.role != "system"]
        digest, answered = hashlib.blake2b(digest_size=DIGEST), False
        for turn, message in enumerate(spoken, 1):
            digest.update(f"{message.role}\0{len(message.content)}\0{message.content}".encode(errors="surrogatepass"))
            answered |= message.role == "assistant"
            if turn < len(spoken) and answered and message.role == "user":
                self._goes_on.append((digest.digest(), place))
        self._spoken += digest.digest()

    def groups(self, progress: Progress = Silent()) -> dict[str, str]:  # noqa: B008 - it holds nothing
        """Return for each name the first one of its group, in the order in which they were added."""
        if not self._names:
            return {}
        joined = _Joined(len(self._names))
        self._join_those_that_go_on(joined)
        with progress.stage("near-duplicates", unit="twos of prompts compared") as task:
            sets = self._shingle_sets(joined)
            for a, b in _candidates(sets, joined):
                if joined.root(sets.home[a]) != joined.root(sets.home[b]):
                    task.advance()
                    if _is_near(sets[a], sets[b]):
                        joined.join(sets.home[a], sets.home[b])
        return {name: self._names[joined.root(place)] for place, name in enumerate(self._names)}

    def _join_those_that_go_on(self, joined: _Joined) -> None:
        wanted = {digest for digest, _ in self._goes_on}
        first: dict[bytes, int] = {}
        for place in range(len(self._names) if wanted else 0):
            digest = bytes(self._spoken[place * DIGEST : (place + 1) * DIGEST])
            if digest in wanted:
                first.setdefault(digest, place)
        for digest, place in self._goes_on:
            if digest in first:
                joined.join(first[digest], place)

    def _shingle_sets(self, joined: _Joined) -> _Sets:
        """Return the distinct sets of shingles; prompts with the same set as an earlier one are joined to it."""
        ends = np.frombuffer(self._ends, np.int64)
        shingles = shingle_numbers(np.frombuffer(self._words, np.int32), len(self._numbers))
        digests = bytearray()
        sizes = np.empty(len(self._names), np.int64)
        filled = 0
        for place, (start, end) in enumerate(pairwise(ends.tolist())):
            found = np.unique(shingles[start : end - SHINGLE_WORDS + 1])
            shingles[filled : filled + len(found)] = found  # there is room, as no set is larger than its text
            sizes[place] = len(found)
            filled += len(found)
            digests += hashlib.blake2b(found.tobytes(), digest_size=DIGEST).digest()
        return _distinct(shingles[:filled], sizes, digests, joined)


@dataclass(frozen=True)
class _Sets:
    """Sets of shingles, each sorted, one after the other in one array. home: the place of the first prompt with each."""

    shingles: Numbers
    starts: Places
    sizes: Places
    home: Places

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, place: int) -> Numbers:
        start = self.starts[place]
        return self.shingles[start : start + self.sizes[place]]


def _distinct(shingles: Numbers, sizes: Places, digests: bytes | bytearray, joined: _Joined) -> _Sets:
    """Return the sets without those that are the same as an earlier one, whose prompts are joined to that one's. sizes: of all."""
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable, so that of equal ones the first comes first
    again = np.zeros(len(order), np.bool_)
    again[1:] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    for one, other in zip(order[:-1][again[1:]].tolist(), order[1:][again[1:]].tolist(), strict=True):
        joined.join(one, other)
    home = np.sort(order[~again])
    if again.any():
        is_home = np.zeros(len(sizes), np.bool_)
        is_home[home] = True
        shingles = shingles[np.repeat(is_home, sizes)]
    kept = sizes[home]
    return _Sets(shingles, np.cumsum(kept) - kept, kept, home)


def shingle_numbers(words: NDArray[np.int32], vocabulary: int) -> Numbers:
    """Return the number of the shingle that starts at each word, for all but the last two; equal for equal shingles.

    words: the number of each word, from 0 to vocabulary. Different shingles have different numbers while the vocabulary is under
    EXACT_WORDS; beyond, two of them meet with a chance of about 1 in 2**64.
    """
    base = np.uint64(vocabulary + 1 if vocabulary < EXACT_WORDS else MIXER)
    numbers = np.zeros(max(0, len(words) - SHINGLE_WORDS + 1), np.uint64)
    for start in range(0, len(numbers), BLOCK):  # in blocks, so that no second array of this size is needed
        block = numbers[start : start + BLOCK]
        for offset in range(SHINGLE_WORDS):
            block *= base
            block += words[start + offset : start + offset + len(block)].astype(np.uint64)
    return numbers


class _Joined:
    """Groups of places that only ever grow together; a group's root is its first place."""

    def __init__(self, size: int) -> None:
        self.parents = np.arange(size)

    def root(self, place: int) -> int:
        parents = self.parents
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = int(parents[place])
        return place

    def roots(self, places: Places) -> Places:
        found = self.parents[places]
        while not np.array_equal(above := self.parents[found], found):
            found = above
        return found

    def join(self, a: int, b: int) -> None:
        early, late = sorted((self.root(a), self.root(b)))
        self.parents[late] = early


def _is_near(a: Numbers, b: Numbers) -> bool:
    common = len(a) + len(b) - len(np.union1d(a, b))
    return common * THRESHOLD.denominator >= (len(a) + len(b) - common) * THRESHOLD.numerator


def _candidates(sets: _Sets, joined: _Joined) -> Iterator[tuple[int, int]]:
    """Yield each two places in `sets` whose sets may be alike; no two that are alike are missed, but those that are joined already.

    Two sets of similarity t or more share at least ⌈t · size⌉ elements of each. So, with all elements in one order, the first
    size − ⌈t · size⌉ + 1 of the one and of the other have an element in common, and from there on there must be enough elements
    left in both. Rare ones first makes that a short list; which order it is does not matter for what is found, so that the holders
    of an element are counted by buckets.
    Source: Bayardo, Ma, Srikant 2007, "Scaling up all pairs similarity search" (prefix filtering); Xiao et al. 2008 (positions).
    """
    sizes = sets.sizes
    lengths = sizes - -(-sizes * THRESHOLD.numerator // THRESHOLD.denominator) + 1  # rounded up, without the errors of floats
    rare = _rarest(sets, lengths)
    order = np.argsort(rare, kind="stable")
    rare = rare[order]
    owners = np.repeat(np.arange(len(sets), dtype=np.int32), lengths)[order]
    order -= (np.cumsum(lengths) - lengths)[owners]
    positions = order  # of each element in its set, rarest first
    at = np.flatnonzero(rare[1:] == rare[:-1])
    step = 1
    while len(at):
        for start in range(0, len(at), BLOCK):
            one, other = at[start : start + BLOCK], at[start : start + BLOCK] + step
            a, b = owners[one], owners[other]
            # At least t / (1 + t) of all elements must be common; the element met here and those behind it are all that can be.
            most = np.minimum(sizes[a] - positions[one], sizes[b] - positions[other])
            may = most * (THRESHOLD.numerator + THRESHOLD.denominator) >= THRESHOLD.numerator * (sizes[a] + sizes[b])
            a, b = a[may], b[may]
            apart = joined.roots(sets.home[a]) != joined.roots(sets.home[b])
            yield from zip(a[apart].tolist(), b[apart].tolist(), strict=True)
        step += 1
        at = at[at < len(rare) - step]
        at = at[rare[at] == rare[at + step]]


def _rarest(sets: _Sets, lengths: Places) -> Numbers:
    """Return the rarest elements of each set, rarest first, one set after the other. lengths: how many of each."""
    holders = np.zeros(BUCKETS, np.int32)
    for start in range(0, len(sets.shingles), BLOCK):
        np.add.at(holders, _buckets(sets.shingles[start : start + BLOCK]), 1)
    rare = np.empty(lengths.sum(), np.uint64)
    held, held_from, held_to, filled = holders[:0], 0, 0, 0  # how many hold each element of a block, which is looked up at once
    for start, size, length in zip(sets.starts.tolist(), sets.sizes.tolist(), lengths.tolist(), strict=True):
        if start + size > held_to:
            held_from, held_to = start, start + max(size, BLOCK)
            held = holders[_buckets(sets.shingles[held_from:held_to])]
        order = held[start - held_from : start - held_from + size].argsort(kind="stable")[:length]
        rare[filled : filled + length] = sets.shingles[start : start + size][order]
        filled += length
    return rare


def _buckets(shingles: Numbers) -> NDArray[np.intp]:
    return ((shingles * np.uint64(MIXER)) >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.intp)
