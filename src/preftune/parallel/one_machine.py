"""What FSDP2's processes exchange, through memory that they share: where all are on one machine and compute on its CPU.

gloo sends it through the loopback of the network, several copies and a system call for each piece. Here a process writes its part where
the others read it. gloo still says when all are ready, and so when one of them is gone.

Weights need not be exchanged at all: they lie on the machine once, each process writes its part of them and reads the whole.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from preftune.parallel import world

SHARED = Path("/dev/shm")  # Linux keeps what lies there in memory
PLACE_BYTES = 8 << 20  # what a process shows the others at once
ALIGNED = 64  # bytes: each weight begins where a processor reads it fastest


class SharedMemory:
    """Two places for each process. One is read by the others while its owner writes the next, so one word is enough for both."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._places = torch.frombuffer(memory, dtype=torch.uint8).view(2, world.size(), PLACE_BYTES)
        self._turn, self._word = 0, torch.zeros(1)

    def next_places(self, dtype: torch.dtype) -> list[Tensor]:
        """Return a place of each process, as numbers of this type. The reading of these places' last numbers is over."""
        self._turn = 1 - self._turn
        return list(self._places[self._turn].view(dtype))

    def wait_for_all(self, group: Any) -> None:
        """Return once every process has written. Raises what gloo raises where one is gone."""
        dist.all_reduce(self._word, group=group)  # quicker than gloo's own barrier


@functools.cache
def shared_memory() -> SharedMemory | None:
    """Return memory for what is exchanged, or None where there is none that all processes see. All call it."""
    memory = _seen_by_all(2 * world.size() * PLACE_BYTES)
    return None if memory is None else SharedMemory(memory)


def _seen_by_all(size: int) -> mmap.mmap | None:
    """Return so many bytes that all processes see, or None where they are on several machines or the system gives none. All call it."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "0")) != world.size():
        return None
    path = world.from_main(lambda: _reserve(size))
    if path is None:
        return None
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    world.wait_for_all()
    if world.is_main():
        path.unlink()  # the memory itself goes with the last process, however that ends
    return memory


def _reserve(size: int) -> Path | None:
    if not SHARED.is_dir():
        return None
    number, name = tempfile.mkstemp(prefix="preftune-", dir=SHARED)
    try:
        os.posix_fallocate(number, 0, size)  # now: a write to memory that is not there would kill the process
    except OSError:
        os.unlink(name)
        return None
    finally:
        os.close(number)
    return Path(name)


def share_weights(model: nn.Module) -> mmap.mmap | None:
    """Let a sharded model's weights lie in memory that all processes see, where there is room for them, and return it. All call it.

    A process's part then is a view of the whole, and FSDP2, which asks the part how it is gathered (torch's extension for tensors
    that gather themselves), is given the whole as it lies. Nobody may write to his part while others compute: see `settle`.
    Weights whose rows the processes do not share evenly are left as they are.
    """
    parts = [p for p in model.parameters() if isinstance(p, DTensor) and p.shape[0] % world.size() == 0]
    starts = [0]
    for p in parts:
        starts.append(starts[-1] + math.ceil(p.numel() * p.element_size() / ALIGNED) * ALIGNED)
    memory = _seen_by_all(starts[-1])
    if memory is None:
        return None
    for p, start in zip(parts, starts, strict=False):
        whole = torch.frombuffer(memory, dtype=p.dtype, count=p.numel(), offset=start).view(p.shape)
        part: Any = whole.chunk(world.size())[world.rank()]
        part.copy_(p.to_local().detach())
        part.fsdp_pre_all_gather, part.fsdp_post_all_gather = _send_nothing, functools.partial(_take, whole)
        p._local_tensor = part
    return memory


def _send_nothing(mesh: Any) -> tuple[tuple[Tensor, ...], None]:
    return (torch.empty(0),), None


def _take(whole: Tensor, gathered: Any, metadata: Any, dtype: torch.dtype, *, out: Tensor | None = None) -> Any:
    return None if out is not None else (whole, ())  # there is nothing that FSDP2 has to free afterwards


class _Shared:
    # What FSDP2's `set_custom_all_gather` and `set_custom_reduce_scatter` take.

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class SharedAllGather(_Shared):
    """FSDP2's all-gather."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:
        """Put the part of each process, one after the other, into the output; this process's own is there already."""
        parts = output_tensor.view(world.size(), -1)
        most = PLACE_BYTES // output_tensor.element_size()
        for piece in _pieces(input_tensor.numel(), most):
            places = self.memory.next_places(output_tensor.dtype)
            count = piece.stop - piece.start
            places[world.rank()][:count] = input_tensor[piece]
            self.memory.wait_for_all(group)
            for number, (part, place) in enumerate(zip(parts, places, strict=True)):
                if number != world.rank():
                    part[piece] = place[:count]


class SharedReduceScatter(_Shared):
    """FSDP2's reduce-scatter."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> None:
        """Put the sum over the processes of this process's part of their inputs into the output."""
        assert op == dist.ReduceOp.SUM, "gradients are summed, never averaged"
        parts = input_tensor.view(world.size(), -1)
        most = PLACE_BYTES // output_tensor.element_size() // world.size()
        for piece in _pieces(output_tensor.numel(), most):
            places = [place[: most * world.size()].view(world.size(), most) for place in self.memory.next_places(output_tensor.dtype)]
            count = piece.stop - piece.start
            for number, part in enumerate(parts):
                if number != world.rank():
                    places[world.rank()][number, :count] = part[piece]
            self.memory.wait_for_all(group)
            # In the order of the processes, so that the sum is the same to the last bit wherever it is made.
            shown = [parts[number, piece] if number == world.rank() else place[world.rank(), :count] for number, place in enumerate(places)]
            torch.add(shown[0], shown[1], out=output_tensor[piece])
            for more in shown[2:]:
                output_tensor[piece] += more


def _pieces(numbers: int, most: int) -> Iterator[slice]:
    return (slice(start, min(start + most, numbers)) for start in range(0, numbers, most))
