"""What goes into a snapshot: which prompts, judgements and pairs, and why the others were left out.

A judgement that another took back never returns, whatever the filters: what stands is found before anything is filtered. Which side of the
split a prompt is on does not depend on filters either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from preftune.errors import DataError
from preftune.records import CHECKS, Judgement, Message, Prompt, Record, standing

RANDOM = "random"  # picked_by of an item that was drawn by chance alone
Measure = Callable[[str], int]


class Filters(Record):
    """What to keep; a field that is not set keeps everything.

    kinds: of prompts. raters, since, until (before it): of judgements. sources: of both candidates. min_agreement: share of the votes that
    are for the chosen answer, from 0.5. min_strength: of judgements; one without a strength is left out. max_characters, max_tokens: of the
    prompt with the longer answer; tokens need a tokenizer (a tokenizer.json or a folder with one) and leave out what a chat template adds.
    unbiased_only: judgements on items that were picked at random alone.
    """

    kinds: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    sources: tuple[str, ...] = ()
    min_agreement: float | None = Field(default=None, ge=0.5, le=1)
    min_strength: int | None = Field(default=None, ge=0, le=3)
    max_characters: int | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0)
    tokenizer: Path | None = None
    unbiased_only: bool = False

    @field_validator("since", "until")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time

    @model_validator(mode="after")
    def _fit_together(self) -> Filters:
        if (self.max_tokens is None) != (self.tokenizer is None):
            raise ValueError("max_tokens and tokenizer belong together. Give both or none")
        if self.since and self.until and self.since >= self.until:
            raise ValueError(f"since ({self.since:%Y-%m-%d %H:%M}) is not before until ({self.until:%Y-%m-%d %H:%M})")
        return self

    def as_config(self) -> dict[str, Any]:
        """Return what is set, as plain values; the tokenizer's path is left out, as its hash is what counts."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"tokenizer"})


def judgement_filter(filters: Filters, weights: Mapping[str, float] | None = None) -> Callable[[Judgement], str | None]:
    """Return a function that says why a judgement is left out; None where it is kept. weights: of raters; 0 leaves one out."""

    def why(judgement: Judgement) -> str | None:
        if judgement.picked_by in CHECKS:
            return judgement.picked_by  # it checks a rater
        if weights is not None and weights.get(judgement.rater) == 0:
            return "weight 0"
        if filters.raters and judgement.rater not in filters.raters:
            return "rater"
        if filters.since and judgement.created < filters.since:
            return "before since"
        if filters.until and judgement.created >= filters.until:
            return "not before until"
        if filters.min_strength is not None and (judgement.strength is None or judgement.strength < filters.min_strength):
            return "no strength" if judgement.strength is None else "strength"
        if filters.unbiased_only and judgement.picked_by != RANDOM:
            return "not picked at random"
        return None

    return why


def kept_judgements(judgements: Iterable[Judgement], why: Callable[[Judgement], str | None], left_out: Counter[str]) -> list[Judgement]:
    """Return the standing judgements that are kept; the others are counted in left_out by their reason."""
    kept = []
    for judgement in standing(judgements):
        reason = why(judgement)
        if reason is None:
            kept.append(judgement)
        else:
            left_out[reason] += 1
    return kept


class SizeLimit:
    """Whether a prompt with answers fits the limits. `inputs`: the hash of each file that it depends on goes into the snapshot's id."""

    def __init__(self, filters: Filters) -> None:
        self.tokenizer = _tokenizer_file(filters.tokenizer) if filters.tokenizer else None
        self._limits: list[tuple[Measure, int]] = []
        if filters.max_characters is not None:
            self._limits.append((len, filters.max_characters))
        if filters.max_tokens is not None and self.tokenizer:
            self._limits.append((_token_counter(self.tokenizer), filters.max_tokens))
        self._last: tuple[Message, ...] | None = None
        self._prompt_sizes: list[int] = []

    def fits(self, messages: tuple[Message, ...], *answers: str) -> bool:
        """Return whether the prompt with its longest answer is within every limit."""
        if not self._limits:
            return True
        if messages is not self._last:  # the pairs of one prompt come one after the other
            self._last = messages
            self._prompt_sizes = [sum(measure(m.content) for m in messages) for measure, _ in self._limits]
        return all(
            size + max(map(measure, answers), default=0) <= limit
            for (measure, limit), size in zip(self._limits, self._prompt_sizes, strict=True)
        )


def from_sources(filters: Filters, sources: Mapping[str, str], *candidates: str) -> bool:
    """Return whether all these candidates come from the sources wanted. sources: by candidate id."""
    return not filters.sources or all(sources.get(candidate) in filters.sources for candidate in candidates)


def of_kind(filters: Filters, prompt: Prompt) -> bool:
    """Return whether a prompt is of a kind that is wanted."""
    return not filters.kinds or prompt.kind in filters.kinds


def _tokenizer_file(path: Path) -> Path:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise DataError("there is no tokenizer.json here", str(path), "Give a tokenizer.json, or the folder of a model that has one.")
    return file


def _token_counter(file: Path) -> Measure:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"this is no tokenizer ({error})", str(file), "Give a tokenizer.json of the tokenizers library.") from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
