"""What raters disagree on: found from the judgements on a prompt, told in letters, settled by an owner's word.

An owner's word is a judgement like any other, of the rater `settled:<pseudonym>`. It decides what it compares and changes no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from preftune.records import CHECKS, Judgement, Prompt, is_settled, standing

PROGRAMS = ("judge:", "reward:")  # how the rater's name begins where a program judged: a language model, a reward model
MAX_RANKED = 9


@dataclass(frozen=True)
class Contest:
    """Two candidates on which raters differ: how many put the one, the other, or neither over the other."""

    first: str
    second: str
    for_first: int
    for_second: int
    ties: int

    @property
    def split(self) -> float:
        """The share of the votes on the losing side, a tie counted as half a vote each way: 0.5 is an even split."""
        first, second = self.for_first + self.ties / 2, self.for_second + self.ties / 2
        return min(first, second) / (first + second)

    @property
    def is_opposed(self) -> bool:
        """Whether somebody prefers the one and somebody the other; otherwise it is a preference against a tie."""
        return self.for_first > 0 and self.for_second > 0


@dataclass(frozen=True)
class Dispute:
    """A prompt on which raters differ.

    judgements: the last standing word of each rater, oldest first. contests: the worst first. settled: the standing words of owners.
    """

    prompt: Prompt
    judgements: tuple[Judgement, ...]
    contests: tuple[Contest, ...]
    settled: tuple[Judgement, ...]

    @property
    def is_open(self) -> bool:
        """Whether two candidates are contested that no owner's word compares."""
        decided = [{c for tier in j.ranking for c in tier} for j in self.settled]
        return any(not any({contest.first, contest.second} <= said for said in decided) for contest in self.contests)


def is_program(rater: str) -> bool:
    """Return whether a rater's name says that it is a program."""
    return rater.startswith(PROGRAMS)


def last_words(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Return the last standing judgement of each person that ranks something.

    Left out are those that check a rater (gold, retest), those that settle, and those of programs.
    """
    last: dict[str, Judgement] = {}
    for judgement in standing(judgements):
        is_word = judgement.picked_by not in CHECKS and not is_settled(judgement) and not is_program(judgement.rater)
        if is_word and sum(map(len, judgement.ranking)) > 1:
            last.pop(judgement.rater, None)  # so that the order is that of the last words
            last[judgement.rater] = judgement
    return list(last.values())


def contests(judgements: Sequence[Judgement]) -> list[Contest]:
    """Return the candidates, two by two, on which these judgements (one a rater) differ: opposed ones first, the most even first."""
    counts: dict[tuple[str, str], list[int]] = {}
    for judgement in judgements:
        tier_of = {candidate: n for n, tier in enumerate(judgement.ranking) for candidate in tier}
        for a in tier_of:
            for b in tier_of:
                if a < b:
                    verdict = (tier_of[a] > tier_of[b]) - (tier_of[a] < tier_of[b])  # −1 the first is better, 0 level, 1 the second
                    counts.setdefault((a, b), [0, 0, 0])[verdict + 1] += 1
    found = [Contest(a, b, first, second, ties) for (a, b), (first, ties, second) in counts.items() if (first, ties, second).count(0) < 2]
    return sorted(found, key=lambda c: (not c.is_opposed, -c.split, c.first, c.second))


def dispute_of(prompt: Prompt, judgements: Sequence[Judgement]) -> Dispute | None:
    """Return what raters differ on in one prompt, or None where all who compared the same candidates say the same."""
    words = last_words(judgements)
    found = contests(words)
    if not found:
        return None
    return Dispute(prompt, tuple(words), tuple(found), tuple(j for j in standing(judgements) if is_settled(j) and j.ranking))


def letters_of(candidates: Iterable[str]) -> dict[str, str]:
    """Return a letter for each candidate id.

    The order is that of the ids, which are hashes of the texts: the same for everybody who looks, and it tells nothing of where
    an answer came from.
    """
    rounds = len(ascii_uppercase)
    return {c: ascii_uppercase[n % rounds] + (str(n // rounds) if n >= rounds else "") for n, c in enumerate(sorted(candidates))}


def in_letters(ranking: Sequence[Sequence[str]], letters: dict[str, str]) -> str:
    """Return a ranking as people write it: "C > A = B"; a candidate that has no letter is a question mark."""
    return " > ".join(" = ".join(sorted(letters.get(candidate, "?") for candidate in tier)) for tier in ranking)


def ranking_from_places(places: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return the weak order that a form's places say. places: by candidate id "1", "2" …, or "" where it is not ranked.

    Gaps between places are nothing: 1, 3, 3 is the same as 1, 2, 2. Raises ValueError where a place is not a number from 1 to 9.
    """
    tiers: dict[int, list[str]] = {}
    for candidate, place in places.items():
        if place == "":
            continue
        if len(place) != 1 or place not in "123456789":
            raise ValueError(f'the place "{place[:20]}" is not a number from 1 to 9')
        tiers.setdefault(int(place), []).append(candidate)
    return tuple(tuple(sorted(tiers[place])) for place in sorted(tiers))
