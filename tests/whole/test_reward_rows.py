"""Rankings as one row, every loss of the reward model, and its ensembles, by hand, by law, and on the toy project."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from preftune.data.batches import Group, collate
from preftune.data.snapshot import load_snapshot
from preftune.data.template import Renderer
from preftune.errors import DataError
from preftune.manifest import read_manifest
from preftune.models.heads import load_reward_heads, scalar_head, with_scalar_head
from preftune.models.load import load_causal_lm, load_renderer
from preftune.models.one_base import HEAD, ON_BASE
from preftune.records import KWise, Message, Pair, Tie
from preftune.rollout.score import load_scorer
from preftune.stages.common import Room
from preftune.stages.reward import Learner, RewardConfig, flip_rate
from preftune.stages.reward_data import Compared, bootstrap_weights, encode_rows, rows_of

CPU = torch.device("cpu")
ASKED = (Message(role="user", content="which?"),)
OTHER = (Message(role="user", content="and now?"),)
FOUR = ("a a", "b", "a b a", "b b")  # best first
SAID = tuple(range(1, 5))


def pair(chosen: str, rejected: str, messages=ASKED, group: str = "p", **more) -> Pair:
    return Pair(messages=messages, chosen=chosen, rejected=rejected, group=group, **more)


def ranking(answers=FOUR, ranks=SAID, **more) -> KWise:
    return KWise(messages=ASKED, completions=answers, ranks=ranks, group="p", **more)


ALL_SIX = [pair(*two) for two in combinations(FOUR, 2)]


@pytest.fixture(scope="module")
def renderer(toy) -> Renderer:
    return load_renderer(toy.base)


def learner_of(toy, renderer, rows, *, heads: int = 1, weights=None, **settings) -> tuple[Learner, list[Group]]:
    model = with_scalar_head(load_causal_lm(toy.base, device=CPU).requires_grad_(True), seed=1, heads=heads)
    rows, encoded = encode_rows(renderer, rows, max_tokens=256)
    room = Room(toy.folder, toy.base, load_snapshot(toy.data), renderer, model, tree=True, max_tokens=256)
    config = RewardConfig(data="d", model="m", heads=heads, **settings)
    weights = torch.ones(len(rows), heads) if weights is None else weights
    return Learner(config, room, rows, flips=0.0, weights=weights), encoded.groups


def step(learner: Learner, groups: list[Group]) -> tuple[float, torch.Tensor]:
    """Return the mean loss, and the gradient of the head, which every weight's passes through."""
    told = learner.loss(groups)
    loss = (told.values * told.weights).sum() / learner.count(groups)
    (gradient,) = torch.autograd.grad(loss, [scalar_head(learner.room.model).weight])
    return loss.item(), gradient


def test_a_ranking_is_one_row_whose_pairs_count_once_together():
    (row,) = rows_of(ALL_SIX, [ranking()])
    assert sorted(row.answers) == sorted(FOUR)
    assert [c.weight for c in row.comparisons] == pytest.approx([1 / 6] * 6)
    assert row.orders == ()


def test_pairs_of_no_ranking_count_once_each_and_keep_their_order():
    pairs = [pair("b", "a", OTHER, "q"), *ALL_SIX, pair("a", "c")]
    first, second = rows_of(pairs, [ranking()])
    assert (first.group, second.group) == ("q", "p")
    assert [c.weight for c in first.comparisons] == [1.0]
    assert [(c.place, round(c.weight, 4)) for c in second.comparisons] == [*((n, 0.1667) for n in range(1, 7)), (7, 1.0)]


def test_no_row_has_more_answers_than_a_ranking_may_have():
    pairs = [pair(f"good {n}", f"bad {n}") for n in range(11)]
    rows = rows_of(pairs, [])
    assert [len(row.answers) for row in rows] == [8, 8, 6]
    assert [c.place for row in rows for c in row.comparisons] == list(range(11))


