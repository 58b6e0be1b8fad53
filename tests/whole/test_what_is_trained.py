"""Whole stages with each kind of adapter, with chosen layers, and with layers computed again: what is trained learns, the rest stays."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from preftune.errors import ConfigError
from preftune.manifest import read_manifest
from preftune.models.adapter import Adapter
from preftune.models.load import load_causal_lm
from preftune.training.loop import read_metrics


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_each_kind_of_adapter_learns_the_preference_and_is_read_back(toy, kind):
    run = toy.run("dpo", adapter=Adapter(kind=kind, rank=8))
    rows = read_metrics(run)
    assert rows[0]["loss/train"] == pytest.approx(0.693147, abs=1e-4)  # policy and reference are the same
    assert rows[-1]["accuracy/train"] > 0.9
    said = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (said["use_dora"], said["use_rslora"]) == (kind == "dora", kind == "rslora")
    tuned, base = (load_causal_lm(folder).state_dict() for folder in (run, toy.base))
    assert any(not torch.equal(tuned[name], base[name]) for name in base)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_chosen_weights_alone_are_changed(toy, stage):
    run = toy.run(stage, whole=True, epochs=1, train_only=["layers.1.mlp", "model.norm"])
    before, after = (load_file(folder / "model.safetensors") for folder in (toy.base, run / "model"))
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert changed == {"model.norm.weight", *(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))}
    head = sum(p.numel() for name, p in after.items() if name.startswith("score"))
    assert read_manifest(run)["trained_parameters"] == sum(before[name].numel() for name in changed) + head


def test_an_adapter_on_chosen_layers_has_weights_there_alone(toy):
    run = toy.run("dpo", epochs=1, train_only=["layers.0.self_attn"])
    names = load_file(run / "adapter" / "adapter_model.safetensors").keys()
    assert names
    assert all(".layers.0.self_attn." in name for name in names)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(toy):
    with pytest.raises(ConfigError, match=r'key "train_only": "layers\.9" fits nothing in this model\. It has: .*model\.layers\.\*\.mlp'):
        toy.run("sft", whole=True, train_only=["layers.9"])


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_layers_computed_again_give_the_same_run(toy, stage, whole):
    place = "adapter/adapter_model.safetensors" if not whole and stage != "reward" else "model/model.safetensors"
    # The toy's prompts begin alike, which rows computed again do not share: another order of sums, hence not the last bits.
    plain, again = (load_file(toy.run(stage, whole=whole, epochs=1, lr=1e-4, gradient_checkpointing=on) / place) for on in (False, True))
    assert plain.keys() == again.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(again[name], expected, rtol=0, atol=1e-5)
