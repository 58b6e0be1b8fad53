"""Our own rows: JSON objects with a prompt and what is known of its answers, in one of five shapes.

A pair, of which `chosen` is the better answer:
    {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "What?"}
A ranking, best first, by places in `answers` (from 0), ties together; an answer that is not in it was not judged:
    {"prompt": "Say hello.", "answers": ["What?", "Hello!", "Hi!"], "ranking": [[1, 2], [0]]}
Answers that nobody has judged yet:
    {"prompt": "Say hello.", "answers": ["What?", "Hello!"]}
A demonstration, the answer that someone wishes for:
    {"prompt": "Say hello.", "completion": "Hello!"}
A prompt alone:
    {"prompt": "Say hello."}

`prompt` is text, or a list of messages ({"role": "system" | "user" | "assistant", "content": text}) that ends with the user's; `system`,
where it is given, goes before it. Where they fit, a row may have: `kind` (what sort of task it is), `check` (Python asserts that the code
of an answer must pass), `rater` (who judged or wrote it), `strength` (0 to 3: how clear the preference is), `id` (yours; shown where a
row is set aside).
Any other key beside answers is left, and counted in the import's report. A prompt without answers but with other keys is set aside,
since it is more likely of another format; so is a row with a `label`, which says whether its completion is a good or a bad one.
All texts are kept as they are, white space included.

Direction: chosen over rejected; a ranking is best first.
Left out: rows with an empty answer, with equal answers, or of two shapes at once.
Source: this project. TRL's standard preference, prompt-completion and prompt-only rows, and Axolotl's chatml.prompt_pairs, are the same.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import SCORE_KEYS, check_answers, check_scores, demonstration, judgement, pair
from preftune.data.formats.rows import BadRow, Row, checked_text, prompt_of, text_of
from preftune.records import Candidate, Judgement

KEYS = {"prompt", "system", "chosen", "rejected", "answers", "ranking", "completion", "kind", "check", "rater", "strength", "id"}
LABELS = {"label", "labels"}
OF_OTHERS = {*LABELS, "schema"}
SHAPES = ({"chosen", "rejected"}, {"answers", "ranking"}, {"completion"})


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    if "prompt" not in fields or fields.keys() & OF_OTHERS or ("ranking" in fields and "answers" not in fields):
        return False
    if not (fields.keys() & set().union(*SHAPES) or fields.keys() <= KEYS):
        return False
    answers = fields.get("answers")
    is_ranked_otherwise = isinstance(answers, list) and any(isinstance(answer, dict) for answer in answers)
    return not is_ranked_otherwise and all(isinstance(fields.get(key, ""), str) for key in ("chosen", "rejected", "completion"))


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    shapes = [shape for shape in SHAPES if shape & fields.keys()]
    if len(shapes) > 1:
        keys = sorted(set().union(*shapes) & fields.keys())
        raise BadRow("the row is of two shapes at once", f"it has {', '.join(keys)}")
    if LABELS & fields.keys():
        raise BadRow("the row has a label, which our own format does not know", "it may say that the completion is a bad one")
    if "prompt" not in fields:
        raise BadRow('key "prompt" is missing')
    about = {"kind": text_of(fields, "kind", ""), "check": text_of(fields, "check", "")}
    prompt = prompt_of(fields["prompt"], system=fields.get("system"), **about)
    rater = text_of(fields, "rater", "unknown")
    unused = fields.keys() - KEYS
    if "completion" in fields:
        return [demonstration(line, prompt, text_of(fields, "completion"), author=rater, unused=unused)]
    if {"chosen", "rejected"} & fields.keys():
        chosen, rejected = text_of(fields, "chosen"), text_of(fields, "rejected")
        tied, strength = check_scores(fields), _strength(fields)
        return [pair(line, prompt, chosen, rejected, tied=tied, rater=rater, strength=strength, unused=unused - SCORE_KEYS)]
    if {"answers", "ranking"} & fields.keys():
        answers = _answers(fields)
        check_answers(*answers)
        candidates = tuple(Candidate(prompt_id=prompt.id, text=answer) for answer in answers)
        said = (_judgement(candidates, fields, rater),) if "ranking" in fields else ()
        return [Row(line, prompt, candidates, said, unused=tuple(sorted(unused)))]
    if unused:
        raise BadRow("the row has a prompt, no answers, and keys that are not ours", f"it has {', '.join(sorted(unused))}")
    return [Row(line, prompt)]


def _answers(fields: dict[str, Any]) -> list[str]:
    answers = fields.get("answers")
    if answers is None:
        raise BadRow('key "answers" is missing')
    if not isinstance(answers, list) or not answers:
        raise BadRow('field "answers" is not a list of texts')
    return [checked_text(answer, "answers") for answer in answers]


def _strength(fields: dict[str, Any]) -> int | None:
    strength = fields.get("strength")
    if isinstance(strength, str) and strength.isdecimal():  # from a table, where all is text
        return int(strength)
    if strength is not None and type(strength) is not int:
        raise BadRow('field "strength" is not a whole number from 0 to 3', f"it is {strength!r}")
    return strength


def _judgement(candidates: tuple[Candidate, ...], fields: dict[str, Any], rater: str) -> Judgement:
    ranking = fields["ranking"]
    if not isinstance(ranking, list) or not all(isinstance(tier, list) and tier for tier in ranking):
        raise BadRow('field "ranking" is not a list of lists', "write [[0], [1, 2]]: best first, ties together")
    for place in (place for tier in ranking for place in tier):
        if type(place) is not int or not 0 <= place < len(candidates):
            raise BadRow('field "ranking" names an answer that is not there', f"{place!r} of {len(candidates)} answers, counted from 0")
    tiers = [[candidates[place].id for place in tier] for tier in ranking]
    return judgement(candidates[0].prompt_id, tiers, rater=rater, strength=_strength(fields))
