"""What a plan has to measure on the model itself: the time of a micro-batch and of an optimiser step, and the memory that backward needs.

Measured and not looked up: how fast a machine multiplies depends on the shapes, the threads and what else runs, and how much a model
keeps for its backward pass depends on its layers, its adapter and the version of its library.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preftune.parallel import world
from preftune.parallel.shard import local
from preftune.training.memory import peak_memory_gib, reset_peak_memory

TRIED_WEIGHTS = 1 << 22  # weights of an optimiser step that is timed: more than any cache holds
MOST_RUNS, NO_FASTER = 6, 0.95  # a run is no faster where it takes more than this share of the fastest before it
ENDS_AFTER = 2  # such runs one after the other end the timing: one alone may be what another program took


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


def settled_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest run, once others are no faster: the first ones pay for memory, page by page, and for threads."""
    best, no_faster = float("inf"), 0
    for _ in range(MOST_RUNS):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        seconds = time.perf_counter() - began
        (slow,) = world.any_of(seconds > NO_FASTER * best)  # processes that share a model's weights run equally often
        best, no_faster = min(seconds, best), no_faster + 1 if slow else 0
        if no_faster == ENDS_AFTER:
            return best
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
        return settled_seconds(compute, device)


@dataclass(frozen=True)
class Cost:
    """What a forward and a backward pass took: seconds, and by how many bytes what is held grew at the most."""

    seconds: float
    grown: int


def training_cost(compute: Callable[[], Tensor], model: nn.Module, device: torch.device) -> Cost:
    """Return what a forward and a backward pass take; the gradients are thrown away. compute: → a tensor with gradient."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        compute().sum().backward()

    reset_peak_memory()
    before = peak_memory_gib()
    seconds = settled_seconds(step, device)
    grown = peak_memory_gib() - before
    model.zero_grad(set_to_none=True)
    return Cost(seconds, round(grown * 2**30))


def update_seconds(trained_parameters: int, device: torch.device) -> float:
    """Return the seconds of clipping the gradient and one AdamW step over so many weights."""
    weights = nn.Parameter(torch.zeros(min(trained_parameters, TRIED_WEIGHTS) or 1, device=device))
    weights.grad = torch.ones_like(weights)
    optimiser = torch.optim.AdamW([weights], lr=0.0, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimiser.step()

    return timed(update, device, times=3) * trained_parameters / weights.numel()


def kept_for_backward(compute: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, beside the weights; each tensor's memory is counted once."""
    weights = {local(p).untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held while the rest is computed, so that no address is used twice

    def note(tensor: Tensor) -> None:
        # What is returned here the graph keeps: a tensor of its own would hold graph, tensor and model for ever.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        compute()
    return sum(storage.nbytes() for storage in kept.values())
