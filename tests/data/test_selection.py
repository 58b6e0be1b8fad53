"""Which pair next: the inclusion probabilities are exact, the random half is random, and nothing is asked twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.selection import (
    disagreement_weights,
    draw,
    inclusion_probabilities,
    k_centre_cells,
    nearly_identical,
    next_pairs,
    probe_scores,
    systematic_sample,
)
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.records import Candidate, Judgement, Message, Prompt

# Drawing


def test_probabilities_go_with_the_weights_and_none_is_over_one() -> None:
    assert inclusion_probabilities(np.array([1.0, 2.0, 3.0, 4.0]), 1) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # With 2 wanted the 7 would have 2 · 7/10: it is certain, and one more is drawn from the others.
    assert inclusion_probabilities(np.array([1.0, 1.0, 1.0, 7.0, 0.0]), 2) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0, 0.0])
    assert inclusion_probabilities(np.array([5.0, 0.0, 1.0]), 2) == pytest.approx([1.0, 0.0, 1.0])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_probabilities_sum_to_what_is_wanted_and_as_many_are_drawn(weights: list[float], n: int, seed: int) -> None:
    found = inclusion_probabilities(np.array(weights), n)
    positive = sum(w > 0 for w in weights)
    assert found.sum() == pytest.approx(min(n, positive))
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()
    drawn = systematic_sample(found, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn.tolist())) == min(n, positive)
    assert (found[drawn] > 0).all()


def test_each_item_is_drawn_as_often_as_its_probability_says() -> None:
    probabilities = inclusion_probabilities(np.array([1.0, 5, 2, 2, 9, 1, 1, 4]), 3)
    random = np.random.default_rng(0)
    hits = np.zeros(8)
    for _ in range(4000):
        hits[systematic_sample(probabilities, random)] += 1
    sd = np.sqrt(probabilities * (1 - probabilities) / 4000)
    assert (np.abs(hits / 4000 - probabilities) <= 4 * sd + 1e-12).all()


def test_what_the_members_disagree_on_weighs_more_and_plain_cases_less() -> None:
    margins = np.array([[0.5, 1.0, 9.0, 0.6, np.nan], [0.5, 0.0, 7.0, 0.4, 1.0]])
    weights = disagreement_weights(margins)
    scale = np.std([0.5, 0.5, 8.0, 0.5])
    assert weights[0] == 0.0  # of one mind
    assert weights[4] == 0.0  # not known
    assert 8.0 / scale > 1.5  # too plain: a tenth
    assert weights[2] == pytest.approx(1.0 * 0.1)
    assert 0.5 / scale < 0.25  # too close: a tenth
    assert weights[[1, 3]] == pytest.approx([0.25 * 0.1, 0.01 * 0.1])
    moderate = disagreement_weights(np.array([[1.0, 2.0, -2.0], [1.0, 1.0, -2.0]]))
    assert moderate == pytest.approx([0.0, 0.25, 0.0])
    assert disagreement_weights(np.zeros((2, 3))) == pytest.approx([1.0, 1.0, 1.0])


def test_centres_are_far_apart_and_far_from_what_was_judged() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0], [30.0]])
    everyone = np.arange(5)
    # The prompt nearest to the mean (10.4) is at 10; the farthest from it is at 30, then the one at 0.
    assert k_centre_cells(points, everyone, np.array([], dtype=int), 3).tolist() == [2, 2, 0, 0, 1]
    # 10 was judged: 11 is nearest to it, so no cell has it; centres are 30, then 0.
    assert k_centre_cells(points, np.array([0, 1, 3, 4]), np.array([2]), 2).tolist() == [1, 1, -1, -1, 0]
    assert k_centre_cells(np.zeros((3, 1)), np.arange(3), np.array([], dtype=int), 3).tolist() == [0, 0, 0]


def pool() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    return np.repeat(np.arange(20), 2), random.normal(size=(20, 6)), random.normal(size=(5, 40))


def test_the_recorded_probability_is_how_often_an_item_is_in_the_batch() -> None:
    prompt_of, features, margins = pool()
    hits, repeats = np.zeros(40), 1500
    for seed in range(repeats):
        found = draw(prompt_of, features, 12, margins=margins, judged=np.array([3]), seed=seed)
        hits[found.places] += 1
    told = 1 - np.prod([1 - p for p in found.by_draw.values()], axis=0)
    sd = np.sqrt(told * (1 - told) / repeats)
    assert (np.abs(hits / repeats - told) <= 4 * sd).all()
    assert found.probability == pytest.approx(told[found.places])
    assert {name: p.sum() for name, p in found.by_draw.items()} == pytest.approx({"random": 6, "disagreement": 4, "coverage": 2})


def test_weighted_by_the_probability_the_batch_tells_the_mean_of_all() -> None:
    prompt_of, features, margins = pool()
    worth = margins.mean(axis=0) ** 2  # hangs on what the draw by disagreement goes by
    estimates, plain = [], []
    for seed in range(600):
        found = draw(prompt_of, features, 12, margins=margins, judged=np.array([], dtype=int), seed=seed)
        estimates.append((worth[found.places] / found.probability).sum() / 40)
        plain.append(worth[found.places].mean())
    se = np.std(estimates) / 600**0.5
    assert abs(np.mean(estimates) - worth.mean()) < 4 * se
    assert abs(np.mean(plain) - worth.mean()) > 4 * np.std(plain) / 600**0.5


def test_what_is_marked_random_is_a_simple_random_sample() -> None:
    prompt_of, features, margins = pool()
    hits: Counter[int] = Counter()
    for seed in range(1000):
        found = draw(prompt_of, features, 12, margins=margins, judged=np.array([], dtype=int), seed=seed)
        marked = found.places[found.picked_by == "random"]
        assert len(marked) == 6
        hits.update(marked.tolist())
    expected = 1000 * 6 / 40
    chi_squared = sum((hits[n] - expected) ** 2 / expected for n in range(40))
    assert chi_squared < 80  # 39 degrees of freedom, scaled by 1 − 6/40: over 80 once in some 20,000


def test_without_an_ensemble_its_share_is_drawn_at_random() -> None:
    prompt_of, features, _ = pool()
    found = draw(prompt_of, features, 20, margins=None, judged=np.array([], dtype=int), seed=0)
    assert set(found.picked_by.tolist()) == {"random", "coverage"}
    assert found.by_draw["random"].sum() == pytest.approx(16)
    everything = draw(prompt_of, features, 1000, margins=None, judged=np.array([], dtype=int), seed=0)
    assert len(everything.places) <= 40
    assert len(draw(prompt_of, features, 1, margins=None, judged=np.array([], dtype=int), seed=0).places) == 1


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        ("x = 1", "x  =  1", True),
        ("word " * 60, "word " * 61, True),
        ("a b c d e f", "a b c d e g", False),
        ("return a + b", "return b + a", False),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_nearly_identical_answers(a: str, b: str, alike: bool) -> None:
    assert nearly_identical(a, b) is alike


# On a store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store of 40 prompts with three answers each, of which two are nearly identical on every fourth prompt."""
    made = Store.create(tmp_path / "s.db")
    prompts = [Prompt(messages=(Message(role="user", content=f"Task {n}: do the thing number {n * n} well."),)) for n in range(40)]
    candidates = []
    for n, prompt in enumerate(prompts):
        texts = [f"short {n}", f"a long and {'careful ' * (n % 7 + 2)}answer {n}", f"something else {n} entirely!"]
        texts[2] = texts[1].replace(" ", "  ") if n % 4 == 0 else texts[2]
        candidates += [Candidate(prompt_id=prompt.id, text=text) for text in texts]
    made.add(prompts, candidates)
    yield made  # type: ignore[misc]
    made.close()


