"""What OpenAI-style servers are asked and what they answer: the request's JSON, whole answers, server-sent events, errors.

Nothing of an answer is trusted: it may be no JSON, of another shape, without an end, or hold what no database takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.endpoints import Endpoint
from preftune.errors import PreftuneError
from preftune.records import Message

SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Reply:
    """One answer. finished: it ended by itself, not by the limit on tokens. tokens: what both took, if it is said."""

    text: str
    finished: bool
    tokens: int | None = None


@dataclass(frozen=True)
class Ask:
    """What is asked once: see `chat`."""

    messages: Sequence[Message]
    temperature: float
    max_tokens: int
    seed: int | None = None


class RemoteError(PreftuneError):
    """A server did not give what was asked. status: its HTTP status, where it gave one. again: whether asking again may help."""

    def __init__(
        self, what: str, where: str, fix: str = "", *, status: int | None = None, again: bool = False, wait_seconds: float | None = None
    ) -> None:
        super().__init__(what, where, fix)
        self.status, self.again, self.wait_seconds = status, again, wait_seconds


def payload_of(endpoint: Endpoint, ask: Ask) -> dict[str, Any]:
    """Return the JSON of a request."""
    messages = [{"role": message.role, "content": message.content} for message in ask.messages]
    payload = {"model": endpoint.model, "messages": messages, "temperature": ask.temperature, endpoint.limit_key: ask.max_tokens}
    return payload | ({} if ask.seed is None else {"seed": ask.seed})


def replies_of(endpoint: Endpoint, body: bytes) -> list[Reply]:
    """Return the answers, one or more, in a whole response's body. Raises RemoteError where there is none."""
    value = _json(endpoint, body)
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices:
        said = plain(endpoint, told(body))
        raise RemoteError(f"the server's answer holds no choices ({said})", endpoint.where, "Is this an OpenAI-style API?")
    usage = value.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) and len(choices) == 1 else None
    return [_reply(endpoint, choice, tokens if isinstance(tokens, int) else None) for choice in choices]


def _reply(endpoint: Endpoint, choice: Any, tokens: int | None) -> Reply:
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str | None) or not isinstance(message, dict):
        raise RemoteError("a choice of the server's answer holds no text", endpoint.where, "Is this an OpenAI-style chat API?")
    return Reply(storable(content or ""), choice.get("finish_reason") != "length", tokens)


def _json(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        said = plain(endpoint, body[: SHOWN_CHARACTERS * 4].decode("utf-8", "replace"))
        raise RemoteError(f"the server's answer is not JSON ({said})", endpoint.where, "Is this an OpenAI-style API?") from error
    if not isinstance(value, dict):
        raise RemoteError("the server's answer is no JSON object", endpoint.where, "Is this an OpenAI-style API?")
    return value


def pieces_of(endpoint: Endpoint, body: Iterator[bytes]) -> Iterator[str]:
    """Yield the text of each server-sent event up to its end mark. Raises RemoteError where the stream ends without one."""
    ended = False
    for data in _events(body):
        if data.strip() == b"[DONE]":
            return
        value = _json(endpoint, data)
        if value.get("error"):
            raise RemoteError(f"the server broke off: {plain(endpoint, told(data))}", endpoint.where, "Try again.", again=True)
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            content = delta.get("content") if isinstance(delta, dict) else None
            ended = ended or bool(isinstance(choice, dict) and choice.get("finish_reason"))
            if isinstance(content, str) and content:
                yield storable(content)
    if not ended:
        raise RemoteError("the stream broke off before the answer's end", endpoint.where, "Try again.", again=True)


def _events(body: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the data of each server-sent event (the lines `data: …` up to an empty one), whatever the lines end in."""
    rest, data = b"", list[bytes]()
    for chunk in body:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                data.append(text[5:].removeprefix(b" "))
            elif not text and data:
                yield b"\n".join(data)
                data = []
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data:
        yield b"\n".join(data)


def storable(text: str) -> str:
    """Return a text that any database takes: NUL and halves of surrogate pairs, which are no characters, become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def told(body: bytes) -> str:
    """Return the message inside an error's body, or the body where it is none that we know."""
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return message if isinstance(message, str) else text


def plain(endpoint: Endpoint, text: str) -> str:
    """Return what a server says on one line, without control characters and without the key, and short."""
    text = endpoint.without_key(text)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}…"
