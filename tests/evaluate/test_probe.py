"""The quick reward probe: it finds what is there and nothing else, on groups that it has not seen, and its forecast comes true."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, sparse

from preftune.evaluate.probe import (
    Curve,
    Matrix,
    Pairs,
    fit,
    folds_of,
    forecast,
    gain_from_doubling,
    learning_curve,
    right,
    sample_of,
    transfer,
    two_judges,
)
from preftune.evaluate.probe_features import COLUMNS, text_features
from preftune.records import Message

ASKED = (Message(role="user", content="Say it."),)


def planted(count: int, *, columns: int = 8, seed: int = 0, noise: float = 1.0, groups: int | None = None, signal: float = 2.0) -> Pairs:
    """Pairs whose chosen answer is the one with the higher utility, plus logistic noise, of normal features."""
    random = np.random.default_rng(seed)
    truth = np.zeros(columns)
    truth[:2] = signal
    x = random.normal(size=(count, columns))
    keep = np.where(x @ truth + noise * random.logistic(size=count) > 0, 1.0, -1.0)
    return Pairs(Matrix(x * keep[:, None]), np.ones(count), np.arange(count) % (groups or count))


def test_the_fit_is_where_a_general_optimiser_finds_the_least_loss():
    pairs = planted(40, columns=3)
    dense, weights = pairs.differences.toarray(), np.linspace(0.2, 1.0, 40)

    def loss(theta):
        return sum(w * np.log1p(np.exp(-(row @ theta))) for w, row in zip(weights, dense, strict=True)) + 0.35 * (theta @ theta)

    found = optimize.minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000}).x
    assert fit(pairs.differences, weights, 0.7) == pytest.approx(found, abs=1e-4)


def test_a_fit_on_nothing_says_nothing():
    assert fit(Matrix((0, 4)), np.zeros(0), 1.0).tolist() == [0, 0, 0, 0]
    assert right(np.array([2.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.5]


def test_swapping_which_answer_comes_first_turns_the_direction_round():
    pairs = planted(50)
    assert fit(-pairs.differences, pairs.weights, 1.0) == pytest.approx(-fit(pairs.differences, pairs.weights, 1.0), abs=1e-4)


def test_no_group_is_in_two_folds_and_folds_are_alike_in_size():
    groups = np.repeat(np.arange(23), [1 + n % 4 for n in range(23)])
    folds = folds_of(groups, 5, seed=3)
    assert all(len(set(folds[groups == g])) == 1 for g in range(23))
    sizes = [len(set(groups[folds == f])) for f in range(5)]
    assert max(sizes) - min(sizes) <= 1


def test_tossed_coins_give_an_accuracy_of_one_half_even_where_groups_repeat_their_answers():
    random = np.random.default_rng(1)
    x = np.repeat(random.normal(size=(60, 30)), 5, axis=0)  # the same pair five times a group: a leak would show
    x *= np.where(random.random(60) < 0.5, 1.0, -1.0).repeat(5)[:, None]
    curve = learning_curve(Pairs(Matrix(x), np.ones(300), np.arange(60).repeat(5)))
    accuracy = curve.accuracy()
    assert accuracy.low < 0.5 < accuracy.high
    assert accuracy.high - accuracy.low > 0.15  # 60 groups, not 300 pairs


def test_a_planted_preference_is_found_and_grows_with_the_pairs_towards_what_the_truth_itself_would_reach():
    pairs = planted(600, columns=40)
    curve = learning_curve(pairs)
    random = np.random.default_rng(9)
    utility = 2 * random.normal(size=(20_000, 2)).sum(axis=1)
    reachable = np.mean((utility > 0) == (utility + random.logistic(size=20_000) > 0))
    values = curve.hits.mean(axis=1)
    assert curve.sizes == pytest.approx([60, 120, 240, 480])
    assert values[0] < values[-1]
    assert reachable - 0.05 < values[-1] < reachable + 0.04


def test_the_interval_of_the_forecast_holds_what_twice_the_pairs_then_give():
    held = 0
    for seed in range(8):
        twice = planted(800, columns=30, seed=seed)
        half = twice.take(np.arange(400))
        expected = forecast(learning_curve(half, repeats=1, seed=seed), [800])[0]
        theta = fit(twice.differences, twice.weights, 1.0)
        truth = right(planted(4000, columns=30, seed=1000 + seed).differences @ theta).mean()
        held += expected.low - 0.01 <= truth <= expected.high + 0.01
    assert held >= 7  # of 8 at 95 %


def test_a_forecast_follows_a_curve_that_is_known_and_never_falls():
    sizes = np.array([50.0, 100.0, 200.0, 400.0])
    accuracy = 0.9 - 2.0 * sizes**-0.5
    hits = np.repeat(accuracy[:, None], 300, axis=1)
    curve = Curve(sizes, hits, np.arange(300))
    assert forecast(curve, [1600.0])[0].value == pytest.approx(0.9 - 2.0 / 40, abs=1e-6)
    assert gain_from_doubling(curve, 400).value == pytest.approx(2.0 * (400**-0.5 - 800**-0.5), abs=1e-6)
    falling = Curve(sizes, hits[::-1], np.arange(300))
    assert gain_from_doubling(falling, 400).value == 0.0


def test_what_is_learned_from_other_pairs_tells_these_where_the_direction_is_the_same():
    learned, judged = planted(200, seed=1), planted(150, seed=2)
    assert transfer(learned, judged).mean() > 0.75
    assert transfer(Pairs(-learned.differences, learned.weights, learned.groups), judged).mean() < 0.25


def test_two_judges_are_independent_so_that_picking_the_best_does_not_flatter():
    # Nothing is to be learned, so the best of eight by the one judge is no better than any by the other.
    random = np.random.default_rng(4)
    pairs = Pairs(Matrix(random.normal(size=(300, 20))), np.ones(300), np.arange(300))
    answers = Matrix(random.normal(size=(150 * 8, 20)))
    one, other = two_judges(pairs, answers, np.arange(300, 450).repeat(8)).reshape(2, 150, 8)
    picked = np.take_along_axis(other, one.argmax(axis=1)[:, None], axis=1)[:, 0]
    standard = (picked - other.mean(axis=1)) / other.std(axis=1)
    assert abs(standard.mean()) < 3 / np.sqrt(150)
    flattered = (one.max(axis=1) - one.mean(axis=1)) / one.std(axis=1)
    assert flattered.mean() > 1


def test_a_sample_of_pairs_takes_whole_groups_and_repeats_itself():
    groups = np.arange(100).repeat(3)
    places = sample_of(groups, 60, seed=2)
    assert places.tolist() == sample_of(groups, 60, seed=2).tolist()
    assert len(places) == 60
    assert len(set(groups[places])) == 20
    assert sample_of(groups, 1000).size == 300


# Features


def test_features_tell_words_and_form_apart_and_do_not_look_at_the_prompt():
    texts = ["def f(x):\n    return x", "def f(x: int) -> int:\n    return x", "- one\n- two", ""]
    found = text_features([(ASKED, text) for text in texts])
    assert found.shape[0] == 4
    other = (Message(role="user", content="Something else?"),)
    assert (found != text_features([(other, text) for text in texts])).nnz == 0
    dense = found.toarray()
    assert np.abs(dense[0] - dense[1]).max() > 0.1
    assert np.linalg.norm(dense[0, :COLUMNS]) == pytest.approx(1.0)
    assert dense[3].tolist() == [0.0] * found.shape[1]


def test_no_answers_give_an_empty_matrix_and_strange_texts_give_numbers():
    assert text_features([]).shape[0] == 0
    strange = text_features([(ASKED, "\ud800 \U0001f600 שלום " + "x" * 50_000), (ASKED, "word " * 20_000)])
    assert np.isfinite(strange.data).all()
    assert sparse.issparse(strange)


def test_hidden_states_come_from_the_right_places_whatever_the_batch(tiny_model_folder):
    import torch

    from preftune.evaluate.probe_features import _states
    from preftune.evaluate.subject import Subject
    from preftune.progress import Silent

    subject = Subject(tiny_model_folder)
    answers = [(ASKED, "Yes."), (ASKED, "No, and here is a longer reason why."), (ASKED, "Perhaps")]
    together = _states(subject, answers, 2048, Silent())
    prompt, completion = subject.renderer.prompt_ids(ASKED), subject.renderer.completion_ids("Yes.")
    with torch.no_grad():
        hidden = subject.model.base_model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0].numpy()
    assert together[0] == pytest.approx(np.concatenate([hidden[-1], hidden[len(prompt) :].mean(axis=0)]), abs=1e-4)
    too_long = _states(subject, [(ASKED, "word " * 800)], 2048, Silent())
    assert not too_long.any()
