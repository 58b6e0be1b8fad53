"""Samples from Ray actors, each with a model of its own and our generator, on a CPU or a GPU of any Ray cluster.

Ray places the actors and starts one again that has died. A step's prompts are cut into requests, of which an actor has at most QUEUED.
Each request says which weights it wants, and where in the object store they lie: an actor that holds others, as one that was started
again does, reads them first. Each reply says which weights it was drawn with, by version and checksum; one of others is thrown away.
What a lost actor had goes to another, and is the same there, since a sample's randomness is its own.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor, nn

from preftune.errors import PreftuneError
from preftune.models.adapter import add_adapter
from preftune.models.load import first_line, load_causal_lm
from preftune.rollout.backends import RayRollout
from preftune.rollout.client import Sampling, Start, Weights, checksum, draw_here, named_weights
from preftune.rollout.generate import Sample

QUEUED = 2  # requests of an actor: one that it draws, one that it goes on with
PLACED_SECONDS = 30.0  # in which the cluster has to have room for all actors
START_SECONDS = 600.0  # in which an actor has to have loaded its model, and one that died has to be back
MOST_FAILURES = 5  # of an actor in a row
GO_ON = "The same command again goes on from the last checkpoint."

Packed = list[tuple[str, Any, str, tuple[int, ...]]]  # name, bytes, dtype, shape


@dataclass(frozen=True)
class Job:
    """Some of a step's prompts. places: where they stand among all."""

    places: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    keys: tuple[str, ...]
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Reply:
    """A job's samples, and the weights they were drawn with."""

    samples: list[Sample]
    version: int
    checksum: str


