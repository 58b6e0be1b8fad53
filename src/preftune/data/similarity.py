"""When two answers are the same for a rater: alike but for white space, or all but a few characters alike."""

from __future__ import annotations

import unicodedata
from collections import Counter

NEAR = 0.95  # edit similarity above which two answers count as one


def normalised(text: str) -> str:
    """Return a text with composed characters, runs of white space as one space, and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def edit_similarity(a: str, b: str, *, at_least: float = 0.0) -> float:
    """Return 1 − (fewest insertions, deletions and replacements that turn a into b) / (length of the longer), 1 for two empty texts.

    at_least: where it can be seen at once that the similarity is lower, that upper bound is returned instead.
    """
    longer = max(len(a), len(b))
    if a == b:
        return 1.0
    surplus = Counter(a)
    surplus.subtract(b)
    missing = sum(-count for count in surplus.values() if count < 0)
    fewest = max(missing, missing + len(a) - len(b))  # each edit mends one character of the surplus and one of the missing
    bound = 1 - fewest / longer
    return bound if bound < at_least else 1 - _edits(a, b) / longer


def same_answer(a: str, b: str) -> bool:
    """Return whether two answers are equal when normalised, or more than 95 % alike."""
    first, second = normalised(a), normalised(b)
    return first == second or edit_similarity(first, second, at_least=NEAR) > NEAR


def _edits(a: str, b: str) -> int:
    """Return the Levenshtein distance, a column at a time as the bits of one number.

    Source: Myers 1999, "A fast bit-vector algorithm for approximate string matching", in the form of Hyyrö 2003. Differs: none.
    """
    if not a or not b:
        return len(a) or len(b)
    places: dict[str, int] = {}
    for place, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << place
    mask, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = mask, 0, len(a)  # which vertical steps of the column rise, and which fall
    for letter in b:
        equal = places.get(letter, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        rise = down | (mask & ~(diagonal | up))
        fall = up & diagonal
        distance += bool(rise & last) - bool(fall & last)
        rise, fall = rise << 1 | 1, fall << 1
        up = mask & (fall | ~(diagonal | rise))
        down = rise & diagonal & mask
    return distance
