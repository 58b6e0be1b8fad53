r"""Raw transcripts as Anthropic released them (HH-RLHF): {"chosen": text, "rejected": text}, each a whole conversation.

A turn starts with `Human:` or `Assistant:` at the start of the text or after a blank line, and nowhere else: a role's name inside
a line is the turn's own text. White space around a turn is dropped. The last turn is the answer, all before it the prompt.

Set aside: transcripts whose prompts differ (also where one of them has the assistant twice at the end, so that nobody can say which
part of it was judged), an empty answer, equal answers, an end with the human, a start with the assistant, text before the first
turn. In a prompt that the two share, the same role twice in a row is one turn with a blank line between its parts, as chat
templates want the roles in turn.
"""

from __future__ import annotations

import re
from typing import Any

from preftune.data.formats.reading import BadRow, Row, check_answers, text_of
from preftune.records import Candidate, Judgement, Message, Prompt, Role

TURN = re.compile(r"(?:\A\s*|\r?\n[ \t]*\r?\n)(Human|Assistant):")
ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    both = [fields.get("chosen"), fields.get("rejected")]
    return "prompt" not in fields and all(isinstance(text, str) and TURN.match(text) for text in both)


def row(line: int, fields: dict[str, Any]) -> Row:
    """Return the records of one row. Raises BadRow for what the module says is set aside."""
    chosen, rejected = turns(text_of(fields, "chosen")), turns(text_of(fields, "rejected"))
    for transcript in (chosen, rejected):
        if transcript[0].role != "user":
            raise BadRow("the transcript starts with the assistant")
        if transcript[-1].role == "user":
            raise BadRow("the transcript ends with the human")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("the two prompts differ")
    if chosen[-2].role != "user":
        raise BadRow("the answer is in two turns")
    if not all(turn.content for turn in chosen[:-1]):
        raise BadRow("a turn of the prompt is empty")
    check_answers(chosen[-1].content, rejected[-1].content)
    prompt = Prompt(messages=merged(chosen[:-1]))
    candidates = tuple(Candidate(prompt_id=prompt.id, text=turn.content) for turn in (chosen[-1], rejected[-1]))
    judgement = Judgement(prompt_id=prompt.id, ranking=tuple((c.id,) for c in candidates))
    return Row(line, prompt, candidates, judgement, unused=tuple(sorted(fields.keys() - {"chosen", "rejected"})))


def turns(transcript: str) -> list[Message]:
    """Return the turns of a transcript as they stand. Raises BadRow where it does not start with one."""
    before, *parts = TURN.split(transcript)
    if not parts:
        raise BadRow("the transcript has no turn", 'each starts with "Human:" or "Assistant:" after a blank line')
    if before.strip():
        raise BadRow("there is text before the first turn")
    return [Message(role=ROLES[name], content=text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]


def merged(messages: list[Message]) -> tuple[Message, ...]:
    """Return messages in which no role comes twice in a row; what was apart has a blank line between."""
    result: list[Message] = []
    for message in messages:
        if result and result[-1].role == message.role:
            result[-1] = Message(role=message.role, content=f"{result[-1].content}\n\n{message.content}")
        else:
            result.append(message)
    return tuple(result)
