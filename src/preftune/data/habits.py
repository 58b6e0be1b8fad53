"""How each rater works: ties, time, words repeated on a second showing, and answers on items of which the right one is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import quantiles

import numpy as np
from scipy import special

from preftune.data.comparisons import Comparisons, by_rater
from preftune.data.intervals import Share, clustered_share, wilson
from preftune.records import GOLD, UNKNOWN, Judgement, is_settled, pairs_of, standing

FEW_WORDS = 20  # a tie rate from fewer tells nothing
MANY_TIES = 0.4
TOO_FAST = 0.2  # of the rater's own median
CHARACTERS_A_SECOND = 48.0  # about 12 tokens of 4 characters: nobody reads faster than that
GOLD_WANTED = 0.8
GOLD_SURE = 0.9


@dataclass(frozen=True)
class TieRate:
    """How often a rater says "tie"; suspicious: never, or in more than 40 %, of 20 words or more."""

    share: Share
    suspicious: bool

    def words(self) -> str:
        """Return it as words for a person."""
        return f"says tie {self.share}" + (": see how they read the guidelines" if self.suspicious else "")


@dataclass(frozen=True)
class Retest:
    """How often a rater says the same of the same two answers when asked again.

    same: ties as a third word. strict: both words strict. swapped: strict, of those shown the other way round the second time.
    """

    same: Share | None = None
    strict: Share | None = None
    swapped: Share | None = None
    per_rater: dict[str, Share] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        found = [f"asked again, a rater says the same of two answers in {self.same}"] if self.same else []
        return found + ([f"asked again in the other order: {self.swapped}, ties left out"] if self.swapped else [])


@dataclass(frozen=True)
class Spread:
    """Quartiles of n times, in seconds."""

    p25: float
    p50: float
    p75: float
    n: int


@dataclass(frozen=True)
class Times:
    """Active seconds a judgement. too_fast: ids of those to look at (never to throw away), by rater."""

    all: Spread
    per_rater: dict[str, Spread]
    too_fast: dict[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        found = [f"half of {self.all.n:,} judgements took {self.all.p25:.0f} to {self.all.p75:.0f} s, the median {self.all.p50:.0f} s"]
        fast = {name: f"{len(ids):,} of {self.per_rater[name].n:,} judgements" for name, ids in self.too_fast.items()}
        return found + [f"{name}: {count} were faster than one can read; look at them" for name, count in fast.items()]


@dataclass(frozen=True)
class Gold:
    """A rater against the right answers. below: P(accuracy < 0.8 | these answers), from an even prior.

    alert: where that is over 0.9 and not a single miss is why.
    """

    share: Share
    below: float
    alert: bool

    def words(self) -> str:
        """Return it as words for a person."""
        tail = ": talk to them" if self.alert else ""
        return f"right in {self.share}; the probability that they are under {GOLD_WANTED:.0%} is {self.below:.2f}{tail}"


def tie_rates(table: Comparisons) -> dict[str, TieRate]:
    """Return for each rater how many of their words on two answers are ties."""
    found = {}
    for name, rows in by_rater(table).items():
        share = clustered_share(table.verdict[rows] == 0, table.cluster[rows])
        if share:
            enough = share.n >= FEW_WORDS
            found[name] = TieRate(share, enough and (share.value == 0 or share.value > MANY_TIES))
    return found


def retest(table: Comparisons) -> Retest:
    """Return how often raters repeat themselves: each rater's first word on two answers against their next one.

    A word that took the first one back is no retest; nor is one of a rater who is not known, as it may be another person's.
    """
    known = np.array([name != UNKNOWN for name in table.raters], dtype=np.bool_)
    rows = table.where(known[table.rater])
    order = np.lexsort((rows.judgement, rows.rater, rows.two))
    two, rater = rows.two[order], rows.rater[order]
    again = (two[1:] == two[:-1]) & (rater[1:] == rater[:-1])
    first_of_run = np.concatenate(([True], ~again))[:-1] if len(two) else np.zeros(0, dtype=np.bool_)
    here = np.flatnonzero(again & first_of_run)
    before, after = rows.where(order[here]), rows.where(order[here + 1])
    same = before.verdict == after.verdict
    strict = (before.verdict != 0) & (after.verdict != 0)
    turned = strict & (before.shown * after.shown < 0)
    per_rater = {name: clustered_share(same[mine], before.cluster[mine]) for name, mine in by_rater(before).items()}
    return Retest(
        same=clustered_share(same, before.cluster),
        strict=clustered_share(same[strict], before.cluster[strict]),
        swapped=clustered_share(same[turned], before.cluster[turned]),
        per_rater={name: share for name, share in per_rater.items() if share},
    )


def times(judgements: Iterable[Judgement], lengths: Mapping[str, int] | None = None) -> Times | None:
    """Return how long judgements took; None where no times were recorded.

    lengths: characters by candidate id. Too fast is what took less than a fifth of the rater's own median, or less than reading every
    answer at 48 characters a second takes, where lengths are given.
    """
    timed: dict[str, list[Judgement]] = {}
    for judgement in standing(judgements):
        if judgement.active_seconds is not None and not is_settled(judgement):
            timed.setdefault(judgement.rater, []).append(judgement)
    if not timed:
        return None
    spreads = {name: _spread([j.active_seconds or 0.0 for j in mine]) for name, mine in sorted(timed.items())}
    fast = {}
    for name, mine in sorted(timed.items()):
        ids = tuple(j.id for j in mine if (j.active_seconds or 0.0) < max(TOO_FAST * spreads[name].p50, _reading_seconds(j, lengths or {})))
        if ids:
            fast[name] = ids
    return Times(_spread([j.active_seconds or 0.0 for mine in timed.values() for j in mine]), spreads, fast)


def gold_accuracy(judgements: Iterable[Judgement], expected: Iterable[tuple[tuple[str, ...], ...]]) -> dict[str, Gold]:
    """Return how each rater does on gold items (judgements with picked_by "gold").

    expected: the right ranking of each gold item, by candidate ids. A judgement is right where it has each preference that is expected
    of it; a tie where one is expected is wrong, a preference where a tie is expected is neither.
    """
    wanted = {(b, w) for tiers in expected for i, tier in enumerate(tiers) for b in tier for below in tiers[i + 1 :] for w in below}
    right: dict[str, list[bool]] = {}
    for judgement in standing(judgements):
        ranked = [candidate for tier in judgement.ranking for candidate in tier]
        asked = {(a, b) for a in ranked for b in ranked if (a, b) in wanted}
        if judgement.picked_by == GOLD and asked:
            right.setdefault(judgement.rater, []).append(asked <= set(pairs_of(judgement)))
    found = {}
    for name, answers in sorted(right.items()):
        hits, n = sum(answers), len(answers)
        below = float(special.betainc(1 + hits, 1 + n - hits, GOLD_WANTED))
        found[name] = Gold(Share(hits / n, *wilson(hits, n), n), below, below > GOLD_SURE and n - hits >= 2)
    return found


def _spread(seconds: list[float]) -> Spread:
    if len(seconds) == 1:
        return Spread(seconds[0], seconds[0], seconds[0], 1)
    low, middle, high = quantiles(seconds, n=4, method="inclusive")
    return Spread(low, middle, high, len(seconds))


def _reading_seconds(judgement: Judgement, lengths: Mapping[str, int]) -> float:
    shown = judgement.presentation or tuple(candidate for tier in judgement.ranking for candidate in tier)
    return sum(lengths.get(candidate, 0) for candidate in shown) / CHARACTERS_A_SECOND
