"""Write the weights of a model that is spread over processes: gathered a matrix at a time, so that no process holds more of it whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from preftune.manifest import write_json
from preftune.parallel import world
from preftune.parallel.shard import settle, whole

FILE_BYTES = 4 << 30  # of one file at most
# As safetensors' own format names them.
TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_gathered(model: PreTrainedModel, folder: Path) -> None:
    """Write a sharded model's weights and configs as transformers' save_pretrained does. All processes call it; the first one writes."""
    settle(model)
    tied = model.all_tied_weights_keys
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    files = files_of({name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}, most=FILE_BYTES)
    world.from_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    for file, names in files.items():
        _write_file(folder / file, {name: tensors[name] for name in names})
    world.from_main(lambda: _write_configs(model, folder, files))


def files_of(sizes: Mapping[str, int], *, most: int) -> dict[str, list[str]]:
    """Return which tensors go into which file, in their order, each file of at most so many bytes; names as transformers gives them."""
    parts: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if parts[-1] and held + size > most:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{number:05d}-of-{len(parts):05d}.safetensors": names for number, names in enumerate(parts, start=1)}


def _write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # safetensors' own functions want all tensors of a file at once. Its format: the header's length, the header, the tensors in turn.
    header = _header(tensors)
    world.from_main(lambda: path.write_bytes(len(header).to_bytes(8, "little") + header))
    for tensor in tensors.values():
        gathered = whole(tensor)

        def write(values: Tensor = gathered) -> None:
            with path.open("ab") as file:
                file.write(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)

        world.from_main(write)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # so that tensors lie where a machine reads them fastest


def _write_configs(model: PreTrainedModel, folder: Path, files: Mapping[str, list[str]]) -> None:
    # What transformers' save_pretrained writes beside the weights.
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if len(files) > 1:
        size = sum((folder / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": size}, "weight_map": {name: file for file, names in files.items() for name in names}}
        write_json(folder / "model.safetensors.index.json", index)
