"""From groups (a prompt and its completions) to TokenBatches of tree rows, within a token budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from preftune.data.rows import Rows
from preftune.data.template import Renderer
from preftune.errors import DataError
from preftune.records import Message
from preftune.tensors import TokenBatch

WORTH_SHARING = 8  # tokens; fewer cost more in a forward pass of their own than in every row


@dataclass(frozen=True)
class Group:
    """One prompt's token ids and those of its completions (each with its end token); `index`: its place in the data."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    index: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the tree row: the prompt once, every completion."""
        return len(self.prompt) + sum(map(len, self.completions))

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that are learned or scored."""
        return sum(map(len, self.completions))


@dataclass
class Encoded:
    """Groups that fit, and what was left out and why (counted, and shown in the manifest)."""

    groups: Sequence[Group] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    turns_dropped: int = 0

    def facts(self) -> dict[str, object]:
        """Return the counts for a manifest."""
        return {"groups": len(self.groups), "left_out": dict(self.left_out), "turns_dropped": self.turns_dropped}


def encode(renderer: Renderer, items: Iterable[tuple[Sequence[Message], Sequence[str]]], *, max_tokens: int) -> Encoded:
    """Turn (messages, answers) into groups of at most max_tokens for the prompt and any one answer.

    Nothing is cut: oldest whole turns leave the prompt, equally for all its answers; where the last turn and an answer
    still do not fit, the group is left out and counted. Raises DataError where nothing is left.
    """
    result, groups = Encoded(), Rows[Group]()
    for index, (messages, answers) in enumerate(items):
        completions = tuple(tuple(renderer.completion_ids(a)) for a in answers)
        room = max_tokens - max(map(len, completions))
        try:
            prompt, dropped = renderer.fit_prompt(messages, room)
        except DataError:
            result.left_out[f"longer than {max_tokens:,} tokens"] += 1
            continue
        result.turns_dropped += dropped
        groups.append(Group(tuple(prompt), completions, index))
    result.groups = groups
    if not groups:
        reasons = ", ".join(f"{n} {why}" for why, n in result.left_out.items()) or "there was nothing to read"
        raise DataError(f"no example is left to learn from ({reasons})", "", "Raise max_tokens or bring shorter examples.")
    return result


def collate(groups: Sequence[Group], pad_id: int, *, tree: bool = True, apart: bool = True) -> TokenBatch:
    """Return the groups as one padded batch; sequences are numbered group by group, completion by completion.

    tree: True = a row a group, `[prompt | completion 1 | …]`; False = a row a completion, the whole prompt repeated (the plain way).
    apart: with tree rows, what all prompts begin with (a system message, say) is computed once, apart from the rows.
    """
    begun = begun_apart(groups, tree=tree, apart=apart)
    rows: list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = []
    for group in groups:
        prompt = group.prompt[begun:]
        rows += [(prompt, group.completions)] if tree else [(prompt, (c,)) for c in group.completions]
    length = max(len(p) + sum(map(len, cs)) for p, cs in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, -1, dtype=torch.long)
    parent = torch.arange(length).expand(shape).clone()
    sequence = torch.full(shape, -1, dtype=torch.long)
    number = 0
    for row, (prompt, completions) in enumerate(rows):
        start = len(prompt)
        ids[row, :start] = torch.tensor(prompt)
        position_ids[row, :start] = torch.arange(begun, begun + start)
        segment[row, :start] = 0
        parent[row, 1:start] = torch.arange(start - 1)
        for which, completion in enumerate(completions, start=1):
            stop = start + len(completion)
            ids[row, start:stop] = torch.tensor(completion)
            position_ids[row, start:stop] = torch.arange(begun + len(prompt), begun + len(prompt) + len(completion))
            segment[row, start:stop] = which
            parent[row, start:stop] = torch.arange(start - 1, stop - 1)
            parent[row, start] = len(prompt) - 1
            sequence[row, start:stop] = number
            number += 1
            start = stop
    plain = all(len(cs) == 1 for _, cs in rows)
    return TokenBatch(ids, position_ids, segment, sequence >= 0, parent, sequence, number, plain, groups[0].prompt[:begun])


def shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, where that is worth a forward pass of its own; each keeps a token at least."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= WORTH_SHARING else 0


def begun_apart(groups: Sequence[Group], *, tree: bool, apart: bool) -> int:
    """Return how many tokens of these groups `collate` leaves to a forward pass of their own."""
    return shared_beginning([group.prompt for group in groups]) if tree and apart else 0


@dataclass(frozen=True)
class Area:
    """What one micro-batch computes: its rows' tokens, after `begun` tokens that all rows begin with.

    padded: rows are as long as the longest; else they lie one after the other (see `models.attention`).
    """

    lengths: tuple[int, ...]
    begun: int = 0
    padded: bool = True

    @property
    def tokens(self) -> int:
        """Tokens that go through every layer, padding among them."""
        return sum(self._computed()) + self.begun

    @property
    def squares(self) -> int:
        """Pairs of tokens that attention compares, masked ones among them."""
        return sum(length * (length + self.begun) for length in self._computed()) + self.begun**2

    def _computed(self) -> list[int]:
        longest = max(self.lengths)
        return [longest if self.padded else length for length in self.lengths]


def area_of(groups: Sequence[Group], *, tree: bool, apart: bool, padded: bool = True) -> Area:
    """Return what a forward pass over these groups computes, without making their batch."""
    begun = begun_apart(groups, tree=tree, apart=apart)
    if tree:
        return Area(tuple(g.num_tokens - begun for g in groups), begun, padded)
    return Area(tuple(len(g.prompt) + len(c) for g in groups for c in g.completions), padded=padded)


def split_by_budget(groups: Sequence[Group], token_budget: int, *, shares: int = 1) -> list[list[Group]]:
    """Return micro-batches whose padded area (rows × longest row) is at most token_budget, longest rows first.

    As few as can be, and as even as so few can be: a full one and a small rest would multiply more slowly than two halves.
    A row that is longer than the budget by itself goes alone: nothing is dropped here. shares: how many processes take an equal share;
    with rows enough, the number of micro-batches is a multiple of that or as near as the rows' lengths let it come. Several processes
    wait for the slowest, so theirs are even by their tokens.
    """
    ordered = sorted(groups, key=lambda g: (-g.num_tokens, g.index))
    fewest = len(_filled(ordered, token_budget))
    wanted = min(-(-fewest // shares) * shares, len(ordered))
    if shares == 1:
        return _least(token_budget, lambda area: _filled(ordered, area), wanted)
    tokens = sum(group.num_tokens for group in ordered)
    return _least(tokens, lambda most: _filled(ordered, token_budget, most), wanted)


def _least(high: int, split: Callable[[int], list[list[Group]]], wanted: int) -> list[list[Group]]:
    """Return the split by the smallest limit up to `high` that gives at most so many parts."""
    low = 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(split(middle)) <= wanted else (middle + 1, high)
    return split(high)


def _filled(ordered: Sequence[Group], token_budget: int, most: int | None = None) -> list[list[Group]]:
    parts: list[list[Group]] = []
    held = 0
    for group in ordered:
        held += group.num_tokens
        if parts and parts[-1][0].num_tokens * (len(parts[-1]) + 1) <= token_budget and (most is None or held <= most):
            parts[-1].append(group)
        else:
            parts.append([group])
            held = group.num_tokens
    return parts


def shuffled(count: int, *, seed: int, epoch: int) -> list[int]:
    """Return a permutation that depends on (seed, epoch) alone, so that a resumed run sees the same order."""
    return _permutation(count, seed, epoch).tolist()


@lru_cache(2)  # as each step asks for its own few places of it
def _permutation(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def batch_indices(count: int, batch_size: int, step: int, *, seed: int) -> list[int]:
    """Return the items of optimiser step `step` (from 0): batch k is a function of (seed, k). The last of an epoch may be smaller."""
    per_epoch = -(-count // batch_size)
    epoch, place = divmod(step, per_epoch)
    return _permutation(count, seed, epoch)[place * batch_size : (place + 1) * batch_size].tolist()
