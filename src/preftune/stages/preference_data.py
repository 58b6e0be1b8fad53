"""What each loss of `preftune train dpo` learns from: pairs, pairs with ties or with strengths, single answers, or rankings.

All come from one snapshot. What a loss cannot use is counted, and said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from preftune.data.batches import shuffled
from preftune.data.rows import Rows
from preftune.data.snapshot import Snapshot
from preftune.errors import DataError
from preftune.records import Message, Pair

Data = Literal["pairs", "strengths", "ties", "answers", "rankings"]


@dataclass(frozen=True)
class Preference:
    """A prompt with its answers, and what was said of them.

    answers: of a pair chosen, rejected; of a ranking all, best first; of a single answer itself, and an answer to another prompt (for KTO's
    point of reference). ranks: the rank of each, 1 = best; tied ones share one. strength: how clear a pair is, 0 to 3. desirable: whether
    a single answer is good. group: the prompt's id.
    """

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    weight: float
    group: str
    ranks: tuple[int, ...] = (1, 2)
    strength: float = 0.0
    desirable: bool = True


@dataclass
class Preferences:
    """The rows to learn from, and how many of the snapshot's others the loss cannot use, by what they are."""

    rows: Sequence[Preference] = ()
    unused: Counter[str] = field(default_factory=Counter)

    def said(self, loss: str) -> str:
        """Return what is not used, as a sentence; empty where all is."""
        listed = ", ".join(f"{n:,} {what}" for what, n in self.unused.items() if n)
        return f"Not used, as loss {loss} learns nothing from them: {listed}." if listed else ""


def preferences_of(snapshot: Snapshot, data: Data, *, seed: int) -> Preferences:
    """Return what a loss learns from on the training side. seed: which answers to other prompts single ones are compared with.

    Raises DataError where there is nothing of the kind that the loss needs.
    """
    found = Preferences()
    if data != "ties":
        found.unused["ties"] = len(snapshot.ties)
    if data != "answers":
        found.unused["thumbs"] = len(snapshot.thumbs)
    match data:
        case "pairs":
            found.rows = Rows(_pair(p) for p in snapshot.train)
        case "strengths":
            found.rows = Rows(_pair(p) for p in snapshot.train if p.strength is not None)
            found.unused["pairs of unknown strength"] = len(snapshot.train) - len(found.rows)
            _insist(found, snapshot, "pair says how clear it is", "Take loss=dpo, or ask raters for strengths as well.")
        case "ties":
            tied = (Preference(t.messages, t.completions, t.weight, t.group, ranks=(1, 1)) for t in snapshot.ties)
            found.rows = Rows(chain(map(_pair, snapshot.train), tied))
        case "answers":
            found.rows = _single_answers(snapshot, found.unused, seed=seed)
        case "rankings":
            ranked = {(k.messages, text) for k in snapshot.kwise for text in k.completions}
            found.rows = rows = Rows(Preference(k.messages, k.completions, k.weight, k.group, ranks=k.ranks) for k in snapshot.kwise)
            _insist(found, snapshot, "ranking has three answers or more", "Take loss=dpo, which is the same for pairs.")
            for pair in snapshot.train:
                if not {(pair.messages, pair.chosen), (pair.messages, pair.rejected)} <= ranked:
                    rows.append(_pair(pair))
    return found


def _pair(pair: Pair) -> Preference:
    return Preference(pair.messages, (pair.chosen, pair.rejected), pair.weight, pair.group, strength=pair.strength or 0.0)


def _insist(found: Preferences, snapshot: Snapshot, what: str, fix: str) -> None:
    if not found.rows:
        raise DataError(f"no {what}", str(snapshot.path), fix)


def _single_answers(snapshot: Snapshot, unused: Counter[str], *, seed: int) -> list[Preference]:
    """Return each answer that is good or bad by itself: by a thumb, else by being chosen or rejected in a pair.

    Good and bad ones weigh the same in sum (λ_D n_D = λ_U n_U of 2402.01306). Each comes with an answer to another prompt.
    """
    said = {
        (t.messages, t.completion): Preference(t.messages, (t.completion,), t.weight, t.group, desirable=t.desirable)
        for t in snapshot.thumbs
    }
    sides: dict[tuple[tuple[Message, ...], str], dict[bool, Preference]] = {}
    for pair, text, good in _sides(snapshot.train):
        if (pair.messages, text) not in said:
            row = Preference(pair.messages, (text,), pair.weight, pair.group, desirable=good)
            sides.setdefault((pair.messages, text), {}).setdefault(good, row)
    unused["answers both chosen and rejected"] = sum(len(one) > 1 for one in sides.values())
    rows = [*said.values(), *(row for one in sides.values() if len(one) == 1 for row in one.values())]
    up = sum(row.weight for row in rows if row.desirable)
    down = sum(row.weight for row in rows if not row.desirable)
    if not up or not down:
        raise DataError(
            f"every answer is {'good' if up else 'bad'}" if rows else "no answer is called good or bad",
            str(snapshot.path),
            "kto needs both: collect thumbs up and down, or pairs.",
        )
    share = {True: (up + down) / (2 * up), False: (up + down) / (2 * down)}
    return [
        Preference(row.messages, (*row.answers, other), row.weight * share[row.desirable], row.group, desirable=row.desirable)
        for row, other in zip(rows, _answers_to_others(rows, snapshot, seed=seed), strict=True)
    ]


def _sides(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, str, bool]]:
    for pair in pairs:
        yield pair, pair.chosen, True
        yield pair, pair.rejected, False


def _answers_to_others(rows: list[Preference], snapshot: Snapshot, *, seed: int) -> list[str]:
    """Return for each row the next answer, in a shuffled order, that was given to another prompt."""
    order = shuffled(len(rows), seed=seed, epoch=0)
    found = [""] * len(rows)
    for place, index in enumerate(order):
        others = (rows[order[(place + step) % len(rows)]] for step in range(1, len(rows)))
        other = next((row for row in others if row.messages != rows[index].messages), None)
        if other is None:
            raise DataError("there is one prompt only", str(snapshot.path), "kto compares with answers to other prompts: collect some.")
        found[index] = other.answers[0]
    return found
