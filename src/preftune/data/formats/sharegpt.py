"""A conversation with a better and a worse answer to it, or with a thumb: LLaMA-Factory's sharegpt and v1 forms and their kin.

    {"conversations": [{"from": "human", "value": …}], "chosen": {"from": "gpt", "value": …}, "rejected": {"from": "gpt", …}}
    {"messages": [{"role": "user", "content": …}], "chosen": {"role": "assistant", …}, "rejected": {…}}    Axolotl: chat_template.default
    {"conversations": […, the answer], "kto_tag": true}, or {"messages": […], "label": true}                 a thumb up or down
    {"chosen_messages": [whole conversation, content as parts], "rejected_messages": […]}                    LLaMA-Factory v1
    {"messages": […, the better answer], "rejected_response": "the worse one"}                               ms-swift

Direction: chosen over rejected; kto_tag or label true = good, of the last answer alone.
Left out: conversations with tool calls or anything but text; v1 pairs whose prompts differ.
Source: data/README.md and data/v1_dpo_demo.jsonl of github.com/hiyouga/LLaMA-Factory; docs.axolotl.ai; ms-swift's custom data sets.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import SCORE_KEYS, check_scores, pair, thumb
from preftune.data.formats.rows import BadRow, Row, answer_of, conversation, is_good, prompt_of, shared_conversation, text_of

HISTORIES = ("conversations", "messages")
TAGS = ("kto_tag", "label")
KEYS = {*HISTORIES, *TAGS, "chosen", "rejected", "chosen_messages", "rejected_messages", "rejected_response", "system", "id"} | SCORE_KEYS


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    if {"chosen_messages", "rejected_messages"} <= fields.keys():
        return True
    if not any(isinstance(fields.get(key), list) for key in HISTORIES):
        return False
    if {"chosen", "rejected"} <= fields.keys():
        return all(isinstance(fields[key], (dict, str)) for key in ("chosen", "rejected"))
    return "chosen" not in fields and bool(fields.keys() & {*TAGS, "rejected_response"})


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    unused, system = fields.keys() - KEYS, fields.get("system")
    if "chosen_messages" in fields:
        prompt, chosen, rejected = shared_conversation(fields["chosen_messages"], fields.get("rejected_messages"))
        return [pair(line, prompt, chosen, rejected, tied=check_scores(fields), unused=unused)]
    history = next((fields[key] for key in HISTORIES if key in fields), None)
    if not isinstance(history, list):
        raise BadRow("the row has no conversation")
    if "chosen" in fields or "rejected" in fields:
        chosen, rejected = answer_of(fields.get("chosen"), "chosen"), answer_of(fields.get("rejected"), "rejected")
        return [pair(line, prompt_of(history, system=system), chosen, rejected, tied=check_scores(fields), unused=unused)]
    prompt, answer = conversation(history, system=system)
    if "rejected_response" in fields:
        return [pair(line, prompt, answer, text_of(fields, "rejected_response"), unused=unused)]
    tag = next((key for key in TAGS if key in fields), None)
    if tag is None:
        raise BadRow("the row says neither which answer is better nor whether its own is good")
    return [thumb(line, prompt, answer, is_good(fields[tag], tag), unused=unused)]
