"""AdamW's first step by hand, decay where it belongs, and a learning rate that rises and falls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preftune.training.optim import adamw, lr_at


def test_the_first_step_with_a_tiny_gradient_is_what_torchs_eps_makes_it():
    # Gradient 1e-6, eps 1e-5, lr 1: 1e-6 / (1e-6 + 1e-5). Bias correction inside the eps term, as in TensorFlow, gives 0.003152.
    model = nn.Linear(1, 1, bias=False).double()
    optimiser = adamw(model, eps=1e-5)
    before = model.weight.item()
    model.weight.grad = torch.full_like(model.weight, 1e-6)
    optimiser.param_groups[0]["lr"] = 1.0
    optimiser.step()
    assert before - model.weight.item() == pytest.approx(0.090909, abs=1e-6)


def test_the_steps_are_those_of_torchs_plain_loop():
    models = [nn.Linear(4, 3, dtype=torch.float64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, plain = adamw(models[0], weight_decay=0.1), torch.optim.AdamW(models[1].parameters(), weight_decay=0.1, foreach=False)
    plain.param_groups[0]["params"].pop()  # the bias, which does not decay
    plain.add_param_group({"params": [models[1].bias], "weight_decay": 0.0})
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for optimiser in (ours, plain):
            for group in optimiser.param_groups:
                group["lr"] = 0.01
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            q.grad = p.grad.clone()
        ours.step()
        plain.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = adamw(model, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    optimiser.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.5 if parameter.dim() > 1 else 1))


def test_the_decayed_groups_are_those_of_transformers(tiny_folder):
    from transformers import AutoModelForCausalLM
    from transformers.trainer_pt_utils import get_parameter_names

    for family in ("llama", "gpt2"):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder(family))
        norms = [type(m) for m in model.modules() if "norm" in type(m).__name__.lower()]
        theirs = set(get_parameter_names(model, norms, [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]))
        names = {parameter: name for name, parameter in model.named_parameters()}
        decayed = adamw(model, weight_decay=0.1).param_groups[0]
        assert decayed["weight_decay"] == 0.1
        assert {names[p] for p in decayed["params"]} == theirs & set(names.values())


def test_frozen_parameters_are_not_in_the_optimiser_and_the_learning_rate_is_the_steps_to_set():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].requires_grad_(False)
    optimiser = adamw(model)
    assert [p is model[1].weight for group in optimiser.param_groups for p in group["params"]] == [True]
    assert all(group["lr"] == 0 for group in optimiser.param_groups)


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (10, 0.2, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (4, 0.0, [1, 1, 2 / 3, 1 / 3]),
        (1, 0.1, [1]),
        (2, 0.9, [0.5, 1]),
    ],
)
def test_the_learning_rate_by_hand(total, warmup, expected):
    assert [lr_at(step, total=total, lr=1.0, warmup=warmup) for step in range(total)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),  # (1 + cos 45°, 90°, 135°) / 2
    ],
)
def test_each_schedule_by_hand(schedule, expected):
    rates = [lr_at(step, total=6, lr=1.0, warmup=1 / 3, schedule=schedule) for step in range(6)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_the_schedules_are_those_of_transformers_but_for_their_warm_up_of_one_step_more():
    # Theirs begins at 0, a step without learning; ours one step further. After the warm-up they are the same.
    from transformers import get_scheduler

    for schedule in ("linear", "cosine"):
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.3)
        theirs = get_scheduler(schedule, optimiser, num_warmup_steps=3, num_training_steps=20)
        for step in range(20):
            if step >= 3:
                assert lr_at(step, total=20, lr=0.3, warmup=0.15, schedule=schedule) == pytest.approx(theirs.get_last_lr()[0])
            optimiser.step()
            theirs.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 7, 500])
def test_the_learning_rate_is_never_nothing_and_never_above_its_peak(total, warmup, schedule):
    rates = [lr_at(step, total=total, lr=3e-4, warmup=warmup, schedule=schedule) for step in range(total)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(3e-4)
    peak = rates.index(max(rates))
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
