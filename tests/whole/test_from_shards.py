"""Training from shards: what does not lie in memory teaches the same, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from preftune.data import rows, snapshot
from preftune.data.rows import Rows
from preftune.data.snapshot import load_snapshot
from preftune.data.snapshot_files import StoredPart
from preftune.manifest import read_manifest
from preftune.stages import common, reward
from preftune.training import plan, reference
from preftune.training.loop import read_metrics

STAGES: dict[str, dict[str, Any]] = {
    "sft": {"eval_every": 3},
    "dpo": {"eval_every": 3},
    "reward": {},
}


def learned(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], dict[str, Any]]:
    """Return the weights, the metrics of each step but for times and memory, and what the manifest says of the data."""
    (weights,) = [path for path in run.glob("*/*.safetensors") if path.parent.name in ("adapter", "model")][:1]
    steps = [{k: v for k, v in row.items() if not k.startswith(("speed", "seconds", "memory"))} for row in read_metrics(run)]
    return load_file(weights), steps, read_manifest(run)["data"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_from_shards_is_the_run_from_memory(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    settings = {"epochs": 1, **STAGES[stage]}
    expected = learned(toy.run(stage, **settings))
    elsewhere = toy.copy(tmp_path)
    for module in (rows, plan, reference, reward):
        monkeypatch.setattr(module, "IN_MEMORY", 5)
    opened: list[Any] = []

    def noted(path: Path) -> Any:
        opened.append(load_snapshot(path))
        return opened[-1]

    monkeypatch.setattr(common, "load_snapshot", noted)
    weights, steps, data = learned(elsewhere.run(stage, **settings))
    assert isinstance(opened[0].train, StoredPart)
    assert steps == expected[1]
    assert data == expected[2]
    assert weights.keys() == expected[0].keys()
    assert all(torch.equal(weights[name], value) for name, value in expected[0].items())


def test_examples_of_a_large_snapshot_lie_in_a_file(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(load_snapshot(toy.data).chosen_as_demonstrations())
    monkeypatch.setattr(rows, "IN_MEMORY", 5)
    there = snapshot.load_snapshot(toy.data)
    found = there.chosen_as_demonstrations()
    assert isinstance(found, Rows)
    assert found._file is not None
    assert list(found) == expected
    assert len(expected) == len({pair.messages for pair in there.train})
