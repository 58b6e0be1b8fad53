"""Rules as rewards: adherence to the house style, a prompt's check run in the sandbox, length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from preftune.code.sandbox import run_checks
from preftune.code.style import extract_code, judge_style
from preftune.data.batches import Group
from preftune.progress import Progress
from preftune.rollout.rewards.asking import Ask, Given
from preftune.rollout.rewards.source import LengthSettings, RewardSource

if TYPE_CHECKING:
    from torch import Tensor

TEST_SECONDS = 5.0


class RuleReward:
    """One of the rules that a program decides."""

    def __init__(self, source: RewardSource, progress: Progress) -> None:
        self.source, self.progress = source, progress
        self._said = False

    def score(self, asks: Sequence[Ask], groups: Sequence[Group]) -> Given:
        """Return the rule's word on each completion."""
        if self.source.rule == "style":
            return Given(torch.tensor([judge_style(ask.text).adherence for ask in asks]))
        if self.source.rule == "tests":
            return Given(self._tested(asks))
        assert self.source.length is not None
        return Given(torch.tensor([length_reward(len(ask.ids), self.source.length) for ask in asks]))

    def _tested(self, asks: Sequence[Ask]) -> Tensor:
        """Return 1 where the answer's code passes its prompt's check, else 0; 0 too where the prompt has none."""
        checked = [place for place, ask in enumerate(asks) if ask.facts.get("check")]
        if len(checked) < len(asks) and not self._said:
            self._said = True
            self.progress.note(f"{len(asks) - len(checked)} of {len(asks)} completions answer prompts without a check: tests gives them 0.")
        codes = {place: extract_code(asks[place].text) for place in checked}
        items = [(place, code, str(asks[place].facts["check"])) for place, code in codes.items() if code is not None]
        results = run_checks([(code, check) for _, code, check in items], seconds=self.source.seconds or TEST_SECONDS)
        scores = torch.zeros(len(asks))
        for (place, _, _), result in zip(items, results, strict=True):
            scores[place] = float(result.ok)
        return scores

    def close(self) -> None:
        """Nothing is held."""


def length_reward(tokens: int, wanted: LengthSettings) -> float:
    """Return 0 for a length as wanted, down to −1.

    target: −|tokens − target| / target, −1 at least. limit and buffer: 0 up to limit − buffer, then falling to −1 at the limit.
    Source: of the latter, Yu et al. 2503.14476 (DAPO), eq. 13. Differs: none.
    """
    if wanted.target is not None:
        return -min(1.0, abs(tokens - wanted.target) / wanted.target)
    assert wanted.limit is not None
    assert wanted.buffer is not None
    return -min(1.0, max(0.0, (tokens - (wanted.limit - wanted.buffer)) / wanted.buffer))
