"""What a plan says is counted, by hand, on two groups and the tiny Llama; what it measures is checked against doing it."""

from __future__ import annotations

import gc
import json
import re
import sys
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from preftune.data.batches import Area, Encoded, Group, area_of, collate
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.heads import end_scores, with_scalar_head
from preftune.models.lean import lean_layers, plain_layers
from preftune.models.load import CHUNK_TOKENS, batch_logprobs, load_causal_lm
from preftune.models.recompute import one_layer_kept, recompute_layers
from preftune.training import plan as plan_module
from preftune.training.measure import (
    MOST_RUNS,
    Cost,
    gemm_flops,
    kept_for_backward,
    settled_seconds,
    timed,
    update_seconds,
)
from preftune.training.memory import held_memory, memory_limit, peak_memory_gib, reset_peak_memory, resident_memory
from preftune.training.plan import GIB, LEAST_FRAGMENTS, MOST_FRAGMENTS, make_plan, steps_of
from preftune.training.step import Loss, train_step

CPU = torch.device("cpu")
# A prompt of 2 with answers of 3 and 2 (7 tokens); a prompt of 1 with an answer of 2 (3 tokens).
GROUPS = [Group((10, 11), ((20, 21, 2), (30, 2)), 0), Group((12,), ((40, 2),), 1)]
# Seconds of a forward and backward pass, of a forward pass and of an update, in place of the measured ones.
TRAIN, SCORE, UPDATE = 8.0, 2.0, 0.5
HELD = round(0.44 * GIB)  # bytes, in place of what this process holds
# The tiny Llama: hidden 32, inner 64, keys and values 16 wide, two layers, two norms each and one at the end.
LINEAR = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32) + 32


@pytest.fixture
def model(tiny_folder):
    return load_causal_lm(tiny_folder("llama"), device=CPU).requires_grad_(True)


@pytest.fixture
def plan(model, monkeypatch):
    monkeypatch.setattr(plan_module, "training_cost", lambda compute, model, device: Cost(TRAIN, grown=0))
    monkeypatch.setattr(plan_module, "forward_seconds", lambda compute, device: SCORE)
    monkeypatch.setattr(plan_module, "update_seconds", lambda trained, device: UPDATE)
    monkeypatch.setattr(plan_module, "held_memory", lambda model: HELD)

    plain_layers(model)  # rows are padded, unless a test says otherwise

    def make(batches=(GROUPS,), *, limit=64 * GIB, under=None, **changes):
        under = under or model
        monkeypatch.setattr(plan_module, "memory_limit", lambda device: limit)
        encoded = Encoded(GROUPS, Counter({"longer than 60 tokens": 3}))
        return make_plan(
            "sft", under, encoded, batches, lambda part: batch_logprobs(under, collate(part, 0))[0], **{"token_budget": 14, **changes}
        )

    return make


def flops(rows: int, length: int, learned: int, vocabulary: int) -> float:
    return 2 * LINEAR * rows * length + 2 * 2 * 32 * 2 * rows * length**2 + 2 * 32 * vocabulary * learned


@pytest.mark.parametrize(
    ("budget", "padding"),
    [
        (14, 4 / 14),  # both in one batch, the second row padded from 3 to 7
        (13, 0.0),  # a batch each
        (1, 0.0),  # a row longer than the budget goes alone
    ],
)
def test_tokens_padding_and_savings_by_hand(plan, budget, padding):
    made = plan(token_budget=budget)
    assert (made.examples, made.tokens, made.prompt_tokens_saved, made.steps) == (2, 10, 2, 1)
    assert made.padding == pytest.approx(padding)
    assert made.left_out == {"longer than 60 tokens": 3}


def test_padding_is_that_of_the_steps_and_not_of_the_data_sorted_as_one(plan):
    even, short = [Group((1, 2), ((3, 2),), n) for n in range(2)], Group((1,), ((2,),), 2)
    assert plan([even, [short, short]]).padding == 0
    assert plan([[even[0], short], [even[1], short]]).padding == pytest.approx(4 / 16)


def test_layers_that_compute_no_padding_are_planned_without(plan, model, tiny_tokenizer):
    lean_layers(model)
    made = plan([GROUPS], before=GROUPS)
    assert (made.padding, made.tokens) == (0, 10)
    assert made.before_seconds == pytest.approx(SCORE)  # the rows alone are as much work as the rows together


def test_the_steps_of_a_plan_are_those_that_the_run_takes():
    groups = [Group((n,), ((2,),), n) for n in range(5)]
    steps = steps_of(groups, steps=6, batch_size=2, seed=3)
    assert [len(step) for step in steps] == [2, 2, 1, 2, 2, 1]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(g.index for step in epoch for g in step) == [0, 1, 2, 3, 4]


