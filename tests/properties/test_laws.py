"""The laws that every loss keeps: padding, the split and what stands under a mask are nothing; PPO is policy gradient.

Pure functions in float64 to 1e-9; through a model in float32, to 1e-5 of the largest slope.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.data.batches import Group, collate
from preftune.losses.advantages import gae, token_rewards, whiten
from preftune.losses.kl import k1, k3
from preftune.losses.logprobs import Head, token_logprobs
from preftune.losses.policy import clip_fraction, clipped_surrogate, clipped_value_loss, policy_ratio
from preftune.losses.preference import dpo
from preftune.losses.reduce import masked_mean, sequence_sum, to_sequences, weighted_sum
from preftune.losses.reward import accuracy, bradley_terry
from preftune.models.heads import end_scores, scalar_head, token_values, with_scalar_head
from preftune.models.load import batch_logprobs, load_causal_lm
from preftune.training.step import Loss, mean_metric, train_step

CPU = torch.device("cpu")
many = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31)


def draws(seed: int, *shape: int, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def rows_of(lengths: list[int], width: int, *, left: bool) -> Tensor:
    places = torch.arange(width)[None]
    counts = torch.tensor(lengths)[:, None]
    return places >= width - counts if left else places < counts


# Every function of token tensors [S, N] and a mask, as value from (mask, tensors); the first tensor is what is learned.
TOKEN_LOSSES: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "surrogate": (3, lambda m, new, old, adv: clipped_surrogate(new, old, adv, m, clip_range=0.2)),
    "value": (3, lambda m, new, old, ret: clipped_value_loss(new, old, ret, m, clip_range=0.2)),
    "k1": (2, lambda m, new, ref: k1(new, ref, m)),
    "k3": (2, lambda m, new, ref: k3(new, ref, m)),
    "rewards": (2, lambda m, new, ref: token_rewards(new, ref, torch.arange(len(new), dtype=new.dtype), m, kl_coef=0.3)),
    "advantages": (2, lambda m, values, rewards: gae(rewards, values, m, gamma=0.9, gae_lambda=0.8).advantages),
    "returns": (2, lambda m, values, rewards: gae(rewards, values, m, gamma=0.9, gae_lambda=0.8).returns),
    "whiten": (1, lambda m, values: whiten(values, m)),
}
every_token_loss = pytest.mark.parametrize("name", TOKEN_LOSSES)


def value_and_slope(name: str, mask: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of each counted token (row by row), and the slope of a sum that weighs each token otherwise."""
    learned = tensors[0].clone().requires_grad_()
    values = TOKEN_LOSSES[name][1](mask, learned, *tensors[1:])
    weights = torch.linspace(1, 2, int(mask.sum()), dtype=torch.float64)
    (values[mask] * weights).sum().backward()
    assert float(values.detach()[mask.logical_not()].abs().sum()) == 0
    return values.detach()[mask], learned.grad


# 1. Padding is nothing.


@every_token_loss
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), extra=st.integers(1, 4), left=st.booleans(), seed=seeds)
@many
def test_more_padding_on_either_side_changes_no_value_and_no_slope(name, lengths, extra, left, seed):
    count, width = TOKEN_LOSSES[name][0], 5
    tight, wide = rows_of(lengths, width, left=False), rows_of(lengths, width + extra, left=left)
    tensors = draws(seed, len(lengths), width, count=count)
    padded = [x.masked_scatter(wide, t[tight]) for x, t in zip(draws(seed + 1, *wide.shape, count=count), tensors, strict=True)]
    values, slope = value_and_slope(name, tight, tensors)
    padded_values, padded_slope = value_and_slope(name, wide, padded)
    torch.testing.assert_close(padded_values, values, rtol=0, atol=1e-9)
    torch.testing.assert_close(padded_slope[wide], slope[tight], rtol=0, atol=1e-9)


# 2. The split is nothing.


def ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


# Five prompts with two answers each, of very uneven lengths.
SHAPES = [(3, 9, 1), (7, 2, 14), (1, 1, 1), (5, 12, 3), (2, 4, 6)]
GROUPS = [Group(ids(p, 3 * i), (ids(a, 3 * i + 1), ids(b, 3 * i + 2)), i) for i, (p, a, b) in enumerate(SHAPES)]
TABLE = rows_of([n for shape in SHAPES for n in shape[1:]], 14, left=False)
OLD, ADVANTAGES, RETURNS = (0.1 * d.float() - s for d, s in zip(draws(0, *TABLE.shape, count=3), (5.0, 0.0, 0.0), strict=True))
PAIR_WEIGHTS = torch.tensor([1.0, 0.25, 0.0, 2.0, 1.0])  # the third pair counts nothing


