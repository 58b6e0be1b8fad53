"""Measures one model on the tasks that a team adds, item by item: multiple choice, HumanEval and MBPP, tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TypeVar

from preftune.errors import ConfigError
from preftune.evaluate.choices import METRICS, read_choices, score_choices
from preftune.evaluate.code_tasks import CodeTask, pass_at_k, passed, read_code_tasks
from preftune.evaluate.language_model import LanguageModel
from preftune.evaluate.retention_scores import LONGEST_SAID, ItemScore, TaskMeasure
from preftune.evaluate.task_settings import TaskSettings
from preftune.progress import Progress

Item = TypeVar("Item")
BLOCK = 32


def measure_task(model: LanguageModel, settings: TaskSettings, *, seed: int, progress: Progress, name: str) -> TaskMeasure:
    """Return what a model knows of one task. Raises DataError for a file without good rows, ConfigError for what lm-eval lacks."""
    match settings.kind:
        case "choices":
            return _measure_choices(model, settings, progress, name)
        case "functions":
            return _measure_functions(model, settings, seed, progress, name)
        case "lm-eval":
            from preftune.evaluate.lm_eval_tasks import measure_lm_eval

            return measure_lm_eval(model, settings, progress=progress, name=name)
        case "facts":
            raise ConfigError("facts are measured by themselves", "retention", "See docs/retention.md.")


def _measure_choices(model: LanguageModel, settings: TaskSettings, progress: Progress, name: str) -> TaskMeasure:
    assert settings.file is not None
    questions, set_aside = read_choices(settings.file)
    _tell(progress, settings, set_aside)
    questions = questions[: settings.limit]
    scored: list[tuple[ItemScore, dict[str, float]]] = []
    with progress.stage(f"{name}: {settings.title}", len(questions), "items") as bar:
        for block in _blocks(questions):
            scored += score_choices(model, block, settings.metric)
            bar.advance(len(block))
    other = next(metric for metric in METRICS if metric != settings.metric)
    also = ((settings.metric, fmean(s[settings.metric] for _, s in scored)), (other, fmean(s[other] for _, s in scored)))
    return _told(settings, "share of right answers", [item for item, _ in scored], set_aside, also)


def _measure_functions(model: LanguageModel, settings: TaskSettings, seed: int, progress: Progress, name: str) -> TaskMeasure:
    assert settings.file is not None
    tasks, set_aside = read_code_tasks(settings.file)
    _tell(progress, settings, set_aside)
    tasks = tasks[: settings.limit]
    items: list[ItemScore] = []
    with progress.stage(f"{name}: {settings.title}", len(tasks), "functions") as bar:
        for block in _blocks(tasks):
            answers = _answers(model, [task for task in block for _ in range(settings.samples)], settings, seed)
            ok = passed([task for task in block for _ in range(settings.samples)], answers, chat=settings.chat)
            for place, task in enumerate(block):
                mine = slice(place * settings.samples, (place + 1) * settings.samples)
                score = pass_at_k(settings.samples, sum(ok[mine]), settings.k)
                said = answers[mine][0]
                items.append(ItemScore(task.id, score, "", task.request[:LONGEST_SAID], "", said[:LONGEST_SAID]))
            bar.advance(len(block))
    label = f"pass@{settings.k}"
    return _told(settings, f"{label}, share", items, set_aside, ((label, fmean(item.score for item in items)),))


def _answers(model: LanguageModel, tasks: Sequence[CodeTask], settings: TaskSettings, seed: int) -> list[str]:
    if settings.chat:
        drawn = model.generate(
            [task.messages for task in tasks], max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed
        )
        return [answer.text for answer in drawn]
    return model.complete(
        [task.prompt for task in tasks],
        stops=tasks[0].stops,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed,
    )


def _told(
    settings: TaskSettings, unit: str, items: Sequence[ItemScore], set_aside: Sequence[str], also: tuple[tuple[str, float], ...]
) -> TaskMeasure:
    return TaskMeasure(settings.title, settings.kind, unit, settings.margin, settings.gated, tuple(items), tuple(set_aside), also)


def _tell(progress: Progress, settings: TaskSettings, set_aside: Sequence[str]) -> None:
    if set_aside:
        rows = "1 row" if len(set_aside) == 1 else f"{len(set_aside):,} rows"
        progress.note(f"{settings.file}: {rows} set aside, the first: {set_aside[0]}")


def _blocks(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]
