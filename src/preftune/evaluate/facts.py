"""Python facts whose truth the running interpreter itself gives, as short multiple-choice questions.

A tuned model that forgot Python answers fewer of them. They are asked one choice at a time (how likely is this answer after that
question?), so a model needs no skill in reading options. They are the same on every machine with the same minor version of Python.

A small model should know some and miss some: SmolLM2-135M-Instruct answers 53 % of them, where chance is 26 %. Kinds at which it was no
better than chance (methods of a type, counting letters, dict and set operations) were left out, for nothing can be lost there.
"""

from __future__ import annotations

import functools
import platform
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from preftune.errors import ConfigError
from preftune.evaluate.facts_draft import Draft, decide
from preftune.evaluate.facts_library import library_drafts
from preftune.evaluate.facts_values import value_drafts
from preftune.records import content_id

MAX_CHOICES = 4
LARGEST_SHARE = 0.2  # of one kind
TRIES = 12  # sets of wrong answers looked at for each fact


@dataclass(frozen=True)
class Fact:
    """One question: `choices[answer]` is right, and the expression `source` over `choice` is True for it alone."""

    id: str
    kind: str
    question: str
    choices: tuple[str, ...]
    answer: int
    source: str

    def holds(self, choice: str) -> bool:
        """Ask the running interpreter whether a choice is right."""
        return decide(self.source, choice)


def facts(n: int = 2000, seed: int = 0) -> list[Fact]:
    """Return n distinct facts, spread evenly over the kinds as far as these reach (at most a fifth of one kind).

    seed: picks which facts, and where the right answer stands; each place holds it equally often. A fact's id depends on its content
    alone, not on the seed, and more facts of the same seed hold all of the fewer ones. Raises ConfigError where n is more than there are.
    """
    pool = _pool()
    by_kind: dict[str, list[Fact]] = defaultdict(list)
    for fact in pool:
        by_kind[fact.kind].append(fact)
    quotas = _quotas({kind: len(members) for kind, members in by_kind.items()}, n)
    picked = []
    for kind, members in by_kind.items():
        order = random.Random(f"{kind}:{seed}").sample(members, len(members))
        picked += order[: quotas[kind]]
    rng = random.Random(f"facts:{seed}")
    rng.shuffle(picked)
    return _place_answers(picked, rng)


def _quotas(available: dict[str, int], n: int) -> dict[str, int]:
    largest = max(1, int(n * LARGEST_SHARE))
    room = {kind: min(count, largest) for kind, count in available.items()}
    if not 1 <= n <= sum(room.values()):
        python = ".".join(platform.python_version_tuple()[:2])
        raise ConfigError(f"{n:,} facts were asked for", "facts", f"Ask for 1 to {sum(room.values()):,} with Python {python}.")
    quotas = dict.fromkeys(room, 0)
    left = n
    while left:
        open_kinds = [kind for kind in room if quotas[kind] < room[kind]]
        share = max(1, left // len(open_kinds))
        for kind in open_kinds[:left]:
            more = min(share, room[kind] - quotas[kind])
            quotas[kind] += more
            left -= more
    return quotas


def _place_answers(picked: Sequence[Fact], rng: random.Random) -> list[Fact]:
    seen: dict[int, int] = defaultdict(int)
    placed = []
    for fact in picked:
        size = len(fact.choices)
        others = [c for i, c in enumerate(fact.choices) if i != fact.answer]
        rng.shuffle(others)
        place = seen[size] % size
        seen[size] += 1
        choices = (*others[:place], fact.choices[fact.answer], *others[place:])
        placed.append(Fact(fact.id, fact.kind, fact.question, choices, place, fact.source))
    return placed


@functools.cache
def _pool() -> tuple[Fact, ...]:
    """Every fact that stands, in the order of the tables, right answer first."""
    made: dict[tuple[str, str], Fact] = {}
    leaning: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for draft in (*value_drafts(), *library_drafts()):
        key = draft.question, draft.right
        if key in made or not decide(draft.source, draft.right):
            continue
        choices = _choices(draft, leaning[draft.kind])
        if len(choices) > 1:
            identity = content_id("fact", draft.kind, draft.question, draft.right, sorted(choices))
            made[key] = Fact(identity, draft.kind, draft.question, choices, 0, draft.source)
    return tuple(made.values())


def _choices(draft: Draft, leaning: list[float]) -> tuple[str, ...]:
    """Return the right answer and up to three others, each of which the interpreter says is wrong."""
    wrong = [w for w in dict.fromkeys(draft.wrong) if w != draft.right]
    while wrong:
        some, after = _balanced(draft, wrong, leaning)
        right_too = [w for w in some if decide(draft.source, w)]
        if not right_too:
            leaning[:] = after
            return (draft.right, *some)
        wrong = [w for w in wrong if w not in right_too]
    return (draft.right,)


def _balanced(draft: Draft, wrong: list[str], leaning: list[float]) -> tuple[list[str], list[float]]:
    """Pick wrong answers so that, over a kind, neither the longest nor the shortest choice is right more often than by chance.

    leaning: how far the two rules are above chance so far. Returns the wrong answers, and where they take the leaning.
    """
    rng = random.Random(f"choices:{draft.question}:{draft.right}")
    best: tuple[float, list[str], list[float]] | None = None
    for _ in range(TRIES):
        some = rng.sample(wrong, min(MAX_CHOICES - 1, len(wrong)))
        lengths = [len(c) for c in (draft.right, *some)]
        after = [lean + _credit(lengths, extreme(lengths)) for lean, extreme in zip(leaning, (max, min), strict=True)]
        badness = sum(lean * lean for lean in after)
        if best is None or badness < best[0]:
            best = badness, some, after
    assert best is not None
    return best[1], best[2]


def _credit(lengths: Sequence[int], extreme: int) -> float:
    # How much better than chance one does by always taking a choice of the extreme length; the right one stands first.
    return (lengths[0] == extreme) / lengths.count(extreme) - 1 / len(lengths)
