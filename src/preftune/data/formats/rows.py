"""What every format is made of: the Row it gives, why a row is set aside, and what a value or message may look like in the wild.

A format reads keys; the dialects are settled here once, and preferences in `preferences`. Each function raises BadRow for what it
cannot take, with the same words for the same fault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from preftune.records import Candidate, Demonstration, Judgement, Message, Prompt, Role

MAX_CHARACTERS_A_LINE = 64 * 2**20
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatbot": "assistant",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """The records that one row of a file gives; a line may give several rows.

    unused: the keys in it that we make nothing of. notes: what else must be told, such as parts that were left out; the same words for
    the same thing, so that they can be counted.
    """

    line: int
    prompt: Prompt
    candidates: tuple[Candidate, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that was not taken: its line, why (the same words for the same fault), the text, and more on the fault if there is."""

    line: int
    reason: str
    text: str
    detail: str = ""


class Item(NamedTuple):
    """One value of a file before any format has looked at it: its line, the value, and its text ("" where the file is no text)."""

    line: int
    value: Any
    text: str

    def set_aside(self, reason: str, detail: str = "") -> SetAside:
        """Return the item as one that was not taken."""
        return SetAside(self.line, reason, self.text or _as_text(self.value), detail)


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):  # nested too deep, or within itself
        return str(type(value))


class BadRow(Exception):
    """Raised by a format for a row that it cannot take; `each` makes a SetAside of it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def each(items: Iterable[Item | SetAside], rows: Callable[[int, dict[str, Any]], list[Row]]) -> Iterator[Row | SetAside]:
    """Yield what `rows` makes of every item, or why it was set aside. rows: (line, fields without the nulls) → Rows, or BadRow."""
    for item in items:
        if isinstance(item, SetAside):
            yield item
            continue
        try:
            yield from bounded(rows(item.line, fields_of(item.value)))
        except BadRow as bad:
            yield item.set_aside(bad.reason, bad.detail)


def bounded(rows: list[Row]) -> list[Row]:
    """Return the rows of one line. Raises BadRow where they hold far more text than the line: each repeats what came before it."""
    if len(rows) > 1 and sum(len(m.content) for row in rows for m in row.prompt.messages) > MAX_CHARACTERS_A_LINE:
        raise BadRow("the conversation is too long to be taken apart", f"into {len(rows):,} rows that each repeat what came before")
    return rows


# Single values


def fields_of(value: Any) -> dict[str, Any]:
    """Return a row's keys, without those whose value is null: a null key says what a missing one says."""
    if not isinstance(value, dict):
        raise BadRow("the row is no JSON object")
    return {key: part for key, part in value.items() if part is not None}


def text_of(fields: dict[str, Any], key: str, default: str | None = None) -> str:
    """Return a field that must be text. Raises BadRow where it is missing (and has no default), no text, or holds what no text may."""
    value = fields.get(key, default)
    if value is None:
        raise BadRow(f'key "{key}" is missing')
    return checked_text(value, key)


