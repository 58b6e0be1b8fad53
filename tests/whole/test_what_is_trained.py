"""Whole stages with each kind of adapter, with chosen layers, and with layers computed again: what is trained learns, the rest stays."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from preftune.errors import ConfigError, DataError
from preftune.manifest import read_manifest
from preftune.models.adapter import Adapter
from preftune.models.load import load_causal_lm
from preftune.progress import Silent
from preftune.stages.sft import SFTConfig
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


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_the_weights_with_the_lowest_held_out_loss_are_kept_and_the_run_ends_early(toy, stage):
    # A learning rate far too high: after the first steps the held-out loss rises.
    run = toy.run(stage, epochs=6, lr=0.1, eval_every=1, patience=3, schedule="constant", warmup=0.0)
    rows, manifest = read_metrics(run), read_manifest(run)
    losses = [row["loss/held_out"] for row in rows]
    best = manifest["best"]
    assert best["held_out_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert losses.index(min(losses)) + 1 == best["step"]
    assert manifest["steps"] == len(rows) == best["step"] + 3 < 24
    assert not (run / "best.pt").exists()
    if stage == "reward":  # measured anew with the weights that were saved
        assert manifest["held_out"]["accuracy"] == pytest.approx(rows[best["step"] - 1]["accuracy/held_out"], abs=1e-6)


def test_measuring_changes_nothing_but_which_weights_are_kept(toy):
    plain, measured = (toy.run("dpo", epochs=1, **more) for more in ({}, {"eval_every": 2}))
    ours, theirs = ([row["loss/train"] for row in read_metrics(run)] for run in (plain, measured))
    assert ours == theirs
    assert [row["step"] for row in read_metrics(measured) if "loss/held_out" in row] == [2, 4]


def test_a_snapshot_that_holds_nothing_out_cannot_be_measured_on(toy, make_snapshot, tmp_path):
    rows = [{"prompt": f"Say {n}.", "chosen": "a a", "rejected": "b b"} for n in range(4)]
    data = make_snapshot(tmp_path / "all", rows, held_out=0.0)
    for stage in ("sft", "reward", "dpo"):
        with pytest.raises(DataError, match="nothing is held out to measure on, as eval_every asks"):
            toy.run(stage, data=str(data), eval_every=1)


def test_patience_without_measurements_is_refused():
    with pytest.raises(ValueError, match='"patience" counts measurements, and "eval_every" asks for none. Set eval_every too'):
        SFTConfig(data="d", model="m", patience=2)


def test_noise_on_the_embeddings_still_teaches_and_does_not_depend_on_the_cut(toy):
    small, large = (toy.run("sft", epochs=1, lr=1e-4, neftune_alpha=5.0, token_budget=budget) for budget in (64, 8192))
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (small, large))
    for name, expected in first.items():
        torch.testing.assert_close(second[name], expected, rtol=0, atol=1e-5)
    noisy, plain = ([row["loss/train"] for row in read_metrics(toy.run("sft", neftune_alpha=alpha))] for alpha in (5.0, None))
    assert noisy[0] != plain[0]
    assert noisy[-1] < noisy[0]


def test_a_plan_that_does_not_fit_is_met_by_computing_layers_again(toy, monkeypatch):
    monkeypatch.setattr("preftune.training.plan.memory_limit", lambda device: 1)
    said: list[str] = []

    class Listening(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    run = toy.run("sft", epochs=1, seed=77, progress=Listening())
    assert any(text.startswith("Layers are computed again in the backward pass, since ") for text in said)
    assert any(text.startswith("This will not fit: ") for text in said)
    said.clear()
    toy.run("sft", epochs=1, seed=77, gradient_checkpointing=False, progress=Listening())
    assert not any(text.startswith("Layers are computed again") for text in said)
    assert read_manifest(run)["steps"] == 4


@pytest.mark.parametrize("loss", ["kto", "bco", "aot"])
def test_every_kind_of_data_and_moment_is_measured_on_the_held_out_side(toy, loss):
    run = toy.run("dpo", loss=loss, epochs=1, eval_every=2)
    measured = [row["loss/held_out"] for row in read_metrics(run) if "loss/held_out" in row]
    assert len(measured) >= 2
    assert min(measured) == pytest.approx(read_manifest(run)["best"]["held_out_loss"], abs=1e-6)
