"""A model's weights spread over the processes by FSDP2: each holds a part of every matrix, and a layer is whole only while it computes.

What is added to the loaded model later, adapters and scalar heads, is small and whole in every process; its gradients are summed in
`training/step.py`. Source: torch's `fully_shard` (Zhao et al. 2304.11277).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import ModelError
from preftune.parallel import world
from preftune.parallel.one_machine import SharedAllGather, SharedReduceScatter, share_weights, shared_memory

MOST_OF_A_GPU = 0.7  # of its free memory; the rest is for a layer's whole weights and what backward keeps
ROOT = "_sharded_root"  # where a backbone keeps the model whose weights outside the layers are gathered with it


def shard(model: PreTrainedModel, device: torch.device, *, trained: bool, read: Callable[[], None] | None = None) -> None:
    """Spread the weights of a model over all processes: one group a layer, and one of all else, which stays whole through a step.

    So the output layer, tied to the embeddings or not, is gathered once for all blocks of the vocabulary. trained: whether the weights
    themselves are; then a GPU keeps them in float32 and computes in bfloat16. read: puts values in the weights of a model that was made
    without memory, once each process has that of its parts. Raises ModelError where the model does not name its layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(f"{type(model).__name__} does not say what its layers are", "", "Train it in one process.")
    mesh = init_device_mesh(device.type, (world.size(),))
    half = trained and device.type == "cuda" and torch.cuda.is_bf16_supported()
    offload = _too_large(model, device, trained=trained)
    spread: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for layer in layers:
        fully_shard(layer, **spread)
    fully_shard(model, **spread, reshard_after_forward=False, ignored_params=_scalar_head_of(model))
    model.set_reshard_after_backward(False, recurse=False)
    backbone: Any = model.base_model
    root: Any = model
    memory = shared_memory() if device.type == "cpu" else None
    for module in groups(model):
        if memory is not None:
            exchanged: Any = SharedAllGather(memory), SharedReduceScatter(memory)
            module.set_custom_all_gather(exchanged[0])
            module.set_custom_reduce_scatter(exchanged[1])
        # The loss has done the one division: gradients are summed, never averaged.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    root.read = lambda layers=None, **inputs: layers(**inputs).last_hidden_state if layers is not None else None
    register_fsdp_forward_method(root, "read")
    root.computes_on = device
    backbone.__dict__[ROOT] = root  # past nn.Module, for which the root is no part of what it holds
    if read is not None:
        model.to_empty(device="cpu" if offload else device)
    root.shared = share_weights(model) if memory is not None and not offload and spread["mp_policy"].param_dtype is None else None
    if read is not None:
        read()
    _move_what_is_whole(model, device)
    root.read()  # so that FSDP learns now which module is the root: generation calls the layers by themselves
    settle(model)


def _too_large(model: PreTrainedModel, device: torch.device, *, trained: bool) -> bool:
    """Say whether a process's parts, with what training holds of them, leave a GPU too little room: then they lie in the CPU's memory."""
    if device.type != "cuda":
        return False
    numbers = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    held = (weights + (12 * numbers if trained else 0)) / world.size()  # gradient and Adam's two moments, float32
    (tight,) = world.any_of(held > MOST_OF_A_GPU * torch.cuda.mem_get_info(device)[0])
    return tight


