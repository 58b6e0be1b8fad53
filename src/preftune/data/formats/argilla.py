"""Argilla 1 and 2: records with fields, questions and the responses of several raters, in the four shapes in which they are exported.

    Argilla 1:      {"fields": {name: text}, "responses": [{"user_id", "status", "values": {question: {"value": …}}}], "suggestions": […]}
    ... on a hub:   {field: text, question: [{"user_id", "value", "status"}], "question-suggestion": …, "metadata": JSON text}
    Argilla 2:      {"fields": {name: text}, "responses": {question: [{"value", "user_id"}]}, "suggestions": {question: …}}
    ... flattened:  {field: text, "question.responses": [values], "question.responses.users": […], "question.responses.status": […]}

A ranking is [{"value": field, "rank": 1}, …] in Argilla 1, with ties, and a plain list of field names in Argilla 2, which throws the ranks
away when it exports: its ties are unknown, which is told, and where every ranking is the order of the fields themselves the file is
refused, as then the export has lost the ranking (argilla-io/argilla#5712). Each rater's response is a judgement. A choice of one of two
answers (or "tie") is a pair where the same rater has not ranked them. A text question with a name like "comment" is the rationale, one
like "correct-response" a demonstration.

Direction: rank 1 = best; a list is best first.
Left out, and told: drafts and discarded responses, suggestions (they are a model's), questions that rate or label no single answer.
Source: docs.argilla.io; _io/_generic.py and responses.py of argilla 2.8; the pages of argilla 1.29 on feedback data sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import factorial
from typing import Any

from preftune.data.formats.argilla_record import ORDER_ALONE, Said, record
from preftune.data.formats.rows import BadRow, Item, Row, SetAside, each, fields_of
from preftune.errors import DataError

ABOUT = {"id", "status", "_server_id", "external_id", "metadata", "vectors", "inserted_at", "updated_at", "dataset_id"}
NESTED = {"fields", "responses", "suggestions"}
LUCK = 1 / 1000  # rankings that are the order of the fields by chance: below this probability we do not believe it


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    if isinstance(fields.get("fields"), dict):
        return "responses" in fields
    return any(key.endswith((".responses", "-suggestion-metadata")) or _is_hub_question(value) for key, value in fields.items())


def whole(items: Iterator[Item | SetAside], where: str) -> Iterator[Row | SetAside]:
    """Yield the rows of a file. Raises DataError at its end where all rankings are the order of the fields, though ranks are unknown."""
    chance, rankings = 1.0, 0
    for item in each(items, rows):
        yield item
        if not isinstance(item, Row) or ORDER_ALONE not in item.notes:
            continue
        fields = [candidate.id for candidate in item.candidates]
        for said in item.judgements:
            order = [candidate for tier in said.ranking for candidate in tier]
            if order != [candidate for candidate in fields if candidate in order]:
                yield from each(items, rows)
                return
            chance, rankings = chance / factorial(len(order)), rankings + 1
    if rankings and chance < LUCK:
        raise DataError(
            f"each of the {rankings:,} rankings is the order of the fields itself, so the export has lost what the raters said",
            where,
            "Export the responses through Argilla's HTTP API, which keeps the rank of each answer.",
        )


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    if isinstance(fields.get("fields"), dict):
        made = fields.get("suggestions")
        unused = fields.keys() - ABOUT - NESTED
        said = _nested(fields.get("responses"))
        return [
            record(line, fields_of(fields["fields"]), said, suggestions=len(made) if isinstance(made, (dict, list)) else 0, unused=unused)
        ]
    return [_flat_row(line, fields)]


def _flat_row(line: int, fields: dict[str, Any]) -> Row:
    texts: dict[str, Any] = {}
    said: list[Said] = []
    unused: set[str] = set()
    suggestions = 0
    for key, value in fields.items():
        if key in ABOUT or key.endswith((".responses.users", ".responses.status", "-suggestion-metadata")) or ".suggestion." in key:
            continue
        if key.endswith(".responses"):
            name = key.removesuffix(".responses")
            said += _aligned(name, value, fields.get(f"{key}.users"), fields.get(f"{key}.status"))
        elif key.endswith((".suggestion", "-suggestion")):
            suggestions += 1
        elif _is_hub_question(value) or f"{key}-suggestion-metadata" in fields:
            said += [Said(key, answer.get("user_id"), answer.get("value"), answer.get("status")) for answer in _dicts(value)]
        elif isinstance(value, (str, list)):
            texts[key] = value
        else:
            unused.add(key)
    return record(line, texts, said, suggestions=suggestions, unused=unused)


def _nested(responses: Any) -> list[Said]:
    if isinstance(responses, dict):  # Argilla 2: by question
        return [
            Said(question, answer.get("user_id"), answer.get("value"), answer.get("status"))
            for question, answers in responses.items()
            for answer in _dicts(answers)
        ]
    return [  # Argilla 1: by rater
        Said(question, response.get("user_id"), answer.get("value"), response.get("status"))
        for response in _dicts(responses)
        if isinstance(response.get("values"), dict)
        for question, answer in response["values"].items()
        if isinstance(answer, dict)
    ]


def _aligned(question: str, values: Any, users: Any, states: Any) -> list[Said]:
    if not isinstance(values, list) or not isinstance(users, list) or len(values) != len(users):
        raise BadRow("the responses and their users are not of one length", f'question "{question}"')
    states = states if isinstance(states, list) and len(states) == len(values) else [None] * len(values)
    return [Said(question, user, value, status) for value, user, status in zip(values, users, states, strict=True)]


def _is_hub_question(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(answer, dict) and {"user_id", "value"} <= answer.keys() for answer in value)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
