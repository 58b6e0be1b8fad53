"""TRL's data sets: preference with an explicit or implicit prompt, prompt-completion, and unpaired ones with a label.

    {"prompt": [{"role": "user", "content": …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [the same user's turns, another answer]}
    {"chosen": "The sky is blue.", "rejected": "The sky is green."}            the prompt is what the two have in common
    {"prompt": … , "completion": … , "label": true}                             a thumb up (true) or down (false) on one answer
    {"prompt": [messages], "completion": [{"role": "assistant", …}]}            a demonstration

In the standard implicit form nobody says where the prompt ends. We take the common beginning up to its last white space outside a code
block, which keeps words and fences whole, drop the white space around the cut, and say so in the report: look at the examples.

Direction: chosen over rejected; label true = good. A score or margin that says the reverse is a contradiction; equal scores are a tie.
Left out: an answer of several messages, prompts that differ, two texts without a common beginning.
Source: the page "Dataset formats and types" of TRL's documentation (huggingface.co/docs/trl).
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.preferences import SCORE_KEYS, check_scores, demonstration, pair, thumb
from preftune.data.formats.rows import BadRow, Row, answer_of, is_good, prompt_of, shared_conversation, text_of

KEYS = {"prompt", "chosen", "rejected", "completion", "label", "rater"} | SCORE_KEYS
# A row with one of these has its prompt there, and is of another format.
OTHER_PROMPTS = {"messages", "conversations", "instruction", "question", "input", "history"}
IMPLICIT = "the prompt is taken to be what chosen and rejected have in common, cut at a white space outside code"


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format (its standard explicit form is our own)."""
    if fields.keys() & OTHER_PROMPTS:
        return False
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if "completion" in fields and prompt is not None:
        return "label" in fields or (isinstance(prompt, list) and isinstance(completion, list))
    both = [fields.get("chosen"), fields.get("rejected")]
    is_listed = all(isinstance(answer, list) for answer in both)
    if prompt is not None:
        return isinstance(prompt, list) and is_listed
    return "score_chosen" not in fields and (is_listed or (all(isinstance(answer, str) for answer in both) and not _is_transcript(both)))


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    unused = fields.keys() - KEYS
    rater = text_of(fields, "rater", "unknown")
    if "completion" in fields:
        prompt = prompt_of(fields.get("prompt"))
        answer = answer_of(fields["completion"], "completion")
        if "label" in fields:
            return [thumb(line, prompt, answer, is_good(fields["label"], "label"), rater=rater, unused=unused)]
        return [demonstration(line, prompt, answer, author=rater, unused=unused)]
    if "prompt" in fields and not {"chosen", "rejected"} & fields.keys():
        return [Row(line, prompt_of(fields["prompt"]), unused=tuple(sorted(unused)))]
    for key in ("chosen", "rejected"):
        if key not in fields:
            raise BadRow(f'key "{key}" is missing')
    notes: tuple[str, ...] = ()
    if "prompt" in fields:
        prompt = prompt_of(fields["prompt"])
        chosen, rejected = answer_of(fields["chosen"], "chosen"), answer_of(fields["rejected"], "rejected")
    elif isinstance(fields["chosen"], list):
        prompt, chosen, rejected = shared_conversation(fields["chosen"], fields["rejected"])
    else:
        asked, chosen, rejected = split_common(text_of(fields, "chosen"), text_of(fields, "rejected"))
        prompt, notes = prompt_of(asked), (IMPLICIT,)
    tied = check_scores(fields)
    return [pair(line, prompt, chosen, rejected, tied=tied, rater=rater, unused=unused, notes=notes)]


def split_common(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return the prompt that two texts begin with, and what each goes on with. Raises BadRow where they have none in common."""
    shorter = min(len(chosen), len(rejected))
    common = chosen[: next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)]
    if common.count("```") % 2:
        common = common[: common.rindex("```")]
    if common and not common[-1].isspace():
        common = common.removesuffix(common.rsplit(None, 1)[-1])
    if not common.strip():
        raise BadRow("the two texts have no beginning in common that could be the prompt")
    return common.strip(), chosen[len(common) :].strip(), rejected[len(common) :].strip()


def _is_transcript(texts: list[Any]) -> bool:
    return all(text.lstrip().startswith(("Human:", "Assistant:")) for text in texts)