def test_the_time_is_what_was_measured_times_the_work(plan, tiny_tokenizer):
    # The measured micro-batch is the one step's whole, so its seconds are those of each step.
    assert plan([GROUPS] * 5).seconds == pytest.approx(5 * (TRAIN + UPDATE))
    assert plan([GROUPS] * 5, passes=3, forward_passes=2).seconds == pytest.approx(5 * (3 * (TRAIN + UPDATE) + 2 * SCORE))
    assert plan([GROUPS] * 5, learners=2).seconds == pytest.approx(5 * (2 * TRAIN + UPDATE))
    vocabulary = len(tiny_tokenizer)
    alone = (flops(1, 7, 5, vocabulary) + flops(1, 3, 2, vocabulary)) / flops(2, 7, 7, vocabulary)
    made = plan([GROUPS], before=GROUPS)
    assert made.before_seconds == pytest.approx(alone * SCORE)
    assert made.seconds == pytest.approx(TRAIN + UPDATE)


def test_the_memory_by_hand(plan, model, tiny_tokenizer):
    batch = collate(GROUPS, 0)
    kept = kept_for_backward(lambda: batch_logprobs(model, batch)[0], model)
    weights = sum(p.numel() for p in model.parameters())
    assert weights == LINEAR + 32 * len(tiny_tokenizer)  # the output layer is the embedding
    learning = 12 * weights + 2 * 4 * 32 * len(tiny_tokenizer) + 12 * CHUNK_TOKENS * len(tiny_tokenizer)
    expected = HELD + learning + LEAST_FRAGMENTS * kept
    assert plan().peak_memory_gib * GIB == pytest.approx(expected, abs=0.1 * kept + 1)
    assert (plan(resident_models=3).peak_memory_gib - plan().peak_memory_gib) * GIB == pytest.approx(8 * weights)


def test_fragments_are_what_a_pass_grew_by_over_what_it_keeps():
    memory = plan_module._Memory(state=0.0, fixed=1000.0, a_token=10.0, a_square=1.0, a_logit=6.0)
    area = Area((5, 5))  # keeps 10 · 10 + 50 · 1
    assert memory.fitted(300 + 6 * 4, area, learned=4, shapes=1).peak(area) == pytest.approx(1000 + 300)
    assert memory.fitted(0, area, learned=4, shapes=1).fragments == LEAST_FRAGMENTS
    assert memory.fitted(10**6, area, learned=4, shapes=9).fragments == MOST_FRAGMENTS
    # 1.4 of one shape, 1.9 of many; of two three quarters of the way.
    found = [memory.fitted(210, area, learned=0, shapes=shapes).fragments for shapes in (1, 2, 1000)]
    assert found == pytest.approx([1.4, 1.775, 1.9])


def test_measuring_keeps_neither_the_model_nor_what_it_computed(tiny_folder):
    def measured() -> weakref.ref[torch.Tensor]:
        model = load_causal_lm(tiny_folder("llama"), device=CPU).requires_grad_(True)
        assert kept_for_backward(lambda: batch_logprobs(model, collate(GROUPS, 0))[0], model) > 0
        return weakref.ref(model.get_input_embeddings().weight)

    weight = measured()
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("kind", ["all weights", "adapter", "reward"])
def test_what_backward_keeps_grows_with_the_rows_as_the_plan_says(tiny_folder, kind):
    causal = load_causal_lm(tiny_folder("llama"), device=CPU)
    model = causal.requires_grad_(True)
    if kind == "adapter":
        model = add_adapter(causal.requires_grad_(False), Adapter(rank=2), seed=0)
    if kind == "reward":
        model = with_scalar_head(causal, seed=0)

    def compute(part):
        batch = collate(part, 0)
        return end_scores(model, batch) if kind == "reward" else batch_logprobs(model, batch)[0]

    memory = plan_module._Memory.of(model, compute, 0, plan_module._Sizes.of(model), 1)
    for rows, length in ((3, 60), (1, 200), (4, 100)):
        third = length // 4
        for alike in (False, True):  # prompts that begin alike are computed once, but each row keeps its copy of their keys
            prompts = [(0 if alike else n, *range(1, length - 2 * third)) for n in range(rows)]
            groups = [Group(prompt, (tuple(range(third)),) * 2, 0) for prompt in prompts]
            area = area_of(groups, tree=True, apart=True, padded=False)
            kept = kept_for_backward(lambda groups=groups: compute(groups), model)
            assert (memory.peak(area) - memory.fixed - memory.state) / LEAST_FRAGMENTS == pytest.approx(
                kept, rel=0.2 if area.begun else 0.1
            )


