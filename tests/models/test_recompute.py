"""Layers computed again in backward: the same gradient to the last bit, less kept, no family forgotten."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preftune.data.batches import Group, collate
from preftune.errors import ConfigError
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.load import batch_logprobs, load_causal_lm
from preftune.models.recompute import recompute_layers

CPU = torch.device("cpu")
BEGINNING = tuple(range(1, 20))  # long enough to be computed apart
GROUPS = [Group((*BEGINNING, 21, 22), ((5, 6, 7), (8, 9)), 0), Group((*BEGINNING, 23), ((4, 5, 6), (7,)), 1)]
FAMILIES = ["llama", "qwen3", "gemma3_text", "mistral", "gpt2", "phi"]


def gradients(model: nn.Module, *, apart: bool) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Return the log-probs, the gradients, and how many numbers were kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs, _ = batch_logprobs(model, collate(GROUPS, 0, apart=apart))
    logprobs.sum().backward()
    return logprobs.detach(), [p.grad for p in model.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_same_to_the_last_bit_and_less_is_kept(tiny_folder, family, adapter):
    results = []
    for again in (False, True):
        model = load_causal_lm(tiny_folder(family), device=CPU)
        if adapter:
            model = add_adapter(model, Adapter(rank=2), seed=0)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.constant_(parameter, 0.01)
        if again:
            recompute_layers(model)
        results.append(gradients(model, apart=False))
    (plain, expected, kept), (logprobs, found, kept_less) = results
    assert torch.equal(logprobs, plain)
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))
    assert kept_less < kept / 1.5


def test_what_begins_apart_in_a_cache_is_computed_as_before(tiny_folder):
    results = []
    for again in (False, True):
        model = load_causal_lm(tiny_folder("llama"), device=CPU)
        if again:
            recompute_layers(model)
        results.append(gradients(model, apart=True))
    (plain, expected, _), (logprobs, found, _) = results
    assert torch.equal(logprobs, plain)
    assert all(map(torch.equal, found, expected))


def test_a_model_that_does_not_say_what_its_layers_are_is_refused():
    with pytest.raises(ConfigError, match=r'key "gradient_checkpointing": Sequential does not say what its layers are. Set it to false.'):
        recompute_layers(nn.Sequential(nn.Linear(2, 2)))
