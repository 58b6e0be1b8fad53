"""The weights of a spread model are written matrix by matrix, in the format that every reader of safetensors knows."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.models import gathered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most", [gathered.FILE_BYTES, 20_000])
def test_others_read_what_is_written(tiny_folder, tmp_path, monkeypatch, dtype, most):
    monkeypatch.setattr(gathered, "FILE_BYTES", most)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=dtype)
    model.register_buffer("count", torch.tensor(3))  # a number by itself, and no float
    gathered.write_gathered(model, tmp_path / "model")
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(files) == 1 if most > 20_000 else len(files) > 2
    for file in files:
        start = int.from_bytes((tmp_path / "model" / file).read_bytes()[:8], "little")
        assert start % 8 == 0
    read, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto", output_loading_info=True)
    assert read.dtype == dtype
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == {"count"}
    for name, weight in model.named_parameters():
        assert weight.equal(read.get_parameter(name)), name
    if len(files) > 1:
        index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert set(index["weight_map"].values()) == set(files)