class Worker:
    """What an actor does."""

    def __init__(self, start: Start, cpus: float) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        whole = load_causal_lm(start.base, trained_whole=start.adapter is None)
        self.model: nn.Module = whole if start.adapter is None else add_adapter(whole, start.adapter, seed=0)
        self.held: tuple[int, str] | None = None

    def ready(self) -> int:
        """Return the number of its process, once the model is loaded."""
        return os.getpid()

    def load(self, version: int, packed: Packed) -> None:
        """Take these weights."""
        named = named_weights(self.model)
        tensors = unpacked(packed)
        if tensors.keys() != named.keys():
            odd = sorted(tensors.keys() ^ named.keys())[0]
            raise PreftuneError(f'the weight "{odd}" is on one side only', "rollout", "Give every machine the same model and versions.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                named[name].copy_(tensor)
        self.held = version, checksum(named_weights(self.model))

    def generate(self, job: Job, version: int, where: Sequence[Any], again: bool) -> Reply:
        """Draw a job's samples with the weights of a version. where: its object; again: read them even if they seem to be there."""
        if again or self.held is None or self.held[0] != version:
            self.load(version, ray.get(where[0]))
        assert self.held is not None
        samples = draw_here(self.model, job.prompts, job.keys, job.sampling, seed=job.seed)
        return Reply(samples, *self.held)


@dataclass
class Seat:
    """An actor as the client sees it. ready: not on its way back. failures: in a row. doubted: it may hold other weights than it says.

    silent_since: of its last answer, or of a request to it after none was left.
    """

    number: int
    actor: Any
    ready: bool = True
    failures: int = 0
    doubted: bool = False
    silent_since: float = field(default_factory=time.monotonic)


class RayClient:
    """The client of actors; see `Client` for its methods."""

    def __init__(self, config: RayRollout, start: Start, note: Callable[[str], None], worker: type[Worker] = Worker) -> None:
        self._config, self._note = config, note
        self._began = connect(config)
        each = {name: amount for name, amount in (("CPU", config.cpus), ("GPU", config.gpus)) if amount}
        self._group: Any = placed(config.workers, each, "workers")
        strategy = PlacementGroupSchedulingStrategy(placement_group=self._group)
        kind = ray.remote(worker).options(
            num_cpus=config.cpus, num_gpus=config.gpus, max_restarts=-1, max_task_retries=0, scheduling_strategy=strategy
        )
        self.seats = [Seat(number, kind.remote(start, config.cpus)) for number in range(config.workers)]
        self.redrawn = 0  # prompts that were asked for again
        self._version: int | None = None
        self._checksum = ""
        self._last = ""  # what an actor failed of last, for an error
        self._where: list[Any] = []
        self._flying: dict[Any, tuple[Seat, Job | None]] = {}
        try:
            ray.get([seat.actor.ready.remote() for seat in self.seats], timeout=START_SECONDS)
        except RayError as error:
            self.close()
            raise PreftuneError(f"a rollout worker did not start ({why(error)})", "ray", "Look at Ray's logs of its machine.") from error

    def version(self) -> int | None:
        """As `Client`."""
        return self._version

    def push_weights(self, weights: Weights) -> None:
        """Put the weights into the object store, once for all actors; each reads them with the next request, and its reply proves it."""
        self._where = [ray.put(packed(weights.tensors))]
        self._version, self._checksum = weights.version, checksum(weights.tensors)

    def generate(self, prompts: Sequence[Sequence[int]], keys: Sequence[str], sampling: Sampling, *, seed: int) -> list[Sample]:
        """As `Client`."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        parts = min(len(prompts), QUEUED * self._config.workers)  # whoever is alive, so that a run with losses has the same batches
        waiting: deque[Job] = deque()
        for part in range(parts):
            places = tuple(order[part::parts])
            waiting.append(Job(places, tuple(tuple(prompts[i]) for i in places), tuple(keys[i] for i in places), sampling, seed))
        done: dict[tuple[int, ...], Reply] = {}
        while len(done) < parts:
            self._send(waiting)
            for seat, job, reply in [*self._answers(), *self._hung()]:
                if reply is not None and job is not None:
                    done[job.places] = reply  # a request is at one actor at a time, so each comes once
                elif job is not None:
                    self.redrawn += len(job.places)
                    waiting.appendleft(job)
                if seat.failures >= MOST_FAILURES and seat in self.seats:
                    waiting.extendleft(self._drop(seat))
        placed = [
            replace(sample, prompt_index=places[sample.prompt_index], version=reply.version)
            for places, reply in done.items()
            for sample in reply.samples
        ]
        return sorted(placed, key=lambda s: (s.prompt_index, s.sample_index))

    def _send(self, waiting: deque[Job]) -> None:
        while waiting:
            loads = {seat.number: sum(other is seat for other, _ in self._flying.values()) for seat in self.seats if seat.ready}
            free = min((seat for seat in self.seats if seat.ready), key=lambda seat: loads[seat.number], default=None)
            if free is None or loads[free.number] >= QUEUED:
                return
            job = waiting.popleft()
            ref = free.actor.generate.remote(job, self._version, self._where, free.doubted)
            free.doubted = False
            if not loads[free.number]:
                free.silent_since = time.monotonic()
            self._flying[ref] = free, job

    def _answers(self) -> list[tuple[Seat, Job | None, Reply | None]]:
        """Wait for an answer, and return what came: (who, what was asked, the reply if it is one to be used)."""
        if not self._flying:
            raise PreftuneError(f"no rollout worker is left of {self._config.workers}{self._last}", "ray", f"See its logs. {GO_ON}")
        working = any(job is not None for _, job in self._flying.values())
        timeout = min(START_SECONDS, self._config.timeout_seconds / 4) if working else START_SECONDS
        answered, _ = ray.wait(list(self._flying), num_returns=1, timeout=timeout)
        if not answered and not working:
            raise PreftuneError(f"no rollout worker came back within {START_SECONDS:.0f} s{self._last}", "ray", f"See its logs. {GO_ON}")
        return [self._answer(ref) for ref in answered]

    def _answer(self, ref: Any) -> tuple[Seat, Job | None, Reply | None]:
        seat, job = self._flying.pop(ref)
        seat.silent_since = time.monotonic()
        try:
            reply = ray.get(ref)
        except RayError as error:
            self._last = f" (the last one: {why(error)})"
            if isinstance(error, RayActorError):
                self._lost(seat, probe=job is None)
            else:
                seat.failures += 1
                self._note(f"Rollout worker {seat.number} failed ({why(error)}); its prompts are drawn again.")
            return seat, job, None
        if job is None:
            seat.ready = True
            self._note(f"Rollout worker {seat.number} is back.")
            return seat, job, None
        if (reply.version, reply.checksum) != (self._version, self._checksum):
            seat.failures, seat.doubted = seat.failures + 1, True
            self._last = " (the last one: it does not take the weights it is given)"
            self._note(f"Rollout worker {seat.number} drew with other weights than those of round {self._version}; it draws again.")
            return seat, job, None
        seat.failures = 0
        return seat, job, reply

    def _hung(self) -> list[tuple[Seat, Job | None, Reply | None]]:
        """End the actors that have answered nothing for too long, and return what they had to do, as `_answers` does."""
        left: list[tuple[Seat, Job | None, Reply | None]] = []
        for seat in [seat for seat in self.seats if seat.ready]:
            asked = {ref: job for ref, (who, job) in self._flying.items() if who is seat}
            limit = self._config.timeout_seconds
            if not asked or time.monotonic() - seat.silent_since < limit:
                continue
            self._last = f" (the last one: it answered nothing for {limit:g} s, rollout.timeout_seconds)"
            self._note(f"Rollout worker {seat.number} has answered nothing for {limit:g} s (rollout.timeout_seconds) and is ended.")
            for ref in asked:
                del self._flying[ref]
            ray.kill(seat.actor, no_restart=False)
            self._lost(seat, probe=False)
            left += [(seat, job, None) for job in asked.values()]
        return left

    def _lost(self, seat: Seat, *, probe: bool) -> None:
        if probe:  # Ray gives it up
            seat.failures = MOST_FAILURES
        elif seat.ready:
            seat.ready, seat.failures = False, seat.failures + 1
            self._note(f"Rollout worker {seat.number} is lost; its prompts are drawn again, and Ray starts it anew.")
            self._flying[seat.actor.ready.options(max_task_retries=-1).remote()] = seat, None

    def _drop(self, seat: Seat) -> list[Job]:
        """Give an actor up, and return what it had still to do."""
        self.seats.remove(seat)
        left = {ref: job for ref, (who, job) in self._flying.items() if who is seat}
        for ref in left:
            del self._flying[ref]
        ray.kill(seat.actor)
        self._note(f"Rollout worker {seat.number} is given up after {seat.failures} failures in a row; {len(self.seats)} are left.")
        return [job for job in left.values() if job is not None]

    def health(self) -> dict[str, float]:
        """Return how many workers are there, and how many prompts were drawn again so far."""
        return {"rollout/workers": float(sum(seat.ready for seat in self.seats)), "rollout/redrawn": float(self.redrawn)}

    def close(self) -> None:
        """End the actors, give their places back, and end Ray where this client has started it."""
        for seat in self.seats:
            ray.kill(seat.actor)
        if self._group is not None:
            remove_placement_group(self._group)
        self.seats, self._group = [], None
        if self._began:
            ray.shutdown()
            self._began = False


def connect(config: RayRollout) -> bool:
    """Join the cluster that the config, RAY_ADDRESS or the caller names, or start one here; say whether one was started or joined now."""
    if ray.is_initialized():
        return False
    own = config.address is None and "RAY_ADDRESS" not in os.environ
    try:
        ray.init(address=config.address, log_to_driver=False, logging_level="ERROR", **({"include_dashboard": False} if own else {}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PreftuneError(f"Ray cannot be reached ({first_line(error)})", 'key "rollout.address"', "Is the cluster up?") from error
    return True


def placed(count: int, each: Mapping[str, float], what: str) -> Any:
    """Return room for so many actors of these resources each. Raises PreftuneError where the cluster has none in time."""
    group = placement_group([dict(each)] * count)
    if not group.wait(PLACED_SECONDS):
        remove_placement_group(group)
        there, free = ray.cluster_resources(), ray.available_resources()
        has = ", ".join(f"{there.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in ("CPU", "GPU"))
        asked = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
        said = f"{count} {what} of {asked} each find no room within {PLACED_SECONDS:.0f} s; the cluster has {has}"
        raise PreftuneError(said, 'key "rollout"', "Give fewer workers, or start more machines first.")
    return group


def packed(tensors: Mapping[str, Tensor]) -> Packed:
    """Return tensors as arrays of bytes, which Ray keeps once a machine and lets its processes read in place."""
    return [
        (name, tensor.contiguous().flatten().view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]


def unpacked(packed: Packed) -> dict[str, Tensor]:
    """Return the tensors again, as copies."""
    found = {}
    for name, data, dtype, shape in packed:
        flat = torch.from_numpy(data.copy()).view(getattr(torch, dtype)) if data.size else torch.empty(0, dtype=getattr(torch, dtype))
        found[name] = flat.view(shape)
    return found


def why(error: Exception) -> str:
    """Return what an error of Ray's is about, in a line."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return f"{type(cause).__name__}: {lines[-1].strip()}"[:200]
