"""What a config says of a reward: where it comes from, what it weighs, and the few settings of its kind. No torch.

rewards:
  - {model: runs/3f9c, uncertainty: 1.0}
  - {function: "my_rewards.py:brevity", weight: 0.5}
  - {rule: length, length: {limit: 96, buffer: 24}}
  - {judge: "http://127.0.0.1:8080/v1", on_error: skip}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.config import Config
from preftune.data.endpoints import Endpoint, plain_http
from preftune.errors import ConfigError

KINDS = ("model", "function", "rule", "judge")
NAME = r"^[A-Za-z0-9_-]{1,40}$"
CRITERIA = "Judge how well the answer does what is asked: is it right, complete, clear and no longer than it need be?"


class JudgeSettings(Config):
    """A judge behind an OpenAI-style URL."""

    url: str = Field(description="the API's base, such as http://127.0.0.1:8080/v1")
    model: str = Field("default", min_length=1, description="the model's name at that server; many local ones know one only")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key")
    criteria: str = Field(CRITERIA, min_length=1, description="what the judge is told to look for")
    pairwise: bool = Field(
        False, description="whether the samples of a prompt are compared, each two in both orders, instead of graded 1 to 10"
    )
    concurrency: int = Field(4, ge=1, le=64, description="requests under way at once")
    max_calls: int | None = Field(None, ge=1, description="most requests of a run, past which it stops; null = any number")
    max_tokens: int | None = Field(None, ge=1, description="most tokens of a run, questions and verdicts; null = any number")

    @field_validator("url")
    @classmethod
    def _a_url(cls, url: str) -> str:
        return plain_http(url)

    @property
    def endpoint(self) -> Endpoint:
        """The judge as the client for URLs knows it; who writes the config may name a server of their own network."""
        return Endpoint(
            name="judge",
            url=self.url,
            model=self.model,
            api_key_env=self.api_key_env,
            allow_private=True,
            concurrency=self.concurrency,
        )


class LengthSettings(Config):
    """What length is wanted, in tokens: one that is aimed at, or a limit."""

    target: int | None = Field(None, ge=1, description="length that gets 0; one that is off by its whole size or more gets −1")
    limit: int | None = Field(None, ge=1, description="length past which an answer gets −1 (overlong shaping, 2503.14476, eq. 13)")
    buffer: int | None = Field(None, ge=1, description="tokens before the limit over which 0 falls to −1")

    @model_validator(mode="after")
    def _one_way(self) -> LengthSettings:
        if (self.target is None) == (self.limit is None):
            raise ValueError('set one of "target" and "limit"')
        if (self.limit is None) != (self.buffer is None):
            raise ValueError('"limit" and "buffer" go together')
        if self.limit is not None and self.buffer is not None and self.buffer > self.limit:
            raise ValueError(f'"buffer" = {self.buffer} is longer than "limit" = {self.limit}')
        return self


class RewardSource(Config):
    """One reward: where it comes from (exactly one of model, function, rule and judge) and what it weighs."""

    model: str | tuple[str, ...] | None = Field(
        None, description="run of preftune train reward (in sd of its training answers) or dpo; several are an ensemble"
    )
    function: str | None = Field(None, description='Python "file.py:name", called with lists: prompts, completions, facts; as it returns')
    rule: Literal["style", "tests", "length"] | None = Field(
        None,
        description="style: share of the conventions followed, 0 to 1; tests: 1 where the prompt's check passes; length: −1 to 0",
    )
    judge: JudgeSettings | None = Field(None, description="URL of an OpenAI-style API, or its settings; 0 to 1")
    weight: float = Field(1.0, allow_inf_nan=False, description="what it is multiplied by in the sum")
    name: str | None = Field(None, pattern=NAME, description="how it is called in the metrics; null = by its kind")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="a sample that it cannot judge: stop the run, or mark the sample, which then teaches nothing"
    )
    uncertainty: float | Literal["worst"] | None = Field(
        None, description='ensemble: this many sd of its members taken off their mean, or "worst": the lowest of them; null = the mean'
    )
    seconds: float | None = Field(None, gt=0, description="time limit of a call (function, 60) or of a test (rule tests, 5)")
    length: LengthSettings | None = Field(None, description="rule length: what is wanted")

    @field_validator("judge", mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("uncertainty")
    @classmethod
    def _no_bonus(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 <= value < float("inf"):
            raise ValueError("give a number of 0 or more")
        return value

    @field_validator("function")
    @classmethod
    def _file_and_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", value):
            raise ValueError('write "file.py:name"')
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> RewardSource:
        named = [kind for kind in KINDS if getattr(self, kind) not in (None, ())]
        if len(named) != 1:
            said = f"{' and '.join(named)} are" if named else "none is"
            raise ValueError(f"a reward has exactly one of {', '.join(KINDS)}; {said} set here")
        if self.uncertainty is not None and self.model is None:
            raise ValueError(f'"uncertainty" is for "model", and this is a {self.kind}')
        if self.seconds is not None and self.function is None and self.rule != "tests":
            raise ValueError(f'"seconds" is for "function" and the rule "tests", and this is a {self.kind}')
        if (self.length is not None) != (self.rule == "length"):
            raise ValueError('"length" goes with the rule "length": write for example {rule: length, length: {target: 80}}')
        return self

    @property
    def kind(self) -> str:
        """Which of model, function, rule and judge it is."""
        return next(kind for kind in KINDS if getattr(self, kind) not in (None, ()))

    @property
    def models(self) -> tuple[str, ...]:
        """The reward models, where it is made of such."""
        return (self.model,) if isinstance(self.model, str) else self.model or ()

    @property
    def label(self) -> str:
        """How it is called in the metrics."""
        return self.name or (self.function.rpartition(":")[2] if self.function else self.rule or self.kind)


def with_reward_model(sources: Sequence[RewardSource], reward_model: str | None) -> tuple[RewardSource, ...]:
    """Return the sources and, where none of them names this reward model, that model before them with weight 1.

    So `reward_model` alone is the short form of a list of one, and a list that names it decides its weight.
    """
    if reward_model is None or any(reward_model in source.models for source in sources):
        return tuple(sources)
    return (RewardSource(model=reward_model), *sources)


def insist_on_names(sources: Sequence[RewardSource]) -> None:
    """Raise ConfigError where two sources would be logged under one name."""
    twice = [label for label, count in Counter(source.label for source in sources).items() if count > 1]
    if twice:
        raise ConfigError(f'two rewards are called "{twice[0]}"', 'key "rewards"', "Give one of them a name.")
