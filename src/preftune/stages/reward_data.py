"""What a reward model learns from: a row a prompt, with every answer that was compared and what was said of each two, or in what order.

The answers of a ranking lie in one row, so that each is read once whatever number of pairs it is in, and the pairs of a ranking of K
count 1/C(K,2) each, so that a ranking counts once (Ouyang et al. 2203.02155, §3.5). A pair that is in no ranking counts once by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from preftune.data.batches import Encoded, Group
from preftune.data.rows import Rows
from preftune.data.template import Renderer
from preftune.errors import DataError
from preftune.manifest import content_seed
from preftune.records import KWise, Message, Pair, Tie

MOST_ANSWERS = 9  # in a row, as in a ranking; a prompt with more has several rows


@dataclass(frozen=True)
class Comparison:
    """Two answers of a row: the first is preferred, or they are tied. place: of the pair in the snapshot; −1 for a tie."""

    better: str
    worse: str
    weight: float
    strength: float = 0.0
    tied: bool = False
    place: int = -1


@dataclass(frozen=True)
class Order:
    """A weak order of some of a row's answers: the rank of each, 1 = best, tied ones share one."""

    ranks: dict[str, int]
    weight: float


@dataclass(frozen=True)
class Row:
    """A prompt, the answers to it, and what was said of them. group: the prompt's id."""

    messages: tuple[Message, ...]
    group: str
    answers: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    orders: tuple[Order, ...] = ()

    def without(self, answer: str) -> Row:
        """Return the row as it is without one of its answers."""
        orders = [replace(o, ranks={a: rank for a, rank in o.ranks.items() if a != answer}) for o in self.orders]
        orders = [o for o in orders if len(set(o.ranks.values())) > 1]
        left = [c for c in self.comparisons if answer not in (c.better, c.worse)] if orders or not self.orders else []
        return replace(self, answers=tuple(a for a in self.answers if a != answer), comparisons=tuple(left), orders=tuple(orders))

    @property
    def said(self) -> int:
        """How much there is to learn from: comparisons, or orders where there are these alone."""
        return len(self.comparisons) or len(self.orders)


@dataclass(eq=False)
class _Unit:
    """What has to lie in one row: a ranking with all that was said of its answers, or one comparison."""

    comparisons: list[Comparison] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)

    def answers(self) -> dict[str, None]:
        named = [a for c in self.comparisons for a in (c.better, c.worse)] + [a for o in self.orders for a in o.ranks]
        return dict.fromkeys(named)


def rows_of(pairs: Sequence[Pair], rankings: Sequence[KWise], ties: Sequence[Tie] = (), *, orders: bool = False) -> list[Row]:
    """Return the rows that these give, in the order of the prompts.

    orders: whether each rater's order is kept as one, for losses of whole rankings; a pair that is in no ranking is an order of two then.
    """
    prompts: dict[tuple[Message, ...], tuple[str, list[_Unit]]] = {}
    ranked: dict[tuple[Message, ...], dict[frozenset[str], _Unit]] = {}
    for ranking in rankings:
        units = ranked.setdefault(ranking.messages, {})
        unit = units.setdefault(frozenset(ranking.completions), _Unit())
        if orders:
            unit.orders.append(Order(dict(zip(ranking.completions, ranking.ranks, strict=True)), ranking.weight))
    said: list[tuple[Pair | Tie, Comparison]] = [
        (p, Comparison(p.chosen, p.rejected, p.weight, p.strength or 0.0, place=n)) for n, p in enumerate(pairs)
    ]
    said += [(t, Comparison(*t.completions, t.weight, tied=True)) for t in ties]
    for record, comparison in said:
        _, units_of_prompt = prompts.setdefault(record.messages, (record.group, []))
        holding = [s for s in ranked.get(record.messages, {}) if s >= {comparison.better, comparison.worse}]
        if holding:
            answers = max(holding, key=len)
            unit = ranked[record.messages][answers]
            comparison = replace(comparison, weight=comparison.weight / math.comb(len(answers), 2))
        else:
            unit = _Unit()
            if orders:
                unit.orders.append(Order({comparison.better: 1, comparison.worse: 2}, comparison.weight))
        unit.comparisons.append(comparison)
        if unit not in units_of_prompt:
            units_of_prompt.append(unit)
    if orders:
        for ranking in rankings:
            _, units_of_prompt = prompts.setdefault(ranking.messages, (ranking.group, []))
            units_of_prompt += [u for u in ranked[ranking.messages].values() if not any(u is known for known in units_of_prompt)]
    return [row for messages, (group, units) in prompts.items() for row in _packed(messages, group, units)]


