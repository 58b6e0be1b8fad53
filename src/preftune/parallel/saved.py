"""Tensors that are spread over processes, saved by each its part, and put back in place on any number of processes.

By torch.distributed.checkpoint: a folder with a file of each process and an index that says which rows lie where.
"""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from preftune.errors import PreftuneError
from preftune.manifest import disk_errors, is_of_the_disk, replace_folder
from preftune.parallel import world
from preftune.parallel.shard import on_its_own

REST = "rest.pt"  # what is alike in all processes
AGAIN = "Delete it to start this run anew."


def save_parts(folder: Path, tensors: Mapping[str, Tensor], rest: Any, *, behind: bool = False) -> Callable[[], None]:
    """Begin to write tensors and the rest (what torch.save can write) as one folder, whole or not at all. All processes call it.

    Returns what ends it, which each process has to call; then the folder has its name. behind: the tensors are copied into the CPU's
    memory before this returns, and written by a thread; what ends it waits for that, and may itself be called by a thread.
    It raises PreftuneError, in all processes, where one of them cannot write.
    """
    temporary = folder.with_name(f".{folder.name}.tmp-parts")

    def prepare() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    with _told(folder):
        world.from_main(prepare)
        alike = io.BytesIO()
        torch.save(rest, alike)
        writer = FileSystemWriter(temporary)
        # torch copies the memory under a tensor, all of it: where weights are shared that would be the whole, in every process.
        owned = {name: on_its_own(tensor) for name, tensor in tensors.items()} if behind else {}
        written: Any = async_save(owned, storage_writer=writer, process_group=world.group_of_threads()) if behind else None

    def end() -> None:
        try:
            with _told(folder):
                if written is None:
                    save(dict(tensors), storage_writer=writer)
                else:
                    written.result()
                if world.is_main():
                    (temporary / REST).write_bytes(alike.getvalue())
                    replace_folder(temporary, folder)
        finally:
            if world.is_main():
                shutil.rmtree(temporary, ignore_errors=True)  # room for whoever comes next, where the disk is full

    return end


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn what any process met while it wrote into a sentence. torch gathers it into an exception that is no Exception."""
    with disk_errors(folder):
        try:
            yield
        except (CheckpointException, OSError, RuntimeError) as error:
            met = next((met for met, _ in error.failures.values()), error) if isinstance(error, CheckpointException) else error
            if is_of_the_disk(met):
                raise met from error
            why = f"{type(met).__name__}: {str(met).strip().partition(chr(10))[0]}"
            raise PreftuneError(f"the checkpoint cannot be written ({why})", str(folder), "The one before it stands.") from error


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
