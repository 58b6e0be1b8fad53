"""The records that the whole loop speaks in (pydantic models; no torch).

A Judgement is one rater's word and is never changed: an undo is a new row that supersedes. Pairs are derived from judgements
by `pairs_of`, never stored as truth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["system", "user", "assistant"]
GOLD = "gold"  # picked_by of a judgement on an item whose answer is known: it tests the rater and teaches no model
RETEST = "retest"  # picked_by of a rater's second judgement of an item, asked to see whether it is the same: no second vote
CHECKS = (GOLD, RETEST)
UNKNOWN = "unknown"  # the rater where a source names none: it may be many people
SETTLED = "settled:"  # before the name of a rater who decides what others disagreed about


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields changed; what was worked out from the old ones does not go with it."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


# Made once: building an encoder takes longer than most contents take to encode.
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=True, default=str).encode


def content_id(*parts: Any) -> str:
    """Return 16 hex digits that depend on the content alone, so that importing twice adds nothing."""
    return hashlib.sha256(_encode(parts).encode()).hexdigest()[:16]


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Prompt(Record):
    """What is asked: messages that end with the user's turn."""

    messages: tuple[Message, ...] = Field(min_length=1)
    kind: str = ""
    check: str = ""  # Python asserts that an answer's code must pass; empty where there is none

    @model_validator(mode="after")
    def _ends_with_user(self) -> Prompt:
        if self.messages[-1].role != "user":
            raise ValueError("the last message of a prompt must be the user's")
        return self

    @cached_property
    def id(self) -> str:
        """The content's hash: the same messages have the same id whatever file they came from."""
        return content_id("prompt", [(m.role, m.content) for m in self.messages])

    @property
    def text(self) -> str:
        """The last user turn, for lists and reports."""
        return self.messages[-1].content


class Candidate(Record):
    """An answer to a prompt, and where it came from (a model with its sampling settings, or a person)."""

    prompt_id: str
    text: str
    source: str = "unknown"
    sampling: dict[str, Any] = Field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """The content's hash."""
        return content_id("candidate", self.prompt_id, self.text)


