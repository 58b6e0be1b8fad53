"""Processes of the tests' own. A server that has loaded the libraries forks each of them: it starts in no time, and as new as any other."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

READY = get_context("forkserver")
# The server is not a fork of what runs the tests: nothing was computed, opened or drawn in it.
READY.set_forkserver_preload(
    [f"preftune.{name}" for name in ("stages.group", "stages.ppo", "stages.preference", "stages.reward", "stages.sft", "web.assign")]
)


def ended(folder: Path, work: Callable[..., object], *given: object) -> tuple[int | None, str]:
    """Do work in a process of its own; return its exit code, below 0 that of the signal that ended it, and what it said of errors."""
    ((code,), said) = _all_ended(folder, [{}], work, given)
    return code, said


def two_ended(folder: Path, work: Callable[..., object], *given: object) -> tuple[list[int | None], str]:
    """Do work in two processes that find each other as those of torchrun do; return their exit codes, and what both said of errors."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun holds it: none of the two does
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
    return _all_ended(folder, [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"], work, given)


def _all_ended(
    folder: Path, environments: list[dict[str, str]], work: Callable[..., object], given: tuple[object, ...]
) -> tuple[list[int | None], str]:
    said = folder / "said.txt"
    said.write_bytes(b"")
    processes = [READY.Process(target=_work, args=(environment, said, work, given)) for environment in environments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes], said.read_text(encoding="utf-8")


def _work(environment: dict[str, str], said: Path, work: Callable[..., object], given: tuple[object, ...]) -> None:
    import torch

    torch.set_num_threads(1)  # on models of this size a second thread takes more time than it saves
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    work(*given)
