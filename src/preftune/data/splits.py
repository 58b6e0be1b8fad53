"""Which prompts are trained on and which are held out: near-duplicates stay together, and new data moves no old prompt.

A group's side is decided by a hash of the seed and of the oldest prompt of the group. Prompts are known by their order of arrival, so a
prompt that comes later and joins a group changes nothing; only one that joins two groups of different sides moves the younger.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from preftune.data.duplicates import NearDuplicates
from preftune.records import Message

Prompts = Iterable[tuple[str, Sequence[Message]]]  # (id, messages), each id once; gone through once, so that no text has to be kept


@dataclass(frozen=True)
class Split:
    """The ids of the prompts on each side. dropped: near-duplicates of given held-out prompts, on neither side.

    groups: how many groups of near-duplicates all prompts make; grouped: prompts that are in a group with another.
    """

    train: frozenset[str]
    held_out: frozenset[str]
    dropped: frozenset[str]
    groups: int
    grouped: int


def split_by_hash(prompts: Prompts, *, share: float, seed: int) -> Split:
    """Return the split of these prompts, given oldest first, that holds out about `share` of their groups."""
    groups = _groups(prompts)
    held_out = frozenset(name for name, group in groups.items() if _unit(seed, group) < share)
    return _split(groups, held_out, frozenset())


def split_by_list(prompts: Prompts, held_out: Collection[str]) -> Split:
    """Return the split that holds out the prompts listed, trains on the others, and drops those that are nearly alike a listed one.

    held_out: ids, each of which is among the prompts.
    """
    groups = _groups(prompts)
    theirs = {groups[name] for name in held_out}
    listed = frozenset(held_out)
    dropped = frozenset(name for name, group in groups.items() if group in theirs and name not in listed)
    return _split(groups, listed, dropped)


def _groups(prompts: Prompts) -> dict[str, str]:
    finder = NearDuplicates()
    for name, messages in prompts:
        finder.add(name, messages)
    return finder.groups()


def _split(groups: dict[str, str], held_out: frozenset[str], dropped: frozenset[str]) -> Split:
    sizes = Counter(groups.values())
    grouped = sum(size for size in sizes.values() if size > 1)
    return Split(frozenset(groups) - held_out - dropped, held_out, dropped, len(sizes), grouped)


def _unit(seed: int, group: str) -> float:
    # A number in [0, 1) that hangs on nothing but the seed and the group's oldest prompt.
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
