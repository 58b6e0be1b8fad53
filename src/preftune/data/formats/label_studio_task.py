"""What a Label Studio task asks, and what an answer to it says in terms of its candidates (see `label_studio`)."""

from __future__ import annotations

from typing import Any, NamedTuple

from preftune.data.formats.preferences import restricted, usable
from preftune.data.formats.rows import BadRow, checked_text, numbered, prompt_name, prompt_of
from preftune.records import Candidate, Prompt

SIDES = ("left", "right")
BODIES = ("body", "text", "html", "value", "content")
BUCKETS = "the answers lie in buckets with names of their own, of which nothing says which is better; the annotation is left out"


class Task(NamedTuple):
    """A task: the prompt, its usable candidates by the name that annotations give them, and the keys of its data that these took.

    is_pair: the candidates are the left and the right one. sides: the names of the left and the right one.
    """

    prompt: Prompt
    candidates: dict[str, Candidate]
    names: set[str]
    is_pair: bool
    sides: tuple[str, ...]
    notes: tuple[str, ...]


def task_of(data: dict[str, Any], to_name: Any) -> Task:
    """Return the task that a row's data describe. to_name: what a pairwise result is about ("answer1,answer2"), if it is known."""
    items = next((key for key, value in data.items() if _is_items(value)), None)
    texts = {key: value for key, value in data.items() if isinstance(value, str) or (isinstance(value, list) and _is_chat(value))}
    if items is not None:
        answers = {str(item.get("id")): _body(item) for item in data[items]}
        others, names = [key for key in texts if key != items], {items}
    else:
        sides = _sides(texts, to_name)
        answers = {key: checked_text(texts[key], key) for key in sides}
        others, names = [key for key in texts if key not in sides], set(sides)
    asked = prompt_name(others)
    prompt = prompt_of(texts[asked])
    listed = list(answers)
    kept, notes = usable(list(answers.values()))
    if len(kept) < 2:
        raise BadRow("fewer than two answers can be compared")
    candidates = {listed[n]: Candidate(prompt_id=prompt.id, text=answers[listed[n]]) for n in kept}
    is_pair = items is None and len(listed) == 2
    return Task(prompt, candidates, {*names, asked}, is_pair, tuple(listed) if is_pair else (), tuple(notes))


def compared_by(task: Task, selected: str) -> list[list[str]]:
    """Return the weak order that "left" or "right" says; empty for anything else."""
    if not task.sides or selected not in SIDES:
        return []
    better = task.sides[SIDES.index(selected)]
    return [[better], [name for name in task.sides if name != better]]


def ranked_by(task: Task, value: Any, notes: list[str]) -> list[list[str]]:
    """Return the weak order that a ranker's value says, in any of its three shapes; empty where it says none."""
    if isinstance(value, dict):
        buckets = {name: order for name, order in value.items() if name != "_" and isinstance(order, list) and order}
        if len(buckets) > 1 or (buckets and "rank" not in value and "_" in value):
            notes.append(BUCKETS)
            return []
        value = next(iter(buckets.values()), None)
    if not isinstance(value, list) or task.is_pair:
        return []
    order = [str(name) for name in value]
    if len(set(order)) < len(order):
        raise BadRow("a ranking names an answer twice", f"{order}"[:120])
    known = list(task.candidates)
    tiers, cut = restricted([[known.index(name)] for name in order if name in task.candidates], range(len(known)))
    notes += cut
    return [[known[place] for place in tier] for tier in tiers] if len(tiers) > 1 else []


def _sides(texts: dict[str, Any], to_name: Any) -> list[str]:
    # The data keys of the left and the right answer: those that the result names, or two that are named alike, or all but the prompt.
    named = [name.strip() for name in to_name.split(",")] if isinstance(to_name, str) else []
    if len(named) == 2 and all(name in texts for name in named):
        return named
    alike = numbered(key for key, value in texts.items() if isinstance(value, str))
    if len(alike) == 2:
        return alike
    asked = prompt_name(list(texts))
    rest = [key for key in texts if key != asked]
    if len(rest) != 2:
        raise BadRow("nothing says which two fields are the answers", f"the fields are {', '.join(texts)}"[:120])
    return rest


def _is_items(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(part, dict) and "id" in part for part in value)


def _is_chat(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(part, dict) and ("role" in part or "from" in part) for part in value)


def _body(item: dict[str, Any]) -> str:
    text = next((item[key] for key in BODIES if isinstance(item.get(key), str)), None)
    if text is None:
        raise BadRow("an item to be ranked has no text", f"its keys are {', '.join(item)}"[:120])
    return checked_text(text, "items")
