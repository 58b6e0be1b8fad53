"""Between a judging page's form and what it says: fields → Answer, a judgement or draft → fields again, and the sentence read back.

Places are numbers from 0 in the order shown; letters are for people. A field that is not there or empty says nothing, and nothing
is made up for it: an answer without a place was not compared, unticked boxes with "all bad" unticked mean "not said".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.errors import PreftuneError
from preftune.web.answers import Answer
from preftune.web.settings import Task
from preftune.web.tasks import Assignment

LETTERS = "ABCDEFGHI"
PAIR = {  # choice → (places from best to worst, ties together; strength)
    1: ([[0], [1]], 3), 2: ([[0], [1]], 2), 3: ([[0], [1]], 1), 4: ([[0, 1]], 0),
    5: ([[1], [0]], 1), 6: ([[1], [0]], 2), 7: ([[1], [0]], 3),
}  # fmt: skip
CHOICES = {
    1: "A is much better", 2: "A is better", 3: "A is slightly better", 4: "A and B are equally good",
    5: "B is slightly better", 6: "B is better", 7: "B is much better",
}  # fmt: skip
Fields = dict[str, str]


class FormError(PreftuneError):
    """A form says something that cannot be meant, or nothing."""


def read_form(task: Task, count: int, aspects: Sequence[str], fields: Mapping[str, str]) -> Answer:
    """Return what a form's fields say. count: how many answers were shown; aspects: their names, in the page's order.

    Raises FormError with a sentence for the rater.
    """
    ranking, strength = _ranking(task, count, fields)
    acceptable = _acceptable(count, fields)
    rewrite = fields.get("rewrite", "")
    rewrite_of = _number(fields, "rewrite_of", range(count))
    if rewrite.strip() and rewrite_of is None:
        raise FormError("You rewrote an answer, but did not say which", fix="Choose it beside the text.")
    rated = _aspects(count, aspects, fields)
    if not ranking and acceptable is None:
        raise FormError(_nothing_said(task), fix="If you cannot tell, skip it and say why.")
    return Answer(
        ranking=ranking,
        strength=strength,
        acceptable=acceptable,
        rewrite=rewrite if rewrite.strip() else None,
        rewrite_of=rewrite_of if rewrite.strip() else None,
        rationale=fields.get("rationale", "").strip() or None,
        aspects=rated,
        active_seconds=_seconds(fields),
    )


def _nothing_said(task: Task) -> str:
    match task:
        case "pair":
            return "You have not said which answer is better"
        case "rank":
            return "You have not ranked two answers yet"
        case "best_worst":
            return "You have not said which answer is the best and which the worst"


def _ranking(task: Task, count: int, fields: Mapping[str, str]) -> tuple[list[list[int]], int | None]:
    match task:
        case "pair":
            choice = _number(fields, "choice", PAIR)
            if choice is None:
                return [], None
            tiers, strength = PAIR[choice]
            return [list(tier) for tier in tiers], strength
        case "rank":
            tiers_by_place: dict[int, list[int]] = {}
            for i in range(count):
                place = _number(fields, f"place-{i}", range(1, count + 1))
                if place is not None:
                    tiers_by_place.setdefault(place, []).append(i)
            if sum(map(len, tiers_by_place.values())) == 1:
                raise FormError(
                    "You have ranked one answer alone, which compares it with nothing",
                    fix="Give a second one a place, or take the first one's away.",
                )
            return [tiers_by_place[place] for place in sorted(tiers_by_place)], None
        case "best_worst":
            return _best_worst(count, fields), None


def _best_worst(count: int, fields: Mapping[str, str]) -> list[list[int]]:
    best, worst = _number(fields, "best", range(count)), _number(fields, "worst", range(count))
    if best is None and worst is None:
        return []
    if best is None or worst is None:
        raise FormError(f"You have not said which answer is the {'best' if best is None else 'worst'}", fix="Choose both.")
    if best == worst:
        raise FormError(f"{LETTERS[best]} cannot be the best and the worst", fix="Choose two answers.")
    # Those between were not told apart, which a weak order can only say as a tie.
    between = [i for i in range(count) if i not in (best, worst)]
    return [[best], between, [worst]] if between else [[best], [worst]]


def _acceptable(count: int, fields: Mapping[str, str]) -> list[int] | None:
    good = [i for i in range(count) if fields.get(f"good-{i}")]
    if fields.get("all_bad"):
        if good:
            names = ", ".join(LETTERS[i] for i in good)
            raise FormError(f"You marked {names} as good enough and said that none is", fix="Take one of the two back.")
        return []
    return good or None


def _aspects(count: int, aspects: Sequence[str], fields: Mapping[str, str]) -> dict[str, dict[int, int]]:
    rated: dict[str, dict[int, int]] = {}
    for number, name in enumerate(aspects):
        for i in range(count):
            value = _number(fields, f"aspect-{number}-{i}", range(1, 6))
            if value is not None:
                rated.setdefault(name, {})[i] = value
    return rated


def _number(fields: Mapping[str, str], name: str, allowed: Any) -> int | None:
    text = fields.get(name, "")
    if not text:
        return None
    # isascii: int() would read digits of other scripts as well, and a page of ours sends none of those.
    if not (text.isascii() and text.isdigit() and len(text) < 4 and int(text) in allowed):
        raise FormError(f'"{text[:20]}" is nothing that "{name}" can be', fix="Load the page again.")
    return int(text)


def _seconds(fields: Mapping[str, str]) -> float | None:
    """Return the time that the script has counted; None without a script, as nobody has measured it."""
    try:
        seconds = float(fields.get("active_seconds", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def fields_of(assignment: Assignment, aspects: Sequence[str]) -> Fields:
    """Return the fields that show what was stored of an assignment: its draft, or the judgement where there is no draft."""
    draft = assignment.draft
    if draft and isinstance(draft.get("fields"), dict):
        return {str(name): str(value) for name, value in draft["fields"].items()}
    count = len(assignment.candidates)
    # What an undo has put back is the answer as it was sent.
    answer = Answer.model_validate(draft) if draft else assignment.answer
    return {} if answer is None else fields_of_answer(assignment.task, count, aspects, answer)


def fields_of_answer(task: Task, count: int, aspects: Sequence[str], answer: Answer) -> Fields:
    """Return the fields of a form that says this answer: `read_form` backwards."""
    fields: Fields = {}
    match task:
        case "pair":
            found = [choice for choice, said in PAIR.items() if (answer.ranking, answer.strength) == said]
            if found:
                fields["choice"] = str(found[0])
        case "rank":
            fields |= {f"place-{i}": str(place) for place, tier in enumerate(answer.ranking, 1) for i in tier}
        case "best_worst":
            if answer.ranking:
                fields |= {"best": str(answer.ranking[0][0]), "worst": str(answer.ranking[-1][0])}
    if answer.acceptable is not None:
        fields |= {f"good-{i}": "1" for i in answer.acceptable} or {"all_bad": "1"}
    if answer.rewrite is not None and answer.rewrite_of is not None:
        fields |= {"rewrite": answer.rewrite, "rewrite_of": str(answer.rewrite_of)}
    if answer.rationale:
        fields["rationale"] = answer.rationale
    for number, name in enumerate(aspects):
        fields |= {f"aspect-{number}-{i}": str(value) for i, value in answer.aspects.get(name, {}).items() if 0 <= i < count}
    if answer.active_seconds is not None:
        fields["active_seconds"] = str(answer.active_seconds)
    return fields


def read_back(task: Task, count: int, answer: Answer) -> str:
    """Return in words what was stored, so that the rater can see whether it is what was meant."""
    said = []
    if task == "pair" and answer.ranking:
        found = [choice for choice, meant in PAIR.items() if (answer.ranking, answer.strength) == meant]
        said.append(CHOICES[found[0]] if found else order_of(answer.ranking))
    elif answer.ranking:
        left_out = [i for i in range(count) if i not in {i for tier in answer.ranking for i in tier}]
        rest = f" ({_names(left_out)} not compared)" if left_out else ""
        said.append(f"{order_of(answer.ranking)}{rest}")
    if answer.acceptable is not None:
        said.append(f"good enough: {_names(answer.acceptable)}" if answer.acceptable else "none is good enough")
    if answer.rewrite_of is not None and answer.rewrite:
        said.append(f"you rewrote {LETTERS[answer.rewrite_of]}")
    if answer.aspects:
        said.append(f"rated by {', '.join(answer.aspects)}")
    if answer.rationale:
        said.append("with your reason")
    return "; ".join(said)


def order_of(ranking: Sequence[Sequence[int]]) -> str:
    """Return a ranking in letters: "C > A = B"."""
    return " > ".join(" = ".join(LETTERS[i] for i in sorted(tier)) for tier in ranking)


def _names(places: Sequence[int]) -> str:
    return ", ".join(LETTERS[i] for i in sorted(places))
