"""Expected numbers come from the maths reference, from how the data were made, or from another way to compute them."""

import numpy as np
import pytest
from scipy import optimize

from preftune.errors import DataError
from preftune.evaluate.leaderboard import Match, davidson, leaderboard

PAIRS = np.array([[0, 1], [0, 2], [1, 2]])


def test_without_ties_and_prior_it_is_the_known_bradley_terry_fit():
    counts = np.array([[[7, 0, 3], [8, 0, 2], [6, 0, 4]]], dtype=float)
    strengths, ties = davidson(counts, PAIRS, 3, prior=0.0)
    assert strengths[0] == pytest.approx([0.740570, -0.149102, -0.591468], abs=1e-6)
    assert 1000 + 400 / np.log(10) * strengths[0] == pytest.approx([1128.650, 974.098, 897.252], abs=1e-3)
    assert 1 / (1 + np.exp(strengths[0, 1] - strengths[0, 0])) == pytest.approx(0.708823, abs=1e-6)
    assert ties[0] == 0


@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_with_ties_it_is_where_the_likelihood_is_highest(prior):
    counts = np.array([[[7, 4, 3], [9, 2, 1], [5, 6, 4]]], dtype=float)

    def minus_log_likelihood(x: np.ndarray) -> float:
        r, nu = x[:3], np.exp(x[3])
        total = 0.0
        for (i, j), (wins, tied, losses) in zip(PAIRS, counts[0], strict=True):
            a, b = np.exp(r[i]), np.exp(r[j])
            all_of_it = a + b + nu * np.sqrt(a * b)
            total += wins * np.log(a / all_of_it) + losses * np.log(b / all_of_it) + tied * np.log(nu * np.sqrt(a * b) / all_of_it)
        total += prior * sum(-np.log1p(np.exp(-v)) - np.log1p(np.exp(v)) for v in r)
        total += prior * (np.log(nu / (2 + nu)) + np.log(1 / (2 + nu)))
        return -total

    best = optimize.minimize(minus_log_likelihood, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    strengths, nu = davidson(counts, PAIRS, 3, prior=prior)
    assert strengths[0] == pytest.approx(best[:3] - best[:3].mean(), abs=1e-5)
    assert nu[0] == pytest.approx(np.exp(best[3]), abs=1e-5)


def matches(strengths: dict[str, float], prompts: int, seed: int) -> list[Match]:
    random = np.random.default_rng(seed)
    names = sorted(strengths)
    found = []
    for prompt in range(prompts):
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                e = np.exp([strengths[a], np.log(0.6) + (strengths[a] + strengths[b]) / 2, strengths[b]])
                found.append(Match(a, b, float(random.choice([1.0, 0.5, 0.0], p=e / e.sum())), prompt))
    return found


def test_models_that_differ_come_in_order_and_those_alike_share_places():
    board = leaderboard(matches({"good": 1.2, "same": 0.0, "equal": 0.0, "bad": -1.2}, 150, 0))
    assert [s.name for s in board][::3] == ["good", "bad"]
    assert (board[0].rank_low, board[0].rank_high) == (1, 1)
    assert (board[1].rank_low, board[1].rank_high) == (board[2].rank_low, board[2].rank_high) == (2, 3)
    assert (board[3].rank_low, board[3].rank_high) == (4, 4)
    assert all(s.elo.low < s.elo.value < s.elo.high and s.elo.n == 450 for s in board)


def test_who_won_everything_has_a_finite_place():
    board = leaderboard([Match("a", "b", 1.0, p) for p in range(10)])
    assert [s.name for s in board] == ["a", "b"]
    assert 1000 < board[0].elo.value < 2000
    assert board[0].rank_high == 1


def test_the_order_of_the_two_in_a_match_does_not_matter():
    some = matches({"a": 0.5, "b": 0.0, "c": -0.3}, 30, 1)
    turned = [Match(m.b, m.a, 1 - m.score, m.cluster) for m in some]
    for one, other in zip(leaderboard(some), leaderboard(turned), strict=True):
        assert one.name == other.name
        assert one.strength == pytest.approx(other.strength, abs=1e-8)


def test_models_without_a_chain_between_them_are_refused():
    with pytest.raises(DataError, match="a and c are joined by no chain"):
        leaderboard([Match("a", "b", 1.0, 0), Match("c", "d", 0.0, 1)])
    with pytest.raises(DataError, match=r"a against b ended 0.3"):
        leaderboard([Match("a", "b", 0.3, 0)])