def test_what_is_held_for_a_layer_that_is_computed_again_is_planned(tiny_folder):
    model = load_causal_lm(tiny_folder("llama"), device=CPU).requires_grad_(True)

    def kept() -> int:
        return kept_for_backward(lambda: batch_logprobs(model, collate(GROUPS, 0))[0], model)

    plain = kept()
    recompute_layers(model)
    least = kept()
    with one_layer_kept(model):
        most = kept()
    # Of the model's two layers each holds what it computes while it is its turn, and then gives it up.
    assert least < most < plain
    assert most - least == pytest.approx((plain - least) / 2, rel=0.05)
    assert kept() == least


def test_the_memory_planned_is_that_which_a_step_takes():
    config = LlamaConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, vocab_size=512, max_position_embeddings=512
    )
    model = LlamaForCausalLM(config).eval()
    groups = [Group((n, *range(1, 100)), (tuple(range(50)), tuple(range(3, 53))), n) for n in range(10)]

    def logprobs(part: list[Group]) -> torch.Tensor:
        return batch_logprobs(model, collate(part, 0))[0]

    def loss(part: list[Group]) -> Loss:
        values = logprobs(part)
        return Loss(values, torch.ones_like(values))

    made = make_plan("sft", model, Encoded(groups), [groups], logprobs, token_budget=2000)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    reset_peak_memory()
    settings = {"parameters": list(model.parameters()), "optimiser": optimiser, "lr": 1e-4, "max_grad_norm": 1.0, "where": "a step"}
    for _ in range(2):
        train_step([groups], count=len, loss=loss, **settings)
    real, held = peak_memory_gib(), held_memory(model) / GIB
    assert made.peak_memory_gib == pytest.approx(real, rel=0.15)
    assert real > held + 0.05  # else nothing was tested


def test_a_plan_that_does_not_fit_says_what_would(plan, model):
    rows = [Group(tuple(range(3, 203)), (tuple(range(100)),) * 2, n) for n in range(8)]
    rows = [replace(row, prompt=(n, *row.prompt[1:])) for n, row in enumerate(rows)]
    whole = plan([rows], token_budget=3200)
    assert whole.warnings() == [] == plan([rows], token_budget=3200, limit=None).warnings()
    fixed = plan([[GROUPS[1]]]).peak_memory_gib
    need = whole.peak_memory_gib - fixed

    def told(share: float, **changes) -> str:
        made = plan([rows], limit=int((fixed + share * need) * plan_module.SPARE * GIB), token_budget=3200, **changes)
        (warning,) = made.warnings()
        assert made.lines()[-1] == warning
        assert warning.startswith(f"This will not fit: about {made.peak_memory_gib:.1f} GiB are needed and ")
        return warning

    assert told(0.6).endswith(" free. Set token_budget=1600.")
    assert told(0.3).endswith(" free. Set token_budget=800.")
    assert told(0.07).endswith(" free. Set max_tokens=200, which leaves longer examples out.")
    assert told(-2.0).endswith(" free. Take a smaller model or a machine with more memory.")
    assert json.loads(json.dumps(whole.as_dict()))["steps"] == 1


def test_what_is_advised_does_fit(plan):
    rows = [Group((n, *range(3, 202)), (tuple(range(100)),) * 2, n) for n in range(8)]
    short = [Group((n, *range(3, 60)), (tuple(range(40)),) * 2, n) for n in range(8)]
    fixed, whole = (plan([part], token_budget=3200).peak_memory_gib for part in ([GROUPS[1]], rows))

    def limit(share: float) -> int:
        return int((fixed + share * (whole - fixed)) * plan_module.SPARE * GIB)

    for share in (0.6, 0.3, 0.15):
        budget = int(re.findall(r"Set token_budget=(\d+)\.", plan([rows], limit=limit(share), token_budget=3200).warnings()[0])[0])
        assert plan([rows], limit=limit(share), token_budget=budget).warnings() == []
    (longest,) = re.findall(r"Set max_tokens=(\d+),", plan([rows], limit=limit(0.07), token_budget=200).warnings()[0])
    left = [row for row in (*rows, *short) if row.num_tokens <= int(longest)]
    assert left == short
    assert plan([left], limit=limit(0.07), token_budget=200).warnings() == []


def test_weights_that_are_all_trained_give_way_to_an_adapter(plan, model):
    state = 12 * sum(p.numel() for p in model.parameters())
    made = plan([[GROUPS[1]]])
    tight = plan([[GROUPS[1]]], limit=int((made.peak_memory_gib * GIB - state / 2) * plan_module.SPARE))
    assert tight.warnings()[0].endswith("Train an adapter in place of all weights, or one of a lower rank.")


