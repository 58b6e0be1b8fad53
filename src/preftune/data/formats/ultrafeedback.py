"""UltraFeedback, the full one with four aspects and the binarised one with a score an answer.

    {"instruction": …, "completions": [{"response": …, "model": …, "annotations": {"helpfulness": {"Rating": "4", …}, …}}, …]}
    {"prompt": …, "chosen": [the user's and the assistant's message], "rejected": […], "score_chosen": 8.5, "score_rejected": 5.0}

Full: one ranking of all answers, by the mean of those aspects that every answer of the row is rated on; equal means are a tie. The
ratings are kept as aspects; they are texts, and one may be "N/A", which is left out and told. `overall_score` is not used: it is on a
scale of its own and, in the released file, often at odds with the four ratings of the same answer.

Direction: higher rating or score = better; chosen over rejected. A score that says the reverse is a contradiction; equal ones are a tie.
Left out: overall_score, critiques, system prompts that steered single answers; rows of which fewer than two answers can be compared.
Source: the data set cards of openbmb/UltraFeedback and HuggingFaceH4/ultrafeedback_binarized.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import check_scores, judgement, pair, restricted, usable, weak_order
from preftune.data.formats.rows import BadRow, Row, number_of, prompt_of, shared_conversation, text_of
from preftune.records import Candidate

FULL_KEYS = {"source", "instruction", "models", "completions", "correct_answers", "incorrect_answers"}
BINARISED_KEYS = {"prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected", "source"}
NOT_RATED = "a rating that is no number (N/A) is left out"
OVERALL = "overall_score is left out: answers are ranked by the mean of the aspects' ratings"


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    if "score_chosen" in fields and "score_rejected" in fields:
        return isinstance(fields.get("chosen"), list) and isinstance(fields.get("rejected"), list)
    completions = fields.get("completions")
    return (
        "instruction" in fields
        and isinstance(completions, list)
        and any(isinstance(answer, dict) and "annotations" in answer for answer in completions)
    )


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    if "completions" in fields:
        return [_full(line, fields)]
    prompt, chosen, rejected = shared_conversation(fields.get("chosen"), fields.get("rejected"))
    tied = check_scores(fields)
    return [pair(line, prompt, chosen, rejected, tied=tied, unused=fields.keys() - BINARISED_KEYS)]


def _full(line: int, fields: dict[str, Any]) -> Row:
    prompt = prompt_of(text_of(fields, "instruction"))
    if not isinstance(fields["completions"], list):
        raise BadRow('field "completions" is not a list of answers')
    answers = [answer for answer in fields["completions"] if isinstance(answer, dict)]
    texts = [text_of(answer, "response") for answer in answers]
    kept, notes = usable(texts)
    candidates = {n: Candidate(prompt_id=prompt.id, text=texts[n], source=text_of(answers[n], "model", "unknown")) for n in kept}
    ratings = {n: _ratings(answers[n].get("annotations"), notes) for n in kept}
    if any("overall_score" in answers[n] for n in kept):
        notes.append(OVERALL)
    shared = set.intersection(*(set(rated) for rated in ratings.values())) if len(kept) > 1 else set()
    if not shared:
        raise BadRow("fewer than two answers are rated on the same aspect")
    means = [sum(rated[aspect] for aspect in shared) / len(shared) for rated in ratings.values()]
    tiers, cut = restricted([[kept[n] for n in tier] for tier in weak_order(means, best="highest")], kept)
    aspects: dict[str, dict[str, float]] = {}
    for n, rated in ratings.items():
        for aspect, rating in rated.items():
            aspects.setdefault(aspect, {})[candidates[n].id] = rating
    said = judgement(prompt.id, [[candidates[n].id for n in tier] for tier in tiers], aspects=aspects)
    unused = tuple(sorted(fields.keys() - FULL_KEYS))
    return Row(line, prompt, tuple(candidates.values()), (said,), unused=unused, notes=(*notes, *cut))


def _ratings(annotations: Any, notes: list[str]) -> dict[str, float]:
    # The ratings that are numbers by aspect; the others are noted.
    found: dict[str, float] = {}
    for aspect, said in annotations.items() if isinstance(annotations, dict) else ():
        rating = said.get("Rating") if isinstance(said, dict) else None
        try:
            found[aspect] = number_of(rating, "Rating")
        except BadRow:
            notes.append(NOT_RATED)
    return found
