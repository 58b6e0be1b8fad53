"""Preference fine-tuning of OpenAI (also Together and Fireworks).

    {"input": {"messages": [{"role": "user", "content": …}], "tools": [], "parallel_tool_calls": true},
     "preferred_output": [{"role": "assistant", "content": …}], "non_preferred_output": [{"role": "assistant", "content": …}]}

Direction: preferred_output over non_preferred_output. The format knows no tie, no strength and no rater.
Left out: outputs of several messages; tools (told where there are any); rows with tool calls.
Source: the guide to direct preference optimisation at developers.openai.com, docs.together.ai.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import pair
from preftune.data.formats.rows import BadRow, Row, answer_of, prompt_of

KEYS = {"input", "preferred_output", "non_preferred_output"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    return "preferred_output" in fields and "non_preferred_output" in fields


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    for key in KEYS - fields.keys():
        raise BadRow(f'key "{key}" is missing')
    asked = fields["input"]
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise BadRow('field "input" has no list of messages')
    prompt = prompt_of(asked["messages"])
    chosen = answer_of(fields["preferred_output"], "preferred_output")
    rejected = answer_of(fields["non_preferred_output"], "non_preferred_output")
    notes = ("the tools that the model could call are left out",) if asked.get("tools") else ()
    return [pair(line, prompt, chosen, rejected, unused=fields.keys() - KEYS, notes=notes)]
