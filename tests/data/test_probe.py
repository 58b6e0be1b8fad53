"""The small reward: its features, its fit, and that it learns a planted taste."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from preftune.data.probe import answer_features, fit_bradley_terry, fit_ensemble, hashed_ngrams


def test_features_are_of_length_one_whatever_the_text() -> None:
    found = hashed_ngrams(["one two three", "one two three " * 50, "", "数を足す関数", "\ud800 lone"])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 0, 1, 1])
    assert found[0] @ hashed_ngrams(["ONE two\nthree"])[0] == pytest.approx(1.0)
    assert abs(found[0] @ hashed_ngrams(["nothing in common here"])[0]) < 0.5


def test_the_same_text_has_the_same_features_in_any_list() -> None:
    one = answer_features(["def f():\n    return 1", "- a\n- b"])
    assert one[1] == pytest.approx(answer_features(["- a\n- b"])[0])
    assert one.shape == (2, 512 + 8)


def test_one_feature_has_the_fit_in_closed_form() -> None:
    # 30 of 40 choose the first; without a penalty the coefficient is logit(3/4).
    differences, targets = np.ones((40, 1)), np.array([1.0] * 30 + [0.0] * 10)
    assert fit_bradley_terry(differences, targets, np.ones(40), l2=1e-9)[0] == pytest.approx(logit(0.75), abs=1e-4)
    pulled = fit_bradley_terry(differences, targets, np.ones(40), l2=2.0, centre=np.array([5.0]))[0]
    assert 40 * (expit(pulled) - 0.75) + 2.0 * (pulled - 5.0) == pytest.approx(0.0, abs=1e-3)  # the slope is 0 there


def test_a_tie_pulls_to_the_middle_and_a_weight_counts_as_copies() -> None:
    differences = np.ones((4, 1))
    assert fit_bradley_terry(differences, np.full(4, 0.5), np.ones(4))[0] == pytest.approx(0.0, abs=1e-6)
    tripled = fit_bradley_terry(np.ones((4, 1)), np.array([1.0, 1, 1, 0]), np.ones(4))
    assert fit_bradley_terry(np.ones((2, 1)), np.array([1.0, 0]), np.array([3.0, 1.0])) == pytest.approx(tripled, abs=1e-5)


def test_the_ensemble_learns_a_planted_taste_and_is_surest_where_it_saw_most() -> None:
    random = np.random.default_rng(0)
    taste = random.normal(size=20)
    differences = random.normal(size=(400, 20))
    differences[:, 10:] *= 0.05  # hardly ever seen
    targets = (random.random(400) < expit(3 * differences @ taste)).astype(float)
    members = fit_ensemble(differences, targets, np.arange(400), seed=1)
    assert members.shape == (8, 20)
    fresh = random.normal(size=(1000, 20))
    fresh[:, 10:] = 0
    assert (np.sign(fresh @ members.mean(axis=0)) == np.sign(fresh @ taste)).mean() > 0.9
    assert members.std(axis=0)[10:].mean() > 2 * members.std(axis=0)[:10].mean()
    assert (fit_ensemble(differences, targets, np.arange(400), seed=1) == members).all()
