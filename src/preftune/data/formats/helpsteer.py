"""HelpSteer2: ratings of two answers to a prompt, and HelpSteer2-Preference: which of two answers is better, and how clearly.

    {"prompt": …, "response": …, "helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 3}
    {"prompt": …, "response_1": …, "response_2": …, "preference_strength": -2, "preference_statement": …}

The answers to one prompt stand on lines that follow each other; together they give one row, ranked by helpfulness (equal ones are a tie),
with helpfulness, correctness and coherence as aspects. Complexity and verbosity are not better when they are higher, and are left out.

Direction: higher helpfulness = better; a negative preference_strength says that response_1 is the better one.
Left out: complexity and verbosity; the single raters' words of HelpSteer2-Preference; answers that come twice.
Source: the data set card of nvidia/HelpSteer2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from preftune.data.formats.preferences import judgement, pair, restricted, usable, weak_order
from preftune.data.formats.rows import BadRow, Item, Row, SetAside, each, fields_of, number_of, prompt_of, text_of
from preftune.records import Candidate

ASPECTS = ("helpfulness", "correctness", "coherence")
LEFT_OUT = ("complexity", "verbosity")
KEYS = {"prompt", "response", *ASPECTS, *LEFT_OUT}
PREFERENCE_KEYS = {
    "prompt", "response_1", "response_2", "preference_strength", "preference_statement", "preference_elaboration", "split",
    "three_most_similar_preferences", "all_preferences_unprocessed",
}  # fmt: skip


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    return {"prompt", "response", "helpfulness"} <= fields.keys() or {"response_1", "response_2", "preference_strength"} <= fields.keys()


def whole(items: Iterator[Item | SetAside], where: str) -> Iterator[Row | SetAside]:
    """Yield the rows of a file, the answers to one prompt that follow each other together."""

    def prompt_at(item: Item | SetAside) -> Any:
        # A line that stands for itself has a key of its own.
        value = item.value if isinstance(item, Item) else None
        is_rating = isinstance(value, dict) and "response" in value and isinstance(value.get("prompt"), str)
        return value["prompt"] if isinstance(value, dict) and is_rating else item.line

    def joined() -> Iterator[Item | SetAside]:
        for prompt, group in groupby(items, prompt_at):
            if not isinstance(prompt, str):
                yield from group
                continue
            rated = [item for item in group if isinstance(item, Item)]
            text = "\n".join(item.text for item in rated if item.text)
            yield Item(rated[0].line, {"prompt": prompt, "answers": [item.value for item in rated]}, text)

    yield from each(joined(), rows)


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one prompt. Raises BadRow where it is not as the module says."""
    if "preference_strength" in fields:
        return [_preference(line, fields)]
    rated = fields.get("answers", [fields])
    prompt = prompt_of(text_of(fields, "prompt"))
    answers = [fields_of(answer) for answer in rated]
    texts = [text_of(answer, "response") for answer in answers]
    kept, notes = usable(texts)
    candidates = {n: Candidate(prompt_id=prompt.id, text=texts[n]) for n in kept}
    if len(kept) < 2:
        raise BadRow("fewer than two answers to a prompt can be compared", "they stand on lines that follow each other")
    helpful = [number_of(answers[n].get("helpfulness"), "helpfulness") for n in kept]
    tiers, cut = restricted([[kept[n] for n in tier] for tier in weak_order(helpful, best="highest")], kept)
    aspects: dict[str, dict[str, float]] = {}
    for n in kept:
        for aspect in ASPECTS:
            if aspect in answers[n]:
                aspects.setdefault(aspect, {})[candidates[n].id] = number_of(answers[n][aspect], aspect)
    said = judgement(prompt.id, [[candidates[n].id for n in tier] for tier in tiers], aspects=aspects)
    unused = {key for answer in answers for key in answer} - KEYS
    return [Row(line, prompt, tuple(candidates.values()), (said,), unused=tuple(sorted(unused)), notes=(*notes, *cut))]


def _preference(line: int, fields: dict[str, Any]) -> Row:
    prompt = prompt_of(text_of(fields, "prompt"))
    one, two = text_of(fields, "response_1"), text_of(fields, "response_2")
    strength = number_of(fields["preference_strength"], "preference_strength")
    if strength not in (-3, -2, -1, 0, 1, 2, 3):
        raise BadRow('field "preference_strength" is not a whole number from −3 to 3', f"it is {strength:g}")
    chosen, rejected = (one, two) if strength < 0 else (two, one)
    return pair(line, prompt, chosen, rejected, tied=strength == 0, strength=abs(int(strength)), unused=fields.keys() - PREFERENCE_KEYS)