@dataclass
class Learner:
    """A tiny model, and one stage's loss and weights of a micro-batch."""

    model: Any
    loss: Callable[[list[Group]], Loss]
    count: Callable[[list[Group]], float]

    def step(self, parts: list[list[Group]]) -> tuple[float, dict[str, float], dict[str, Tensor]]:
        """The logged loss, the metrics and the gradient of one step: what SGD at lr 1 moves the weights by."""
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        optimiser = torch.optim.SGD(self.model.parameters(), lr=0.0)
        done = train_step(
            parts,
            count=self.count,
            loss=self.loss,
            parameters=self.model.parameters(),
            optimiser=optimiser,
            lr=1.0,
            max_grad_norm=None,
            where="",
        )
        slope = {name: before[name] - p.detach() for name, p in self.model.named_parameters()}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(before[name])
        return done.loss, done.metrics, slope


def table_rows(groups: list[Group], mask: Tensor, table: Tensor) -> Tensor:
    rows = [(2 * g.index + k) % len(table) for g in groups for k in range(len(g.completions))]
    return table[rows, : mask.shape[1]]


def num_tokens(groups: list[Group]) -> float:
    return float(sum(g.num_completion_tokens for g in groups))


def pair_weight(groups: list[Group]) -> float:
    return float(PAIR_WEIGHTS[[g.index for g in groups]].sum())


def learner(kind: str, folder: Any, *, tree: bool = True, pad_id: int = 0) -> Learner:
    """What the stage of that kind does, at the same models and on the same rows."""
    causal = load_causal_lm(folder, device=CPU)
    model = with_scalar_head(causal, seed=1) if kind in ("reward", "value") else causal
    model.requires_grad_(True)

    def batch(groups: list[Group]):
        return collate(groups, pad_id, tree=tree)

    def sft(groups: list[Group]) -> Loss:
        rows = batch(groups)
        values = -batch_logprobs(model, rows)[0]
        return Loss(values, rows.completion_mask.float(), {"nll": mean_metric(values, rows.completion_mask)})

    def preference(groups: list[Group]) -> Loss:
        rows = batch(groups)
        sums = sequence_sum(batch_logprobs(model, rows)[0], rows.sequence, rows.num_sequences)
        values = dpo(sums[0::2] + 1, sums[1::2], beta=0.1, label_smoothing=0.1)
        return Loss(values, PAIR_WEIGHTS[[g.index for g in groups]], {"accuracy": mean_metric(accuracy(sums[0::2], sums[1::2]))})

    def reward(groups: list[Group]) -> Loss:
        scores = end_scores(model, batch(groups))
        values = bradley_terry(scores[0::2], scores[1::2], margin=0.0, label_smoothing=0.0)
        return Loss(values, PAIR_WEIGHTS[[g.index for g in groups]], {"margin": mean_metric(scores[0::2] - scores[1::2])})

    def policy(groups: list[Group]) -> Loss:
        rows = batch(groups)
        new, mask = to_sequences(batch_logprobs(model, rows, temperature=0.7)[0], rows.sequence, rows.num_sequences)
        old, advantages = (table_rows(groups, mask, t) for t in (OLD, ADVANTAGES))
        ratio = policy_ratio(new, old, mask).detach()
        return Loss(clipped_surrogate(new, old, advantages, mask, clip_range=0.2), mask.float(), {"ratio": mean_metric(ratio, mask)})

    def value(groups: list[Group]) -> Loss:
        rows = batch(groups)
        new, mask = to_sequences(token_values(model, rows), rows.sequence, rows.num_sequences)
        old, returns = (table_rows(groups, mask, t) for t in (ADVANTAGES, RETURNS))
        return Loss(clipped_value_loss(new, old, returns, mask, clip_range=0.2), mask.float())

    losses = {"sft": sft, "dpo": preference, "reward": reward, "policy": policy, "value": value}
    return Learner(model, losses[kind], pair_weight if kind in ("dpo", "reward") else num_tokens)


every_stage = pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "policy", "value"])
WHOLE = [GROUPS]
CUTS = {
    "one by one": [[g] for g in GROUPS],
    "uneven": [GROUPS[:1], GROUPS[1:]],
    "backwards": [GROUPS[3:][::-1], GROUPS[:3][::-1]],
    "a part that counts nothing": [[GROUPS[2]], [GROUPS[4], GROUPS[0]], [GROUPS[1], GROUPS[3]]],
}


def assert_same_step(first, second) -> None:
    assert second[0] == pytest.approx(first[0], rel=1e-5, abs=1e-6)  # losses of both signs may cancel
    assert second[1] == pytest.approx(first[1], rel=1e-4, abs=1e-5)
    scale = max(float(slope.abs().max()) for slope in first[2].values())
    assert scale > 1e-4
    for name, slope in first[2].items():
        torch.testing.assert_close(second[2][name], slope, rtol=0, atol=1e-5 * max(1.0, scale), msg=name)


