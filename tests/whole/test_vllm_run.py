"""A whole run whose samples a server draws is the run whose samples are drawn here."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.vllm_stand_in import StandIn, standing_in


def test_rloo_by_servers_learns_what_rloo_does_in_one_process(toy, tmp_path):
    settings = {"steps": 3, "prompts_per_step": 4}
    here = toy.run("rloo", **settings)
    with standing_in(StandIn(toy.base)) as urls:
        rollout = {"backend": "vllm", "urls": urls, "weights": str(tmp_path / "shared"), "tolerance": 1e-4}
        there = toy.run("rloo", rollout=rollout, **settings)
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (here, there))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-3)
    rows = [json.loads(line) for line in (there / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["rollout/servers"] for row in rows] == [1.0] * 3
    assert max(row["policy/sampler_gap"] for row in rows) == pytest.approx(0, abs=1e-4)
    assert list((tmp_path / "shared").iterdir()) == []
