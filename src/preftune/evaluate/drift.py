"""How a model's answers changed in themselves: length, form, refusals, repetition, and how alike the answers are to each other.

None of these says better or worse. They say where to look: a model that refuses more, repeats itself or gives everybody one answer has
drifted, whatever its win rate. Pure functions of texts (numpy alone).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preftune.errors import DataError
from preftune.evaluate.statistics import bootstrap_mean, paired_difference, share_difference, wilson

WORDS = re.compile(r"\w+|[^\w\s]")
REPEATED = 4  # words in a row that count as said again
SHINGLE = 3  # words in a row by which two answers are compared
MOST_COMPARED = 200  # answers that are compared each with each
# How refusals begin, in English; what refuses in other words or languages is not seen.
REFUSAL = re.compile(
    r"\A\W*(?:(?:i['’]?m|i am) (?:very |so |really )?(?:sorry|afraid)\b.{0,80}?\b(?:can['’]?t|cannot|can not|unable|won['’]?t|not able)"
    r"|(?:sorry|apologies|unfortunately)\b.{0,80}?\b(?:can['’]?t|cannot|can not|unable|won['’]?t|not able)"
    r"|i (?:can['’]?t|cannot|can not|won['’]?t|will not|must decline|am unable|['’]m unable|am not able|['’]m not able)"
    r"(?: to)? (?:help|assist|provide|comply|do that|answer|fulfil|fulfill|support|create|write|discuss|give|share)"
    r"|as an ai\b.{0,80}?\b(?:can['’]?t|cannot|can not|unable|not able|won['’]?t)"
    r"|i must (?:decline|refuse))",
    re.IGNORECASE | re.DOTALL,
)
FORMS = {
    "code": re.compile(r"^\s*```", re.MULTILINE),
    "lists": re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE),
    "heading": re.compile(r"^#{1,6}\s+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
SHARES = ("empty", "refuses", *FORMS)
NUMBERS = ("characters", "words", "repetition")


@dataclass(frozen=True)
class Looks:
    """What one answer looks like. repetition: share of its runs of four words that it had said before, 0 to 1."""

    characters: int
    words: int
    repetition: float
    empty: bool
    refuses: bool
    code: bool
    lists: bool
    heading: bool
    bold: bool


@dataclass(frozen=True)
class Diversity:
    """How alike answers to different prompts are. distinct: of all runs of n words, the share that is different, for n = 1, 2, 3.

    similarity: mean share of runs of three words that two answers have in common (Jaccard); None with fewer than two answers that have any.
    distinct falls with the amount of text, so compare it only on the same prompts.
    """

    distinct: tuple[float, float, float]
    similarity: float | None


def looks(text: str) -> Looks:
    """Return what an answer looks like."""
    words = WORDS.findall(text.lower())
    runs = _runs(words, REPEATED)
    forms = {name: pattern.search(text) is not None for name, pattern in FORMS.items()}
    repetition = 1 - len(set(runs)) / len(runs) if runs else 0.0
    return Looks(len(text), len(words), repetition, not text.strip(), refuses(text), **forms)


def refuses(text: str) -> bool:
    """Return whether an answer begins as refusals in English do."""
    return REFUSAL.match(text[:300]) is not None


def diversity(texts: Sequence[str], *, seed: int = 0) -> Diversity:
    """Return how different the answers are. Of more than 200 answers a random 200 are compared each with each."""
    words = [WORDS.findall(text.lower()) for text in texts]
    distinct = []
    for n in (1, 2, 3):
        runs = Counter(run for own in words for run in _runs(own, n))
        distinct.append(len(runs) / runs.total() if runs else 0.0)
    sets = [set(_runs(own, SHINGLE)) for own in words]
    sets = [own for own in sets if own]
    if len(sets) > MOST_COMPARED:
        chosen = np.random.default_rng(seed).choice(len(sets), MOST_COMPARED, replace=False)
        sets = [sets[i] for i in sorted(chosen.tolist())]
    alike = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    return Diversity((distinct[0], distinct[1], distinct[2]), sum(alike) / len(alike) if alike else None)


def drift(texts: Sequence[str], before: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the measures of answers as plain values, and their change from the answers that another model gave to the same prompts.

    Shares have Wilson intervals and their changes Tango's, numbers bootstrap intervals over answers; "change" is in the measure's unit.
    """
    if len(texts) < 2 or (before is not None and len(before) != len(texts)):
        what = f"there are {len(texts)} answers" + (f" and {len(before)} before" if before is not None else "")
        raise DataError(what, "drift", "Give the answers of both to the same two prompts or more.")
    now, then = [looks(text) for text in texts], [looks(text) for text in before] if before is not None else None
    found: dict[str, Any] = {}
    for name in (*NUMBERS, *SHARES):
        values = [float(getattr(one, name)) for one in now]
        old = [float(getattr(one, name)) for one in then] if then else None
        found[name] = asdict(wilson(sum(values), len(values)) if name in SHARES else bootstrap_mean(values))
        if old is not None:
            found[name]["change"] = asdict(share_difference(old, values) if name in SHARES else paired_difference(old, values))
    found["diversity"] = asdict(diversity(texts)) | ({"before": asdict(diversity(before))} if before is not None else {})
    return found


def _runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