class Judgement(Record):
    """One rater's word on up to 9 candidates of one prompt.

    ranking is a weak order, best first, ties together; a candidate that is not in it was not compared.
    strength (0 to 3) says how clear the preference between a pair was. acceptable lists the candidates that are good
    enough: None = not asked, empty = all are bad; so a thumb up or down is a ranking of one candidate with it.
    rewrite is the rater's own better version of the candidate rewrite_of. aspects: a rating of candidates by aspect and
    candidate, higher = better. supersedes: the judgement that this one takes back; without a ranking it says nothing instead.
    """

    prompt_id: str
    ranking: tuple[tuple[str, ...], ...] = ()
    strength: int | None = Field(default=None, ge=0, le=3)
    acceptable: tuple[str, ...] | None = None
    rewrite: str | None = None
    rewrite_of: str | None = None
    rationale: str | None = None
    aspects: dict[str, dict[str, float]] = Field(default_factory=dict)
    rater: str = UNKNOWN
    active_seconds: float | None = Field(default=None, ge=0)
    presentation: tuple[str, ...] = ()
    picked_by: str = "import"
    picked_probability: float | None = Field(default=None, gt=0, le=1)
    supersedes: str | None = None
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @field_validator("ranking")
    @classmethod
    def _each_candidate_once(cls, ranking: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        flat = [c for tier in ranking for c in tier]
        if len(flat) > 9 or not all(ranking):
            raise ValueError(f"a ranking has 2 to 9 candidates and no empty place, this one has {len(flat)}")
        if len(set(flat)) < len(flat):
            twice = next(candidate for candidate in flat if flat.count(candidate) > 1)
            raise ValueError(f'candidate "{twice}" is ranked twice. Give each candidate one place')
        return ranking

    @model_validator(mode="after")
    def _says_something(self) -> Judgement:
        ranked = sum(map(len, self.ranking))
        if ranked < 2 and self.acceptable is None and self.supersedes is None:
            raise ValueError(f"a ranking has 2 to 9 candidates, this one has {ranked}")
        return self

    @cached_property
    def id(self) -> str:
        """The hash of what was said, by whom and of what. The clock is left out, so that importing twice adds nothing."""
        said = [self.prompt_id, self.ranking, self.strength, self.rater, self.rationale, self.supersedes]
        # What most files do not have is added only where it is said: so an id does not depend on which fields we know of.
        also = {"acceptable": self.acceptable, "rewrite": self.rewrite, "aspects": self.aspects, "presentation": self.presentation}
        told = {name: value for name, value in also.items() if value or (value == () and name == "acceptable")}
        if self.picked_by in CHECKS:  # else a retest that says the same would be taken for the judgement that it tests
            told["picked_by"] = self.picked_by
        return content_id("judgement", *said, *([told] if told else []))


class Demonstration(Record):
    """A prompt and the answer that someone wishes for."""

    prompt_id: str
    text: str
    author: str = "unknown"

    @cached_property
    def id(self) -> str:
        """The content's hash."""
        return content_id("demonstration", self.prompt_id, self.text)


class Pair(Record):
    """Two answers to one prompt of which one is preferred; derived from judgements.

    weight: how far the votes lean to it (1 = all one way). confidence: the probability that it is the right way, as far as the votes tell.
    strength: how clear it is, 0 to 3, the mean over the raters who prefer it and said so; None where nobody did.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    weight: float = 1.0
    confidence: float = 1.0
    strength: float | None = None
    group: str = ""
    kind: str = ""
    check: str = ""


class Tie(Record):
    """Two answers to one prompt that a rater called alike, and of which neither is preferred over all raters; derived from judgements."""

    messages: tuple[Message, ...]
    completions: tuple[str, str]
    weight: float = 1.0
    group: str = ""
    kind: str = ""
    check: str = ""


class Thumb(Record):
    """An answer that raters call good enough, or not; derived from judgements. weight: how far they lean to it (1 = all one way)."""

    messages: tuple[Message, ...]
    completion: str
    desirable: bool
    weight: float = 1.0
    group: str = ""
    kind: str = ""
    check: str = ""


class KWise(Record):
    """One rater's weak order over three and more answers to a prompt; derived from judgements.

    completions: best first. ranks: the rank of each, 1 = best; those that are tied share one.
    """

    messages: tuple[Message, ...]
    completions: tuple[str, ...] = Field(min_length=3)
    ranks: tuple[int, ...] = Field(min_length=3)
    weight: float = 1.0
    group: str = ""
    kind: str = ""
    check: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> KWise:
        steps = [b - a for a, b in zip((0, *self.ranks), self.ranks, strict=False)]
        if len(self.ranks) != len(self.completions) or steps[0] != 1 or not set(steps) <= {0, 1}:
            raise ValueError(f"the ranks {list(self.ranks)} of {len(self.completions)} completions do not go up from 1 by steps of 0 or 1")
        return self


def ranked_by(judgement: Judgement) -> list[str]:
    """Return the candidates that a judgement ranks, best first."""
    return [candidate for tier in judgement.ranking for candidate in tier]


def pairs_of(judgement: Judgement) -> list[tuple[str, str]]:
    """Return (better, worse) candidate ids of every strict preference in one judgement; ties give none."""
    tiers = judgement.ranking
    return [(b, w) for i, tier in enumerate(tiers) for b in tier for below in tiers[i + 1 :] for w in below]


def standing(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Return the judgements that no later one supersedes, in their order."""
    rows = list(judgements)
    gone = {j.supersedes for j in rows if j.supersedes}
    return [j for j in rows if j.id not in gone] if gone else rows


def is_settled(judgement: Judgement) -> bool:
    """Return whether a judgement was given to settle what others disagree about: it decides what it compares."""
    return judgement.rater.startswith(SETTLED)


def votes_of(judgements: Iterable[Judgement], weights: Mapping[str, float] | None = None) -> dict[tuple[str, str], float]:
    """Return how many votes prefer the first of each two candidates to the second, over all standing judgements of one prompt.

    A strict preference is one vote, a tie half a vote each way. weights: what one vote of a rater counts (1 where none is given; a rater
    who counts 0 says nothing). Where a settling judgement compares two candidates, all others on these two are left out.
    """
    valid = standing(judgements)
    decided = {frozenset(two) for j in valid if is_settled(j) for two in _compared(j)}
    votes: dict[tuple[str, str], float] = {}
    for judgement in valid:
        weight = 1.0 if weights is None else weights.get(judgement.rater, 1.0)
        if weight == 0:
            continue
        for (a, b), share in _compared(judgement).items():
            if decided and not is_settled(judgement) and frozenset((a, b)) in decided:
                continue
            votes[a, b] = votes.get((a, b), 0.0) + weight * share
    return votes


def majority_pairs(judgements: Iterable[Judgement]) -> list[tuple[str, str, float]]:
    """Aggregate judgements of one prompt over raters into (chosen, rejected, weight).

    For each two candidates the votes of all standing judgements are counted (`votes_of`); the majority gives the direction, and
    weight = |share for − share against| (1 when all agree, so that a contested pair counts less); an even split gives no pair.
    """
    votes = votes_of(judgements)
    result = []
    for (a, b), for_a in sorted(votes.items()):
        for_b = votes.get((b, a), 0.0)
        if for_a > for_b:
            result.append((a, b, (for_a - for_b) / (for_a + for_b)))
    return result


def _compared(judgement: Judgement) -> dict[tuple[str, str], float]:
    """Return what one judgement votes: 1 for (better, worse), a half for each order of two that are tied."""
    found = dict.fromkeys(pairs_of(judgement), 1.0)
    for tier in judgement.ranking:
        if len(tier) > 1:
            found |= {(a, b): 0.5 for a in tier for b in tier if a != b}
    return found
