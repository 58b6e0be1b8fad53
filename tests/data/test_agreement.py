"""Agreement: by hand, against published examples, against slow loops, and the laws that relabelling changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from preftune.data.agreement import (
    agreement,
    coefficients,
    gwet_ac1,
    kendall_tau_b,
    krippendorff_alpha,
    label_noise,
    pairwise_agreement,
    per_kind,
    per_rater,
)
from preftune.data.comparisons import comparisons
from preftune.data.intervals import Estimate, Share
from preftune.records import Judgement

Said = Callable[..., Judgement]
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", example C: four observers, 12 units, five values; 0 = not judged.
KRIPPENDORFF = ["123321412000", "123322412503", "033323422510", "123324412510"]
# The package irrCAC's table of two abstractors on 100 patients (Ectopic, AIU, NIU).
ABSTRACTORS = [[13, 0, 0], [0, 20, 7], [0, 4, 56]]


def counted(rows: list[list[int]]) -> np.ndarray:
    """Return [units, values] from the values, from 1, that each unit was given; 0 is none."""
    return np.array([[unit.count(value) for value in range(1, 6)] for unit in rows])


def abstractors() -> np.ndarray:
    pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(ABSTRACTORS[i][j])]
    return np.array([[(i == v) + (j == v) for v in range(3)] for i, j in pairs])


# Published examples


def test_krippendorffs_alpha_of_his_own_example() -> None:
    units = counted([[int(row[n]) for row in KRIPPENDORFF] for n in range(12)])
    nominal = krippendorff_alpha(units, np.arange(12), "nominal")
    ordinal = krippendorff_alpha(units, np.arange(12), "ordinal")
    assert nominal
    assert ordinal
    assert nominal.value == pytest.approx(0.743, abs=5e-4)
    assert ordinal.value == pytest.approx(0.815, abs=5e-4)
    assert nominal.n == 11  # unit 12 was judged by one alone


def test_alpha_and_ac1_of_the_two_abstractors() -> None:
    units = abstractors()
    alpha, ac1 = krippendorff_alpha(units, np.arange(100), "nominal"), gwet_ac1(units, np.arange(100))
    assert alpha
    assert ac1
    assert alpha.value == pytest.approx(0.7972585, abs=1e-7)
    assert ac1.value == pytest.approx(0.8493305, abs=1e-7)
    # irrCAC gives 0.680 to 0.914 and 0.764 to 0.935, with quantiles of t where ours are normal.
    assert (alpha.low, alpha.high) == pytest.approx((0.680, 0.914), abs=4e-3)
    assert (ac1.low, ac1.high) == pytest.approx((0.764, 0.935), abs=2e-3)


def test_ac1_with_missing_words_and_five_values() -> None:
    units = counted([[int(row[n]) for row in KRIPPENDORFF] for n in range(12)])
    found = gwet_ac1(units, np.arange(12))
    assert found
    assert found.value == pytest.approx(0.77544, abs=1e-5)  # irrCAC's value for its data set cac.raw4raters, which is this table


def test_ac1_stands_where_one_value_is_much_commoner() -> None:
    # Gwet 2008: 118 and 2 times the same, 5 times not; kappa is −0.02. Here by hand: pa = 118/125, π = 243/250.
    units = np.array([[2, 0]] * 118 + [[1, 1]] * 7)
    found = gwet_ac1(units, np.arange(125))
    chance = 2 * (243 / 250) * (7 / 250)
    assert found
    assert found.value == pytest.approx((118 / 125 - chance) / (1 - chance))


# By hand


@pytest.fixture
def four(said: Said) -> list[Judgement]:
    """Three raters on four pairs: A A B, A A A, tie A –, B tie B."""
    words = {"p": ["a > b", "a > b", "b > a"], "q": ["a > b"] * 3, "r": ["a = b", "a > b"], "s": ["b > a", "a = b", "b > a"]}
    return [said(prompt, word, rater) for prompt, given in words.items() for rater, word in zip(("r1", "r2", "r3"), given, strict=False)]


def test_pairwise_agreement_counts_every_two_raters(four: list[Judgement]) -> None:
    found = pairwise_agreement(comparisons(four))
    assert found.with_ties
    assert found.strict
    assert (found.with_ties.value, found.with_ties.n) == (5 / 10, 10)
    assert (found.strict.value, found.strict.n) == (5 / 7, 7)
    assert found.twos == 4


def test_each_rater_is_held_against_the_majority_of_the_others(four: list[Judgement]) -> None:
    found = per_rater(comparisons(four))
    shares = {name: (one.with_ties, one.strict) for name, one in found.items()}
    assert {name: [(s.value, s.n) for s in both if s] for name, both in shares.items()} == {
        "r1": [(2 / 3, 3), (1.0, 2)],  # on p the others are split
        "r2": [(1 / 3, 3), (1.0, 1)],  # r and s: a tie against a preference, and the other way round
        "r3": [(2 / 3, 3), (2 / 3, 3)],
    }


def test_agreement_by_kind_of_prompt(four: list[Judgement]) -> None:
    found = per_kind(comparisons(four), {"p": "code", "q": "code", "r": "talk"})
    assert {kind: (one.strict.value if one.strict else None, one.twos) for kind, one in found.items()} == {
        "": (1.0, 1),
        "code": (4 / 6, 2),
        "talk": (None, 1),
    }


@pytest.mark.parametrize(("orders", "tau"), [(["a > b > c", "a > c > b"], 1 / 3), (["a > b = c", "a > b > c"], 2 / 6**0.5)])
def test_kendalls_tau_b_by_hand(said: Said, orders: list[str], tau: float) -> None:
    found = kendall_tau_b(comparisons([said("p", order, rater) for order, rater in zip(orders, "xy", strict=True)]))
    assert found
    assert (found.value, found.n) == (pytest.approx(tau), 1)


def test_rankings_of_two_or_all_tied_have_no_tau(said: Said) -> None:
    rows = [said("p", "a > b", "x"), said("p", "a > b", "y"), said("q", "a = b = c", "x"), said("q", "a > b > c", "y")]
    assert kendall_tau_b(comparisons(rows)) is None


def test_the_noise_that_agreement_implies(said: Said) -> None:
    # Two raters agree in 10 of 16: errors of a quarter, as (3/4)² + (1/4)² = 10/16.
    rows = [said(f"p{n}", "a > b", "x") for n in range(16)] + [said(f"p{n}", "a > b" if n < 10 else "b > a", "y") for n in range(16)]
    found = label_noise(pairwise_agreement(comparisons(rows)))
    assert found
    assert found.error == pytest.approx(0.25)
    assert found.ceiling == pytest.approx(0.75)
    assert 0 <= found.low < 0.25 < found.high <= 0.5


def test_under_thirty_shared_twos_no_coefficient_is_told(said: Said) -> None:
    rows = [said(f"p{n}", "a > b", rater) for n in range(29) for rater in "xy"]
    assert coefficients(comparisons(rows)).alpha is None
    assert "29 twos of answers" in coefficients(comparisons(rows)).why
    more = [*rows, said("q", "a > b", "x"), said("q", "b > a", "y")]
    assert coefficients(comparisons(more)).ac1


def test_strengths_are_ordered_from_clearly_worse_over_tie_to_clearly_better(said: Said) -> None:
    # The words are as nominal labels never the same, but close as strengths: ordinal alpha is high, and that of the signs is 1.
    rows = []
    for n in range(40):
        order = "a > b" if n % 2 else "b > a"
        rows += [said(f"p{n}", order, "x", strength=2), said(f"p{n}", order, "y", strength=3)]
    found = coefficients(comparisons(rows))
    assert found.alpha
    assert found.alpha_strength
    assert found.alpha.value == pytest.approx(1.0)
    assert 0.5 < found.alpha_strength.value < 1
    assert coefficients(comparisons([j.model_copy(update={"strength": None}) for j in rows])).alpha_strength is None


# What does not count


def test_superseded_gold_and_settled_words_do_not_count(said: Said) -> None:
    first = said("p", "b > a", "y")
    rows = [said("p", "a > b", "x"), first, said("p", "a > b", "y", supersedes=first.id)]
    rows += [said("q", "a > b", "x", picked_by="gold"), said("q", "b > a", "y", picked_by="gold"), said("p", "b > a", "settled:own")]
    found = agreement(rows)
    assert found.pairwise.strict
    assert (found.pairwise.strict.value, found.pairwise.strict.n, found.raters) == (1.0, 1, 2)


def test_a_rater_asked_again_is_not_two_raters(said: Said) -> None:
    rows = [said("p", "a > b", "x"), said("p", "b > a", "x", shown="ba"), said("p", "a > b", "y")]
    found = agreement(rows)
    assert found.pairwise.strict
    assert (found.pairwise.strict.value, found.pairwise.strict.n) == (1.0, 1)
    assert found.retest.same
    assert found.retest.same.value == 0


def test_nothing_at_all_gives_an_empty_report(said: Said) -> None:
    for rows in ([], [Judgement(prompt_id="p", acceptable=("a",), rater="x")]):
        found = agreement(rows)
        assert (found.judgements, found.pairwise.strict, found.noise, found.times) == (0, None, None, None)
        assert found.lines()


# Laws


def numbers(found: Share | Estimate | None) -> tuple[float, ...]:
    """Return a share's or an estimate's numbers; none where there is none."""
    return (found.value, found.low, found.high, found.n) if found else ()


WORDS = ("a > b > c", "c > a = b", "b > a", "a = c", "a = b = c", "c > b")


def voices(said: Said, given: list[tuple[int, int, int]]) -> list[Judgement]:
    """Return one judgement for each (prompt, rater, word), the first where a rater spoke of a prompt twice."""
    once = {(p, r): word for p, r, word in reversed(given)}
    return [said(f"p{p}", WORDS[word], f"rater{r}") for (p, r), word in once.items()]


teams = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, len(WORDS) - 1)), min_size=2, max_size=25)


@given(teams)
@settings(max_examples=60, deadline=None)
def test_pairwise_agreement_and_tau_are_those_of_slow_loops(said: Said, given: list[tuple[int, int, int]]) -> None:
    rows = voices(said, given)
    same = both = strict_same = strict = 0
    taus = []
    for one, other in combinations(rows, 2):
        if one.prompt_id != other.prompt_id:
            continue
        place = [{c: n for n, tier in enumerate(j.ranking) for c in tier} for j in (one, other)]
        common = sorted(place[0].keys() & place[1].keys())
        for x, y in combinations(common, 2):
            left, right = (int(np.sign(p[y] - p[x])) for p in place)
            both += 1
            same += left == right
            strict += left != 0 != right
            strict_same += left == right != 0
        if len(common) == 3:
            tau = kendalltau([place[0][c] for c in common], [place[1][c] for c in common]).statistic
            if not np.isnan(tau):
                taus.append(tau)
    found = agreement(rows)
    assert (found.pairwise.with_ties.value if found.pairwise.with_ties else None) == (pytest.approx(same / both) if both else None)
    assert (found.pairwise.strict.value if found.pairwise.strict else None) == (pytest.approx(strict_same / strict) if strict else None)
    assert (found.kendall.value if found.kendall else None) == (pytest.approx(np.mean(taus)) if taus else None)


@given(teams, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_names_of_raters_and_the_order_of_judgements_change_nothing(
    said: Said, given: list[tuple[int, int, int]], mix: random.Random
) -> None:
    rows = voices(said, given)
    names = [f"rater{n}" for n in range(5)]
    mixed = mix.sample(names, 5)
    renamed = [j.model_copy(update={"rater": mixed[names.index(j.rater)]}) for j in mix.sample(rows, len(rows))]
    before, after = agreement(rows), agreement(renamed)
    for one, other in (
        (before.pairwise.with_ties, after.pairwise.with_ties),
        (before.pairwise.strict, after.pairwise.strict),
        (before.kendall, after.kendall),
    ):
        assert numbers(one) == pytest.approx(numbers(other), abs=1e-9)
    assert {mixed[names.index(name)] for name in before.per_rater} == after.per_rater.keys()
    for name, mine in before.per_rater.items():
        theirs = after.per_rater[mixed[names.index(name)]]
        assert numbers(mine.with_ties) == pytest.approx(numbers(theirs.with_ties), abs=1e-9)
        assert numbers(mine.strict) == pytest.approx(numbers(theirs.strict), abs=1e-9)


def test_the_report_says_everything_in_lines_and_as_plain_values(said: Said) -> None:
    chance = random.Random(3)
    rows = []
    for n in range(60):
        for rater in ("x", "y", "z"):
            word = "a = b" if chance.random() < 0.1 else "a > b" if chance.random() < 0.8 else "b > a"
            shown = chance.choice(["ab", "ba"])
            rows.append(said(f"p{n}", word, rater, shown=shown, active_seconds=20 + n, strength=chance.randrange(4)))
    found = agreement(rows, kinds={f"p{n}": "even" if n % 2 == 0 else "odd" for n in range(60)})
    text = "\n".join(found.lines())
    for part in (
        "60 twos of answers",
        "ties left out",
        "Krippendorff's alpha:",
        "Gwet's AC1",
        "label noise",
        "even: two raters",
        "shown first",
    ):
        assert part in text
    assert found.as_dict()["pairwise"]["twos"] == 60