def test_a_row_shared_by_nine_gives_the_loss_and_gradient_of_36_pairs(toy, renderer):
    nine = tuple(" ".join("ab"[n % 2] * (1 + n // 2)) for n in range(9))
    pairs = [pair(*two) for two in combinations(nine, 2)]
    together, (one,) = learner_of(toy, renderer, rows_of(pairs, [ranking(nine, tuple(range(1, 10)))]))
    apart, groups = learner_of(toy, renderer, [row for p in pairs for row in rows_of([p], [])])
    assert (len(one.completions), len(groups)) == (9, 36)
    assert together.count([one]) == pytest.approx(1.0, abs=1e-6)
    (loss, gradient), (expected, slope) = step(together, [one]), step(apart, groups)
    assert loss == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-5)


def test_two_micro_batches_sum_to_one(toy, renderer):
    rows = rows_of([*ALL_SIX, pair("a", "b b", OTHER, "q", strength=2.0)], [ranking()])
    learner, groups = learner_of(toy, renderer, rows, margin=0.5, heads=2, weights=torch.tensor([[1.0, 0.3], [0.2, 2.0]]))
    whole = step(learner, groups)
    parts = [(learner.loss([g]), learner.count([g])) for g in groups]
    summed = sum((told.values * told.weights).sum().item() for told, _ in parts) / sum(count for _, count in parts)
    assert summed == pytest.approx(whole[0], abs=1e-5)


SCORES = {"a a": 1.0, "b": 0.5, "a b a": -0.2, "b b": 0.3}  # the ranking of maths


def by_hand(toy, renderer, rows, **settings) -> torch.Tensor:
    learner, groups = learner_of(toy, renderer, rows, **settings)
    scores = torch.tensor([[SCORES[a]] for row in learner.rows for a in row.answers])
    values = [learner._values(scores[:, 0], groups)[0]]
    return torch.cat(values)


def test_losses_of_rankings_by_hand(toy, renderer):
    assert float(by_hand(toy, renderer, rows_of(ALL_SIX, [ranking()])).mean()) == pytest.approx(0.519325, abs=1e-6)
    whole = rows_of(ALL_SIX, [ranking()], orders=True)
    assert float(by_hand(toy, renderer, whole, loss="plackett_luce")) == pytest.approx(2.690886, abs=1e-6)
    best = rows_of([], [ranking(ranks=(1, 2, 2, 2))], orders=True)
    assert float(by_hand(toy, renderer, best, loss="plackett_luce")) == pytest.approx(0.877263, abs=1e-6)


def test_a_pair_outside_of_rankings_is_an_order_of_two(toy, renderer):
    (row,) = rows_of([pair("a a", "b")], [], orders=True)
    assert float(by_hand(toy, renderer, [row], loss="plackett_luce")) == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)


@pytest.mark.parametrize(("loss", "tie"), [("davidson", 1.0), ("rao_kupper", 1.0)])
def test_equal_answers_are_tied_with_the_chance_that_was_set(toy, renderer, loss, tie):
    rows = rows_of([], [], [Tie(messages=ASKED, completions=("b", "b b"), group="p")])
    learner, groups = learner_of(toy, renderer, rows, loss=loss, tie_chance=0.2)
    (value,), _ = learner._values(torch.zeros(2), groups)
    assert math.exp(-float(value)) == pytest.approx(0.2, abs=1e-6)


def test_a_strength_asks_for_a_margin(toy, renderer):
    rows = rows_of([pair("a a", "b", strength=3.0), pair("b", "b b")], [])
    found = by_hand(toy, renderer, rows, margin=0.1)
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-(0.5 - 0.3))), math.log1p(math.exp(-0.2))], abs=1e-6)


def test_an_answer_that_does_not_fit_takes_its_own_pairs_alone(renderer):
    long = "a " * 400
    rows, encoded = encode_rows(renderer, rows_of([*ALL_SIX, pair("b", long)], [ranking()]), max_tokens=128)
    assert dict(encoded.left_out) == {"longer than 128 tokens": 1}
    assert len(rows[0].comparisons) == 6
    assert [len(g.completions) for g in encoded.groups] == [4]
    with pytest.raises(DataError, match=r"no example is left to learn from \(1 longer than 128 tokens\)"):
        encode_rows(renderer, rows_of([pair("b", long)], []), max_tokens=128)


