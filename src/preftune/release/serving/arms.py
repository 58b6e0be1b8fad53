"""The models behind one server: the release, one that it is split with, and the base that stands beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from preftune.data.template import Renderer
from preftune.models.load import max_context
from preftune.records import Message
from preftune.release.serving.problems import Problem
from preftune.release.serving.text import Decode
from preftune.release.serving.worker import Worker

CONTEXT_BEFORE = 8  # tokens of a plain prompt that its continuation is decoded after


class Arm:
    """One model with the thread that decodes it."""

    def __init__(self, model: nn.Module, renderer: Renderer, name: str) -> None:
        self.renderer, self.name = renderer, name
        self.context = max_context(model)
        self.worker = Worker(model, renderer.pad_id)
        self._most_characters = self.context * max(map(len, renderer.tokenizer.get_vocab()))

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return a conversation's tokens. Raises Problem 400 where they leave no room for an answer."""
        self._check_characters(sum(len(message.content) for message in messages), "messages")
        return self._fitting(self.renderer.prompt_ids(messages), "messages")

    def text_prompt(self, text: str) -> list[int]:
        """Return a plain text's tokens. Raises Problem 400 where they leave no room for an answer."""
        self._check_characters(len(text), "prompt")
        return self._fitting(self.renderer.raw_ids(text), "prompt")

    def continues(self, prompt: Sequence[int]) -> Decode:
        """Return what decodes the continuation of a plain text."""
        before = prompt[-CONTEXT_BEFORE:]
        start = self.plain(before)
        return lambda ids: self.plain([*before, *ids]).removeprefix(start)

    def plain(self, ids: Sequence[int]) -> str:
        """Return the text of tokens from anywhere, control tokens in it but for those that end an answer."""
        return self._decode(ids, skip_special=False)

    def spoken(self, ids: Sequence[int]) -> str:
        """Return the text of tokens from within a chat's answer."""
        return self._decode(ids, skip_special=True)

    def _decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        shown = [token for token in ids if token not in self.renderer.stop_ids]
        return str(self.renderer.tokenizer.decode(shown, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False))

    def _check_characters(self, count: int, field: str) -> None:
        # Before tokens are made of it: ten megabytes take seconds, in which nobody else would be answered.
        if count > self._most_characters:
            said = f"The prompt has {count:,} characters, more than the model's context of {self.context:,} tokens can hold. Shorten it."
            raise Problem(400, said, "context_length_exceeded", field)

    def _fitting(self, ids: list[int], field: str) -> list[int]:
        if len(ids) >= self.context:
            said = f"The prompt has {len(ids):,} tokens, and the model's context ends at {self.context:,}. Shorten it."
            raise Problem(400, said, "context_length_exceeded", field)
        return ids


@dataclass(frozen=True)
class Split:
    """Two models between which those who name none are divided. share: of the users who get the second."""

    names: tuple[str, str]
    share: float

    def name_for(self, user: str, secret: str) -> str:
        """Return the model of a user, always the same one."""
        drawn = int.from_bytes(hashlib.sha256(f"{secret}\0{user}".encode()).digest()[:8], "big") / 2**64
        return self.names[drawn < self.share]
