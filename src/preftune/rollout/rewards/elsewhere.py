"""Functions, rules and judges asked by Ray actors, on any machine of the cluster, while others draw. The scores are those of here.

A step's completions are cut by prompts into parts. An actor has one part at a time and gets the next when it is done. One that dies is
started again by Ray, which asks it anew. What a function may take, and what a judge may cost, is looked after in the actor as it is here.
A judge is asked by one actor alone, so that its cache and its budget are in one place; its `concurrency` is how many requests that has
under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util import ActorPool, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from preftune.data.batches import Group
from preftune.errors import PreftuneError
from preftune.progress import Silent
from preftune.rollout.backends import RayRollout
from preftune.rollout.ray_actors import GO_ON, START_SECONDS, connect, placed, why
from preftune.rollout.rewards.asking import Ask, Given
from preftune.rollout.rewards.source import RewardSource
from preftune.rollout.rewards.total import open_plain

PARTS = 4  # for each actor, so that one which is done early goes on
TRIES = 4  # of a part whose actor dies

Part = tuple[Sequence[Ask], Sequence[Group]]


class Worker:
    """What an actor does. What is wrong is returned, not raised, so that it is said as it would be here."""

    def __init__(self, sources: Sequence[RewardSource], project: Path, run: str) -> None:
        self.opened, self.wrong = [], None
        try:
            self.opened = [open_plain(source, project, run, Silent()) for source in sources]
        except PreftuneError as error:
            self.wrong = error

    def ready(self) -> PreftuneError | None:
        """Return what is wrong with one of the sources."""
        return self.wrong

    def score(self, number: int, asks: Sequence[Ask], groups: Sequence[Group]) -> Given | PreftuneError:
        """Return what the source of this number says."""
        if self.wrong is not None:
            return self.wrong
        try:
            return self.opened[number].score(asks, groups)
        except PreftuneError as error:
            return error


class Scorers:
    """The actors. sources: what they are asked for, models not among them; project, run: as for `open_rewards`."""

    def __init__(self, config: RayRollout, sources: Sequence[RewardSource], project: Path, run: str) -> None:
        self._began = connect(config)
        self.count = config.score_workers
        self._group: Any = placed(self.count, {"CPU": 1.0}, "score workers")
        kind = ray.remote(Worker).options(
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=TRIES - 1,
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=self._group),
        )
        self.actors = [kind.remote(tuple(sources), project.resolve(), run) for _ in range(self.count)]
        self._pool = ActorPool(self.actors)
        try:
            wrong = ray.get([actor.ready.remote() for actor in self.actors], timeout=START_SECONDS)
        except RayError as error:
            self.close()
            raise PreftuneError(f"a score worker did not start ({why(error)})", "ray", "Look at Ray's logs of its machine.") from error
        first = next((error for error in wrong if error is not None), None)
        if first is not None:
            self.close()
            raise first

    def score(self, number: int, parts: Sequence[Part], *, by_one: bool) -> list[Given]:
        """Return what the source of this number says of each part. by_one: asked by the first actor alone."""
        try:
            if by_one:
                found = [ray.get(self.actors[0].score.remote(number, *part)) for part in parts]
            else:
                found = list(self._pool.map(lambda actor, part: actor.score.remote(number, *part), parts))
        except RayError as error:
            raise PreftuneError(
                f"a score worker died {TRIES} times on the same answers ({why(error)})", "ray", f"See its logs. {GO_ON}"
            ) from error
        wrong = next((one for one in found if isinstance(one, PreftuneError)), None)
        if wrong is not None:
            raise wrong
        return found

    def close(self) -> None:
        """End the actors, give their places back, and end Ray where it was started here."""
        for actor in self.actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        self.actors, self._group = [], None
        if self._began:
            ray.shutdown()
            self._began = False


class RewardElsewhere:
    """A source that is asked by the actors. scorers: these, in the first process, which alone asks. number: the source's among theirs."""

    def __init__(self, scorers: Scorers | None, number: int, *, by_one: bool) -> None:
        self._scorers, self.number, self.by_one = scorers, number, by_one

    def score(self, asks: Sequence[Ask], groups: Sequence[Group]) -> Given:
        """Return what it says of each completion. groups: the same completions, prompt by prompt, in order."""
        scorers = self._scorers
        assert scorers is not None
        parts = [(asks, groups)] if self.by_one else cut(asks, groups, PARTS * scorers.count)
        return joined(scorers.score(self.number, parts, by_one=self.by_one), [len(own) for own, _ in parts])

    def close(self) -> None:
        """End the actors, which all sources share; once more does nothing."""
        if self._scorers is not None:
            self._scorers.close()


def cut(asks: Sequence[Ask], groups: Sequence[Group], parts: int) -> list[Part]:
    """Return these in at most so many parts of about as many prompts each, in their order."""
    size, found, at = -(-len(groups) // parts), list[Part](), 0
    for start in range(0, len(groups), size):
        own = groups[start : start + size]
        count = sum(len(group.completions) for group in own)
        found.append((asks[at : at + count], own))
        at += count
    return found


def joined(given: Sequence[Given], counts: Sequence[int]) -> Given:
    """Return what was said of parts as said of the whole. counts: completions of each part."""
    whole = Given(torch.cat([one.scores for one in given]))
    at = 0
    for one, count in zip(given, counts, strict=True):
        whole.failures.update({at + place: reason for place, reason in one.failures.items()})
        for name, number in one.counts.items():
            whole.counts[name] = whole.counts.get(name, 0.0) + number
        at += count
    return whole