def test_a_bootstrap_weighs_prompts_and_is_the_same_again():
    pairs = [pair("b", f"a {n}", (Message(role="user", content=str(n)),), group=str(n)) for n in range(400)]
    rows = rows_of(pairs, [])
    weights = bootstrap_weights(rows, 3, seed=4)
    assert weights.mean(0).tolist() == pytest.approx([1.0] * 3, abs=0.2)
    assert weights.std(0).tolist() == pytest.approx([1.0] * 3, abs=0.25)  # an exponential's sd is its mean
    torch.testing.assert_close(bootstrap_weights(rows[::-1], 3, seed=4), weights.flip(0), rtol=0, atol=0)
    assert not torch.equal(bootstrap_weights(rows, 3, seed=5), weights)
    assert bootstrap_weights(rows, 1, seed=4).unique().tolist() == [1.0]
    same = bootstrap_weights([rows[0], replace(rows[0], answers=("other",))], 2, seed=0)
    assert torch.equal(same[0], same[1])


def test_comparisons_of_several_rows_point_at_their_own_answers():
    rows = rows_of([pair("x", "y"), pair("y", "x", OTHER, "q")], [])
    found = Compared.of(rows)
    assert (found.better.tolist(), found.worse.tolist(), found.row.tolist()) == ([0, 2], [1, 3], [0, 1])


def test_an_ensemble_learns_and_its_heads_differ(toy):
    run = toy.run("reward", heads=3)
    facts = read_manifest(run)
    scorer = load_scorer(run, device=CPU)
    heads = scalar_head(load_reward_heads(run, device=CPU)).weight.detach()
    assert scorer.num_scores == 3
    assert min(facts["held_out"]["accuracy_of_heads"]) > 0.7
    assert facts["held_out"]["accuracy"] > 0.8
    assert len(facts["normalisation"]["members"]) == 3
    assert float((heads[0] - heads[1]).abs().max()) > 1e-3
    on_base = load_file(run / ON_BASE / HEAD)["weight"]  # PPO puts all heads on its own base, and takes their mean itself
    torch.testing.assert_close(on_base, heads, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"loss": "plackett_luce"}, {"loss": "davidson"}, {"loss": "robust", "label_smoothing": 0.1}], ids=str)
def test_every_loss_learns_the_planted_preference(toy, settings):
    facts = read_manifest(toy.run("reward", **settings))["held_out"]
    assert facts["accuracy"] > 0.8
    low, high = facts["accuracy_interval"]
    assert low < facts["accuracy"] <= high
    assert facts["human_agreement"] is None  # one rater
    assert facts["by_raters"].keys() == {"one rater"}


def test_flips_are_measured_where_raters_overlap(toy):
    snapshot = load_snapshot(toy.data)
    config = RewardConfig(data="d", model="m", label_smoothing="measured")
    told = replace(snapshot, manifest=snapshot.manifest | {"votes": {"word_pairs": 100, "agreeing": 82}})
    assert flip_rate(config, told) == pytest.approx(0.1)  # 0.82 = 0.9² + 0.1²
    with pytest.raises(DataError, match=r"cannot be measured \(0 pairs of words overlap\).*30 at least"):
        flip_rate(config, snapshot)
    coins = replace(snapshot, manifest=snapshot.manifest | {"votes": {"word_pairs": 100, "agreeing": 50}})
    with pytest.raises(DataError, match="raters agree no more than coins"):
        flip_rate(config, coins)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "davidson", "margin": 0.3}, 'key "margin" means nothing to loss "davidson"'),
        ({"tie_chance": 0.3}, 'key "tie_chance" means nothing to loss "bradley_terry".*rao_kupper or davidson'),
        ({"loss": "robust"}, 'loss "robust" needs "label_smoothing"'),
    ],
)
def test_keys_at_odds_with_the_loss_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        RewardConfig(data="d", model="m", **settings)


def test_one_row_of_nine_is_a_fraction_of_36_rows():
    nine = tuple(f"answer {n}" for n in range(9))
    (row,) = rows_of([pair(*two) for two in combinations(nine, 2)], [ranking(nine, tuple(range(1, 10)))])
    tokens = Group(tuple(range(50)), tuple((1,) * 60 for _ in row.answers), 0)
    assert collate([tokens], 0).ids.numel() * 10 < 36 * (50 + 2 * 60)
