"""The processes of one run, as torchrun starts them: which one this is, and how they come to the same word.

Without torchrun there is one process, and everything here does nothing. All processes go through the same calls in the same order.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from preftune.errors import PreftuneError

T = TypeVar("T")
R = TypeVar("R")

# A message that waits longer than this waits for a process that is gone. The slowest thing that one does alone is to hash a large model.
PATIENCE = timedelta(minutes=30)


def join() -> None:
    """Find the other processes, where torchrun has started several; once more does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)  # words go by gloo, weights and gradients by NCCL
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)


@functools.cache
def group_of_threads() -> Any:
    """Return a group of all processes for what their threads say to each other, so that it never mixes with what the main ones say."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Say whether this is the process that writes and speaks; known before `join` too."""
    return rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def totals(numbers: Sequence[float]) -> list[float]:
    """Return the sum of each number over all processes, float64."""
    if size() == 1:
        return list(numbers)
    summed = torch.tensor(list(numbers), dtype=torch.float64)
    dist.all_reduce(summed)
    return [float(number) for number in summed]


def any_of(*said: bool) -> tuple[bool, ...]:
    """Return, for each of these, whether any process says so."""
    return tuple(total > 0 for total in totals([float(one) for one in said]))


def of_all(word: T) -> list[T]:
    """Return what each process says, in their order."""
    if size() == 1:
        return [word]
    words: list[Any] = [None] * size()
    dist.all_gather_object(words, word)
    return words


def from_main(work: Callable[[], T]) -> T:
    """Return what the main process makes; it alone does the work, and what it raises all raise."""
    if size() == 1:
        return work()
    made: list[Any] = [None, None]
    if is_main():
        try:
            made[0] = work()
        except Exception as error:
            made[1] = (
                error if isinstance(error, PreftuneError) else PreftuneError(f"the first process failed ({error})", "", "See its words.")
            )
            dist.broadcast_object_list(made)
            raise
    dist.broadcast_object_list(made)
    if made[1] is not None:
        made[1].said = True
        raise made[1]
    result: T = made[0]
    return result


def from_all(work: Callable[[], None]) -> None:
    """Do work in every process. Raises in all of them what the first one met, and else what this one met."""
    met: Exception | None = None
    try:
        work()
    except Exception as error:
        met = error

    def tell() -> None:
        if met is not None:
            raise met

    from_main(tell)
    tell()


def of_machine(work: Callable[[], T]) -> T:
    """Return what this machine's first process makes; each machine does the work once."""
    machine = os.environ.get("GROUP_RANK", "0")
    said = of_all((machine, work() if os.environ.get("LOCAL_RANK", "0") == "0" else None))
    found: Any = next(word for place, word in said if place == machine and word is not None)
    made: T = found
    return made


def wait_for_all() -> None:
    """Return once every process is here."""
    if size() > 1:
        of_all(None)


def mine(parts: Sequence[T]) -> list[tuple[T, bool]]:
    """Return this process's share of micro-batches, as many as every other has, each with whether it counts.

    Weights are gathered for each layer of each micro-batch, so no process may do one more than the others: where they do not come out
    even, the smallest (the last) is computed once more and counts nothing.
    """
    own = [(part, True) for part in parts[rank() :: size()]]
    rounds = -(-len(parts) // size())
    return own + [(parts[-1], False)] * (rounds - len(own))


def spread(parts: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """Return [compute(part) for part in parts]: each is computed by one process, and all get all."""
    if size() == 1:
        return [compute(part) for part in parts]
    found = of_all([result for result, counts in ((compute(part), counts) for part, counts in mine(parts)) if counts])
    return [found[place % size()][place // size()] for place in range(len(parts))]
