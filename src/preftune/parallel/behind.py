"""A checkpoint that is written behind the training: by a thread, from a copy, while the process goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from preftune.parallel import world

_THREAD = ThreadPoolExecutor(1, "checkpoint")  # one for all, so that what is written later lies over what was written before


class Behind:
    """Work that each process's thread has to do. All processes begin it together, and wait for it together."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._done: Future[None] = _THREAD.submit(work)

    def over(self) -> bool:
        """Say whether this process's thread has done it, or failed."""
        return self._done.done()

    def wait(self) -> None:
        """Return once it is done in every process. Raises in all of them what the first one met, and else what this one met."""
        world.from_all(self._done.result)


def wait_for_this_process() -> None:
    """Return once nothing that this process has begun to write is under way, whatever became of it."""
    _THREAD.submit(lambda: None).result()