def test_a_copy_that_checkpoints_are_written_from_counts_where_one_is_made(plan, model, monkeypatch):
    copy = 12 * sum(p.numel() for p in model.parameters()) / GIB
    short, long = [GROUPS], [GROUPS] * 9
    alone = plan(long).peak_memory_gib
    assert TRAIN < plan_module.SAVE_EVERY_SECONDS < 9 * TRAIN
    assert plan(long, behind=True).peak_memory_gib == pytest.approx(alone + copy)
    assert plan(short, behind=True).peak_memory_gib == pytest.approx(plan(short).peak_memory_gib), "it ends before the first one"
    just = int((alone + copy / 2) * GIB * plan_module.SPARE)
    assert plan(long, behind=True, limit=just).peak_memory_gib == pytest.approx(alone), "then the run waits for its checkpoints"
    assert plan(long, behind=True, limit=just).warnings() == []


def test_the_plan_in_words(plan):
    lines = plan(before=GROUPS).lines()
    assert lines[0] == "sft: 2 examples; left out: 3 longer than 60 tokens"
    assert lines[1] == "10 tokens a pass, 29% padding, 2 prompt tokens saved by sharing"
    assert lines[2].startswith("1 step, ")
    assert lines[3] == "about 0.4 GiB of memory and 8 s, after 2 s for the reference"


def test_the_plan_is_told_against_what_the_run_took(plan):
    made = replace(plan(), seconds=100.0, peak_memory_gib=2.0)
    assert (
        made.against(seconds=110.0, peak_memory_gib=1.9)
        == "sft: took 1 min 50 s (planned 1 min 40 s, +10%) and 1.90 GiB (planned 2.00, -5%)"
    )


# What is measured.


def test_planning_leaves_the_model_as_it_was(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    make_plan("sft", model, Encoded(GROUPS), [GROUPS], lambda part: batch_logprobs(model, collate(part, 0))[0], token_budget=64)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_time_is_that_of_the_fastest_run_after_the_first(monkeypatch):
    clock = iter([10.0, 13.0, 20.0, 22.0, 30.0, 37.0])
    monkeypatch.setattr("preftune.training.measure.time.perf_counter", lambda: next(clock))
    calls = []
    assert timed(lambda: calls.append(1), CPU, times=3) == 2.0
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("seconds", "runs", "fastest"),
    [
        ([3.0, 2.0, 1.95, 1.94], 4, 1.94),  # two that are no faster
        ([3.0, 3.1, 1.0, 1.0, 1.0], 5, 1.0),  # one that another program slowed down does not end it
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], MOST_RUNS, 4.0),  # never settled
    ],
)
def test_timing_ends_with_two_runs_that_are_no_faster(monkeypatch, seconds, runs, fastest):
    clock = iter([time for took in seconds for time in (10.0, 10.0 + took)])
    monkeypatch.setattr("preftune.training.measure.time.perf_counter", lambda: next(clock))
    calls = []
    assert settled_seconds(lambda: calls.append(1), CPU) == pytest.approx(fastest)
    assert len(calls) == runs


def test_what_was_freed_is_not_held_and_not_of_the_next_peak():
    model = torch.nn.Linear(1, 1)
    before = held_memory(model)
    big = torch.ones(1 << 26)  # 256 MiB
    assert held_memory(model) >= before + (200 << 20)
    reset_peak_memory()
    with_it = peak_memory_gib()
    del big
    reset_peak_memory()
    assert held_memory(model) <= before + (50 << 20)
    if sys.platform == "linux":
        assert peak_memory_gib() < with_it - 0.2


def test_an_update_takes_longer_the_more_is_trained():
    assert update_seconds(1 << 26, CPU) == pytest.approx(16 * update_seconds(1 << 22, CPU), rel=0.9)


def test_what_is_kept_for_backward_is_counted_by_its_bytes_and_once():
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(5, 8)
    # A product keeps its input (the weights do not count); a square of the result keeps that; the same input again costs nothing.
    assert kept_for_backward(lambda: layer(x), layer) == 5 * 8 * 4
    assert kept_for_backward(lambda: layer(x) ** 2 + layer(x), layer) == 5 * 8 * 4 + 5 * 4 * 4


def test_this_machine_says_how_fast_it_is_and_how_much_it_holds():
    assert gemm_flops(CPU, size=128) > 1e7
    if resident_memory():
        limit = memory_limit(CPU)
        assert limit is not None
        assert limit > resident_memory() > 1 << 26
