"""Completions to be judged, and what keeps the notices that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from preftune.data.batches import Group
from preftune.progress import Silent
from preftune.records import Message
from preftune.rollout.rewards.asking import Ask


class Noted(Silent):
    """Keeps the notices."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def asked() -> Callable[..., tuple[list[Ask], list[Group]]]:
    """Return (asks, groups) of these answers, a list a prompt: asked([["a", "b"], ["c"]]). The tokens are the characters."""

    def make(answers: Sequence[Sequence[str]], facts: Sequence[dict[str, Any]] = ()) -> tuple[list[Ask], list[Group]]:
        asks, groups = [], []
        for number, texts in enumerate(answers):
            prompt = (Message(role="user", content=f"question {number}"),)
            ids = [tuple(map(ord, text)) for text in texts]
            known = facts[number] if facts else {}
            asks += [Ask(prompt, text, own, True, number, known) for text, own in zip(texts, ids, strict=True)]
            groups.append(Group((1, 2), tuple(ids), number))
        return asks, groups

    return make
