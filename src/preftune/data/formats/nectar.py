r"""Nectar: up to seven answers to a prompt with a rank each.

    {"prompt": "\n\nHuman: … \n\nAssistant: ", "answers": [{"answer": …, "model": …, "rank": 1.0}, {"answer": …, "rank": 2.0}, …]}

The prompt is a transcript in the manner of hh that ends with an empty turn of the assistant, or plain text.

Direction: rank 1 = best; equal ranks are a tie. (Axolotl's reader of this format takes the highest ranks, and so the worst answers.) An
answer's `score`, if it has one, is higher = better; a row in which it orders two answers the other way contradicts itself.
Left out: empty answers, answers that come twice; rows of which fewer than two are left.
Source: the data set card of berkeley-nest/Nectar; zephyr.nectar in src/axolotl/prompt_strategies/dpo of axolotl.
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.hh import START, merged, turns
from preftune.data.formats.preferences import CONTRADICTION, judgement, restricted, usable, weak_order
from preftune.data.formats.rows import BadRow, Row, number_of, prompt_from, prompt_of, text_of
from preftune.records import Candidate, Prompt

KEYS = {"prompt", "system", "answers", "turns", "num_responses", "source", "good_natured"}


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    answers = fields.get("answers")
    return "prompt" in fields and isinstance(answers, list) and any(isinstance(answer, dict) and "rank" in answer for answer in answers)


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    answers = fields.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise BadRow('field "answers" is not a list of answers with ranks')
    prompt = _prompt(fields)
    texts = [text_of(answer, "answer") for answer in answers]
    kept, notes = usable(texts)
    ranks = {place: number_of(answers[place].get("rank"), "rank") for place in kept}
    if len(kept) < 2:
        raise BadRow("fewer than two answers can be compared")
    _check_scores(answers, ranks)
    order = [[kept[n] for n in tier] for tier in weak_order(list(ranks.values()), best="lowest")]
    tiers, cut = restricted(order, kept)
    candidates = {n: Candidate(prompt_id=prompt.id, text=texts[n], source=text_of(answers[n], "model", "unknown")) for n in kept}
    said = judgement(prompt.id, [[candidates[n].id for n in tier] for tier in tiers])
    unused = tuple(sorted(fields.keys() - KEYS))
    return [Row(line, prompt, tuple(candidates.values()), (said,), unused=unused, notes=(*notes, *cut))]


def _prompt(fields: dict[str, Any]) -> Prompt:
    text = fields.get("prompt")
    if not isinstance(text, str) or not START.match(text):
        return prompt_of(text, system=fields.get("system"))
    said = turns(text_of(fields, "prompt"))
    if said[-1] == ("assistant", ""):
        said.pop()
    return prompt_from(merged(said))


def _check_scores(answers: list[dict[str, Any]], ranks: dict[int, float]) -> None:
    scores = {place: number_of(answers[place]["score"], "score") for place in ranks if answers[place].get("score") is not None}
    scored = list(scores)
    lowest = float("inf")
    for tier in weak_order([ranks[place] for place in scored], best="lowest"):
        here = [scores[scored[n]] for n in tier]
        if max(here) > lowest:
            detail = f"an answer of rank {ranks[scored[tier[0]]]:g} has score {max(here):g}, one of a better rank {lowest:g}"
            raise BadRow(CONTRADICTION, detail)
        lowest = min(lowest, *here)
