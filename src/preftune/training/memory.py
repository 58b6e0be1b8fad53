"""What a process holds in memory, what it held at most, and what it may come to hold."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch
from torch import nn

from preftune.models.load import device_of, give_back_freed_memory
from preftune.parallel.shard import held_bytes
from preftune.training.hardware import GIB, SPARE

LIBRARIES_GIB = 0.44  # Python, torch and transformers on Linux (docs/benchmarks.md)
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Start the peak anew, so that each stage of one process reports its own, of what it holds itself.

    Of a process's memory Linux alone can do that; elsewhere the peak stays that of the whole process.
    """
    give_back_freed_memory()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if _CLEAR_REFS.exists() and os.access(_CLEAR_REFS, os.W_OK):
        _CLEAR_REFS.write_text("5")


def peak_memory_gib() -> float:
    """Return the most that was held since the last reset, GiB: on a CUDA GPU of its memory, else the process's resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 2**30
    if _STATUS.exists():
        line = next((row for row in _STATUS.read_text().splitlines() if row.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def memory_limit(device: torch.device) -> int | None:
    """Return the bytes that this process may come to hold on the device, or None where that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    limits = []
    if Path("/proc/meminfo").exists():
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(rows["MemAvailable"].split()[0]) * 1024 + resident_memory())
    if CGROUP_LIMIT.exists() and (text := CGROUP_LIMIT.read_text().strip()).isdigit():
        limits.append(int(text))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this run on this machine, which share its memory
    return min(limits) // beside if limits else None


def held_memory(model: nn.Module) -> int:
    """Return the bytes that are held now, the model among them: on a GPU of its memory, else by the whole process, libraries and all.

    What was freed and is still kept is given back first. Where the system does not say it, libraries are estimated.
    """
    give_back_freed_memory()
    device = device_of(model)
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return resident_memory() or round(LIBRARIES_GIB * 2**30) + held_bytes(model)


def resident_memory() -> int:
    """Return the bytes that this process holds in memory (Linux; elsewhere 0)."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def has_room_beside(more: int) -> bool:
    """Say whether the CPU's memory has room for so many bytes more beside the most that this process has held.

    Of a process that computes on a GPU it is what it holds now. Where the system does not say what there is, there is room.
    """
    limit = memory_limit(torch.device("cpu"))
    held = resident_memory() if torch.cuda.is_initialized() else peak_memory_gib() * GIB
    return limit is None or (held + more) * SPARE <= limit
