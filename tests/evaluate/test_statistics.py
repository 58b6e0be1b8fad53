"""Expected numbers are worked out apart from the code: by hand, or in the project's maths reference."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.calibration import brier, ece, nll, reliability_bins
from preftune.errors import DataError
from preftune.evaluate.statistics import (
    bootstrap_distribution,
    bootstrap_mean,
    cluster_se,
    clustered_rate,
    design_effect,
    detectable_win_rate,
    holm,
    mcnemar_chi2,
    mcnemar_exact,
    mcnemar_mid_p,
    non_inferiority,
    paired_difference,
    required_n,
    required_values,
    share_difference,
    sign_test,
    wilson,
    win_rate,
)

SCORES = [1.0] * 260 + [0.0] * 180 + [0.5] * 60


def close(*numbers: float) -> object:
    return pytest.approx(numbers, abs=6e-7)  # the reference gives six digits


# Win rates


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(290, 500, 0.536289, 0.622491), (260, 440, 0.544375, 0.635870), (10, 10, 0.722467, 1.0), (0, 10, 0.0, 0.277533)],
)
def test_wilson_gives_the_known_intervals(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson(successes, n)
    assert (estimate.value, estimate.low, estimate.high) == close(successes / n, low, high)


def test_ties_narrow_the_interval_of_a_win_rate() -> None:
    estimate = win_rate(SCORES)
    assert (estimate.value, estimate.low, estimate.high) == close(0.58, 0.539087, 0.619843)
    assert estimate.n == 500


def test_the_standard_error_of_scores_with_ties() -> None:
    assert np.var(SCORES) == pytest.approx(0.2136, abs=5e-7)
    assert cluster_se(SCORES) == pytest.approx(0.020690, abs=6e-7)


def test_without_ties_a_win_rate_is_plain_wilson() -> None:
    assert win_rate([1] * 29 + [0] * 21) == wilson(29, 50)


@pytest.mark.parametrize(("score", "low", "high"), [(1.0, 0.722467, 1.0), (0.0, 0.0, 0.277533), (0.5, 0.236593, 0.763407)])
def test_scores_that_are_all_alike_still_have_an_interval(score: float, low: float, high: float) -> None:
    estimate = win_rate([score] * 10)
    assert (estimate.low, estimate.high) == close(low, high)


def test_clusters_that_repeat_one_score_count_once_each() -> None:
    # Four copies of each of 50 scores say as much as the 50; CR1 with G - 1 for n is the only difference.
    scores = [1.0] * 30 + [0.0] * 20
    copies = win_rate([s for s in scores for _ in range(4)], [i for i in range(50) for _ in range(4)])
    alone = wilson(0.6 * 49, 49)
    assert (copies.value, copies.low, copies.high) == close(alone.value, alone.low, alone.high)
    assert copies.n == 200


@pytest.mark.parametrize(("wins", "low", "high"), [(20, 0.838875, 1.0), (0, 0.0, 0.161125)])
def test_twenty_wins_of_twenty_are_no_certainty(wins: int, low: float, high: float) -> None:
    estimate = clustered_rate([1.0] * wins + [0.0] * (20 - wins))
    assert (estimate.low, estimate.high) == close(low, high)  # Wilson by hand: 20 / (20 + 1.96²)


def test_the_rate_of_one_prompt_says_nearly_nothing_and_of_all_ties_not_everything() -> None:
    one = clustered_rate([1.0] * 50, ["the same"] * 50)
    assert one.low == pytest.approx(1 / (1 + 1.959964**2), abs=1e-6)
    ties = clustered_rate([0.5] * 40)
    assert ties.low < 0.36 < 0.64 < ties.high


def test_a_rate_with_enough_of_both_is_the_bootstrap_over_prompts() -> None:
    assert clustered_rate(SCORES) == bootstrap_mean(SCORES)
    copies, owners = [s for s in SCORES for _ in range(3)], [i for i in range(500) for _ in range(3)]
    assert clustered_rate(copies, owners).low == pytest.approx(clustered_rate(SCORES).low, abs=0.003)


def test_a_share_that_did_not_change_may_have_changed_by_so_much() -> None:
    # No change in n items: ± z² / (n + z²), z = 1.959964.
    alike = share_difference([1, 0] * 10, [1, 0] * 10)
    assert (alike.value, alike.low, alike.high) == close(0.0, -3.841459 / 23.841459, 3.841459 / 23.841459)
    with pytest.raises(DataError, match="neither 0 nor 1"):
        share_difference([0.5, 1], [1, 1])


def test_the_sign_test_is_exact() -> None:
    assert sign_test(260, 180) == pytest.approx(1.5956e-4, abs=5e-9)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) == 1.0


@pytest.mark.parametrize("bad", [[], [math.nan], [2.0], [[1.0]]])
def test_scores_that_are_none_are_refused(bad: list[float]) -> None:
    with pytest.raises(DataError):
        win_rate(bad)


# Clusters and bootstrap

PROMPTS = [[1, 1], [1, 0], [0, 0], [1, 1], [0.5, 0.5]]
VALUES = [value for prompt in PROMPTS for value in prompt]
OWNERS = [f"prompt {i}" for i, prompt in enumerate(PROMPTS) for _ in prompt]


def test_rows_of_one_prompt_widen_the_standard_error() -> None:
    assert np.mean(VALUES) == pytest.approx(0.6)
    assert cluster_se(VALUES) == pytest.approx(0.145297, abs=6e-7)
    assert cluster_se(VALUES, OWNERS) == pytest.approx(0.187083, abs=6e-7)


def test_the_bootstrap_draws_prompts_with_all_their_rows() -> None:
    means = bootstrap_distribution(VALUES, OWNERS, seed=1, resamples=40_000)
    assert means.std() == pytest.approx(0.167332, abs=0.002)  # exact over all 5^5 draws; 4 standard errors
    assert set(np.round(means * 10, 6)) <= {float(half) for half in np.arange(0, 10.5, 0.5)}


def test_the_bootstrap_of_paired_differences_has_the_exact_tail() -> None:
    differences = [1, 0, -1, 1, 1]
    exact = np.mean([sum(draw) <= 0 for draw in itertools.product(differences, repeat=5)])
    assert exact == pytest.approx(0.197440, abs=5e-7)
    means = bootstrap_distribution(differences, seed=2, resamples=40_000)
    assert np.mean(means <= 0) == pytest.approx(exact, abs=0.008)


def test_a_difference_is_taken_item_by_item() -> None:
    before, after = [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 4.0]
    assert paired_difference(before, after) == bootstrap_mean([1.0, 0.0, -1.0, 1.0])
    assert paired_difference(before, after).value == pytest.approx(0.25)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_a_small_sample_is_covered_as_often_as_promised() -> None:
    random = np.random.default_rng(5)
    samples = random.normal(size=(1000, 10))
    hits = sum(e.low <= 0 <= e.high for e in (bootstrap_mean(row, seed=i, resamples=1000) for i, row in enumerate(samples)))
    assert hits / 1000 >= 0.925  # the plain percentile interval covers about 90 % here


def test_verdicts_that_share_prompts_are_covered_as_often_as_promised() -> None:
    # 1,000 draws of 60 prompts with 4 verdicts each, whose rates vary as Beta(1.8, 1.2) does: an intra-class correlation of 1 / 4.
    random = np.random.default_rng(7)
    prompts = np.repeat(np.arange(60), 4).tolist()
    told = blind = 0
    for seed in range(1000):
        scores = (random.random((60, 4)) < random.beta(1.8, 1.2, size=(60, 1))).astype(float).ravel()
        own, untold = bootstrap_mean(scores, prompts, seed, 1000), win_rate(scores)
        told += own.low <= 0.6 <= own.high
        blind += untold.low <= 0.6 <= untold.high
    assert 930 <= told <= 970
    assert blind < 910  # by the design effect, 1.75, an interval that knows nothing of prompts covers 86 %


def test_one_prompt_has_no_spread_to_speak_of() -> None:
    with pytest.raises(DataError, match="one cluster"):
        bootstrap_mean([1.0, 0.0, 1.0], ["a", "a", "a"])


def test_a_cluster_for_each_value_is_asked_for() -> None:
    with pytest.raises(DataError, match="3 values and 2 clusters"):
        cluster_se([1.0, 0.0, 1.0], ["a", "b"])


def test_clusters_of_four_are_worth_half() -> None:
    assert design_effect(4, 0.3) == pytest.approx(1.9)
    rows = 500 / 1.9
    assert round(rows) == 263
    estimate = wilson(0.58 * rows, rows)
    assert (estimate.low, estimate.high) == close(0.519636, 0.638062)


# How many


@pytest.mark.parametrize(
    ("power", "numbers"),
    [(0.8, (4904, 2178, 1225, 783, 543, 305, 194, 85, 47)), (0.9, (6563, 2915, 1638, 1047, 726, 407, 259, 113, 62))],
)
def test_required_numbers_are_those_of_the_table(power: float, numbers: tuple[int, ...]) -> None:
    rates = (0.52, 0.53, 0.54, 0.55, 0.56, 0.58, 0.6, 0.65, 0.7)
    assert tuple(required_n(rate, power=power) for rate in rates) == numbers


def test_ties_save_comparisons_and_clusters_cost_them() -> None:
    assert required_n(0.55, tie_rate=0.3) == 548
    assert required_n(0.55, clusters_effect=1.9) == pytest.approx(1.9 * 783, abs=2)
    assert required_n(0.45) == required_n(0.55)
    with pytest.raises(DataError):
        required_n(0.5)


@pytest.mark.parametrize(("n", "rate"), [(100, 0.638434), (200, 0.598468), (500, 0.562498), (1000, 0.544245)])
def test_the_smallest_win_rate_that_n_comparisons_find(n: int, rate: float) -> None:
    assert detectable_win_rate(n) == pytest.approx(rate, abs=6e-7)


def test_too_few_comparisons_find_nothing() -> None:
    with pytest.raises(DataError, match="find no win rate"):
        detectable_win_rate(2)


def test_500_pairs_need_273_wins() -> None:
    wins = next(k for k in range(250, 501) if sign_test(k, 500 - k) <= 0.05)
    assert wins == 273
    assert 1.959964 * math.sqrt(0.25 / 500) == pytest.approx(0.043826, abs=6e-7)
    for rate, power in ((0.55, 0.589446), (0.58, 0.943227), (0.60, 0.993733)):
        chance = sum(math.comb(500, k) * rate**k * (1 - rate) ** (500 - k) for k in range(501) if sign_test(k, 500 - k) <= 0.05)
        assert chance == pytest.approx(power, abs=2e-5)


def test_holm_steps_down_and_keeps_the_order() -> None:
    assert holm([0.01, 0.03, 0.04]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


# Retention


def items(n: int, lost: int, gained: int) -> tuple[list[int], list[int]]:
    before = [1] * lost + [0] * gained + [1] * (n - lost - gained)
    after = [0] * lost + [1] * gained + [1] * (n - lost - gained)
    return before, after


def test_the_worked_case_of_400_items_is_not_proved() -> None:
    result = non_inferiority(*items(400, 15, 5), margin=0.03)
    assert (result.difference, result.se) == close(-0.025, 0.011110)
    assert (result.verdict, result.n) == ("not proved", 400)
    # The bound that rests on this se, -0.043275, promises too much. Tango's, by maximising the likelihood numerically:
    assert (result.lower, result.p_value) == close(-0.0454768, 0.3302577)


@pytest.mark.parametrize(("n", "lost", "gained"), [(50, 1, 2), (400, 15, 5), (400, 60, 5), (2000, 20, 20), (120, 40, 38)])
def test_the_bound_the_p_value_and_the_verdict_say_the_same(n: int, lost: int, gained: int) -> None:
    lower = non_inferiority(*items(n, lost, gained), margin=0.02).lower
    for margin, proved in ((-lower + 1e-6, True), (-lower - 1e-6, False)):
        if margin > 0:
            result = non_inferiority(*items(n, lost, gained), margin=margin)
            assert ((result.verdict == "kept"), result.p_value < 0.05) == (proved, proved)


def test_the_worked_case_by_mcnemar() -> None:
    chi2, p = mcnemar_chi2(15, 5)
    assert (chi2, p) == close(4.05, 0.044171)
    assert mcnemar_exact(15, 5) == pytest.approx(0.041389, abs=6e-7)
    assert mcnemar_mid_p(15, 5) == pytest.approx(0.026604, abs=6e-7)
    assert (mcnemar_chi2(0, 0), mcnemar_exact(0, 0), mcnemar_mid_p(4, 4)) == ((0.0, 1.0), 1.0, 1.0)


@pytest.mark.parametrize(("n", "lost", "gained", "verdict"), [(2000, 20, 20, "kept"), (400, 60, 5, "lost"), (400, 12, 10, "not proved")])
def test_verdicts(n: int, lost: int, gained: int, verdict: str) -> None:
    assert non_inferiority(*items(n, lost, gained), margin=0.02).verdict == verdict


def test_no_change_on_a_few_items_proves_nothing() -> None:
    # With no change in n items the 5 % score bound is -z² / (n + z²), z = 1.644854.
    few, many = (non_inferiority(*items(n, 0, 0), margin=0.02) for n in (50, 200))
    assert (few.lower, many.lower) == close(-2.705545 / 52.705545, -2.705545 / 202.705545)
    assert (few.verdict, many.verdict) == ("not proved", "kept")


@pytest.mark.parametrize(("n", "lost", "gained"), [(60, 3, 1), (400, 15, 5), (1000, 60, 45)])
def test_the_bound_is_where_the_score_test_just_rejects(n: int, lost: int, gained: int) -> None:
    # Tango's test by brute force: the likelihood under "gained - lost = d" is maximised on a grid of loss rates.
    lower = non_inferiority(*items(n, lost, gained), margin=0.2).lower
    loss_rates = np.linspace(1e-6, 0.5, 400_001)
    gain_rates = loss_rates + lower
    possible = gain_rates > 0
    loss, gain = loss_rates[possible], gain_rates[possible]
    likelihood = lost * np.log(loss) + gained * np.log(gain) + (n - lost - gained) * np.log1p(-loss - gain)
    best_loss, best_gain = loss[likelihood.argmax()], gain[likelihood.argmax()]
    variance = n * (best_loss + best_gain - lower**2)
    assert (gained - lost - n * lower) / math.sqrt(variance) == pytest.approx(1.644854, abs=1e-3)
    assert lower < (gained - lost) / n


def test_lower_is_better_turns_the_sign() -> None:
    before, after = [2.0, 2.1, 2.2, 2.0, 2.1], [2.0, 2.1, 2.21, 1.99, 2.1]
    up = non_inferiority(before, after, margin=0.1)
    down = non_inferiority(before, after, margin=0.1, higher_is_better=False)
    assert up.difference == pytest.approx(-down.difference)
    assert up.se == pytest.approx(down.se)


def test_continuous_items_use_the_t_distribution() -> None:
    # Differences 0.1, 0.3, 0.2, 0.4: mean 0.25, s 0.129099, se 0.064550; t(0.95, 3) = 2.353363.
    result = non_inferiority([0, 0, 0, 0], [0.1, 0.3, 0.2, 0.4], margin=0.05)
    assert (result.difference, result.se, result.lower) == close(0.25, 0.0645497, 0.25 - 2.353363 * 0.0645497)
    assert result.verdict == "kept"


def test_clusters_count_as_one_each() -> None:
    before, after = items(40, 4, 4)
    clustered = non_inferiority(before, after, margin=0.2, clusters=[i // 4 for i in range(40)])
    assert clustered.se > non_inferiority(before, after, margin=0.2).se


def test_a_wrong_promise_is_made_as_seldom_as_alpha_says() -> None:
    # Over all tables at once: the verdict depends on how many were lost and gained alone. The truth lies on the margin.
    n, margin, losing, gaining = 400, 0.03, 0.05, 0.02
    random = np.random.default_rng(6)
    drawn, times = np.unique(random.multinomial(n, [losing, gaining, 1 - losing - gaining], size=20_000)[:, :2], axis=0, return_counts=True)
    kept = [non_inferiority(*items(n, int(lost), int(gained)), margin=margin).verdict == "kept" for lost, gained in drawn]
    assert 0.04 <= times[kept].sum() / 20_000 <= 0.0535  # 5 % and two standard errors


def test_a_margin_is_above_zero() -> None:
    with pytest.raises(DataError, match="margin is 0"):
        non_inferiority([1, 0], [1, 0], margin=0)


def test_how_many_values_prove_a_mean_above_a_bound() -> None:
    assert required_values(0.02, 0.1) == 1546  # (1.644854 + 0.841621)² · 0.1 / 0.02² = 1545.6


# Calibration

P, CORRECT = (0.55, 0.62, 0.71, 0.78, 0.85, 0.93), (1, 0, 1, 1, 1, 1)
TENTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def test_calibration_of_the_worked_case() -> None:
    assert (ece(P, CORRECT, bins=TENTHS), brier(P, CORRECT), nll(P, CORRECT)) == close(0.3, 0.124467, 0.398577)


def test_bins_show_what_is_in_them() -> None:
    found = reliability_bins(P, CORRECT, bins=TENTHS)
    assert [b.count for b in found] == [1, 1, 2, 1, 1]
    assert (found[2].low, found[2].high, found[2].confidence, found[2].accuracy) == close(0.7, 0.8, 0.745, 1.0)


def test_a_number_of_bins_makes_them_equally_full() -> None:
    assert [b.count for b in reliability_bins(P, CORRECT, bins=3)] == [2, 2, 2]
    assert [b.count for b in reliability_bins(P, CORRECT, bins=10)] == [1] * 6
    assert ece(P, CORRECT, bins=1) == pytest.approx(abs(5 / 6 - 0.74))


def test_the_upper_edge_belongs_to_the_last_bin() -> None:
    assert [b.count for b in reliability_bins([0.5, 0.6, 1.0], [1, 1, 1], bins=TENTHS)] == [1, 1, 1]
    with pytest.raises(DataError, match="outside"):
        reliability_bins([0.4], [1], bins=TENTHS)


def test_the_impossible_that_happened_is_infinitely_bad() -> None:
    assert nll([0.0], [1]) == math.inf
    assert nll([1.0, 0.0], [1, 0]) == 0.0
    with pytest.raises(DataError, match="logits"):
        brier([1.5], [1])


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=60))
def test_swapping_both_sides_mirrors_the_win_rate(scores: list[float]) -> None:
    one, other = win_rate(scores), win_rate([1 - s for s in scores])
    assert (one.value + other.value, one.low + other.high, one.high + other.low) == pytest.approx((1, 1, 1))
    assert 0 <= one.low <= one.value <= one.high <= 1
