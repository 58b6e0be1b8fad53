"""What is judged and what comes of it: the words that all rewards share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from preftune.data.batches import Group
from preftune.data.snapshot import Snapshot
from preftune.records import Message

SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Ask:
    """One completion to be judged.

    messages: its prompt. text: what was answered, without the end token. ids: its tokens in the policy's vocabulary, the end token
    included where it came. finished: it ended by itself. prompt_index: which samples belong to one prompt. facts: what the snapshot knows
    of the prompt (`facts_of`).
    """

    messages: Sequence[Message]
    text: str
    ids: tuple[int, ...]
    finished: bool = True
    prompt_index: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def place(self, number: int, of: int) -> str:
        """Return how an error names this ask, the number-th of so many (from 0)."""
        start = " ".join(self.text.split())
        shown = start if len(start) <= SHOWN_CHARACTERS else f"{start[:SHOWN_CHARACTERS]}…"
        return f'completion {number} of {of} (prompt {self.prompt_index}, "{shown}")'


@dataclass(frozen=True)
class Given:
    """What one reward says: scores, float [S], whatever where it failed; failures: sample → why; counts: numbers to be logged."""

    scores: Tensor
    failures: dict[int, str] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


class Reward(Protocol):
    """What judges completions."""

    def score(self, asks: Sequence[Ask], groups: Sequence[Group]) -> Given:
        """Return what it says of each completion. groups: the same completions in the policy's tokens, prompt by prompt, in order."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def facts_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return what is known of each of `snapshot.prompts`: kind, check, and reference (an answer that someone preferred or wrote)."""
    best = {p.messages: p.chosen for p in reversed(snapshot.train)} | {d.messages: d.completion for d in reversed(snapshot.demonstrations)}
    found = [{"kind": p.kind, "check": p.check, "reference": best.get(p.messages, "")} for p in snapshot.prompts]
    return [{key: value for key, value in facts.items() if value} for facts in found]