def checked_text(value: Any, key: str) -> str:
    """Return a value that must be storable text. Raises BadRow if not."""
    if not isinstance(value, str):
        raise BadRow(f'field "{key}" is not text', f"it is {json.dumps(value, default=str)[:80]}")
    if "\0" in value:
        raise BadRow(f'field "{key}" holds a NUL character', f"at character {value.index(chr(0))}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            reason = f'field "{key}" holds bytes that are not UTF-8, or half of a surrogate pair'
            raise BadRow(reason, f"at character {error.start}") from error
    return value


def number_of(value: Any, key: str) -> float:
    """Return a score, rank or rating: a number, or a text that is one. Raises BadRow for anything else, as "N/A" or nan."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise BadRow(f'field "{key}" is not a number', f"it is {value!r}"[:90])
    return number


def is_good(value: Any, key: str) -> bool:
    """Return a thumb, which is true or false, 1 or 0 (or −1), as a value or as text. Raises BadRow for anything else."""
    said = str(value).strip().lower()
    if said in ("true", "1", "1.0"):
        return True
    if said in ("false", "0", "0.0", "-1", "-1.0"):
        return False
    raise BadRow(f'field "{key}" is neither true nor false', f"it is {value!r}"[:90])


def time_of(value: Any) -> datetime | None:
    """Return a time given in seconds or milliseconds since 1970 or in ISO 8601, or None where there is none or it is nonsense."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def nested(value: Any) -> Any:
    """Return a value that tables write as JSON text: the value itself, or what its text means."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


# Messages


def message_of(value: Any) -> Message:
    """Return a message of any dialect: role or from; content, value or text, as a text or as a list of text parts."""
    if not isinstance(value, dict):
        raise BadRow("a message has no role", "it is no object")
    said = value.get("role") or value.get("from")
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise BadRow("a message has no role that we know (system, user or assistant)", f"it is {said!r}"[:90])
    if value.get("tool_calls") or value.get("function_call"):
        raise BadRow("a message calls a tool, which cannot be kept")
    content = next((value[key] for key in ("content", "value", "text") if value.get(key) is not None), None)
    if content is None:
        raise BadRow('key "content" is missing')
    return Message(role=role, content=_content(content))


def _content(value: Any) -> str:
    if not isinstance(value, list):
        return checked_text(value, "content")
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text":
            raise BadRow("a message holds more than text", f"it holds {kind or part!r}"[:90])
        texts.append(checked_text(part.get("text", part.get("value")), "content"))
    return "".join(texts)


def prompt_of(value: Any, *, system: Any = None, kind: str = "", check: str = "") -> Prompt:
    """Return the prompt that a text, or a list of messages of any dialect, gives. system: a text that goes before it."""
    if isinstance(value, list):
        messages = [message_of(message) for message in value]
    else:
        messages = [Message(role="user", content=checked_text(value, "prompt"))]
    if system is not None and checked_text(system, "system").strip():
        messages.insert(0, Message(role="system", content=system))
    return prompt_from(messages, kind=kind, check=check)


def prompt_from(messages: Sequence[Message], *, kind: str = "", check: str = "") -> Prompt:
    """Return a prompt of messages of ours. An empty system message says nothing and goes. Raises BadRow where it is no prompt."""
    kept = [message for message in messages if message.role != "system" or message.content.strip()]
    if not kept or not all(message.content.strip() for message in kept):
        raise BadRow("the prompt, or one of its messages, is empty")
    if kept[-1].role != "user":
        raise BadRow("the prompt does not end with the user's turn")
    return Prompt(messages=tuple(kept), kind=kind, check=check)


def conversation(value: Any, *, system: Any = None) -> tuple[Prompt, str]:
    """Return a whole conversation as its prompt and its last answer. Raises BadRow where it does not end with the assistant."""
    if not isinstance(value, list) or not value:
        raise BadRow("the conversation is no list of messages")
    *before, last = [message_of(message) for message in value]
    if last.role != "assistant":
        raise BadRow("the conversation does not end with the assistant")
    if system is not None and checked_text(system, "system").strip():
        before.insert(0, Message(role="system", content=system))
    if before and before[-1].role == "assistant":
        raise BadRow("the answer is in two turns")
    return prompt_from(before), last.content


def answer_of(value: Any, key: str) -> str:
    """Return an answer: a text, one message of the assistant, or a list of that one message."""
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow("the answer is in several messages", f'field "{key}" has {len(value)}')
        value = value[0]
    if not isinstance(value, dict):
        return checked_text(value, key)
    message = message_of(value)
    if message.role != "assistant":
        raise BadRow("an answer is not the assistant's", f'field "{key}" is of the {message.role}')
    return message.content


def shared_conversation(first: Any, second: Any, *, system: Any = None) -> tuple[Prompt, str, str]:
    """Return the prompt of two whole conversations and their last answers. Raises BadRow where their prompts differ."""
    (prompt, one), (other, two) = conversation(first, system=system), conversation(second, system=system)
    if prompt.messages != other.messages:
        raise BadRow("the two prompts differ")
    return prompt, one, two


_NUMBER = re.compile(r"(?:[-_ .]?\d+|[-_ .][A-Za-z]|(?<=[a-z])[A-Z])$")
PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input", "request", "text", "user", "conversation", "messages")


def numbered(names: Iterable[str]) -> list[str]:
    """Return the names that are one name with a number or letter at its end (answer1, answer2; response_a, response_b), in their order.

    The largest such group; empty where there is none of two or more.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if match := _NUMBER.search(name):
            groups.setdefault(name[: match.start()], []).append(name)
    largest = max(groups.values(), key=len, default=[])
    return largest if len(largest) > 1 else []


def prompt_name(names: Sequence[str]) -> str:
    """Return which of a record's fields is the prompt: the only one, or the one with a usual name. Raises BadRow where it is not told."""
    if len(names) == 1:
        return names[0]
    for usual in PROMPT_NAMES:
        for name in names:
            if name.lower() == usual:
                return name
    raise BadRow("nothing says which field is the prompt", f"the fields are {', '.join(names) or 'none'}")
