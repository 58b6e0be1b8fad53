"""An adapter at another strength: the ends are the base and the run to the last bit, and all between lies on the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from preftune.errors import ModelError
from preftune.models.adapter import Adapter, add_adapter, merged
from preftune.models.scale import SETTINGS, write_scaled

FAMILIES = ["llama", "gpt2"]  # linear layers, and the transposed ones of GPT-2


def weights(base: Path, adapter: Path | None) -> dict[str, Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = merged(model, adapter)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return (base, adapter): an adapter with random matrices, so that it changes every layer it sits on."""
    base = tiny_folder(request.param)
    model = add_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), Adapter(rank=4, alpha=6.0), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model.save_pretrained(folder)
    return base, folder


def test_strength_0_is_the_base_to_the_last_bit(trained: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = trained
    write_scaled(adapter, tmp_path / "off", strength=0.0)
    before, off = weights(base, None), weights(base, tmp_path / "off")
    assert before.keys() == off.keys()
    assert all(torch.equal(before[name], off[name]) for name in before)


def test_strength_1_is_the_trained_model_to_the_last_bit(trained: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = trained
    write_scaled(adapter, tmp_path / "whole", strength=1.0)
    tuned, whole = weights(base, adapter), weights(base, tmp_path / "whole")
    assert all(torch.equal(tuned[name], whole[name]) for name in tuned)
    assert any(not torch.equal(tuned[name], value) for name, value in weights(base, None).items())


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.5, -1.0])
def test_every_weight_lies_on_the_line_from_the_base_through_the_run(trained: tuple[Path, Path], tmp_path: Path, strength: float) -> None:
    base, adapter = trained
    write_scaled(adapter, tmp_path / "part", strength=strength)
    before, tuned, part = weights(base, None), weights(base, adapter), weights(base, tmp_path / "part")
    for name in before:
        expected = before[name].double() + strength * (tuned[name].double() - before[name].double())
        torch.testing.assert_close(part[name].double(), expected, rtol=0, atol=1e-6)


def test_alphas_of_single_layers_are_scaled_too(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, adapter = trained
    settings = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
    source = tmp_path / "source"
    write_scaled(adapter, source, strength=1.0)
    (source / SETTINGS).write_text(json.dumps(settings | {"alpha_pattern": {"q_proj": 8.0}}), encoding="utf-8")
    write_scaled(source, tmp_path / "half", strength=0.5)
    half = json.loads((tmp_path / "half" / SETTINGS).read_text(encoding="utf-8"))
    assert (half["lora_alpha"], half["alpha_pattern"]) == (3.0, {"q_proj": 4.0})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "it is a DoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, r"modules that were trained whole \(lm_head\)"),
        ({"bias": "all"}, "biases that were trained whole"),
        ({"peft_type": "IA3"}, "it is of the kind IA3"),
    ],
)
def test_what_is_not_linear_in_alpha_is_refused_with_the_reason(
    trained: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    _, adapter = trained
    source = tmp_path / "source"
    write_scaled(adapter, source, strength=1.0)
    settings = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
    (source / SETTINGS).write_text(json.dumps(settings | change), encoding="utf-8")
    with pytest.raises(ModelError, match=reason):
        write_scaled(source, tmp_path / "target", strength=0.5)
    assert not (tmp_path / "target").exists()
