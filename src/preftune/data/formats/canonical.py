"""Our own export: every judgement with its prompt and candidates, as `preftune export` writes it; nothing is lost on the way back.

    {"schema": "preftune.judgement/1", "judgement_id": …, "prompt": [messages], "candidates": [{"id", "text", "source", "sampling"}, …],
     "ranking": [["id of the best"], ["these two", "are tied"]], "presentation": [ids in the order shown], "acceptable": [ids] or null,
     "strength", "aspects", "rewrite", "rewrite_of", "rationale", "rater", "picked_by", "picked_probability", "active_seconds",
     "supersedes", "created"}
    {"schema": "preftune.demonstration/1", "prompt": [messages], "text": …, "author": …}
    {"schema": "preftune.prompt/1", "prompt": [messages], "candidates": […]}             a prompt whose candidates nobody has judged

The fields are those of the records (docs/reference/records.md). Ids are hashes of the content, and are compared with it.

Direction: ranking is best first, ties together; a candidate that is not in it was not compared. Aspects: higher = better.
Left out: lines whose content was changed without its id (remove the id to take one as new); an undo of what is not in the file.
Source: this project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from preftune.data.formats.preferences import check_answers
from preftune.data.formats.rows import BadRow, Item, Row, SetAside, checked_text, each, prompt_of, text_of, time_of
from preftune.records import Candidate, Demonstration, Judgement, Prompt

JUDGEMENT = "preftune.judgement/1"
DEMONSTRATION = "preftune.demonstration/1"
PROMPT = "preftune.prompt/1"
ABOUT = {"schema", "judgement_id", "prompt_id", "prompt", "kind", "check", "candidates"}
CHANGED = "the content was changed, but not its id"
SAID = set(Judgement.model_fields) - {"prompt_id"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    return str(fields.get("schema")).startswith("preftune.")


def whole(items: Iterator[Item | SetAside], where: str) -> Iterator[Row | SetAside]:
    """Yield the rows of a file; an undo stands after what it takes back."""
    seen: set[str] = set()

    def known(line: int, fields: dict[str, Any]) -> list[Row]:
        found = rows(line, fields)
        for said in found[0].judgements:
            if said.supersedes and said.supersedes not in seen:
                raise BadRow("the judgement takes back one that is not in the file before it", f"it is {said.supersedes}")
            seen.add(said.id)
        return found

    yield from each(items, known)


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one line. Raises BadRow where it is not as the module says."""
    schema = text_of(fields, "schema")
    if schema not in (JUDGEMENT, DEMONSTRATION, PROMPT):
        raise BadRow("the schema is none that this version knows", f"it is {schema}; a newer preftune may read it"[:120])
    prompt = prompt_of(fields.get("prompt"), kind=text_of(fields, "kind", ""), check=text_of(fields, "check", ""))
    _check_id(fields.get("prompt_id"), prompt.id, "prompt_id")
    if schema == DEMONSTRATION:
        text, author = text_of(fields, "text"), text_of(fields, "author", "unknown")
        check_answers(text)
        unused = tuple(sorted(fields.keys() - ABOUT - {"text", "author"}))
        return [Row(line, prompt, demonstrations=(Demonstration(prompt_id=prompt.id, text=text, author=author),), unused=unused)]
    candidates = _candidates(fields.get("candidates", []), prompt)
    unused = tuple(sorted(fields.keys() - ABOUT - SAID))
    if schema == PROMPT:
        return [Row(line, prompt, candidates, unused=unused)]
    said = _judgement(fields, prompt)
    _check_id(fields.get("judgement_id"), said.id, "judgement_id")
    named = {*(c for tier in said.ranking for c in tier), *(said.acceptable or ()), *said.presentation, *filter(None, [said.rewrite_of])}
    if missing := named - {candidate.id for candidate in candidates}:
        raise BadRow("the judgement names a candidate that the line does not have", f"it is {sorted(missing)[0]}")
    return [Row(line, prompt, candidates, (said,), unused=unused)]


def _candidates(value: Any, prompt: Prompt) -> tuple[Candidate, ...]:
    if not isinstance(value, list) or not all(isinstance(candidate, dict) for candidate in value):
        raise BadRow('field "candidates" is not a list of candidates')
    found = []
    for given in value:
        sampling = given.get("sampling") or {}
        if not isinstance(sampling, dict):
            raise BadRow('field "sampling" of a candidate is no object')
        checked_text(json.dumps(sampling, ensure_ascii=False), "sampling")
        source = text_of(given, "source", "unknown")
        candidate = Candidate(prompt_id=prompt.id, text=text_of(given, "text"), source=source, sampling=sampling)
        _check_id(given.get("id"), candidate.id, "id of a candidate")
        found.append(candidate)
    return tuple(found)


def _judgement(fields: dict[str, Any], prompt: Prompt) -> Judgement:
    for key in ("rater", "rationale", "rewrite", "picked_by"):
        text_of(fields, key, "")
    checked_text(json.dumps(fields.get("aspects"), ensure_ascii=False), "aspects")
    created = time_of(fields["created"]) if "created" in fields else None
    times = {"created": created} if created else {}
    said = {key: value for key, value in fields.items() if key in SAID and key != "created"}
    try:
        return Judgement(prompt_id=prompt.id, **said, **times)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "judgement"
        raise BadRow(f'field "{first["loc"][0] if first["loc"] else "ranking"}" is wrong', f"{field}: {first['msg']}") from error


def _check_id(given: Any, own: str, name: str) -> None:
    if given is not None and given != own:
        raise BadRow(CHANGED, f"{name} is {given!r}, its content's is {own}"[:120])
