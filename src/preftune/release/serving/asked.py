"""What clients may ask for, in the form of OpenAI's API. A field that would change the answer and that we lack is refused in words."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from preftune.records import Message

DEFAULT_NEW_TOKENS = 256  # where a client names no limit
MOST_TOP_LOGPROBS = 20


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
    user: str | None = Field(None, max_length=200)
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
    """The body of /v1/chat/completions. logprobs: of the drawn tokens; top_logprobs: of so many of the likeliest beside each."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _top_with_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        return self

    @property
    def limit(self) -> int:
        """The most tokens of one answer."""
        return self.max_completion_tokens or super().limit


class AskedText(Asked):
    """The body of /v1/completions. logprobs: None, or how many of the likeliest tokens to give beside each drawn one."""

    prompt: str = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)


class AnswerName(BaseModel):
    """One answer of a reply: the reply's id and the choice's index."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=100)
    index: int = Field(0, ge=0)


class AskedFeedback(BaseModel):
    """The body of POST /v1/feedback: one of thumb, edit and better, on one answer or on two.

    answers: which, in the order in which they were shown. thumb: "none" takes an earlier one back. edit: the answer as it should
    have been. better: the place in `answers` of the better one, or "tie". comment: why. user: who says it, in the caller's words; it
    is kept as a pseudonym alone. consent: the id of the text that was shown (GET /v1/feedback).
    """

    model_config = ConfigDict(extra="forbid")

    answers: list[AnswerName] = Field(min_length=1, max_length=2)
    thumb: Literal["up", "down", "none"] | None = None
    edit: str | None = Field(None, min_length=1, max_length=200_000)
    better: Literal[0, 1, "tie"] | None = None
    comment: str | None = Field(None, max_length=10_000)
    user: str | None = Field(None, max_length=200)
    consent: str

    @model_validator(mode="after")
    def _one_word(self) -> Self:
        if sum(value is not None for value in (self.thumb, self.edit, self.better)) != 1:
            raise ValueError("say one of thumb, edit and better")
        if len(self.answers) != (2 if self.better is not None else 1):
            raise ValueError("better speaks of two answers, thumb and edit of one")
        return self
