"""Batches that are begun before they are learned from, so that drawing and learning go on side by side.

    with staleness n, at the start of step t, the policy having learned t rounds:
        begin batch t + n with these weights     (at step 0: batches 0 … n)
        take batch t, which was begun at step t − n

So batch t is always drawn with the weights of round max(0, t − n), whatever takes how long. A checkpoint holds the batches that are drawn
and not yet learned from (docs/decisions/0021), so a run that goes on needs no older weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

from preftune.rollout.client import insist_on_version
from preftune.rollout.generate import Sample

Wait = Callable[[], list[Sample]]
KEPT = "drawn"  # its place in a run's state


class Ahead:
    """The batches of a run that are under way. All processes call its methods alike.

    begin: begins a batch (its step, the version of the weights that it is drawn with), and returns what waits for its samples.
    staleness: by how many rounds a batch's weights may be older than the policy. total: steps of the run.
    """

    def __init__(self, begin: Callable[[int, int], Wait], *, staleness: int, total: int) -> None:
        self._begin, self.staleness, self._total = begin, staleness, total
        self._under_way: dict[int, Wait] = {}

    def version(self, step: int) -> int:
        """Return how many rounds the weights have learned that a step's batch is drawn with."""
        return max(0, step - self.staleness)

    def take(self, step: int) -> list[Sample]:
        """Return a step's samples, once those that are to be drawn with the policy as it is now are begun.

        Raises PreftuneError where a sample is of other weights than those of this batch.
        """
        for batch in range(step, min(step + self.staleness, self._total - 1) + 1):
            if batch not in self._under_way:
                self._under_way[batch] = self._begin(batch, step)
        samples = self._under_way.pop(step)()
        insist_on_version(samples, self.version(step))
        return samples

    def keep(self, state: dict[str, Any]) -> None:
        """Wait for what is under way, and put it into a run's state."""
        drawn = {batch: wait() for batch, wait in sorted(self._under_way.items())}
        self._under_way = {batch: _there(samples) for batch, samples in drawn.items()}
        state[KEPT] = [[batch, [list(astuple(sample)) for sample in samples]] for batch, samples in drawn.items()]

    def restore(self, state: dict[str, Any]) -> None:
        """Take out of a run's state what `keep` has put there."""
        for batch, rows in state.pop(KEPT, ()):
            self._under_way[int(batch)] = _there([_sample(row) for row in rows])


def _there(samples: list[Sample]) -> Wait:
    return lambda: samples


def _sample(row: Sequence[Any]) -> Sample:
    prompt_index, sample_index, ids, logprobs, finished, version = row
    return Sample(prompt_index, sample_index, tuple(ids), tuple(logprobs), finished, version)
