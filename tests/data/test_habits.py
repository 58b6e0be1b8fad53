"""Ties, time, retests, gold items, position and circles: by hand, against scipy, and against a published fit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

from preftune.data.comparisons import comparisons
from preftune.data.cycles import find_cycles
from preftune.data.habits import gold_accuracy, retest, tie_rates, times
from preftune.data.position import davidson, position_bias
from preftune.records import Judgement

Said = Callable[..., Judgement]
# Davidson 1970, table 2: brands i, j; how often i was preferred, j, and neither.
PUDDINGS = """1 2 19 22 16 · 1 3 16 19 12 · 2 3 19 19 10 · 1 4 18 23 13 · 2 4 23 19 9 · 3 4 19 20 15 · 1 5 13 19 18 · 2 5 16 20 12
3 5 16 15 17 · 4 5 17 14 16 · 1 6 18 21 12 · 2 6 22 20 12 · 3 6 13 18 10 · 4 6 14 19 18 · 5 6 11 21 12"""
WORTH = [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855]  # as the R package PlackettLuce gives Davidson's estimates


def rows_of(counts: list[tuple[int, int, int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    first, second, outcome, weight = (np.array(column) for column in zip(*counts, strict=True))
    return first, second, outcome, weight


# Position


def test_davidsons_fit_of_the_puddings() -> None:
    counts = []
    for line in PUDDINGS.replace("·", "\n").split("\n"):
        i, j, for_i, for_j, ties = map(int, line.split())
        for a, b, wins, losses in ((i, j, for_i, for_j), (j, i, for_j, for_i)):  # half in each order: no order effect
            counts += [(a - 1, b - 1, 1, wins / 2), (a - 1, b - 1, -1, losses / 2), (a - 1, b - 1, 0, ties / 2)]
    first, second, outcome, weight = rows_of(counts)
    found = davidson(first, second, outcome, 6, weight)
    worth = np.exp(found.strengths)
    # The published figures stop after seven iterations of a slower method, so they agree to some 1e-5.
    assert worth / worth.sum() == pytest.approx(np.array(WORTH), abs=2e-5)
    assert found.tie == pytest.approx(0.7468147, abs=1e-4)
    assert found.order.value == pytest.approx(0.0, abs=1e-9)


def test_the_order_effect_of_equal_items_in_closed_form() -> None:
    first, second, outcome, weight = rows_of([(0, 0, 1, 60.0), (0, 0, -1, 40.0), (0, 0, 0, 50.0)])
    found = davidson(first, second, outcome, 1, weight)
    assert found.order.value == pytest.approx(math.log(60 / 40), abs=2e-3)
    assert found.first_wins == pytest.approx(0.6, abs=1e-3)
    assert found.tie == pytest.approx(50 / 2400**0.5, rel=2e-3)
    assert found.order.high - found.order.value == pytest.approx(1.96 * math.sqrt(1 / 60 + 1 / 40), rel=1e-2)


def test_the_order_effect_is_told_apart_from_the_better_model() -> None:
    # Item 0 is better by log 4, and always shown first; the other order was seen less. No order effect.
    first, second, outcome, weight = rows_of([(0, 1, 1, 800.0), (0, 1, -1, 200.0), (1, 0, 1, 20.0), (1, 0, -1, 80.0)])
    found = davidson(first, second, outcome, 2, weight)
    assert found.order.value == pytest.approx(0.0, abs=1e-2)
    assert found.strengths[0] - found.strengths[1] == pytest.approx(math.log(4), abs=1e-2)
    assert found.tie == 0.0


def test_what_always_wins_has_a_finite_strength() -> None:
    first, second, outcome, weight = rows_of([(0, 1, 1, 30.0), (2, 2, 1, 1.0)])
    found = davidson(first, second, outcome, 3, weight)
    assert np.isfinite(found.strengths).all()
    assert found.order.low < 0 < found.order.high


def test_how_often_the_first_shown_wins(said: Said) -> None:
    rows = [said(f"p{n}", "a > b", "x", shown="ab" if n < 7 else "ba") for n in range(10)]
    rows += [said("t", "a = b", "x", shown="ab"), said("u", "a > b", "x")]  # a tie, and an order that nobody recorded
    found = position_bias(comparisons(rows))
    expected = binomtest(7, 10)
    assert found.first_wins
    assert (found.first_wins.value, found.first_wins.n) == (0.7, 10)
    assert (found.first_wins.low, found.first_wins.high) == pytest.approx(tuple(expected.proportion_ci(method="exact")))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.model
    assert found.model.order.value == pytest.approx(math.log(7 / 3), abs=2e-2)


def test_a_rater_who_takes_the_first_whatever_it_says_is_named(said: Said) -> None:
    rows = [said(f"p{n}", "a > b", "eve", shown="ab") for n in range(12)]
    rows += [said(f"p{n}", "a > b", "bob", shown="ab" if n % 2 else "ba") for n in range(12)]
    found = position_bias(comparisons(rows))
    assert {name: one.biased for name, one in found.per_rater.items()} == {"bob": False, "eve": True}
    assert any("eve prefers the first shown" in line for line in found.lines())


def test_in_rankings_every_two_answers_count(said: Said) -> None:
    found = position_bias(comparisons([said("p", "a > b > c", "x", shown="acb")]))
    assert found.first_wins is None
    assert found.earlier_wins
    assert (found.earlier_wins.value, found.earlier_wins.n) == (2 / 3, 3)  # a before c, a before b, but c before b


def test_the_names_of_the_answers_do_not_change_the_bias(said: Said) -> None:
    swapped = {"a": "b", "b": "a"}
    rows, others = [], []
    for n in range(20):
        order, shown = ("a > b", "b > a")[n % 3 == 0], ("ab", "ba")[n % 2]
        rows.append(said(f"p{n}", order, shown=shown))
        others.append(said(f"p{n}", "".join(swapped.get(c, c) for c in order), shown="".join(swapped[c] for c in shown)))
    one, other = position_bias(comparisons(rows)), position_bias(comparisons(others))
    assert one.first_wins == other.first_wins


# Habits


def test_who_never_says_tie_or_nearly_always_is_named(said: Said) -> None:
    words = {"never": ["a > b"] * 20, "often": ["a = b"] * 9 + ["a > b"] * 11, "some": ["a = b"] * 2 + ["a > b"] * 18, "few": ["a = b"] * 3}
    rows = [said(f"p{n}", word, rater) for rater, given in words.items() for n, word in enumerate(given)]
    found = tie_rates(comparisons(rows))
    assert {name: (rate.share.value, rate.suspicious) for name, rate in found.items()} == {
        "few": (1.0, False),
        "never": (0.0, True),
        "often": (0.45, True),
        "some": (0.1, False),
    }


def test_a_retest_compares_the_first_word_with_the_next(said: Said) -> None:
    rows = [
        said("p", "a > b", "x", shown="ab"),
        said("q", "a > b", "x", shown="ab"),
        said("r", "a = b", "x", shown="ab"),
        said("p", "b > a", "x", shown="ba"),
        said("q", "a > b", "x", shown="ba"),
        said("r", "a > b", "x", shown="ab"),
        said("q", "b > a", "x", shown="ab"),  # a third word is not looked at
        said("p", "b > a", "y"),
        said("p", "a > b", "unknown"),
        said("p", "b > a", "unknown"),
    ]
    found = retest(comparisons(rows))
    assert found.same
    assert found.strict
    assert found.swapped
    assert (found.same.value, found.same.n) == (1 / 3, 3)
    assert (found.strict.value, found.strict.n) == (1 / 2, 2)
    assert (found.swapped.value, found.swapped.n) == (1 / 2, 2)
    assert list(found.per_rater) == ["x"]


def test_times_are_quartiles_and_what_is_too_fast_is_named(said: Said) -> None:
    rows = [said(f"p{n}", "a > b", "x", active_seconds=s) for n, s in enumerate([10, 20, 30, 40, 5])]
    rows += [said("q", "a > b", "y", active_seconds=1000.0), said("r", "a > b", "y")]
    found = times(rows)
    assert found
    assert (found.per_rater["x"].p25, found.per_rater["x"].p50, found.per_rater["x"].p75, found.per_rater["x"].n) == (10, 20, 30, 5)
    assert found.all.n == 6
    assert found.too_fast == {}
    quick = said("s", "a > b", "x", active_seconds=2.0)
    found = times([*rows, quick])
    assert found
    assert found.too_fast == {"x": (quick.id,)}
    # 2 × 480 characters at 48 a second take 20 s to read.
    found = times(rows, {"p3a": 480, "p3b": 480, "p1a": 480, "p1b": 481})
    assert found
    assert found.too_fast == {"x": (rows[1].id,)}
    assert times([said("p", "a > b")]) is None


def test_gold_items_and_the_rule_for_an_alert(said: Said) -> None:
    rows = [said(f"p{n}", "a > b" if n < 3 else "b > a", "low", picked_by="gold") for n in range(6)]
    rows += [said("p0", "a > b = c", "tied", picked_by="gold"), said("p0", "a > b", "aside")]
    found = gold_accuracy(rows, [((f"p{n}a",), (f"p{n}b",)) for n in range(6)] + [(("p0a",), ("p0b",), ("p0c",))])
    assert list(found) == ["low", "tied"]
    assert (found["low"].share.value, found["low"].share.n) == (0.5, 6)
    # P(Beta(4, 4) < 0.8) = P(Binomial(7, 0.8) >= 4), by hand
    assert found["low"].below == pytest.approx(sum(math.comb(7, j) * 0.8**j * 0.2 ** (7 - j) for j in range(4, 8)))
    assert found["low"].alert
    assert found["tied"].share.value == 0.0  # b over c was expected, and b = c was said
    assert found["tied"].below > 0.9  # one miss alone is no alert
    assert not found["tied"].alert


# Circles


def test_a_circle_in_a_raters_own_words(said: Said) -> None:
    rows = [said("p", "a > b"), said("p", "b > c"), said("p", "c > a"), said("p", "a > d"), said("p", "b > d")]
    found = find_cycles(comparisons(rows))
    assert (found.raters["ann"].triples, found.raters["ann"].cyclic, found.raters["ann"].prompts) == (2, 1, ("p",))


def test_condorcets_circle_is_the_majoritys_alone(said: Said) -> None:
    rows = [said("p", order, rater) for order, rater in (("a > b > c", "x"), ("b > c > a", "y"), ("c > a > b", "z"))]
    rows += [said("q", "a > b > c", "x"), said("q", "a > b > c", "y")]
    found = find_cycles(comparisons(rows))
    assert found.raters == {}
    assert (found.majority.triples, found.majority.cyclic) == (2, 1)
    assert found.majority.share
    assert found.majority.share.value == 0.5
    assert "1 of 2 triples" in found.lines()[0]