def judge(store: Store, number: int) -> None:
    """Add judgements on the first two answers of so many prompts: the longer one is better."""
    of_prompt: dict[str, list[Candidate]] = {}
    for candidate in store.candidates():
        of_prompt.setdefault(candidate.prompt_id, []).append(candidate)
    rows = [Judgement(prompt_id=p, ranking=((c[1].id,), (c[0].id,))) for p, c in list(of_prompt.items())[:number]]
    store.add(judgements=rows)


def test_pairs_that_are_judged_or_nearly_identical_are_not_asked(store: Store) -> None:
    judge(store, 30)
    picks = next_pairs(store, 500, seed=0)
    texts = {c.id: c.text for c in store.candidates()}
    compared = {tuple(sorted(c for tier in j.ranking for c in tier)) for j in store.judgements()}
    # 40 prompts with three pairs, less one nearly identical pair on ten of them, less 30 judged ones.
    assert len(picks) <= 40 * 3 - 10 - 30
    assert len({pick.candidates for pick in picks}) == len(picks)
    for pick in picks:
        assert pick.candidates[0] < pick.candidates[1]
        assert pick.candidates not in compared
        assert not nearly_identical(*(texts[c] for c in pick.candidates))
        assert 0 < pick.probability <= 1


def test_the_same_store_and_seed_give_the_same_pairs(store: Store) -> None:
    one, same, other = (next_pairs(store, 20, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert {pick.picked_by for pick in one} == {"random", "coverage"}  # nothing to learn from yet


def test_the_probe_is_used_once_there_are_fifty_comparisons(store: Store) -> None:
    candidates = {c.id: c for c in store.candidates()}
    judge(store, 40)
    assert probe_scores(candidates, store.judgements(), seed=0) is None
    three = list(candidates)[:3]
    store.add(
        judgements=[
            Judgement(prompt_id=candidates[three[0]].prompt_id, ranking=tuple((c,) for c in three), rater=f"r{n}") for n in range(4)
        ]
    )
    scores = probe_scores(candidates, store.judgements(), seed=0)
    assert scores
    long = [c for c in candidates.values() if c.text.startswith("a long")]
    short = [c for c in candidates.values() if c.text.startswith("short")]
    assert np.mean([scores[c.id].mean() for c in long]) > np.mean([scores[c.id].mean() for c in short])
    assert "disagreement" in {pick.picked_by for pick in next_pairs(store, 30, seed=0)}


def test_scores_of_an_ensemble_may_be_given(store: Store) -> None:
    scores = {c.id: np.array([0.0, float(n % 3)]) for n, c in enumerate(store.candidates()) if n < 60}
    picks = next_pairs(store, 40, seed=0, scores=scores)
    by_spread = [pick for pick in picks if pick.picked_by == "disagreement"]
    assert by_spread
    assert all(c in scores for pick in by_spread for c in pick.candidates)


def test_nothing_left_to_ask_says_so(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s.db") as empty, pytest.raises(DataError, match="no two candidates of a prompt are left to compare"):
        next_pairs(empty, 5, seed=0)
