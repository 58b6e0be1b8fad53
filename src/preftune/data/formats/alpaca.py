"""Alpaca rows as LLaMA-Factory and others read them: an instruction with an answer, a better and a worse one, or a thumb.

    {"instruction": …, "input": …, "chosen": …, "rejected": …, "system": …, "history": [["earlier question", "its answer"], …]}
    {"instruction": …, "input": …, "output": …}                       a demonstration
    {"instruction": …, "input": …, "output": …, "kto_tag": true}      a thumb up (true) or down (false)
    {"instruction": …, "output": ["the better", "the worse"]}         the older ranking form

The prompt is the instruction and, on a new line, the input where it is not empty; history and system go before it.

Direction: chosen over rejected; in a list the first output is the better one; kto_tag true = good.
Left out: an output that is a list of other than two.
Source: data/README.md of github.com/hiyouga/LLaMA-Factory.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import SCORE_KEYS, check_scores, demonstration, pair, thumb
from preftune.data.formats.rows import BadRow, Row, answer_of, checked_text, is_good, prompt_of, text_of
from preftune.records import Prompt

KEYS = {"instruction", "input", "output", "chosen", "rejected", "system", "history", "kto_tag", "label"} | SCORE_KEYS


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    return isinstance(fields.get("instruction"), str) and ("output" in fields or {"chosen", "rejected"} <= fields.keys())


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    prompt, unused = _prompt(fields), fields.keys() - KEYS
    if "chosen" in fields or "rejected" in fields:
        chosen, rejected = answer_of(fields.get("chosen"), "chosen"), answer_of(fields.get("rejected"), "rejected")
        return [pair(line, prompt, chosen, rejected, tied=check_scores(fields), unused=unused)]
    output = fields.get("output")
    if isinstance(output, list):
        if len(output) != 2:
            raise BadRow('field "output" is a list, but not of a better and a worse answer', f"it has {len(output)}")
        return [pair(line, prompt, checked_text(output[0], "output"), checked_text(output[1], "output"), unused=unused)]
    answer = text_of(fields, "output")
    tag = next((key for key in ("kto_tag", "label") if key in fields), None)
    if tag:
        return [thumb(line, prompt, answer, is_good(fields[tag], tag), unused=unused)]
    return [demonstration(line, prompt, answer, unused=unused)]


def _prompt(fields: dict[str, Any]) -> Prompt:
    history = fields.get("history", [])
    if not isinstance(history, list) or not all(isinstance(turns, list) and len(turns) == 2 for turns in history):
        raise BadRow('field "history" is not a list of questions with their answers')
    messages = [{"role": role, "content": text} for turns in history for role, text in zip(("user", "assistant"), turns, strict=True)]
    asked, more = text_of(fields, "instruction"), text_of(fields, "input", "")
    messages.append({"role": "user", "content": "\n".join(part for part in (asked, more) if part.strip())})
    return prompt_of(messages, system=fields.get("system"))
