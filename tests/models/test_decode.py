"""Decoding by fused products of copied weights: the log-probs are the model's own, and the model stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from preftune.data.batches import Group, collate
from preftune.errors import ModelError
from preftune.models import decode
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.decode import packed_bytes
from preftune.models.lean import lean_layers
from preftune.models.load import batch_logprobs, load_causal_lm
from preftune.rollout.generate import generate

CPU = torch.device("cpu")
PROMPTS = [tuple(range(5, 18)), tuple(range(40, 44)), (7,)]


def sample(model, **changes):
    settings = {"samples_per_prompt": 2, "max_new_tokens": 12, "temperature": 0.8, "seed": 5, "stop_ids": frozenset({-1}), "pad_id": 0}
    return generate(model, PROMPTS, **{**settings, **changes})


def loaded(tiny_folder, family: str = "llama"):
    if family == "qwen2":  # it alone has biases
        with torch.random.fork_rng():
            torch.manual_seed(3)
            shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            model = Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)).eval()
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        lean_layers(model)
        return model
    return load_causal_lm(tiny_folder(family), device=CPU)


def adapted(model, adapter: Adapter, **changes) -> nn.Module:
    """The model with an adapter that is not nothing any more."""
    wrapped = add_adapter(model, adapter, seed=1, **changes)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.2, generator=generator)
    return wrapped


def insist_on_the_trainers_logprobs(model, samples) -> None:
    groups = [Group(prompt, tuple(s.ids for s in samples if s.prompt_index == i), i) for i, prompt in enumerate(PROMPTS)]
    batch = collate(groups, 0)
    with torch.no_grad():
        expected, _ = batch_logprobs(model, batch, temperature=0.8)
    for which, one in enumerate(samples):
        assert list(one.logprobs) == pytest.approx(expected[batch.sequence == which].tolist(), abs=1e-5, rel=1e-5)


@pytest.fixture
def decoders(monkeypatch) -> list[decode.Decoder]:
    """The decoders that are made."""
    made: list[decode.Decoder] = []
    begin = decode.Decoder.__init__

    def counted(self, model) -> None:
        made.append(self)
        begin(self, model)

    monkeypatch.setattr(decode.Decoder, "__init__", counted)
    return made


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("adapter", [None, Adapter(rank=2), Adapter(kind="rslora", rank=3), Adapter(rank=2, modules=("v_proj", "up_proj"))])
def test_what_is_sampled_has_the_log_probs_of_the_training_pass(tiny_folder, monkeypatch, decoders, family, adapter, packs):
    if not packs:
        monkeypatch.setattr(decode, "packing_works", lambda: False)
    model = loaded(tiny_folder, family)
    if adapter is not None:
        model = adapted(model, adapter)
    insist_on_the_trainers_logprobs(model, sample(model))
    assert len(decoders) == 1


def test_weights_in_the_processors_own_order_and_plain_ones_give_the_same_texts(tiny_folder, monkeypatch):
    model = adapted(loaded(tiny_folder), Adapter(rank=2))
    packed = sample(model)
    monkeypatch.setattr(decode, "packing_works", lambda: False)
    assert [s.ids for s in packed] == [s.ids for s in sample(model)]


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "phi"])
def test_layers_of_another_kind_are_read_as_transformers_has_them(tiny_folder, decoders, family):
    model = loaded(tiny_folder, family)
    assert packed_bytes(model) is None
    insist_on_the_trainers_logprobs(model, sample(model))
    assert not decoders


def _hooked(model) -> nn.Module:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    return model


def _windowed(model) -> nn.Module:
    model.config.layer_types = ["full_attention", "sliding_attention"]
    return model


def _headed(model) -> nn.Module:
    model.lm_head = nn.Sequential(model.lm_head)
    return model


@pytest.mark.parametrize(
    "changed",
    [
        _hooked,
        _windowed,
        _headed,
        lambda model: adapted(model, Adapter(kind="dora", rank=2)),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.train(),
    ],
    ids=["hook", "window", "head", "dora", "bfloat16", "dropout"],
)
def test_a_model_that_does_something_more_is_not_read_by_a_decoder(tiny_folder, changed):
    assert packed_bytes(loaded(tiny_folder)) is not None
    assert packed_bytes(changed(loaded(tiny_folder))) is None


def test_a_model_whose_copy_takes_more_than_half_of_the_budget_is_read_in_place(tiny_folder, decoders, monkeypatch):
    model = loaded(tiny_folder)
    monkeypatch.setattr("preftune.rollout.stream.CACHE_BYTES", 2 * packed_bytes(model) - 1)
    insist_on_the_trainers_logprobs(model, sample(model))
    assert not decoders


def test_sampling_leaves_every_weight_as_it_was_to_the_last_bit_even_where_it_fails(tiny_folder):
    model = adapted(loaded(tiny_folder), Adapter(rank=2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    first = sample(model)

    def fail(n: int) -> None:
        raise ModelError("it fails", "here", "Nothing.")

    with pytest.raises(ModelError):
        sample(model, on_done=fail)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert grads == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert sample(model) == first


def test_what_was_learned_since_the_last_sampling_counts(tiny_folder):
    model = adapted(loaded(tiny_folder), Adapter(rank=2))
    before = sample(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.mul_(3.0)
    after = sample(model)
    assert [s.ids for s in before] != [s.ids for s in after]
    insist_on_the_trainers_logprobs(model, after)
