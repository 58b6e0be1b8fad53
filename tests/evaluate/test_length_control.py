"""Expected numbers come from the maths reference, or from how the data were made."""

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.evaluate.length_control import _scaled, fit, length_controlled

Y = np.array([0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.4, 0.5])
LONGER_BY = np.array([300.0, 200, 100, -100, 50, -300, -200, 0])


def test_the_fit_without_a_ridge_is_the_known_one():
    theta, phi = fit(Y, _scaled(LONGER_BY), np.ones((1, 8)), ridge=0.0)
    assert theta[0] == pytest.approx(0.191466, abs=1e-6)
    assert phi[0] == pytest.approx(1.571071, abs=1e-6)
    assert 1 / (1 + np.exp(-theta[0])) == pytest.approx(0.547721, abs=1e-6)


def judged(n: int, seed: int, *, longer_wins: float, better: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores and lengths of A, who is longer in the mean, where the judge likes length and (or) A."""
    random = np.random.default_rng(seed)
    b = random.integers(200, 800, size=n).astype(float)
    a = b + random.normal(150, 200, size=n)
    scale = (a - b).std(ddof=1)
    p = 1 / (1 + np.exp(-(better + longer_wins * np.tanh((a - b) / scale))))
    return (random.random(n) < p).astype(float), a, b


def test_an_injected_bias_for_length_is_taken_out():
    found = [length_controlled(*judged(400, seed, longer_wins=2.0, better=0.0)) for seed in range(20)]
    assert np.mean([f.raw for f in found]) > 0.62
    assert np.mean([f.rate.value for f in found]) == pytest.approx(0.5, abs=0.02)
    assert sum(f.rate.low <= 0.5 <= f.rate.high for f in found) >= 17
    assert all(f.phi > 0 and f.ratio > 1.2 for f in found)


def test_a_difference_that_is_not_of_length_stays():
    rates = [length_controlled(*judged(400, seed, longer_wins=2.0, better=0.8)).rate.value for seed in range(10)]
    assert np.mean(rates) == pytest.approx(1 / (1 + np.exp(-0.8)), abs=0.025)


def test_turning_the_sides_turns_the_rate():
    scores, a, b = judged(80, 3, longer_wins=1.0, better=0.5)
    one, other = length_controlled(scores, a, b), length_controlled(1 - scores, b, a)
    assert one.rate.value == pytest.approx(1 - other.rate.value, abs=1e-9)


def test_a_model_against_itself_has_even_chances():
    lengths = np.linspace(10, 500, 30)
    found = length_controlled(np.full(30, 0.5), lengths, lengths)
    assert (found.rate.value, found.raw, found.ratio) == (pytest.approx(0.5), 0.5, 1.0)


def test_clusters_widen_the_interval():
    scores, a, b = judged(60, 1, longer_wins=0.5, better=0.2)
    alone = length_controlled(scores, a, b)
    repeated = length_controlled(np.repeat(scores, 4), np.repeat(a, 4), np.repeat(b, 4), np.repeat(np.arange(60), 4).tolist())
    taken_alone = length_controlled(np.repeat(scores, 4), np.repeat(a, 4), np.repeat(b, 4))
    width = [r.rate.high - r.rate.low for r in (alone, repeated, taken_alone)]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] < 0.65 * width[0]


def test_all_wins_still_give_a_finite_answer_and_far_is_said():
    found = length_controlled(np.ones(12), np.arange(12) + 100.0, np.arange(12) + 50.0)
    assert 0.9 < found.rate.value < 1
    longer = length_controlled(np.array([1.0] * 20 + [0.0] * 4), np.array([900.0] * 20 + [100.0] * 4), np.full(24, 400.0))
    assert longer.far


def test_lengths_of_each_comparison_are_asked_for():
    with pytest.raises(DataError, match="2 scores and 2, 1 lengths"):
        length_controlled([1, 0], [10, 20], [10])
