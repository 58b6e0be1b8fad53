"""Label Studio: JSON (a task with all its annotations) and JSON-MIN or CSV (a row an annotation); Pairwise and Ranker.

    {"id", "data": {"prompt": …, "answer1": …, "answer2": …}, "annotations": [{"completed_by": 1, "was_cancelled": false, "result": [
        {"type": "pairwise", "from_name": …, "to_name": "answer1,answer2", "value": {"selected": "left"}}]}]}
    … {"type": "ranker", "value": {"ranker": ["id of the best", …]}} with "data": {"items": [{"id": …, "body": …}, …]}
    {"prompt": …, "answer1": …, "answer2": …, "comparison": {"selected": "left"} or "left", "annotator": 1, "annotation_id": …}

A ranker's value has three shapes: a list; {"_": [not ranked], "rank": [best, …]}; buckets with names of the team's own. Each annotation
that says something is a judgement of its annotator; a text area with it is the rationale. `lead_time` counts idle time and is not taken.

Direction: left is the first of `to_name` (in JSON-MIN: the first answer); a ranker's list is best first. Pairwise knows no tie.
Left out, and told: cancelled annotations, those without an answer (Label Studio saves them: HumanSignal/label-studio#5649), predictions,
drafts, named buckets (nothing says which is the better one), other controls; tasks that nobody annotated give their answers alone.
Source: docs/source of github.com/HumanSignal/label-studio (export, generative-llm-ranker, tags/pairwise, tags/ranker).
"""

from __future__ import annotations

from typing import Any

from preftune.data.formats.label_studio_task import Task, compared_by, ranked_by, task_of
from preftune.data.formats.preferences import judgement
from preftune.data.formats.rows import BadRow, Row, nested, time_of
from preftune.records import Judgement

ABOUT_ROW = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
NO_ANSWER = "an annotation without an answer is left out"


def recognises(fields: dict[str, Any]) -> bool:
    """Return whether a row looks like this format."""
    if isinstance(fields.get("annotations"), list):
        return isinstance(fields.get("data"), dict)
    return {"annotation_id", "annotator"} <= fields.keys()


def rows(line: int, fields: dict[str, Any]) -> list[Row]:
    """Return the records of one row. Raises BadRow where it is not as the module says."""
    if "annotations" in fields:
        return [_task_row(line, fields)]
    return [_minimal_row(line, fields)]


def _task_row(line: int, fields: dict[str, Any]) -> Row:
    data, annotations = fields.get("data"), fields["annotations"]
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise BadRow('the task has no "data" or no list of annotations')
    notes = [
        f"a {what} is left out" for what, key in (("prediction", "predictions"), ("draft", "drafts")) for _ in _listed(fields.get(key))
    ]
    results = [(annotation, _dicts(annotation.get("result"))) for annotation in _dicts(annotations)]
    to_name = next((r.get("to_name") for _, found in results for r in found if r.get("type") == "pairwise"), None)
    task = task_of(data, to_name)
    judgements: list[Judgement] = []
    for annotation, found in results:
        if annotation.get("was_cancelled"):
            notes.append("a cancelled annotation is left out")
            continue
        tiers: list[list[str]] = []
        why: list[str] = []
        told = len(notes)
        for result in found:
            value: Any = result.get("value")
            value = value if isinstance(value, dict) else {}
            kind = result.get("type")
            if kind in ("pairwise", "ranker"):
                tiers = _tiers(task, value.get("selected") if kind == "pairwise" else value.get("ranker"), notes) or tiers
            elif kind == "textarea":
                why += [text for text in _listed(value.get("text")) if isinstance(text, str)]
            else:
                notes.append(f"a result of the kind {kind} is left out")
        if tiers:
            when = time_of(annotation.get("updated_at") or annotation.get("created_at"))
            judgements.append(_judged(task, tiers, annotation.get("completed_by"), "\n".join(why) or None, when))
        elif len(notes) == told:
            notes.append(NO_ANSWER)
    if not annotations:
        notes.append("a task that nobody annotated gives its answers alone")
    return Row(line, task.prompt, tuple(task.candidates.values()), tuple(judgements), notes=(*notes, *task.notes))


def _minimal_row(line: int, fields: dict[str, Any]) -> Row:
    data = {key: value for key, value in fields.items() if key not in ABOUT_ROW}
    data |= {key: nested(value) for key, value in data.items() if isinstance(value, str) and value.startswith('[{"')}  # items, in CSV
    task = task_of(data, None)
    notes: list[str] = []
    tiers: list[list[str]] = []
    unused: list[str] = []
    for key, value in data.items():
        if key in task.names:
            continue
        found = _tiers(task, _control(value), notes)
        tiers = found or tiers
        unused += [] if found else [key]
    if not tiers:
        raise BadRow("the annotation has no answer", "; ".join(notes))
    when = time_of(fields.get("updated_at") or fields.get("created_at"))
    said = _judged(task, tiers, fields.get("annotator"), None, when)
    return Row(line, task.prompt, tuple(task.candidates.values()), (said,), unused=tuple(sorted(unused)), notes=(*notes, *task.notes))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [part for part in _listed(value) if isinstance(part, dict)]


def _control(value: Any) -> Any:
    # What a control said, in JSON-MIN: {"selected": side}, {"ranker": …}, or what is in these.
    value = nested(value)
    return value.get("selected", value.get("ranker", value)) if isinstance(value, dict) else value


def _tiers(task: Task, value: Any, notes: list[str]) -> list[list[str]]:
    if isinstance(value, str):
        return compared_by(task, value)
    return ranked_by(task, value, notes)


def _judged(task: Task, tiers: list[list[str]], annotator: Any, why: str | None, when: Any) -> Judgement:
    who = annotator.get("id") if isinstance(annotator, dict) else annotator  # never the e-mail address that may stand beside it
    rater = "unknown" if who is None else f"label_studio:{who}"
    order = [[task.candidates[name].id for name in tier] for tier in tiers]
    shown = [candidate.id for candidate in task.candidates.values()] if task.is_pair else []
    return judgement(task.prompt.id, order, rater=rater, rationale=why, presentation=shown, created=when)
