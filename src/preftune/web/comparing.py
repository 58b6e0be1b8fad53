"""Two models compared by people, blind: the items that ask for it, and what was said so far.

An item of a comparison has picked_by "compare"; its note holds, as JSON, the comparison's name, what A and B are, and which candidate
is A's. Raters see none of it; they see the two answers in an order drawn anew for each of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from preftune.data import tables
from preftune.data.sequential import Verdict, verdict
from preftune.data.store import Store, judgement_from_row
from preftune.errors import DataError
from preftune.progress import counted
from preftune.records import Candidate, Judgement, Prompt, content_id, pairs_of
from preftune.web.items import Pick, add_items
from preftune.web.settings import LabelSettings

COMPARE = "compare"
FIRST = 500  # the priority: before what is to be learned from


@dataclass(frozen=True)
class Asked:
    """What came of asking for a comparison. same: prompts to which A and B answer alike, which nobody is asked about."""

    name: str
    new: int
    same: int
    taken: int  # pairs that are an item of something else already, and so were not asked again


@dataclass(frozen=True)
class Comparison:
    """A comparison with its verdict so far. items: its prompts; more_words: judgements beyond the first one of a prompt, not counted."""

    name: str
    a: str
    b: str
    items: int
    more_words: int
    verdict: Verdict


def add_comparison(
    store: Store, settings: LabelSettings, a: str, b: str, prompts: Sequence[Prompt], answers: Sequence[tuple[str, str]]
) -> Asked:
    """Ask the raters which of two answers to each prompt is better; the same comparison again adds nothing.

    a, b: what the two are. answers: A's and B's to each prompt. All is added or nothing.
    Raises DataError where a and b are the same, no prompt has two different answers, or one is empty.
    """
    if a == b:
        raise DataError(f"A and B are both {a}", "compare", "Give two different ones.")
    name = content_id(COMPARE, a, b, [(prompt.id, *two) for prompt, two in zip(prompts, answers, strict=True)])
    empty = [prompt.text for prompt, two in zip(prompts, answers, strict=True) if not all(text.strip() for text in two)]
    if empty:
        raise DataError(
            f"{counted(len(empty), 'prompts have')} an empty answer, first: {empty[0][:80]!r}", "compare", "Leave these prompts out."
        )
    picks, candidates, kept = [], [], []
    for prompt, two in zip(prompts, answers, strict=True):
        if two[0] == two[1]:
            continue
        first, second = (Candidate(prompt_id=prompt.id, text=text, source=source) for text, source in zip(two, (a, b), strict=True))
        note = json.dumps({"comparison": name, "a": a, "b": b, "first": first.id})
        picks.append(Pick(prompt.id, (first.id, second.id), COMPARE, None, FIRST, "pair", note))
        candidates += [first, second]
        kept.append(prompt)
    if not picks:
        raise DataError("A and B give the same answer to every prompt", "compare", "There is nothing to compare; give others.")
    with store.writer() as writer:
        known = _items_of(writer.connection, name)
        writer.add(prompts=kept, candidates=candidates)
        new = add_items(writer, picks, settings)
    return Asked(name, new, len(prompts) - len(picks), len(picks) - new - known)


def _items_of(connection: Connection, name: str) -> int:
    rows = connection.execute(select(tables.items.c.note).where(tables.items.c.picked_by == COMPARE)).scalars()
    return sum(json.loads(note)["comparison"] == name for note in rows)


def comparisons(store: Store) -> list[Comparison]:
    """Return every comparison with what was said so far, the newest first.

    Of each prompt the first standing judgement counts: further ones of the same prompt are not independent of it.
    """
    items, assignments, judgements = tables.items, tables.assignments, tables.judgements
    asked_of = (
        select(assignments.c.judgement_id, assignments.c.item_id)
        .join(items, items.c.id == assignments.c.item_id)
        .where(items.c.picked_by == COMPARE, assignments.c.state == "submitted", assignments.c.purpose == "normal")
    )
    said = select(judgements).where(judgements.c.id.in_(select(asked_of.subquery().c.judgement_id))).order_by(judgements.c.number)
    with store.reading() as connection:
        rows = connection.execute(select(items.c.id, items.c.note).where(items.c.picked_by == COMPARE).order_by(items.c.number)).all()
        words: dict[str, list[Judgement]] = {}
        item_of = {row.judgement_id: row.item_id for row in connection.execute(asked_of)}
        for row in connection.execute(said):
            words.setdefault(item_of[row.id], []).append(judgement_from_row(row))
    found: dict[str, list[tuple[dict[str, str], list[Judgement]]]] = {}
    for row in rows:
        note = json.loads(row.note)
        found.setdefault(note["comparison"], []).append((note, [j for j in words.get(row.id, []) if j.ranking]))
    return [_comparison(name, asked) for name, asked in reversed(found.items())]


def _comparison(name: str, asked: Sequence[tuple[dict[str, str], list[Judgement]]]) -> Comparison:
    counts = Counter(outcomes((note["first"], said[0]) for note, said in asked if said))
    note = asked[0][0]
    seen = verdict(counts[1], counts[0], counts[-1])
    return Comparison(name, note["a"], note["b"], len(asked), sum(max(0, len(said) - 1) for _, said in asked), seen)


def outcomes(said: Iterable[tuple[str, Judgement]]) -> list[int]:
    """Return 1 where the named candidate won, −1 where it lost, 0 where it was a tie."""
    result = []
    for first, judgement in said:
        pairs = pairs_of(judgement)
        result.append(0 if not pairs else 1 if pairs[0][0] == first else -1)
    return result
