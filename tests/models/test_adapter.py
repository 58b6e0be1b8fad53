"""The kinds of adapter against peft's own and their formulas; what is trained is what the patterns say and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

from preftune.data.batches import Group, collate
from preftune.errors import ConfigError, ModelError
from preftune.models.adapter import Adapter, add_adapter, freeze_all_but, matching, merge_in_place, trainable
from preftune.models.load import batch_logprobs, load_causal_lm
from preftune.models.lora import LoraLinear
from preftune.models.quantised import load_in_4_bits
from preftune.stages.reward import RewardConfig

CPU = torch.device("cpu")
GROUPS = [Group((1, 2, 3, 4), ((5, 6, 7), (8, 9)), 0), Group((2, 3), ((4, 5, 6), (7,)), 1)]
NAMES = [f"model.layers.{n}.{part}.weight" for n in (0, 1, 10) for part in ("mlp.up_proj", "self_attn.q_proj", "input_layernorm")]


def logprobs(model: nn.Module) -> torch.Tensor:
    return batch_logprobs(model, collate(GROUPS, 0))[0]


def adapted(folder, kind: str = "lora", **settings):
    return add_adapter(load_causal_lm(folder, device=CPU), Adapter(kind=kind, rank=4, alpha=8.0, **settings), seed=0)


def move(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_fresh_adapter_changes_nothing_and_a_moved_one_merges_into_the_same(tiny_folder, kind):
    folder = tiny_folder("llama")
    plain = logprobs(load_causal_lm(folder, device=CPU))
    model = adapted(folder, kind)
    torch.testing.assert_close(logprobs(model), plain, rtol=0, atol=1e-5)
    move(model)
    moved = logprobs(model).detach()
    assert (moved - plain).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logprobs(model), plain)
    torch.testing.assert_close(logprobs(merge_in_place(model)), moved, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_layer_computes_the_formula_of_its_paper(tiny_folder, kind):
    model = adapted(tiny_folder("llama"), kind)
    move(model)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    weight, a, b = (p.detach().double() for p in (layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight))
    scaling = 8 / math.sqrt(4) if kind == "rslora" else 8 / 4
    whole = weight + scaling * b @ a
    if kind == "dora":  # m (W + BA) / its length, row by row; m is the length of W at first
        whole = weight.norm(dim=1, keepdim=True) * whole / whole.norm(dim=1, keepdim=True)
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(x).double(), x.double() @ whole.T, rtol=1e-5, atol=1e-5)


def test_dora_takes_pefts_own_layer_and_the_plain_kinds_take_ours(tiny_folder):
    kinds = {kind: adapted(tiny_folder("llama"), kind).base_model.model.model.layers[0].mlp.up_proj for kind in ("lora", "rslora", "dora")}
    assert {kind: type(layer) for kind, layer in kinds.items()} == {"lora": LoraLinear, "rslora": LoraLinear, "dora": Linear}


@pytest.mark.parametrize(
    ("patterns", "fitting"),
    [
        (["layers.1"], NAMES[3:6]),
        (["layers.[01].mlp"], [NAMES[0], NAMES[3]]),
        (["q_proj", "*norm"], [n for n in NAMES if "q_proj" in n or "norm" in n]),
        (["layers.1?.mlp"], [NAMES[6]]),
        (["*"], NAMES),
    ],
)
def test_a_pattern_fits_whole_parts_of_a_name(patterns, fitting):
    assert matching(NAMES, patterns) == fitting


def test_a_pattern_that_fits_nothing_is_refused_with_what_there_is():
    with pytest.raises(ConfigError) as refused:
        matching(NAMES, ["mlp", "layer.1"])
    assert str(refused.value) == (
        'key "train_only": "layer.1" fits nothing in this model. It has: model.layers.*.input_layernorm.weight, '
        "model.layers.*.mlp.up_proj.weight, model.layers.*.self_attn.q_proj.weight."
    )


def test_an_adapter_on_chosen_layers_is_in_these_alone(tiny_folder):
    model = add_adapter(load_causal_lm(tiny_folder("llama"), device=CPU), Adapter(rank=4), seed=0, only=["layers.1.mlp"])
    places = {name.split(".lora_")[0] for name in trainable(model)}
    assert places == {f"base_model.model.model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")}
    with pytest.raises(ConfigError, match='"layers.7" fits nothing in this model. It has: model.layers.*.mlp.down_proj, model'):
        add_adapter(load_causal_lm(tiny_folder("llama"), device=CPU), Adapter(rank=4), seed=0, only=["layers.7"])


def test_chosen_weights_are_those_that_are_trained(tiny_folder):
    model = load_causal_lm(tiny_folder("gpt2"), device=CPU)
    freeze_all_but(model, ["h.1.mlp", "ln_f"])
    expected = {f"transformer.h.1.mlp.{part}.{kind}" for part in ("c_fc", "c_proj") for kind in ("weight", "bias")}
    assert trainable(model).keys() == {*expected, "transformer.ln_f.weight", "transformer.ln_f.bias"}


def test_qlora_without_an_nvidia_gpu_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError) as refused:
        load_in_4_bits(tmp_path / "none", device=CPU)
    assert str(refused.value) == (
        'key "adapter.kind": qlora holds the base in 4 bits, which needs an NVIDIA GPU, and this is cpu. Take lora.'
    )


def test_qlora_asks_for_bitsandbytes_and_for_whole_weights(tmp_path, monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr("preftune.models.quantised.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs bitsandbytes, which is not installed. pip install "preftune\[qlora\]"'):
        load_in_4_bits(tmp_path, device=cuda)
    monkeypatch.setattr("preftune.models.quantised.find_spec", lambda name: name)
    with pytest.raises(ModelError, match="this is no Hugging Face folder; qlora quantises whole weights") as refused:
        load_in_4_bits(tmp_path, device=cuda)
    assert refused.value.exit_code == 2


def test_a_reward_model_takes_no_qlora():
    with pytest.raises(ValueError, match="a reward model is saved merged, which 4 bits would round"):
        RewardConfig(data="d", model="m", adapter=Adapter(kind="qlora"))