def _move_what_is_whole(model: PreTrainedModel, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for parameter in _scalar_head_of(model):
        parameter.data = parameter.data.to(device)


def _scalar_head_of(model: PreTrainedModel) -> set[nn.Parameter]:
    backbone, output = model.base_model, model.get_output_embeddings()
    known = {*backbone.parameters(), *(output.parameters() if output is not None else ())}
    return {p for p in model.parameters() if p not in known}


def root_of(model: Any) -> Any:
    """Return the sharded model that a backbone, or a model around it, belongs to; None where it is whole.

    Its `read(backbone, **inputs)` gives the last hidden states, and leaves the output layer whole.
    """
    if world.size() == 1:
        return None
    modules = model.modules() if isinstance(model, nn.Module) else [model]
    return next((module.__dict__[ROOT] for module in modules if module.__dict__.get(ROOT) is not None), None)


def groups(model: nn.Module) -> list[FSDPModule]:
    """Return the modules whose weights are gathered together."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def settle(model: nn.Module) -> None:
    """Let every process hold its part again: passes leave the root's weights whole for the next one. All processes call it.

    Where they share the weights, they wait for each other. So who writes to his part settles the model before, that nobody still reads
    what was, and afterwards, that nobody reads before all have written.
    """
    root = root_of(model)
    if root is not None:
        root.reshard()
        if root.shared is not None:
            world.wait_for_all()


@contextmanager
def whole_for_a_while(model: nn.Module) -> Iterator[None]:
    """Hold all weights whole in every process, so that each may go through the layers as often as it likes: for sampling."""
    root = root_of(model)
    if root is None:
        yield
        return
    parts = groups(root)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not root, recurse=False)
            part.reshard()


def by_kind(tensors: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return those that are sharded, and those that each process holds whole; neither list is empty."""
    kinds = [[t for t in tensors if isinstance(t, DTensor) == sharded] for sharded in (True, False)]
    return [alike for alike in kinds if alike]


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor: the whole where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy values, whole or sharded alike, into a tensor that may be sharded."""
    if isinstance(tensor, DTensor):
        tensor.to_local().copy_(local(values) if isinstance(values, DTensor) else values[rows_of(tensor)])
    else:
        tensor.copy_(values)


@torch.no_grad()
def update(tensor: Tensor, values: Tensor) -> None:
    """Add whole values to a tensor that may be sharded."""
    local(tensor).add_(values[rows_of(tensor)] if isinstance(tensor, DTensor) else values)


def forget(model: nn.Module) -> None:
    """Free the memory of a sharded model's weights. All processes call it."""
    settle(model)
    shared = root_of(model).shared
    if shared is not None:
        shared.madvise(mmap.MADV_REMOVE)
    for weight in model.parameters():
        memory = local(weight).untyped_storage()
        if memory.resizable():
            memory.resize_(0)


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights that this process has in its memory: those that processes share are in each."""
    weights = {memory.data_ptr(): memory.nbytes() for memory in (local(p).untyped_storage() for p in model.parameters())}
    return sum(weights.values())


def spread_like(tensor: Tensor, values: Tensor) -> Tensor:
    """Return values of a tensor's shape sharded as it is; others, and where nothing is sharded, as they are."""
    if not isinstance(tensor, DTensor) or isinstance(values, DTensor) or values.shape != tensor.shape:
        return values
    spread = torch.empty_like(tensor, dtype=values.dtype)
    fill(spread, values)
    return spread


def on_its_own(tensor: Tensor) -> Tensor:
    """Return a tensor whose part is all that its memory holds: a copy of it where the part is a view of weights that processes share."""
    part = local(tensor)
    return tensor if part.untyped_storage().nbytes() == part.nbytes else tensor.clone()


@torch.no_grad()
def fill_rows(tensor: Tensor, stored: Any) -> None:
    """Copy into a tensor what a file stores for it; of a sharded one its own rows alone are read. stored: takes slices, as safetensors'."""
    if isinstance(tensor, DTensor):
        rows = rows_of(tensor)
        if rows.start < rows.stop:
            tensor.to_local().copy_(stored[rows])
    else:
        tensor.copy_(stored[:])


def rows_of(tensor: DTensor) -> slice:
    """Return which rows of the whole this process holds: FSDP2 cuts as torch.chunk does, so the last ones may hold fewer, or none."""
    most = -(-tensor.shape[0] // world.size())
    start = min(world.rank() * most, tensor.shape[0])
    return slice(start, min(start + most, tensor.shape[0]))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up over the processes the gradients of what each holds whole; those of sharded weights are summed already."""
    if world.size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    for dtype in {grad.dtype for grad in grads}:
        alike = [grad for grad in grads if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in alike])
        dist.all_reduce(flat)
        for grad, summed in zip(alike, flat.split([grad.numel() for grad in alike]), strict=True):
            grad.copy_(summed.view_as(grad))


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients as one vector, over all processes."""
    grads = [p.grad for p in parameters if p.grad is not None]
    parts = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    rest = [grad for grad in grads if not isinstance(grad, DTensor)]
    if not parts:
        return get_total_norm(rest)
    (square,) = world.totals([float(get_total_norm(parts)) ** 2])
    return torch.tensor(math.sqrt(square + (float(get_total_norm(rest)) ** 2 if rest else 0.0)))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, total_norm: Tensor) -> None:
    """Scale all gradients so that their norm is at most max_norm."""
    trained = list(parameters)
    if not any(isinstance(p.grad, DTensor) for p in trained):
        clip_grads_with_norm_(trained, max_norm, total_norm)
        return
    scale = float(max_norm / (total_norm + 1e-6))  # as torch's own
    if scale < 1:
        for p in trained:
            if p.grad is not None:
                local(p.grad).mul_(scale)


def device_of_root(model: nn.Module) -> torch.device | None:
    """Return where a sharded model computes, wherever its parts lie; None where it is whole."""
    root = root_of(model)
    return None if root is None else root.computes_on
