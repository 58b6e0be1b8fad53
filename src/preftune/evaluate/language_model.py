"""What the evaluation asks of a language model: four questions, so that a measure can be tested without a real one.

`subject.py` answers them with a loaded model; the tests answer them with a few lines of Python. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from preftune.records import Message


@dataclass(frozen=True)
class Generation:
    """One sampled answer: its text without the end token, whether it ended by itself, and its length in tokens."""

    text: str
    finished: bool
    num_tokens: int


class LanguageModel(Protocol):
    """A chat model that can score given answers, tell the bits of a text, and answer by itself."""

    def score_completions(
        self, prompts: Sequence[tuple[Message, ...]], completions: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, int]]]:
        """Return (sum of log-probabilities in nats, number of tokens) of each completion of each prompt.

        The prompt is rendered with the model's chat template up to where its answer starts; the end token is left out.
        """
        ...

    def bits(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Return (bits of all tokens but the first, bytes that these cover) of each raw text, without a chat template."""
        ...

    def generate(self, prompts: Sequence[tuple[Message, ...]], *, max_new_tokens: int, temperature: float, seed: int) -> list[Generation]:
        """Return one answer to each prompt; temperature 0 takes the likeliest token each time."""
        ...

    def complete(self, prompts: Sequence[str], *, stops: Sequence[str], max_new_tokens: int, temperature: float, seed: int) -> list[str]:
        """Return how the model goes on with each raw text, without a chat template, up to the first of the stop texts."""
        ...
