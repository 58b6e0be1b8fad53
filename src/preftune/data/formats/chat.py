"""A whole conversation to learn from: OpenAI supervised fine-tuning, TRL's messages, sharegpt.

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …, "weight": 1}]}
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}], "system": …}

Each turn of the assistant is a demonstration, with all turns before it as its prompt, since that is what these formats train on; so a
line may give several rows. A turn with `weight` 0 is context alone.

Direction: none; nothing is compared.
Left out: turns of weight 0, a last turn of the user; conversations with tool calls, with anything but text, or begun by the assistant.
Source: OpenAI's guide to supervised fine-tuning; TRL's dataset formats; data/dummy_conversation.json of github.com/lm-sys/FastChat.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import demonstration
from preftune.data.formats.rows import BadRow, Row, checked_text, message_of, prompt_from
from preftune.records import Message

HISTORIES = ("messages", "conversations")
KEYS = {*HISTORIES, "system", "prompt", "prompt_id", "tools", "parallel_tool_calls", "id"}
# With one of these, the row says more than a conversation does.
MORE = {"chosen", "rejected", "kto_tag", "label", "rejected_response", "preferred_output"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    return any(isinstance(fields.get(key), list) for key in HISTORIES) and not fields.keys() & MORE


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    history = next((fields[key] for key in HISTORIES if key in fields), None)
    if not isinstance(history, list) or not history:
        raise BadRow("the conversation is no list of messages")
    unused = fields.keys() - KEYS
    messages: list[Message] = []
    if checked_text(fields.get("system", ""), "system").strip():
        messages.append(Message(role="system", content=fields["system"]))
    found: list[Row] = []
    for value in history:
        message = message_of(value)
        if message.role == "assistant" and value.get("weight", 1) != 0:
            found.append(demonstration(line, prompt_from(messages), message.content, unused=unused))
        messages.append(message)
    if not found:
        raise BadRow("the conversation has no answer to learn from")
    return found
