"""Open WebUI's feedback export: thumbs on answers, with a snapshot of the chat that each stood in.

    {"user_id", "type": "rating", "data": {"rating": 1 | -1, "sibling_model_ids", "reason", "comment", "details": {"rating": 9}},
     "meta": {"arena": false, "chat_id", "message_id"},
     "snapshot": {"chat": {"chat": {"history": {"messages": {id: {"parentId", "role", "content", "model"}}}}}}}

A rating is a thumb: a judgement of that answer alone, with reason and comment as rationale and the rating from 1 to 10 as an aspect. In
the arena, where two models answer the same message to be compared, it is also a preference between the answer and its sibling in the
snapshot. Elsewhere a sibling was not compared, and no loss is inferred from another's thumb. Where one rater gave both siblings the same
thumb, nothing says which is better, and there is no pair (open-webui/open-webui#6643).

Direction: rating 1 = good, −1 = bad; details.rating is higher = better.
Left out: feedback without a snapshot or whose message is not in it; entries that are no rating. Pairs come at the end of the file.
Source: backend/open_webui/models/feedbacks.py of github.com/open-webui/open-webui.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from preftune.data.formats.preferences import check_answers, judgement
from preftune.data.formats.rows import (
    BadRow,
    Item,
    Row,
    SetAside,
    bounded,
    checked_text,
    each,
    is_good,
    message_of,
    number_of,
    prompt_from,
    time_of,
)
from preftune.records import Candidate, Prompt

MOST_TURNS = 500
BOTH_ALIKE = "two answers in the arena have the same thumb of the same rater, so they are not compared"


class _Battle(NamedTuple):
    """An answer that was rated in the arena, and a sibling of it."""

    line: int
    prompt: Prompt
    rated: Candidate
    sibling: Candidate
    at: tuple[str, str, str]  # the rater, the chat and the message of the rated answer
    sibling_at: tuple[str, str, str]
    is_liked: bool
    created: Any


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    data = fields.get("data")
    return isinstance(data, dict) and "rating" in data and isinstance(fields.get("meta"), dict) and "user_id" in fields


def whole(items: Iterator[Item | SetAside], where: str) -> Iterator[Row | SetAside]:
    """Yield the thumbs of a file in order, and then the pairs of the arena, when all thumbs of a rater are known."""
    thumbs: dict[tuple[str, str, str], bool] = {}
    battles: list[_Battle] = []

    def rated(line: int, fields: dict[str, Any]) -> list[Row]:
        row, at, is_liked, fought = _rated(line, fields)
        thumbs[at] = is_liked
        battles.extend(fought)
        return [row]

    yield from each(items, rated)
    told: set[tuple[str, ...]] = set()
    for battle in battles:
        fought = (battle.at[0], *sorted((battle.rated.id, battle.sibling.id)))
        both = (battle.rated, battle.sibling) if battle.is_liked else (battle.sibling, battle.rated)
        if thumbs.get(battle.sibling_at) == thumbs[battle.at]:
            if fought not in told:
                yield Row(battle.line, battle.prompt, both, notes=(BOTH_ALIKE,))
            told.add(fought)
            continue
        said = judgement(battle.prompt.id, [[c.id] for c in both], rater=battle.at[0], created=battle.created)
        yield Row(battle.line, battle.prompt, both, (said,))


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the thumb of one entry; pairs need the whole file. Raises BadRow where it is not as the module says."""
    return bounded([_rated(line, fields)[0]])


def _rated(line: int, fields: dict[str, Any]) -> tuple[Row, tuple[str, str, str], bool, list[_Battle]]:
    if fields.get("type", "rating") != "rating":
        raise BadRow("the entry is no rating", f"it is {fields['type']!r}"[:90])
    data, meta = _object(fields, "data"), _object(fields, "meta")
    messages = _messages(fields)
    rated_id = str(meta.get("message_id"))
    rated = messages.get(rated_id)
    if not isinstance(rated, dict):
        raise BadRow("the rated message is not in the snapshot of its chat")
    prompt = _prompt(messages, rated)
    one = _candidate(prompt, rated, data.get("model_id"))
    is_liked = is_good(data.get("rating"), "rating")
    rater, created = str(fields.get("user_id", "unknown")), time_of(fields.get("updated_at", fields.get("created_at")))
    thumb = judgement(
        prompt.id,
        ((one.id,),),
        rater=rater,
        acceptable=(one.id,) if is_liked else (),
        rationale=": ".join(text for key in ("reason", "comment") if isinstance(text := data.get(key), str) and text.strip()),
        aspects=_details(data, one),
        created=created,
    )
    at = (rater, str(meta.get("chat_id")), rated_id)
    battles = []
    for name, sibling in _siblings(messages, rated, rated_id) if meta.get("arena") and data.get("sibling_model_ids") else ():
        other = _candidate(prompt, sibling, None)
        if other.text.strip() != one.text.strip():
            battles.append(_Battle(line, prompt, one, other, at, (at[0], at[1], name), is_liked, created))
    return Row(line, prompt, (one,), (thumb,)), at, is_liked, battles


def _object(fields: dict[str, Any], key: str) -> dict[str, Any]:
    value = fields.get(key)
    return value if isinstance(value, dict) else {}


def _messages(fields: dict[str, Any]) -> dict[str, Any]:
    found: Any = fields.get("snapshot")
    for key in ("chat", "chat", "history", "messages"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise BadRow("the entry has no snapshot of its chat, so that nobody can say what was rated")
    return found


def _prompt(messages: dict[str, Any], rated: dict[str, Any]) -> Prompt:
    before: list[dict[str, Any]] = []
    parent = rated.get("parentId")
    while parent is not None:
        message = messages.get(str(parent))
        if not isinstance(message, dict) or len(before) >= MOST_TURNS:
            raise BadRow("the turns before the rated message are not in the snapshot, or without end")
        before.append(message)
        parent = message.get("parentId")
    return prompt_from([message_of(message) for message in reversed(before)])


def _siblings(messages: dict[str, Any], rated: dict[str, Any], rated_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # The finished answers of other models to the same message; in the arena there is one.
    for name, message in messages.items():
        is_answer = isinstance(message, dict) and message.get("role") == "assistant" and message.get("parentId") == rated.get("parentId")
        if is_answer and name != rated_id and isinstance(message.get("content"), str) and message["content"].strip():
            yield str(name), message


def _candidate(prompt: Prompt, message: dict[str, Any], model: Any) -> Candidate:
    if message.get("role") != "assistant":
        raise BadRow("an answer is not the assistant's")
    text = checked_text(message.get("content"), "content")
    check_answers(text)
    source = checked_text(str(message.get("selectedModelId") or message.get("model") or model or "unknown"), "model")
    return Candidate(prompt_id=prompt.id, text=text, source=source)


def _details(data: dict[str, Any], rated: Candidate) -> dict[str, dict[str, float]]:
    details = data.get("details")
    rating = details.get("rating") if isinstance(details, dict) else None
    return {} if rating is None else {"rating": {rated.id: number_of(rating, "details.rating")}}