@every_stage
def test_no_cut_into_parts_and_no_order_changes_the_loss_the_metrics_or_the_gradient(kind, tiny_folder):
    stage = learner(kind, tiny_folder("llama"))
    whole = stage.step(WHOLE)
    for parts in CUTS.values():
        assert_same_step(whole, stage.step(parts))


# 1 and 3, through a model: other padding, and rows that do not share their prompt.


@every_stage
def test_neither_the_pad_id_nor_shared_prompts_change_the_loss_or_the_gradient(kind, tiny_folder):
    shared = learner(kind, tiny_folder("llama")).step(WHOLE)
    assert_same_step(shared, learner(kind, tiny_folder("llama"), pad_id=7).step(WHOLE))
    assert_same_step(shared, learner(kind, tiny_folder("llama"), tree=False).step(WHOLE))


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "mistral", "gpt2", "phi"])
@every_stage
def test_shared_prompts_change_nothing_in_any_family_with_two_answers_or_more(kind, family, tiny_folder):
    # Grouped-query heads, a sliding window shorter than the rows, tied and untied output layers, with and without bias.
    shared, plain = (learner(kind, tiny_folder(family), tree=tree) for tree in (True, False))
    assert_same_step(shared.step(WHOLE), plain.step(WHOLE))
    if kind in ("sft", "policy", "value"):  # the other two are of pairs
        many = [[replace(g, completions=(*g.completions, *GROUPS[g.index - 1].completions)) for g in GROUPS]]
        assert_same_step(shared.step(many), plain.step(many))


# 4. Masked means masked.


@every_token_loss
@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_nothing_under_the_mask_moves_a_value_or_has_a_slope_not_even_nan(name, hole):
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    clean = draws(1, 3, 4, count=TOKEN_LOSSES[name][0])
    dirty = [x.masked_fill(mask.logical_not(), hole) for x in clean]
    values, slope = value_and_slope(name, mask, clean)
    dirty_values, dirty_slope = value_and_slope(name, mask, dirty)
    assert torch.equal(dirty_values, values)
    assert torch.equal(dirty_slope, slope)
    assert float(slope[mask.logical_not()].abs().sum()) == 0


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_hidden_states_that_predict_nothing_have_no_slope_not_even_nan(hole):
    batch = collate([Group((1, 2), ((3, 4), (5,)), 0), Group((1,), ((2,),), 1)], 0)
    predicts = torch.zeros_like(batch.completion_mask)
    rows, places = batch.completion_mask.nonzero(as_tuple=True)
    predicts[rows, batch.parent[rows, places]] = True
    hidden = draws(2, *batch.ids.shape, 3)[0].masked_fill(predicts.logical_not()[..., None], hole).requires_grad_()
    weight = draws(3, 6, 3)[0].requires_grad_()
    values, _ = token_logprobs(hidden, Head(weight), batch.ids, batch.parent, batch.completion_mask, temperature=1.0, block=2)
    values.sum().backward()
    assert bool(values.isfinite().all() and weight.grad.isfinite().all())
    assert float(hidden.grad[predicts.logical_not()].abs().sum()) == 0


# 5. The gradient is the gradient: of each loss beside its own hand cases, and of all of them in one chain here.


def test_the_slope_of_the_whole_chain_from_hidden_states_to_the_divided_loss_is_that_of_central_differences():
    batch = collate([Group((1, 2), ((3, 4, 0), (5,)), 0)], 0)
    hidden, weight = draws(4, *batch.ids.shape, 3)[0], draws(5, 6, 3)[0]
    old, advantages = (d[:, :3] for d in draws(6, 2, 3, count=2))

    def chain(hidden: Tensor, weight: Tensor) -> Tensor:
        logprobs, _ = token_logprobs(hidden, Head(weight), batch.ids, batch.parent, batch.completion_mask, temperature=0.8, block=3)
        new, mask = to_sequences(logprobs, batch.sequence, batch.num_sequences)
        return weighted_sum(clipped_surrogate(new, old - 2, advantages, mask, clip_range=0.2), mask.double()) / mask.sum()

    assert torch.autograd.gradcheck(chain, [hidden.requires_grad_(), weight.requires_grad_()])


