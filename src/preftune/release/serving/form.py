"""Pieces of answers as the objects that OpenAI's clients read."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from preftune.release.serving.problems import problem_of


class TokenLogprob(NamedTuple):
    """A token's text, its log-prob in nats, and the likeliest tokens in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """New text of an answer. why: "stop" or "length" with the last piece. logprobs: of each token since the last piece."""

    index: int
    text: str
    why: str | None
    logprobs: tuple[TokenLogprob, ...]
    tokens: int


class Form:
    """One reply. on_whole: called with the text of each answer that ended, by its index."""

    def __init__(
        self, model: str, *, chat: bool, logprobs: bool, prompt_tokens: int, on_whole: Callable[[str, int, str], None] | None = None
    ) -> None:
        self.chat, self.logprobs, self.prompt_tokens, self.on_whole = chat, logprobs, prompt_tokens, on_whole
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self.head = {"id": self.id, "created": int(time.time()), "model": model}
        self._texts: dict[int, str] = {}
        self._offsets: dict[int, int] = {}

    async def whole(self, pieces: AsyncIterator[Piece], n: int) -> dict[str, Any]:
        """Return the answer in one object."""
        own: list[list[Piece]] = [[] for _ in range(n)]
        async for piece in pieces:
            own[piece.index].append(piece)
            self._note(piece)
        choices = []
        for index, parts in enumerate(own):
            text = "".join(part.text for part in parts)
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            logprobs = [one for part in parts for one in part.logprobs]
            choices.append({"index": index, **said, "finish_reason": parts[-1].why, "logprobs": self._logprobs(index, logprobs)})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": self._usage(sum(parts[-1].tokens for parts in own))}

    async def events(self, pieces: AsyncGenerator[Piece, None], *, usage: bool) -> AsyncIterator[str]:
        """Yield server-sent events, the last of them `[DONE]`; usage: one with the counts of tokens before it."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        later = {"usage": None} if usage else {}  # as OpenAI: the key is there in every chunk where usage was asked for
        tokens: dict[int, int] = {}
        try:
            async for piece in pieces:
                first = {} if piece.index in tokens else {"role": "assistant"}
                tokens[piece.index] = piece.tokens
                self._note(piece)
                said = {"delta": {**first, "content": piece.text}} if self.chat else {"text": piece.text}
                logprobs = self._logprobs(piece.index, piece.logprobs)
                choice = {"index": piece.index, **said, "finish_reason": piece.why, "logprobs": logprobs}
                yield _event({**self.head, "object": kind, "choices": [choice], **later})
        except Exception as error:  # the status is sent, so whatever it was comes as an event, which clients raise
            yield _event(problem_of(error, status=500).body())
            return
        finally:
            await pieces.aclose()  # gives the tickets up when the client leaves
        if usage:
            yield _event({**self.head, "object": kind, "choices": [], "usage": self._usage(sum(tokens.values()))})
        yield "data: [DONE]\n\n"

    def _note(self, piece: Piece) -> None:
        text = self._texts[piece.index] = self._texts.get(piece.index, "") + piece.text
        if piece.why and self.on_whole:
            self.on_whole(self.id, piece.index, text)

    def _usage(self, completion: int) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": completion, "total_tokens": self.prompt_tokens + completion}

    def _logprobs(self, index: int, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            return {"content": [{**_entry(t, p), "top_logprobs": [_entry(*one) for one in top]} for t, p, top in found], "refusal": None}
        offsets, at = [], self._offsets.get(index, 0)
        for one in found:
            offsets.append(at)
            at += len(one.text)
        self._offsets[index] = at
        top = [dict(one.top) for one in found] if any(one.top for one in found) else None
        return {
            "tokens": [one.text for one in found],
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
