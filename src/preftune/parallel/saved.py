"""Tensors that are spread over processes, saved by each its part, and put back in place on any number of processes.

By torch.distributed.checkpoint: a folder with a file of each process and an index that says which rows lie where.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from preftune.errors import PreftuneError
from preftune.manifest import disk_errors, replace_folder
from preftune.parallel import world

REST = "rest.pt"  # what is alike in all processes
AGAIN = "Delete it to start this run anew."


def save_parts(folder: Path, tensors: Mapping[str, Tensor], rest: Any) -> None:
    """Write tensors and the rest (what torch.save can write) as one folder, whole or not at all. All processes call it."""
    temporary = folder.with_name(f".{folder.name}.tmp-parts")

    def prepare() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def complete() -> None:
        with (temporary / REST).open("wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())
        replace_folder(temporary, folder)

    with disk_errors(folder):
        world.from_main(prepare)
        save(dict(tensors), storage_writer=FileSystemWriter(temporary))
        world.from_main(complete)


def read_rest(folder: Path) -> Any:
    """Return the rest of what was saved, once every part is found there. Raises PreftuneError where one is missing or cut off."""
    try:
        stored = FileSystemReader(folder).read_metadata().storage_data
        rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    except Exception as error:
        raise PreftuneError(f"the checkpoint cannot be read ({type(error).__name__}: {error})", str(folder), AGAIN) from error
    ends: dict[str, int] = {}
    for info in (stored or {}).values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        if not path.exists() or path.stat().st_size < end:
            wrong = "is missing" if not path.exists() else f"is cut off at {path.stat().st_size:,} of {end:,} bytes"
            raise PreftuneError(f"the checkpoint's part {name} {wrong}", str(folder), f"Bring it back, or: {AGAIN[0].lower()}{AGAIN[1:]}")
    return rest


def shapes_of(folder: Path) -> dict[str, Any]:
    """Return what is known of each tensor that was saved there: `size` and `properties.dtype`, by name."""
    return dict(FileSystemReader(folder).read_metadata().state_dict_metadata)


def load_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read saved values into these tensors, each process its own parts. Every name has to have been saved."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant then
        load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=world.size() == 1)
