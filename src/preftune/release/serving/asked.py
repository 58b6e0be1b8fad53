"""What clients may ask for, in the form of OpenAI's API. A field that would change the answer and that we lack is refused in words."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from preftune.records import Message

DEFAULT_NEW_TOKENS = 256  # where a client names no limit


class StreamOptions(BaseModel):
    """include_usage: one more chunk before the end, with the counts of tokens."""

    include_usage: bool = False


class Asked(BaseModel):
    """What both routes take. The last fields are those that clients send and that change no answer at these values."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=16)
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which an answer ends; it does not hold them."""
        return tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or []))

    @property
    def limit(self) -> int:
        """The most tokens of one answer."""
        return self.max_tokens or DEFAULT_NEW_TOKENS


class AskedChat(Asked):
    """The body of /v1/chat/completions. logprobs: of the drawn tokens; those of others (top_logprobs) are not kept."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Literal[0] | None = None

    @property
    def limit(self) -> int:
        """The most tokens of one answer."""
        return self.max_completion_tokens or super().limit


class AskedText(Asked):
    """The body of /v1/completions. logprobs: None, or 0 for those of the drawn tokens."""

    prompt: str = Field(min_length=1)
    logprobs: Literal[0] | None = None
