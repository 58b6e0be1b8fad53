"""Near-duplicate prompts, exactly: none is missed, so that none can leak from the training side to the held-out one.

Two prompts are near-duplicates where the word 3-shingles of what user and assistant say have a Jaccard similarity of at least 0.8.
A prompt that goes on from another one, past an answer, counts as its near-duplicate too: it holds what was answered there.
System messages are left out: one that a whole team shares would make all its prompts alike. What near-duplicates link, directly
or through others, is one group.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from preftune.records import Message

THRESHOLD = Fraction(4, 5)
SHINGLE_WORDS = 3

# A word; each character of a script that is written without spaces is one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")

Shingles = frozenset[tuple[str, ...]]


def shingles(messages: Sequence[Message]) -> Shingles:
    """Return the set of word 3-shingles of a conversation without its system messages; a shorter one is a single shingle."""
    text = "\n".join(m.content for m in messages if m.role != "system")
    normal = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(normal) or [normal.strip()]
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def jaccard(a: Shingles, b: Shingles) -> Fraction:
    """Return |a ∩ b| / |a ∪ b| of two sets that are not both empty."""
    common = len(a & b)
    return Fraction(common, len(a) + len(b) - common)


def near_duplicate_groups(prompts: Mapping[str, Sequence[Message]]) -> dict[str, str]:
    """Return for each prompt id the first id (in the order given) of its group: all that near-duplicates link, directly or not."""
    first_with: dict[Shingles, str] = {}
    group = {name: name for name in prompts}
    order = {name: place for place, name in enumerate(prompts)}

    def root(name: str) -> str:
        while group[name] != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    def join(a: str, b: str) -> None:
        early, late = sorted((root(a), root(b)), key=order.__getitem__)
        group[late] = early

    for name, messages in prompts.items():
        join(name, first_with.setdefault(shingles(messages), name))
    spoken = {tuple(m for m in messages if m.role != "system"): name for name, messages in prompts.items()}
    for turns, name in spoken.items():
        for end in range(2, len(turns)):
            if turns[end - 1].role == "user" and any(m.role == "assistant" for m in turns[:end]) and turns[:end] in spoken:
                join(spoken[turns[:end]], name)
    distinct = {name: words for words, name in first_with.items()}
    for a, b in _candidates(distinct):
        if root(a) != root(b) and jaccard(distinct[a], distinct[b]) >= THRESHOLD:
            join(a, b)
    return {name: root(name) for name in prompts}


def linked(of: Mapping[str, Sequence[Message]], among: Mapping[str, Sequence[Message]]) -> set[str]:
    """Return the ids of those prompts in `of` that are in one near-duplicate group with a prompt in `among`."""
    both = {f"among {name}": messages for name, messages in among.items()} | {f"of {name}": messages for name, messages in of.items()}
    groups = near_duplicate_groups(both)
    there = {groups[f"among {name}"] for name in among}
    return {name for name in of if groups[f"of {name}"] in there}


def _candidates(sets: Mapping[str, Shingles]) -> Iterator[tuple[str, str]]:
    """Yield each two names whose sets may be alike; no two that are alike are missed.

    Two sets of similarity t or more share at least ⌈t · size⌉ elements of each. So, with all elements in one order, the first
    size − ⌈t · size⌉ + 1 of the one and of the other have an element in common. Rare ones first makes that a short list.
    Source: Bayardo, Ma, Srikant 2007, "Scaling up all pairs similarity search" (prefix filtering).
    """
    holders = Counter(shingle for words in sets.values() for shingle in words)
    seen_with: dict[tuple[str, ...], list[str]] = {}
    for name, words in sets.items():
        rare_first = sorted(words, key=lambda shingle: (holders[shingle], shingle))
        needed = -(-len(words) * THRESHOLD.numerator // THRESHOLD.denominator)  # rounded up, without the errors of floats
        others: dict[str, None] = {}
        for shingle in rare_first[: len(words) - needed + 1]:
            if holders[shingle] > 1:
                others |= dict.fromkeys(seen_with.setdefault(shingle, []))
                seen_with[shingle].append(name)
        for other in others:
            yield other, name
