"""Which of two is better, and by how much, from verdicts on their answers to the same prompts; and the order of many.

Pure functions of verdicts and texts (numpy and scipy alone). What is told of two: the win rate with its interval, an exact paired test, the
rate at equal length, how a judge took to both orders, and whether the two can be told apart at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from preftune.errors import DataError
from preftune.evaluate.judging import Row
from preftune.evaluate.leaderboard import Match, leaderboard
from preftune.evaluate.length_control import length_controlled
from preftune.evaluate.orders import agreement_with, orders
from preftune.evaluate.statistics import clustered_rate, detectable_win_rate, holm, required_n, sign_test

Said = Literal["A", "B", "cannot tell"]
SURE = 0.05
MOST_ASKED = 10_000  # prompts beyond which nobody is sent


@dataclass(frozen=True)
class Compared:
    """Two contenders' names, their answers by prompt, and the verdicts on them."""

    a: str
    b: str
    texts_a: Sequence[str]
    texts_b: Sequence[str]
    rows: Sequence[Row]


def beforehand(prompts: int) -> dict[str, Any]:
    """Return what so many prompts can tell: the true win rate found four times of five (None: none), and how many 55 % and 60 % take."""
    try:
        found: float | None = detectable_win_rate(prompts)
    except DataError:
        found = None
    return {"prompts": prompts, "finds": found, "for_60": required_n(0.6), "for_55": required_n(0.55), "for_52": required_n(0.52)}


def stand(compared: Sequence[Compared], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return what the verdicts say of each two, as plain values; the paired tests are corrected for how many there are (Holm)."""
    found = [_of_two(one, seed) for one in compared]
    for result, p in zip(found, holm([result["p_value"] for result in found]), strict=True):
        result["p_adjusted"] = p
        result["said"] = _said(result)
        result["would_take"] = _would_take(result) if result["said"] == "cannot tell" else None
    return found


def board(compared: Sequence[Compared], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the order of all contenders, best first, by Bradley–Terry with ties."""
    matches = [Match(one.a, one.b, row.verdict, row.prompt) for one in compared for row in one.rows if row.verdict is not None]
    return [asdict(standing) for standing in leaderboard(matches, seed=seed)]


def pairs_of_names(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the places of each two to be compared: the first with all others, then the others among each other."""
    return list(combinations(range(len(names)), 2))


def _of_two(one: Compared, seed: int) -> dict[str, Any]:
    judged = [row for row in one.rows if row.verdict is not None]
    scores = [float(row.verdict) for row in judged if row.verdict is not None]
    clusters = [row.prompt for row in judged]
    by_prompt: dict[int, list[float]] = {}
    for score, prompt in zip(scores, clusters, strict=True):
        by_prompt.setdefault(prompt, []).append(score)
    means = [float(np.mean(own)) for own in by_prompt.values()]
    wins, losses = sum(mean > 0.5 for mean in means), sum(mean < 0.5 for mean in means)
    twice = [row for row in one.rows if row.twice]
    lengths = [[float(len(texts[row.prompt])) for row in judged] for texts in (one.texts_a, one.texts_b)]
    return {
        "a": one.a,
        "b": one.b,
        "prompts": len(means),
        "verdicts": len(judged),
        "wins": wins,
        "ties": len(means) - wins - losses,
        "losses": losses,
        "alike": sum(row.alike for row in one.rows),
        "unread": sum(row.verdict is None for row in one.rows),
        "rate": asdict(clustered_rate(scores, clusters, seed=seed)),
        "p_value": sign_test(wins, losses),
        "length_controlled": _controlled(scores, lengths, clusters, seed),
        "orders": _orders(twice) if twice else None,
    }


def _controlled(scores: list[float], lengths: list[list[float]], clusters: list[int], seed: int) -> dict[str, Any]:
    found = length_controlled(scores, lengths[0], lengths[1], clusters, seed=seed)
    return {**asdict(found), "far": found.far}


def _orders(rows: Sequence[Row]) -> dict[str, Any]:
    found = orders([row.a_first for row in rows], [row.b_first for row in rows], [row.prompt for row in rows])
    return {**asdict(found), "loose": found.loose}


def _said(result: dict[str, Any]) -> Said:
    """Return who is better where both the interval and the corrected paired test say so."""
    rate = result["rate"]
    if result["p_adjusted"] > SURE or rate["low"] <= 0.5 <= rate["high"]:
        return "cannot tell"
    return "A" if rate["value"] > 0.5 else "B"


def _would_take(result: dict[str, Any]) -> int | None:
    rate, prompts = result["rate"]["value"], result["prompts"]
    if rate == 0.5 or not 0 < rate < 1:
        return None
    needed = required_n(rate, tie_rate=min(0.95, result["ties"] / prompts))
    return needed if prompts < needed <= MOST_ASKED else None


def with_people(one: Compared, majority: dict[int, float], *, seed: int = 0) -> dict[str, Any] | None:
    """Return how far the judge says what most people say of the same answers, or None where both judged none."""
    said = [(row.verdict, majority[row.prompt], row.prompt) for row in one.rows if row.prompt in majority and not row.alike]
    both = [(ours, theirs, prompt) for ours, theirs, prompt in said if ours is not None]
    if not both:
        return None
    found = agreement_with([x for x, _, _ in both], [y for _, y, _ in both], [p for *_, p in both], seed=seed)
    return {**asdict(found), "told": found.told}
