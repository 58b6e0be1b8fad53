"""How the raters' words on each two answers add up: ties, even splits, contradictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import add

from preftune.records import Judgement, pairs_of, standing


@dataclass(frozen=True)
class Votes:
    """How the raters' words on each two answers of a prompt add up.

    compared: twos of answers on which somebody said something. ties: all said tie. even_splits: as many for the one as for the other.
    contradictions: somebody preferred the one, somebody the other (whether a majority decided or not). superseded: judgements undone.
    word_pairs: pairs of raters who both preferred one of the same two answers. agreeing: of these, those who preferred the same.
    """

    judgements: int = 0
    superseded: int = 0
    compared: int = 0
    ties: int = 0
    even_splits: int = 0
    contradictions: int = 0
    word_pairs: int = 0
    agreeing: int = 0

    def __add__(self, other: Votes) -> Votes:
        return Votes(*map(add, vars(self).values(), vars(other).values()))


def count_votes(judgements: Sequence[Judgement]) -> Votes:
    """Return how all judgements on one prompt add up."""
    valid = standing(judgements)
    if len(judgements) == 1 and len(valid[0].ranking) == 2 == sum(map(len, valid[0].ranking)):
        return Votes(judgements=1, compared=1)  # what most prompts of a large set have
    words: dict[tuple[str, str], list[int]] = {}  # of each two in the order of their ids: how many prefer the first, the second
    for judgement in valid:
        for better, worse in pairs_of(judgement):
            if better < worse:
                words.setdefault((better, worse), [0, 0])[0] += 1
            else:
                words.setdefault((worse, better), [0, 0])[1] += 1
        for tier in judgement.ranking:
            for two in combinations(sorted(tier), 2):
                words.setdefault(two, [0, 0])
    for_each = words.values()
    return Votes(
        judgements=len(judgements),
        superseded=len(judgements) - len(valid),
        compared=len(words),
        ties=sum(a == b == 0 for a, b in for_each),
        even_splits=sum(a == b > 0 for a, b in for_each),
        contradictions=sum(a > 0 and b > 0 for a, b in for_each),
        word_pairs=sum(math.comb(a + b, 2) for a, b in for_each),
        agreeing=sum(math.comb(a, 2) + math.comb(b, 2) for a, b in for_each),
    )
