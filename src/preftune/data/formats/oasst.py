"""Open Assistant: trees of messages, one a line, and flat messages whose parents are in the same file.

    {"message_tree_id": …, "prompt": {"message_id": …, "text": …, "role": "prompter", "replies": [{"role": "assistant", "rank": 0, …}, …]}}
    {"message_id": …, "parent_id": …, "text": …, "role": "assistant", "rank": 0}     flat; also with its replies nested

Each message of the prompter gives a row: all before it is the prompt, the assistant's replies are the candidates, and their ranks are one
ranking. The ranks are the consensus of several raters; the single rankings are in internal exports alone and are not read.

Direction: rank 0 = best. A reply without a rank was not judged.
Left out, and told: deleted messages and those that did not pass review, with all below them; empty replies, replies that come twice;
labels and emojis. A flat file is held in memory until its end, and messages whose parent is not there are set aside.
Source: oasst-data/oasst_data/schemas.py and docs/docs/data/schemas.md of github.com/LAION-AI/Open-Assistant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from preftune.data.formats.preferences import judgement, restricted, usable, weak_order
from preftune.data.formats.rows import BadRow, Item, Row, SetAside, bounded, checked_text, each, fields_of, number_of, prompt_from
from preftune.records import Candidate, Message, Role

SPEAKERS: dict[Any, Role] = {"prompter": "user", "assistant": "assistant"}
MOST_TURNS = 500
LEFT_OUT = "a message that was deleted or did not pass review is left out, with all below it"


class _Node(NamedTuple):
    """A message with the turns before it."""

    fields: dict[str, Any]
    before: tuple[Message, ...]


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    if isinstance(fields.get("prompt"), dict):
        return "message_id" in fields["prompt"]
    return "message_id" in fields and fields.get("role") in list(SPEAKERS)


def whole(items: Iterator[Item | SetAside], where: str) -> Iterator[Row | SetAside]:
    """Yield the rows of a file: of a tree at once, of flat messages at the end, when all parents are known."""
    flat: dict[str, Item] = {}

    def trees() -> Iterator[Item | SetAside]:
        for item in items:
            if isinstance(item, Item) and _is_flat(item.value):
                flat.setdefault(str(item.value["message_id"]), Item(item.line, {**fields_of(item.value), "replies": []}, item.text))
            else:
                yield item

    yield from each(trees(), rows)
    roots = [item for item in flat.values() if "parent_id" not in item.value]
    for item in flat.values():
        if parent := flat.get(str(item.value.get("parent_id"))):
            parent.value["replies"].append(item.value)
    yield from each(iter(roots), rows)
    reached = {str(root.value["message_id"]) for root in roots}
    waiting = [root.value for root in roots]
    while waiting:
        replies = waiting.pop()["replies"]
        reached |= {str(reply["message_id"]) for reply in replies}
        waiting += replies
    for name, item in flat.items():
        if name not in reached:
            yield item.set_aside(
                "the conversation of this message does not begin in the file", f"it answers {item.value['parent_id']!r}"[:90]
            )


def _is_flat(value: Any) -> bool:
    is_message = isinstance(value, dict) and value.get("message_id") is not None and not isinstance(value.get("prompt"), dict)
    return bool(is_message and not value.get("replies"))


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one tree. Raises BadRow where it is none."""
    root = fields.get("prompt", fields)
    if not isinstance(root, dict) or root.get("role") != "prompter":
        raise BadRow("the tree does not start with the prompter")
    if root.get("deleted") or root.get("review_result") is False:
        raise BadRow("the tree's first message was deleted or did not pass review")
    found: list[Row] = []
    waiting = [_Node(root, ())]
    while waiting:  # not by recursion, as a file may nest as deep as it likes
        node = waiting.pop()
        if len(node.before) >= MOST_TURNS:
            raise BadRow(f"the tree is deeper than {MOST_TURNS} messages")
        row, following = _asked(line, node)
        found.append(row)
        waiting += reversed(following)
    return bounded(found)


def _asked(line: int, node: _Node) -> tuple[Row, list[_Node]]:
    # The row of one message of the prompter, and the messages of the prompter that answer its replies.
    said = (*node.before, _message(node.fields))
    prompt = prompt_from(said)
    notes: list[str] = []
    replies = _passed(node.fields, notes)
    texts = [checked_text(reply.get("text"), "text") for reply in replies]
    kept, more = usable(texts)
    candidates = {n: Candidate(prompt_id=prompt.id, text=texts[n], source=_source(replies[n])) for n in kept}
    ranks = {n: number_of(replies[n]["rank"], "rank") for n in kept if replies[n].get("rank") is not None}
    places = list(ranks)
    tiers, cut = restricted([[places[n] for n in tier] for tier in weak_order(list(ranks.values()), best="lowest")], kept)
    order = [[candidates[n].id for n in tier] for tier in tiers]
    judgements = (judgement(prompt.id, order, rater="consensus"),) if len(ranks) > 1 else ()
    following = [
        _Node(question, (*said, _message(reply)))
        for reply, text in zip(replies, texts, strict=True)
        if text.strip()
        for question in _passed(reply, notes)
    ]
    return Row(line, prompt, tuple(candidates.values()), judgements, notes=(*notes, *more, *cut)), following


def _passed(fields: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    # The replies that count.
    replies = fields.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise BadRow('field "replies" is not a list of messages')
    wanted = "assistant" if fields.get("role") == "prompter" else "prompter"
    if any(reply.get("role") != wanted for reply in replies):
        raise BadRow("a reply is of the same speaker as what it answers")
    kept = [reply for reply in replies if not reply.get("deleted") and reply.get("review_result") is not False]
    notes += [LEFT_OUT] * (len(replies) - len(kept))
    return kept


def _message(fields: dict[str, Any]) -> Message:
    return Message(role=SPEAKERS[fields["role"]], content=checked_text(fields.get("text"), "text"))


def _source(reply: dict[str, Any]) -> str:
    return checked_text(str(reply.get("model_name") or "a model"), "model_name") if reply.get("synthetic") else "a person"
