"""What a rater's form says, and the judgement that it becomes.

A form speaks of places: 0 is the answer shown first, whatever its id, as a page holds no id. Here places become candidate ids and
back again. Nothing is filled in that the rater did not say; an answer that says nothing is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from preftune.errors import PreftuneError
from preftune.records import Judgement
from preftune.web.settings import MAX_ASPECTS, AspectName

MAX_REWRITE, MAX_RATIONALE = 200_000, 20_000  # characters
MAX_ACTIVE_SECONDS = 3600.0  # whoever looks at one item for longer has left it open
Place = Annotated[int, Field(ge=0, le=8)]
Rating = Annotated[int, Field(ge=1, le=5)]


class BadAnswer(PreftuneError):
    """What the form says is no answer; the sentence is fit for the page, and nothing was stored."""


class Answer(BaseModel):
    """What a rater said. Places count from 0 in the order shown.

    ranking: best first, ties together; a place that is not in it was not compared. strength: 0 to 3, for two alone. acceptable: the
    places that are good enough; None = not said, empty = all are bad. rewrite: the rater's better version of the answer at
    rewrite_of. aspects: a rating from 1 to 5 by aspect and place. active_seconds: the time that the rater spent on it; None
    where nobody measured it (a browser without script).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranking: list[list[Place]] = Field(default_factory=list, max_length=9)
    strength: int | None = Field(None, ge=0, le=3)
    acceptable: list[Place] | None = Field(None, max_length=9)
    rewrite: Annotated[str, StringConstraints(max_length=MAX_REWRITE)] | None = None
    rewrite_of: Place | None = None
    rationale: Annotated[str, StringConstraints(max_length=MAX_RATIONALE)] | None = None
    aspects: dict[AspectName, dict[Place, Rating]] = Field(default_factory=dict, max_length=MAX_ASPECTS)
    active_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)


def check_answer(answer: Answer, num_candidates: int) -> None:
    """Raise BadAnswer where an answer says nothing, or speaks of places that are not there."""
    ranked = [place for tier in answer.ranking for place in tier]
    if not all(answer.ranking) or len(ranked) != len(set(ranked)):
        raise BadAnswer("an answer is ranked twice, or a rank is empty", fix="Give each answer one rank.")
    if len(ranked) == 1:
        raise BadAnswer("only one answer is ranked", fix="Rank at least two, or none.")
    if not ranked and answer.acceptable is None:
        raise BadAnswer("nothing was said yet", fix="Rank the answers, or say which are good enough.")
    rated = [place for ratings in answer.aspects.values() for place in ratings]
    named = [*ranked, *(answer.acceptable or []), *rated, *([] if answer.rewrite_of is None else [answer.rewrite_of])]
    if any(place >= num_candidates for place in named):
        raise BadAnswer(f"place {max(named) + 1} is named, but there are {num_candidates} answers", fix="Open the task again.")
    if answer.strength is not None and len(ranked) != 2:
        raise BadAnswer("a strength was given for other than two ranked answers", fix="Leave it out.")
    if answer.strength and len(answer.ranking) == 1:
        raise BadAnswer("a tie cannot be clear", fix="Say tie, or which answer is better.")
    for text, name in ((answer.rewrite, "rewrite"), (answer.rationale, "reason")):
        if text and "\0" in text:  # PostgreSQL keeps none
            raise BadAnswer(f"the {name} holds the character U+0000, which cannot be kept", fix="Take it out.")


def judgement_from(answer: Answer, shown: list[str], prompt_id: str, texts: Mapping[str, str], **about: object) -> Judgement:
    """Return the judgement that an answer is. shown: candidate ids in the order shown; about: the rater and the other fields.

    texts: of the candidates by id; a rewrite that changes nothing is none. Raises BadAnswer.
    """
    check_answer(answer, len(shown))
    rewrite, rewrite_of = _rewrite(answer, shown, texts)
    said = {
        "prompt_id": prompt_id,
        "ranking": tuple(tuple(shown[place] for place in sorted(tier)) for tier in answer.ranking),
        "strength": answer.strength,
        "acceptable": None if answer.acceptable is None else tuple(shown[place] for place in sorted(set(answer.acceptable))),
        "rewrite": rewrite,
        "rewrite_of": rewrite_of,
        "rationale": (answer.rationale or "").strip() or None,
        "aspects": {name: {shown[place]: float(rating) for place, rating in by.items()} for name, by in answer.aspects.items() if by},
        "active_seconds": None if answer.active_seconds is None else min(answer.active_seconds, MAX_ACTIVE_SECONDS),
        "presentation": tuple(shown),
    }
    return Judgement.model_validate({**said, **about})


def _rewrite(answer: Answer, shown: list[str], texts: Mapping[str, str]) -> tuple[str | None, str | None]:
    if not answer.rewrite or not answer.rewrite.strip():
        return None, None
    place = answer.rewrite_of
    if place is None and answer.ranking and len(answer.ranking[0]) == 1:
        place = answer.ranking[0][0]
    if place is None:
        raise BadAnswer("it is not said which answer was rewritten", fix="Say which one.")
    if answer.rewrite.strip() == texts[shown[place]].strip():
        return None, None
    return answer.rewrite, shown[place]


def answer_of(judgement: Judgement, shown: list[str]) -> Answer:
    """Return what the form said, from the judgement: `judgement_from` backwards."""
    place = {candidate: number for number, candidate in enumerate(shown)}
    return Answer(
        ranking=[sorted(place[candidate] for candidate in tier) for tier in judgement.ranking],
        strength=judgement.strength,
        acceptable=None if judgement.acceptable is None else sorted(place[candidate] for candidate in judgement.acceptable),
        rewrite=judgement.rewrite,
        rewrite_of=place[judgement.rewrite_of] if judgement.rewrite_of else None,
        rationale=judgement.rationale,
        aspects={name: {place[candidate]: round(rating) for candidate, rating in by.items()} for name, by in judgement.aspects.items()},
        active_seconds=judgement.active_seconds,
    )
