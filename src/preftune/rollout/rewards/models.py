"""Reward models as a reward: one or an ensemble, in the policy's tokens where they read the same ones, else by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from preftune.data.batches import Group
from preftune.data.template import Renderer
from preftune.errors import ConfigError, DataError
from preftune.progress import Progress
from preftune.rollout.rewards.asking import Ask, Given
from preftune.rollout.score import Scorer

Uncertainty = float | Literal["worst"] | None


def pessimistic(scores: Tensor, uncertainty: Uncertainty) -> Tensor:
    """Return one score of the members' [S, N]: their mean, less `uncertainty` times their sd, or the lowest of them.

    The sd is over the members as they are (divided by N). Source: Coste et al. 2310.02743, eqs. 2 to 4. Differs: UWO there takes off the
    variance, here the sd, so that the number has the scores' unit.
    """
    if uncertainty == "worst":
        return scores.amin(1)
    mean = scores.mean(1)
    return mean if not uncertainty else mean - uncertainty * scores.std(1, correction=0)


class ModelReward:
    """One reward model or an ensemble of several, each member in sd of its own scores over its training answers."""

    def __init__(
        self, scorers: Sequence[Scorer], renderer: Renderer, uncertainty: Uncertainty, progress: Progress, *, token_budget: int
    ) -> None:
        self.scorers, self.uncertainty, self.token_budget = list(scorers), uncertainty, token_budget
        self.members = sum(scorer.num_scores for scorer in scorers)
        if uncertainty is not None and self.members < 2:
            fix = "Train one with several heads, or name several reward models."
            raise ConfigError("one reward model cannot tell how unsure it is", 'key "rewards.uncertainty"', fix)
        self.by_text = [not reads_alike(scorer.renderer, renderer) for scorer in scorers]
        for scorer, by_text in zip(scorers, self.by_text, strict=True):
            if by_text:
                progress.note(f"{scorer.path.name} reads other tokens or another chat template than the policy: it is given the text anew.")

    def score(self, asks: Sequence[Ask], groups: Sequence[Group]) -> Given:
        """Return the score of each completion, in sd."""
        failures: dict[int, str] = {}
        columns = []
        for scorer, by_text in zip(self.scorers, self.by_text, strict=True):
            theirs = _rendered(scorer, asks, failures) if by_text else _with_an_end(groups, scorer.renderer.end_id)
            scores = scorer.standardised(_within(scorer, theirs, failures), token_budget=self.token_budget)
            columns.append(scores.reshape(len(asks), -1))
        members = torch.cat(columns, dim=1)
        counts = {"reward/uncertainty": float(members.std(1, correction=0).mean())} if self.members > 1 else {}
        return Given(pessimistic(members, self.uncertainty), failures, counts)

    def close(self) -> None:
        """Let the models go."""
        self.scorers.clear()


def reads_alike(theirs: Renderer, ours: Renderer) -> bool:
    """Return whether two renderers make the same tokens of a conversation."""
    return theirs.template.strip() == ours.template.strip() and theirs.tokenizer.get_vocab() == ours.tokenizer.get_vocab()


def _with_an_end(groups: Sequence[Group], end_id: int) -> list[Group]:
    # An answer of no token at all is read at an end token, as any other empty one is.
    return [Group(g.prompt, tuple(c or (end_id,) for c in g.completions), i) for i, g in enumerate(groups)]


def _rendered(scorer: Scorer, asks: Sequence[Ask], failures: dict[int, str]) -> list[Group]:
    """Return the asks in the scorer's own tokens, a group each; what did not end by itself has no end token there either."""
    groups = []
    for place, ask in enumerate(asks):
        ids = scorer.renderer.completion_ids(ask.text)
        completion = tuple(ids if ask.finished or len(ids) == 1 else ids[:-1])
        try:
            prompt, _ = scorer.renderer.fit_prompt(ask.messages, max(1, scorer.max_tokens - len(completion)))
        except DataError as error:
            failures.setdefault(place, f"has no room ({error.what})")
            prompt = [scorer.renderer.end_id]
        groups.append(Group(tuple(prompt), (completion,), place))
    return groups


def _within(scorer: Scorer, groups: list[Group], failures: dict[int, str]) -> list[Group]:
    """Return the groups with what is longer than the model reads taken down to a stump, which is marked failed."""
    kept, place = [], 0
    for group in groups:
        completions = []
        for completion in group.completions:
            length = len(group.prompt) + len(completion)
            if length > scorer.max_tokens:
                failures.setdefault(place, f"reads {scorer.max_tokens:,} tokens and there are {length:,}")
            completions.append(completion if length <= scorer.max_tokens else completion[-1:])
            place += 1
        prompt = group.prompt if len(group.prompt) < scorer.max_tokens else group.prompt[-1:]
        kept.append(Group(prompt, tuple(completions), group.index))
    return kept