def _packed(messages: tuple[Message, ...], group: str, units: Iterable[_Unit]) -> list[Row]:
    rows: list[Row] = []
    for unit in units:
        together = dict.fromkeys([*(rows[-1].answers if rows else ()), *unit.answers()])
        if not rows or len(together) > MOST_ANSWERS:
            rows.append(Row(messages, group))
            together = unit.answers()
        last = rows[-1]
        rows[-1] = replace(
            last,
            answers=tuple(together),
            comparisons=(*last.comparisons, *unit.comparisons),
            orders=(*last.orders, *unit.orders),
        )
    return rows


def encode_rows(renderer: Renderer, rows: Iterable[Row], *, max_tokens: int) -> tuple[Sequence[Row], Encoded]:
    """Return the rows as tokens; an answer that with its prompt is longer than max_tokens is left out with what was said of it, counted.

    A group's index is the row's place in the list that is returned. Raises DataError where nothing is left.
    """
    kept, groups, result = Rows[Row](), Rows[Group](), Encoded()
    for row in rows:
        completions = {answer: tuple(renderer.completion_ids(answer)) for answer in row.answers}
        prompt: list[int] | None = None
        while row.said and prompt is None:
            longest = max(row.answers, key=lambda a: len(completions[a]))
            try:
                prompt, dropped = renderer.fit_prompt(row.messages, max_tokens - len(completions[longest]))
            except DataError:
                shorter = row.without(longest)
                result.left_out[f"longer than {max_tokens:,} tokens"] += row.said - shorter.said
                row = shorter
        if prompt is None:
            continue
        result.turns_dropped += dropped
        groups.append(Group(tuple(prompt), tuple(completions[a] for a in row.answers), len(kept)))
        kept.append(row)
    result.groups = groups
    if not groups:
        reasons = ", ".join(f"{n} {why}" for why, n in result.left_out.items()) or "there was nothing to read"
        raise DataError(f"no example is left to learn from ({reasons})", "", "Raise max_tokens or bring shorter examples.")
    return kept, result


@dataclass(frozen=True)
class Compared:
    """The comparisons of a micro-batch. better, worse: int64 [P], the answers' places among its S. row: int64 [P], whose they are.

    weights, strengths: float [P]. tied: bool [P]. places: of the pairs in the snapshot.
    """

    better: Tensor
    worse: Tensor
    row: Tensor
    weights: Tensor
    strengths: Tensor
    tied: Tensor
    places: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Compared:
        """Return the comparisons of these rows, whose answers stand one after the other."""
        found, begun = [], 0
        for number, row in enumerate(rows):
            at = {answer: begun + n for n, answer in enumerate(row.answers)}
            found += [(at[c.better], at[c.worse], number, c) for c in row.comparisons]
            begun += len(row.answers)
        said = [c for *_, c in found]
        return cls(
            torch.tensor([f[0] for f in found], dtype=torch.long),
            torch.tensor([f[1] for f in found], dtype=torch.long),
            torch.tensor([f[2] for f in found], dtype=torch.long),
            torch.tensor([c.weight for c in said]),
            torch.tensor([c.strength for c in said]),
            torch.tensor([c.tied for c in said], dtype=torch.bool),
            tuple(c.place for c in said),
        )


@dataclass(frozen=True)
class Ordered:
    """The orders of a micro-batch. ranks: int64 [O, K], 0 = no answer. answers: int64 [O, K], their places. row, weights: [O]."""

    ranks: Tensor
    answers: Tensor
    row: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Ordered:
        """Return the orders of these rows, whose answers stand one after the other."""
        ranks, answers, row_of, weights, begun = [], [], [], [], 0
        for number, row in enumerate(rows):
            at = {answer: begun + n for n, answer in enumerate(row.answers)}
            for order in row.orders:
                ranks.append(torch.tensor(list(order.ranks.values())))
                answers.append(torch.tensor([at[a] for a in order.ranks]))
                row_of.append(number)
                weights.append(order.weight)
            begun += len(row.answers)
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(pad(ranks, batch_first=True), pad(answers, batch_first=True), torch.tensor(row_of), torch.tensor(weights))


def bootstrap_weights(rows: Sequence[Row], heads: int, *, seed: int) -> Tensor:
    """Return how much each row counts for each head, float32 [R, heads]: 1 for one head alone, else of an exponential with mean 1.

    All rows of a prompt have the same, drawn from the seed, the head and the prompt, in whatever order they stand.
    Source: Rubin 1981 (the Bayesian bootstrap). Differs: the weights are divided by their sum in the step, not to 1 over the data.
    """
    if heads == 1:
        return torch.ones(len(rows), 1)
    drawn = [[content_seed(seed, head, row.group or repr(row.messages)) for head in range(heads)] for row in rows]
    return -torch.log((torch.tensor(drawn, dtype=torch.float64) + 0.5) / 2.0**63).float()
