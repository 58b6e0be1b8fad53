"""What a plan says is counted, by hand, on two groups and the tiny Llama."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from preftune.data.batches import Encoded, Group
from preftune.models.load import load_causal_lm
from preftune.training import plan as plan_module
from preftune.training.plan import gemm_flops, make_plan

# A prompt of 2 with answers of 3 and 2 (7 tokens); a prompt of 1 with an answer of 2 (3 tokens).
GROUPS = [Group((10, 11), ((20, 21, 2), (30, 2)), 0), Group((12,), ((40, 2),), 1)]
SPEED = 1e6  # floating-point operations a second, in place of the measured ones


@pytest.fixture
def plan(tiny_folder, monkeypatch):
    monkeypatch.setattr(plan_module, "gemm_flops", lambda device: SPEED / plan_module.EFFICIENCY)
    model = load_causal_lm(tiny_folder("llama"), device=torch.device("cpu"))

    def make(**changes):
        settings = {"steps": 5, "token_budget": 14, "passes": 1.0, "forward_passes": 0.0, "trained_parameters": 100}
        return make_plan("sft", model, Encoded(GROUPS, Counter({"longer than 60 tokens": 3})), **{**settings, **changes})

    return make


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
    assert (made.examples, made.tokens, made.prompt_tokens_saved, made.steps) == (2, 10, 2, 5)
    assert made.padding == pytest.approx(padding)
    assert made.left_out == {"longer than 60 tokens": 3}


def test_the_time_by_hand(plan, tiny_tokenizer):
    # The tiny Llama: hidden 32, inner 64, keys and values 16 wide, two layers, two norms each and one at the end.
    linear = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    forward = 2 * linear * 10 + 2 * 32 * len(tiny_tokenizer) * 7  # 10 tokens through the layers, 7 learned ones through the head
    assert plan(passes=0.0, forward_passes=1.0).seconds == pytest.approx(forward / SPEED)
    assert plan(passes=2.0, forward_passes=3.0).seconds == pytest.approx((3 + 2 * 2.3) * forward / SPEED)  # a small adapter
    assert plan(passes=2.0, trained_parameters=linear).seconds == pytest.approx(2 * 3.3 * forward / SPEED)  # all weights


def test_more_models_and_more_trained_weights_take_more_memory(plan):
    small = plan().peak_memory_gib
    assert plan(trained_parameters=10**9).peak_memory_gib - small == pytest.approx(12e9 / 2**30, rel=1e-3)  # gradient and two moments
    assert plan(resident_models=3).peak_memory_gib > small


def test_the_plan_in_words(plan):
    lines = plan().lines()
    assert lines[0] == "sft: 2 examples; left out: 3 longer than 60 tokens"
    assert lines[1] == "10 tokens a pass, 29% padding, 2 prompt tokens saved by sharing"
    assert lines[2] == "5 steps, 100 trained parameters"
    assert plan().as_dict()["tokens"] == 10


def test_the_speed_of_this_machine_is_measured():
    assert gemm_flops(torch.device("cpu"), size=128, seconds=0.02) > 1e7
