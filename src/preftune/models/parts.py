"""Load a model spread over several processes, each reading from the files only the rows that it will hold: none ever holds the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from preftune.models.lean import lean_layers
from preftune.parallel.shard import fill_rows, shard

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def load_parts_of(
    auto_class: Any, folder: Path, device: torch.device, dtype: torch.dtype, *, trained: bool, **settings: Any
) -> PreTrainedModel | None:
    """Return a model of a Hugging Face folder spread over all processes, in eval mode; None where its files do not name its weights.

    auto_class: transformers' class that knows the kind of model. trained: whether the weights themselves are. settings: of its config.
    """
    files = _files(folder)
    if not files:
        return None
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **settings)
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype).eval()
    if not all(folder.joinpath(files.get(name, "")).is_file() for name, _ in _weights(model)):
        return None
    lean_layers(model)
    shard(model, device, trained=trained, read=lambda: _read(model, folder, files))
    return model


def _files(folder: Path) -> dict[str, str]:
    """Return which file holds each tensor."""
    if (folder / INDEX).exists():
        return dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
    if not (folder / WEIGHTS).exists():
        return {}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return dict.fromkeys(file.keys(), WEIGHTS)


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a model's files hold: its parameters, tied ones once, and the buffers that are saved."""
    saved = model.state_dict()
    yield from ((name, p) for name, p in model.named_parameters())
    yield from ((name, b) for name, b in model.named_buffers() if name in saved)


def _read(model: PreTrainedModel, folder: Path, files: dict[str, str]) -> None:
    model.tie_weights(recompute_mapping=False)  # memory was given to each name apart
    weights = dict(_weights(model))
    for file in sorted({files[name] for name in weights}):
        with safe_open(folder / file, framework="pt") as opened:
            for name in (name for name in weights if files[name] == file):
                fill_rows(weights[name], opened.get_slice(name))
    # What no file holds, such as the angles of rotary positions, a model makes itself; all else is there.
    for tensor in model.state_dict(keep_vars=True).values():
        setattr(tensor, "_is_hf_initialized", True)  # noqa: B010  # a mark of transformers that tensors do not declare
    model.initialize_weights()
