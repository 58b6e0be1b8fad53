"""Tasks of lm-eval (EleutherAI's harness) as retention tasks: in this process, on the model as it lies here, and without network.

Our loaded model goes in through lm-eval's own HFLM, so tokens, BOS, few-shot examples and scores are lm-eval's, and its numbers are
those that `lm-eval run --model hf` prints for the same folder. Needs the extra `preftune[eval]`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, DataError
from preftune.evaluate.language_model import LanguageModel
from preftune.evaluate.retention_scores import LONGEST_SAID, ItemScore, TaskMeasure
from preftune.evaluate.subject import Subject
from preftune.evaluate.task_settings import TaskSettings
from preftune.progress import Progress

BATCH_SIZE = 8
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure_lm_eval(model: LanguageModel, settings: TaskSettings, *, progress: Progress, name: str) -> TaskMeasure:
    """Return the score of each item of an lm-eval task.

    Raises ConfigError where lm-eval is not installed, the task is unknown, runs code, or the metric scores no single items; DataError
    where the task's data are not on this machine.
    """
    if not isinstance(model, Subject):
        raise ConfigError("lm-eval asks a model in this process", settings.title, "Give a model folder.")
    with progress.stage(f"{name}: {settings.title}", None, "items"), _offline():
        result = _run(model, settings)
    return read_result(result, settings)


def _run(model: Subject, settings: TaskSettings) -> dict[str, Any]:
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        fix = "Install it with pip install 'preftune[eval]'."
        raise ConfigError(f"lm-eval cannot be loaded ({error})", settings.title, fix) from error
    task = str(settings.task)
    own = task.endswith((".yaml", ".yml"))
    if own and not Path(task).is_file():
        raise DataError("there is no such file", task, f"It is named by the retention task {settings.title}.")
    # Listing all built-in tasks takes some 10 s.
    manager = TaskManager(include_defaults=not own)
    if not own and task not in manager.all_tasks:
        raise ConfigError(f'lm-eval has no task "{task}"', settings.title, "lm-eval ls tasks lists them; or give a YAML file.")
    tokenizer = model.renderer.tokenizer
    if settings.chat and not tokenizer.chat_template:
        raise ConfigError("the tokenizer has no chat template of its own", settings.title, "Leave chat out.")
    try:
        found = simple_evaluate(
            model=HFLM(pretrained=model.model, tokenizer=tokenizer, backend="causal", batch_size=BATCH_SIZE),
            tasks=[task],
            num_fewshot=settings.few_shot,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    except (ConfigError, DataError):
        raise
    except Exception as error:  # whatever a task's own code, its data set or its metric raises
        raise DataError(
            f"lm-eval could not run the task ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            settings.title,
            "Nothing is fetched from a hub: its data must lie here, in the cache of the datasets library or named by data_files.",
        ) from error
    return dict(found or {})


def read_result(result: dict[str, Any], settings: TaskSettings) -> TaskMeasure:
    """Return the items of what lm-eval's `simple_evaluate` gave. Raises ConfigError where the metric scores no single items."""
    metric, _, wanted = settings.metric.partition(":")
    items, values = [], []
    for task, samples in result.get("samples", {}).items():
        filters = list(dict.fromkeys(sample.get("filter", "none") for sample in samples))
        name = wanted or (filters[0] if filters else "none")
        higher = (result.get("higher_is_better", {}).get(task) or {}).get(metric, True)
        for sample in (s for s in samples if s.get("filter", "none") == name):
            if isinstance(sample.get(metric), bool | int | float):
                score = float(sample[metric])
                items.append(_item(task, sample, score if higher is not False else 1 - score))
        values.append((f"{task} {metric},{name}", result["results"][task].get(f"{metric},{name}")))
    scores = [item.score for item in items]
    if len(items) < 2 or not all(0 <= score <= 1 for score in scores):
        known = sorted({k for samples in result.get("samples", {}).values() for s in samples[:1] for k in s.get("metrics", ())})
        raise ConfigError(
            f'the metric "{metric}" does not score single items from 0 to 1 (the task has: {", ".join(known) or "none"})',
            settings.title,
            "Set metric to one that does, such as acc, acc_norm or exact_match.",
        )
    unit = f"share by {settings.metric}"
    also = tuple((name, float(value)) for name, value in values if isinstance(value, int | float))
    return TaskMeasure(settings.title, settings.kind, unit, settings.margin, settings.gated, tuple(items), (), also)


def _item(task: str, sample: dict[str, Any], score: float) -> ItemScore:
    arguments = sample.get("arguments") or {}
    first = next(iter(arguments.values()), "") if isinstance(arguments, dict) else arguments[0] if arguments else ""
    asked = next(iter(first.values()), "") if isinstance(first, dict) else first[0] if isinstance(first, list | tuple) and first else first
    said = json.dumps(sample.get("filtered_resps"), ensure_ascii=False, default=str)
    return ItemScore(
        f"{task}/{sample['doc_id']}",
        score,
        "",
        str(asked)[-LONGEST_SAID:],
        str(sample.get("target", ""))[:LONGEST_SAID],
        said[:LONGEST_SAID],
    )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep lm-eval and what it loads from any hub, and from printing."""
    before = {key: os.environ.get(key) for key in OFFLINE}
    os.environ.update(OFFLINE)
    # Read by these libraries once, when they are loaded, so what is loaded already is told too.
    flags = [
        (sys.modules[module], "HF_HUB_OFFLINE") for module in ("huggingface_hub.constants", "datasets.config") if module in sys.modules
    ]
    were = [getattr(module, flag) for module, flag in flags]
    for module, flag in flags:
        setattr(module, flag, True)
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for (module, flag), was in zip(flags, were, strict=True):
            setattr(module, flag, was)
        logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
