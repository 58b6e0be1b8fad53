"""Our own format: JSON lines (or one JSON array), each row of one of these shapes.

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

`prompt` is text, or a list of messages ({"role": "system" | "user" | "assistant", "content": text}) that ends with the user's.
Where they fit, a row may have: `kind` (what sort of task it is), `check` (Python asserts that the code of an answer must pass),
`rater` (who judged or wrote it), `strength` (0 to 3: how clear the preference is), `id` (yours; shown where a row is set aside).
Any other key beside answers is left, and counted in the import's report. A prompt without answers but with other keys is set aside,
since it is more likely of another format; so is a row with a `label`, which says whether its completion is a good or a bad one.
All texts are kept as they are, white space included.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from preftune.data.formats.reading import BadRow, Row, check_answers, checked_text, text_of
from preftune.records import Candidate, Demonstration, Judgement, Message, Prompt

KEYS = {"prompt", "chosen", "rejected", "answers", "ranking", "completion", "kind", "check", "rater", "strength", "id"}
LABELS = {"label", "labels"}
SHAPES = ({"chosen", "rejected"}, {"answers", "ranking"}, {"completion"})


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    return "prompt" in fields and not fields.keys() & LABELS and bool(fields.keys() & set().union(*SHAPES) or fields.keys() <= KEYS)


def row(line: int, fields: dict[str, Any]) -> Row:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    present = {key for key, value in fields.items() if value is not None}
    shapes = [shape for shape in SHAPES if shape & present]
    if len(shapes) > 1:
        keys = sorted(set().union(*shapes) & present)
        raise BadRow("the row is of two shapes at once", f"it has {', '.join(keys)}")
    if LABELS & present:
        raise BadRow("the row has a label, which our own format does not know", "it may say that the completion is a bad one")
    prompt = _prompt(fields)
    rater = text_of(fields, "rater", "unknown")
    unused = tuple(sorted(fields.keys() - KEYS))
    if "completion" in present:
        completion = text_of(fields, "completion")
        check_answers(completion)
        return Row(line, prompt, demonstration=Demonstration(prompt_id=prompt.id, text=completion, author=rater), unused=unused)
    if {"chosen", "rejected"} & present:
        answers = [text_of(fields, "chosen"), text_of(fields, "rejected")]
        ranking: Any = [[0], [1]]
    elif {"answers", "ranking"} & present:
        answers, ranking = _answers(fields), fields.get("ranking")
    elif unused:
        raise BadRow("the row has a prompt, no answers, and keys that are not ours", f"it has {', '.join(unused)}")
    else:
        return Row(line, prompt)
    check_answers(*answers)
    candidates = tuple(Candidate(prompt_id=prompt.id, text=answer) for answer in answers)
    judgement = None if ranking is None else _judgement(candidates, ranking, rater, fields.get("strength"))
    return Row(line, prompt, candidates, judgement, unused=unused)


def _prompt(fields: dict[str, Any]) -> Prompt:
    value = fields.get("prompt")
    if value is None:
        raise BadRow('key "prompt" is missing')
    if isinstance(value, list):
        messages = tuple(_message(message) for message in value)
    else:
        messages = (Message(role="user", content=checked_text(value, "prompt")),)
    if not messages or not all(message.content.strip() for message in messages):
        raise BadRow("the prompt, or one of its messages, is empty")
    if messages[-1].role != "user":
        raise BadRow("the prompt does not end with the user's turn")
    return Prompt(messages=messages, kind=text_of(fields, "kind", ""), check=text_of(fields, "check", ""))


def _message(value: Any) -> Message:
    if not isinstance(value, dict) or value.get("role") not in ("system", "user", "assistant"):
        raise BadRow("a message of the prompt has no role (system, user or assistant)")
    return Message(role=value["role"], content=text_of(value, "content"))


def _answers(fields: dict[str, Any]) -> list[str]:
    answers = fields.get("answers")
    if answers is None:
        raise BadRow('key "answers" is missing')
    if not isinstance(answers, list) or not answers:
        raise BadRow('field "answers" is not a list of texts')
    return [checked_text(answer, "answers") for answer in answers]


def _judgement(candidates: tuple[Candidate, ...], ranking: Any, rater: str, strength: Any) -> Judgement:
    if not isinstance(ranking, list) or not all(isinstance(tier, list) and tier for tier in ranking):
        raise BadRow('field "ranking" is not a list of lists', "write [[0], [1, 2]]: best first, ties together")
    for place in (place for tier in ranking for place in tier):
        if type(place) is not int or not 0 <= place < len(candidates):
            raise BadRow('field "ranking" names an answer that is not there', f"{place!r} of {len(candidates)} answers, counted from 0")
    if strength is not None and type(strength) is not int:
        raise BadRow('field "strength" is not a whole number from 0 to 3', f"it is {strength!r}")
    tiers = tuple(tuple(candidates[place].id for place in tier) for tier in ranking)
    try:
        return Judgement(prompt_id=candidates[0].prompt_id, ranking=tiers, rater=rater, strength=strength)
    except ValidationError as error:
        first = error.errors()[0]
        said = str(first["msg"]).removeprefix("Value error, ").lower()
        raise BadRow(f'field "{first["loc"][0]}" is wrong', f"{said}: {ranking if first['loc'][0] == 'ranking' else strength}") from error
