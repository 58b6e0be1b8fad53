"""The answers that were given lately, so that feedback can name one by its id and be sure of its text."""

from __future__ import annotations

import threading
from collections import OrderedDict

from preftune.data.feedback import Answer

MOST_ANSWERS = 10_000
MOST_CHARACTERS = 50_000_000


class GivenAnswers:
    """Keeps the newest answers; the oldest go when there are more than 10,000 of them, or 50 million characters."""

    def __init__(self, *, most: int = MOST_ANSWERS, most_characters: int = MOST_CHARACTERS) -> None:
        self._most, self._most_characters = most, most_characters
        self._kept: OrderedDict[tuple[str, int], Answer] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def add(self, answer: Answer) -> None:
        """Keep an answer."""
        with self._lock:
            self._kept[answer.id, answer.index] = answer
            self._characters += answer.characters
            while self._kept and (len(self._kept) > self._most or self._characters > self._most_characters):
                self._characters -= self._kept.popitem(last=False)[1].characters

    def find(self, name: str, index: int) -> Answer | None:
        """Return an answer, or None where there was none such or it is too long ago."""
        with self._lock:
            return self._kept.get((name, index))
