"""What a plan has to measure on the model itself: the time of a micro-batch and of an optimiser step, and the memory that backward needs.

Measured and not looked up: how fast a machine multiplies depends on the shapes, the threads and what else runs, and how much a model
keeps for its backward pass depends on its layers, its adapter and the version of its library.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
TRIED_WEIGHTS = 1 << 22  # weights of an optimiser step that is timed: more than any cache holds


def timed(work: Callable[[], object], device: torch.device, *, times: int) -> float:
    """Return the seconds of the fastest of some runs, after one that is not counted (it pays for memory and for threads)."""
    work()
    best = float("inf")
    for _ in range(times):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_flops(device: torch.device, *, size: int = 1024) -> float:
    """Return the floating-point operations a second of a float32 matrix product, measured."""
    a = torch.randn(size, size, device=device)
    return 2 * size**3 / timed(lambda: a @ a, device, times=10)


def forward_seconds(compute: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds of a forward pass without gradients."""
    with torch.no_grad():
        return timed(compute, device, times=1)


def training_seconds(compute: Callable[[], Tensor], model: nn.Module, device: torch.device) -> float:
    """Return the seconds of a forward and a backward pass; the gradients are thrown away. compute: → a tensor with gradient."""

    def step() -> None:
        compute().sum().backward()

    seconds = timed(step, device, times=1)
    model.zero_grad(set_to_none=True)
    return seconds


def update_seconds(trained_parameters: int, device: torch.device) -> float:
    """Return the seconds of clipping the gradient and one AdamW step over so many weights."""
    weights = nn.Parameter(torch.zeros(min(trained_parameters, TRIED_WEIGHTS) or 1, device=device))
    weights.grad = torch.ones_like(weights)
    optimiser = torch.optim.AdamW([weights], lr=0.0)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimiser.step()

    return timed(update, device, times=3) * trained_parameters / weights.numel()


def kept_for_backward(compute: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, beside the weights; each tensor's memory is counted once."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held while the rest is computed, so that no address is used twice

    def note(tensor: Tensor) -> None:
        # What is returned here the graph keeps: a tensor of its own would hold graph, tensor and model for ever.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        compute()
    return sum(storage.nbytes() for storage in kept.values())


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
    return min(limits, default=None)


def resident_memory() -> int:
    """Return the bytes that this process holds in memory (Linux; elsewhere 0)."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0
