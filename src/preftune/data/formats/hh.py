r"""Raw transcripts as Anthropic released them (HH-RLHF): {"chosen": text, "rejected": text}, each a whole conversation.

A turn starts with `Human:` or `Assistant:` at the start of the text or after a blank line, and nowhere else: a role's name inside
a line is the turn's own text. White space around a turn is dropped. The last turn is the answer, all before it the prompt. In a prompt
that the two share, the same role twice in a row is one turn with a blank line between its parts, as chat templates want the roles in
turn.

Direction: chosen over rejected.
Left out: transcripts whose prompts differ (also where one of them has the assistant twice at the end, so that nobody can say which
part of it was judged), an empty answer, equal answers, an end with the human, a start with the assistant, text before the first turn.
Source: github.com/anthropics/hh-rlhf.
"""

from __future__ import annotations

import re
from typing import Any

from preftune.data.formats.preferences import pair
from preftune.data.formats.rows import BadRow, Row, text_of
from preftune.records import Message, Prompt, Role

START = re.compile(r"\s*(Human|Assistant):")
TURN = re.compile(r"\n[ \t]*\r?\n(Human|Assistant):")
ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
KEYS = {"chosen", "rejected"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    both = [fields.get("chosen"), fields.get("rejected")]
    return "prompt" not in fields and all(isinstance(text, str) and START.match(text) for text in both)


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow for what the module says is left out."""
    chosen, rejected = turns(text_of(fields, "chosen")), turns(text_of(fields, "rejected"))
    for transcript in (chosen, rejected):
        if transcript[0][0] != "user":
            raise BadRow("the transcript starts with the assistant")
        if transcript[-1][0] == "user":
            raise BadRow("the transcript ends with the human")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("the two prompts differ")
    if chosen[-2][0] != "user":
        raise BadRow("the answer is in two turns")
    if not all(text for _, text in chosen[:-1]):
        raise BadRow("a turn of the prompt is empty")
    prompt = Prompt(messages=merged(chosen[:-1]))
    return [pair(line, prompt, chosen[-1][1], rejected[-1][1], unused=fields.keys() - KEYS)]


def turns(transcript: str) -> list[tuple[Role, str]]:
    """Return the turns of a transcript as they stand. Raises BadRow where it does not start with one."""
    start = START.match(transcript)
    if not start:
        if TURN.search(transcript):
            raise BadRow("there is text before the first turn")
        raise BadRow("the transcript has no turn", 'each starts with "Human:" or "Assistant:" after a blank line')
    first, *parts = TURN.split(transcript[start.end() :])
    names, texts = [start[1], *parts[::2]], [first, *parts[1::2]]
    return [(ROLES[name], text.strip()) for name, text in zip(names, texts, strict=True)]


def merged(turns: list[tuple[Role, str]]) -> tuple[Message, ...]:
    """Return turns as messages in which no role comes twice in a row; what was apart has a blank line between."""
    result: list[tuple[Role, str]] = []
    for role, text in turns:
        if result and result[-1][0] == role:
            result[-1] = (role, f"{result[-1][1]}\n\n{text}")
        else:
            result.append((role, text))
    return tuple(Message(role=role, content=text) for role, text in result)
