"""Axolotl's kinds of DPO rows that have a prompt under a name of their own.

    {"system": …, "question": …, "chosen": …, "rejected": …}                            chatml.intel
    {"system": …, "instruction": …, "chosen_response": …, "rejected_response": …}       chatml.argilla
    {"system": …, "input": …, "chosen": …, "rejected": …}                               chatml.icr
    {"system": …, "prompt": …, "chosen": [whole conversation], "rejected": […]}         chatml.ultra

(chatml.prompt_pairs is our own form, argilla_chat TRL's, chat_template.default that of sharegpt, zephyr.nectar that of nectar.)
In chatml.ultra the conversations say the prompt once more; the row is taken where all three agree.

Direction: chosen over rejected.
Left out: chatml.ultra rows whose prompts differ.
Source: src/axolotl/prompt_strategies/dpo of github.com/axolotl-ai-cloud/axolotl.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import SCORE_KEYS, check_scores, pair
from preftune.data.formats.rows import BadRow, Row, answer_of, prompt_of, shared_conversation, text_of

PROMPTS = ("question", "instruction", "input", "prompt")
KEYS = {*PROMPTS, "system", "chosen", "rejected", "chosen_response", "rejected_response"} | SCORE_KEYS


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    asked = [key for key in PROMPTS if isinstance(fields.get(key), str)]
    if len(asked) != 1 or fields.keys() & {"messages", "conversations", "score_chosen", "score_rejected"}:
        return False
    if {"chosen_response", "rejected_response"} <= fields.keys():
        return True
    kind = list if asked == ["prompt"] else str
    return asked != ["instruction"] and all(isinstance(fields.get(key), kind) for key in ("chosen", "rejected"))


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    asked = next((key for key in PROMPTS if key in fields), None)
    if asked is None:
        raise BadRow("the row has no prompt", f"it would be under {', '.join(PROMPTS)}")
    ending = "_response" if "chosen_response" in fields else ""
    prompt, unused = prompt_of(text_of(fields, asked), system=fields.get("system")), fields.keys() - KEYS
    better, worse = (fields.get(f"{name}{ending}") for name in ("chosen", "rejected"))
    if isinstance(better, list):
        said, chosen, rejected = shared_conversation(better, worse, system=fields.get("system"))
        if said.messages != prompt.messages:
            raise BadRow("the two prompts differ", "that of the conversations and the row's own")
    else:
        chosen, rejected = answer_of(better, f"chosen{ending}"), answer_of(worse, f"rejected{ending}")
    return [pair(line, prompt, chosen, rejected, tied=check_scores(fields), unused=unused)]
