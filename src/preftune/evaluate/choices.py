"""Multiple choice of a team's own: the choice that the model holds for likeliest, as its answer in the chat.

One row a line: {"question": "…", "choices": ["…", "…"], "answer": 1}. `answer` is the place from 0, a letter from A, or the choice
itself. `id` names the item, `group` says which items stand or fall together, such as the questions about one text.

- acc: the choice with the largest sum of log-probs; acc_norm: with the largest sum by characters, as a longer choice is less likely
  whatever it says. Both as lm-eval has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.evaluate.language_model import LanguageModel
from preftune.evaluate.retention_scores import ItemScore
from preftune.evaluate.task_files import BadRow, read_items, text_of
from preftune.records import Message, content_id

METRICS = ("acc", "acc_norm")


@dataclass(frozen=True)
class Question:
    """One question with its choices; `choices[answer]` is right. group: what it stands or falls together with, "" = nothing."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    group: str = ""


def read_choices(path: Path) -> tuple[list[Question], list[str]]:
    """Return the questions of a file, and the rows set aside, each with line and reason. Raises DataError as `read_items` does."""
    seen: dict[str, int] = {}

    def read(row: dict[str, Any], line: int) -> Question:
        question, choices = text_of(row, "question"), row.get("choices")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
            raise BadRow('"choices" must be a list of two texts or more')
        if len(set(choices)) < len(choices):
            raise BadRow("two of the choices are alike")
        item = Question(
            _id(row, question, choices), question, tuple(choices), _place(row.get("answer"), choices), str(row.get("group", ""))
        )
        if (before := seen.setdefault(item.id, line)) != line:
            raise BadRow(f"it is the same as line {before}")
        return item

    return read_items(path, read)


def _id(row: dict[str, Any], question: str, choices: list[str]) -> str:
    return str(row["id"]) if row.get("id") not in (None, "") else content_id("choice", question, choices)


def _place(answer: Any, choices: list[str]) -> int:
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        if len(answer) == 1 and 0 <= (place := ord(answer.upper()) - ord("A")) < len(choices):
            return place
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    letters = f"A to {chr(ord('A') + len(choices) - 1)}"
    raise BadRow(f'"answer" is {json.dumps(answer)[:80]}: give 0 to {len(choices) - 1}, {letters}, or the choice itself')


def score_choices(model: LanguageModel, questions: Sequence[Question], metric: str) -> list[tuple[ItemScore, dict[str, float]]]:
    """Return for each question its score by the metric, and its score by each of METRICS."""
    prompts = [(Message(role="user", content=q.question),) for q in questions]
    answered = model.score_completions(prompts, [q.choices for q in questions])
    scored = []
    for q, sums in zip(questions, answered, strict=True):
        by_length = {"acc": [s for s, _ in sums], "acc_norm": [s / len(c) for (s, _), c in zip(sums, q.choices, strict=True)]}
        taken = {name: worth.index(max(worth)) for name, worth in by_length.items()}
        scores = {name: float(place == q.answer) for name, place in taken.items()}
        said = q.choices[taken[metric]]
        scored.append((ItemScore(q.id, scores[metric], q.group, q.question, q.choices[q.answer], said), scores))
    return scored