# 6. On-policy PPO is policy gradient.


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), clip_range=st.floats(0.01, 0.9), seed=seeds)
@many
def test_where_nothing_has_moved_yet_the_surrogate_has_the_slope_of_policy_gradient(lengths, clip_range, seed):
    mask = rows_of(lengths, 5, left=False)
    logprobs, advantages = draws(seed, *mask.shape, count=2)
    new, plain = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    clipped_surrogate(new, logprobs, advantages, mask, clip_range=clip_range).sum().backward()
    torch.where(mask, -advantages * plain, 0.0).sum().backward()
    assert torch.equal(new.grad, plain.grad)
    ratio = policy_ratio(logprobs, logprobs, mask)
    assert torch.equal(ratio, torch.ones_like(ratio))
    assert float(clip_fraction(ratio, mask, clip_range=clip_range)) == 0


# 7. Special cases meet.


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=seeds)
@many
def test_undiscounted_advantages_plus_values_are_the_rewards_to_go_whatever_the_values(lengths, seed):
    mask = rows_of(lengths, 6, left=False)
    rewards, values = draws(seed, *mask.shape, count=2)
    estimate = gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    for row, n in enumerate(lengths):
        to_go = [math.fsum(rewards[row, t:n].tolist()) for t in range(n)]
        assert estimate.returns[row, :n].tolist() == pytest.approx(to_go, abs=1e-9)
        assert (estimate.advantages + values)[row, :n].tolist() == pytest.approx(to_go, abs=1e-9)


@given(gamma=st.floats(0, 1), seed=seeds)
@many
def test_with_lambda_zero_the_advantage_is_the_error_of_one_step(gamma, seed):
    rewards, values = draws(seed, 2, 4, count=2)
    advantages = gae(rewards, values, torch.ones(2, 4, dtype=torch.bool), gamma=gamma, gae_lambda=0.0).advantages
    for row, t in itertools.product(range(2), range(4)):
        after = values[row, t + 1].item() if t < 3 else 0.0
        assert advantages[row, t].item() == pytest.approx(rewards[row, t].item() + gamma * after - values[row, t].item(), abs=1e-9)


@given(beta=st.floats(0.01, 5), smoothing=st.floats(0, 0.49), seed=seeds)
@many
def test_dpo_is_bradley_terry_on_the_implicit_rewards(beta, smoothing, seed):
    chosen, rejected = draws(seed, 4, count=2)
    direct = dpo(chosen, rejected, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(
        direct, bradley_terry(beta * chosen, beta * rejected, margin=0.0, label_smoothing=smoothing), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(
        dpo(chosen, chosen, beta=beta, label_smoothing=smoothing), torch.full((4,), math.log(2), dtype=torch.float64), rtol=0, atol=1e-9
    )


# 8. Symmetries.


@given(constant=st.floats(-50, 50), seed=seeds)
@many
def test_swapping_a_pair_gives_the_other_probability_and_a_constant_or_another_order_gives_nothing(constant, seed):
    chosen, rejected = draws(seed, 6, count=2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    for loss in (
        lambda c, r: bradley_terry(c, r, margin=0.0, label_smoothing=0.0),
        lambda c, r: dpo(c, r, beta=0.3, label_smoothing=0.0),
    ):
        ones = torch.ones(6, dtype=torch.float64)
        torch.testing.assert_close((-loss(chosen, rejected)).exp() + (-loss(rejected, chosen)).exp(), ones, rtol=0, atol=1e-9)
        torch.testing.assert_close(loss(chosen + constant, rejected + constant), loss(chosen, rejected), rtol=0, atol=1e-9)
        assert torch.equal(loss(chosen[order], rejected[order]), loss(chosen, rejected)[order])
    assert torch.equal(accuracy(chosen, rejected), 1 - accuracy(rejected, chosen))


@given(constant=st.floats(-50, 50), scale=st.floats(0.1, 10), seed=seeds)
@many
def test_whitened_advantages_know_neither_level_nor_scale_nor_order(constant, scale, seed):
    mask = rows_of([4, 2, 3], 4, left=False)
    values = draws(seed, 3, 4)[0]
    white = whiten(values, mask)
    torch.testing.assert_close(whiten(scale * values + constant, mask), white, rtol=1e-4, atol=1e-4)  # up to the 1e-8 under the root
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(whiten(values[order], mask[order]), white[order], rtol=0, atol=1e-9)


# The mean that is shown is the mean that is learned.


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=seeds)
@many
def test_the_metric_of_a_loss_is_its_one_division(lengths, seed):
    mask = rows_of(lengths, 5, left=False)
    values = draws(seed, *mask.shape)[0]
    assert masked_mean(values, mask).item() == pytest.approx((weighted_sum(values, mask.double()) / sum(lengths)).item(), abs=1e-9)
    total, count = mean_metric(values, mask)
    assert total / count == pytest.approx(masked_mean(values, mask).item(), abs=1e-9)


def test_the_critic_and_the_reward_model_of_these_tests_have_a_head_that_is_trained(tiny_folder):
    assert scalar_head(learner("value", tiny_folder("llama")).model).weight.requires_grad
