"""From answers, ranks, scores and thumbs of any format to our judgements: the direction and the ties are settled here once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from preftune.data.formats.rows import BadRow, Row, checked_text, number_of
from preftune.records import Candidate, Demonstration, Judgement, Prompt

MOST_RANKED = 9  # candidates that one judgement may rank
CONTRADICTION = "the row contradicts itself: one key says that an answer is better, another that it is worse"
# Keys by which other tools give a chosen and a rejected answer a score; higher = better in all of them.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
)
SCORE_KEYS = frozenset({"margin"}.union(*SCORES))


def check_answers(*answers: str) -> None:
    """Check that answers are worth comparing. Raises BadRow where one is empty, or two are equal."""
    if not all(answer.strip() for answer in answers):
        raise BadRow("an answer is empty")
    stripped = {answer.strip() for answer in answers}
    if len(stripped) < len(answers):
        if len(set(answers)) == len(answers):
            raise BadRow("two answers differ only in the white space around them")
        raise BadRow("there is nothing to learn from two equal answers")


def check_scores(fields: dict[str, Any]) -> bool:
    """Return whether a row's scores say that chosen and rejected are equally good. Raises BadRow where they say the reverse."""
    for key, other in SCORES:
        if key in fields and other in fields:
            chosen, rejected = number_of(fields[key], key), number_of(fields[other], other)
            if chosen < rejected:
                raise BadRow(CONTRADICTION, f"{key} {chosen:g} is below {other} {rejected:g}")
            return chosen == rejected
    if "margin" in fields and number_of(fields["margin"], "margin") < 0:
        raise BadRow(CONTRADICTION, f"the margin of chosen over rejected is {fields['margin']}")
    return False


def weak_order(values: Sequence[float], *, best: Literal["lowest", "highest"]) -> list[list[int]]:
    """Return the places of values as a weak order, best first, equal ones together. Ranks: best="lowest"; scores: best="highest"."""
    tiers: dict[float, list[int]] = {}
    for place, value in enumerate(values):
        tiers.setdefault(value, []).append(place)
    return [tiers[value] for value in sorted(tiers, reverse=best == "highest")]


def judgement(
    prompt_id: str,
    ranking: Iterable[Iterable[str]],
    *,
    rater: Any = "unknown",
    strength: int | None = None,
    acceptable: Iterable[str] | None = None,
    rationale: str | None = None,
    aspects: dict[str, dict[str, float]] | None = None,
    presentation: Iterable[str] = (),
    created: datetime | None = None,
) -> Judgement:
    """Return a judgement; candidates are named by their ids. Raises BadRow where it is none."""
    fields: dict[str, Any] = {"created": created} if created else {}
    if rationale and rationale.strip():
        fields["rationale"] = checked_text(rationale, "rationale")
    for aspect in aspects or ():
        checked_text(aspect, "aspects")
    try:
        return Judgement(
            prompt_id=prompt_id,
            ranking=tuple(tuple(tier) for tier in ranking),
            rater=checked_text(str(rater), "rater"),
            strength=strength,
            acceptable=None if acceptable is None else tuple(acceptable),
            aspects=aspects or {},
            presentation=tuple(presentation),
            **fields,
        )
    except ValidationError as error:
        first = error.errors()[0]
        said = str(first["msg"]).removeprefix("Value error, ").lower()
        raise BadRow(f'field "{first["loc"][0] if first["loc"] else "ranking"}" is wrong', said) from error


def pair(
    line: int,
    prompt: Prompt,
    chosen: str,
    rejected: str,
    *,
    tied: bool = False,
    sources: tuple[str, str] = ("unknown", "unknown"),
    rater: str = "unknown",
    strength: int | None = None,
    unused: Iterable[str] = (),
    notes: tuple[str, ...] = (),
) -> Row:
    """Return the row of one preference: chosen over rejected, or the two alike."""
    check_answers(chosen, rejected)
    one, two = (Candidate(prompt_id=prompt.id, text=text, source=source) for text, source in zip((chosen, rejected), sources, strict=True))
    tiers = ((one.id, two.id),) if tied else ((one.id,), (two.id,))
    said = judgement(prompt.id, tiers, rater=rater, strength=strength)
    if tied:
        notes = ("the scores are equal, so that chosen and rejected are taken for a tie", *notes)
    return Row(line, prompt, (one, two), (said,), unused=tuple(sorted(unused)), notes=notes)


def thumb(line: int, prompt: Prompt, answer: str, good: bool, *, rater: str = "unknown", unused: Iterable[str] = ()) -> Row:
    """Return the row of a word on one answer alone: good enough, or not."""
    check_answers(answer)
    one = Candidate(prompt_id=prompt.id, text=answer)
    said = judgement(prompt.id, ((one.id,),), acceptable=(one.id,) if good else (), rater=rater)
    return Row(line, prompt, (one,), (said,), unused=tuple(sorted(unused)))


def demonstration(line: int, prompt: Prompt, text: str, *, author: str = "unknown", unused: Iterable[str] = ()) -> Row:
    """Return the row of an answer that someone wishes for."""
    check_answers(text)
    wished = Demonstration(prompt_id=prompt.id, text=text, author=author)
    return Row(line, prompt, demonstrations=(wished,), unused=tuple(sorted(unused)))


def usable(texts: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the places of those of several answers that can be compared, and notes on the others: empty ones, and all that are alike."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text.strip(), []).append(place)
    kept = sorted(at[0] for text, at in places.items() if text and len(at) == 1)
    empty = len(places.get("", []))
    notes = ["an empty answer is left out of a ranking"] * empty
    notes += ["an answer that comes twice is left out of a ranking"] * (len(texts) - len(kept) - empty)
    return kept, notes


def restricted(tiers: Iterable[Iterable[int]], kept: Iterable[int]) -> tuple[list[list[int]], list[str]]:
    """Return a weak order over some of its places, at most nine of them, and a note where it was cut."""
    allowed, left, cut = set(kept), MOST_RANKED, False
    result: list[list[int]] = []
    for tier in tiers:
        inside = [place for place in tier if place in allowed]
        cut = cut or len(inside) > left
        if inside[:left]:
            result.append(inside[:left])
        left -= len(inside[:left])
    return result, [f"only the {MOST_RANKED} best of more answers are ranked"] if cut else []
