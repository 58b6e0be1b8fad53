"""Retention: what did a tuned model lose? Three tasks, before and after, on the same items, with a verdict.

- facts: short questions about Python whose truth the interpreter gives (`facts.py`); is the right choice the likeliest?
- texts: bits per byte on neutral prose and on neutral code (`texts.py`).
- functions: small functions to complete, judged by running them (`functions.py`); reported with an interval, not gated.
- whatever the team adds: multiple choice, HumanEval and MBPP, tasks of lm-eval (`task_settings.py`, `own_tasks.py`).

Two measures are compared by `verdict.py`; the margins are set before anything is measured.

    before = measure(base, num_facts=1000, num_functions=60)
    after = measure(tuned, num_facts=1000, num_functions=60)
    compare(before, after).verdict
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import TypeVar

from preftune.evaluate.facts import Fact, facts
from preftune.evaluate.functions import FunctionTask, function_tasks, judge_functions
from preftune.evaluate.language_model import LanguageModel
from preftune.evaluate.own_tasks import measure_task
from preftune.evaluate.retention_scores import LONGEST_SAID, FactScore, FunctionScore, RetentionMeasure, TextScore
from preftune.evaluate.task_settings import TaskSettings
from preftune.evaluate.texts import Text, texts
from preftune.progress import Progress, Silent
from preftune.records import Message

Item = TypeVar("Item")
Score = TypeVar("Score")
BLOCK = 64  # items a call to the model, so that progress is seen
# A choice is worth log p(choice | question) − share × log p(choice | a question that says nothing): else short and common answers win
# whatever is asked, and a tuned model that came to like or avoid them would seem to have learned or forgotten facts.
# SmolLM2-135M-Instruct answered 39 % of 312 facts rightly with share 0, 47 % with 0.5 and 40 % with 1, where chance is 26 %.
PRIOR_QUESTION = "Say something about Python."
PRIOR_SHARE = 0.5
PRIOR_GROUP = 16  # choices that share one such prompt
FUNCTION_TOKENS = 160  # answers of SmolLM2-135M-Instruct to the built-in tasks took 44 to 141


def measure(
    model: LanguageModel,
    *,
    num_facts: int,
    num_functions: int,
    seed: int = 0,
    progress: Progress | None = None,
    max_texts: int | None = None,
    tasks: Sequence[TaskSettings] = (),
    name: str = "retention",
) -> RetentionMeasure:
    """Return what a model knows: num_facts facts, the texts (at most max_texts of each kind), num_functions functions, and the tasks
    that the team adds.

    A choice counts by how much likelier the question makes it (see PRIOR_SHARE). Answers to the functions are greedy, so that before
    and after differ by the weights alone. seed: which facts; the same before and after.
    """
    progress = progress or Silent()
    asked = facts(num_facts, seed)
    choices = list(dict.fromkeys(choice for fact in asked for choice in fact.choices))
    prior = dict(
        zip(
            choices,
            _in_blocks(lambda block: _score_priors(model, block), choices, f"{name}: choices", progress, size=4 * BLOCK),
            strict=True,
        )
    )
    passages = texts(max_texts)
    to_write = function_tasks()[:num_functions]
    return RetentionMeasure(
        facts=tuple(_in_blocks(lambda block: _score_facts(model, prior, block), asked, f"{name}: facts", progress)),
        texts=tuple(_in_blocks(lambda block: _score_texts(model, block), passages, f"{name}: texts", progress, size=BLOCK // 4)),
        functions=tuple(_in_blocks(lambda block: _try_functions(model, block, seed), to_write, f"{name}: functions", progress)),
        seed=seed,
        python=".".join(platform.python_version_tuple()[:2]),
        own=tuple(measure_task(model, task, seed=seed, progress=progress, name=name) for task in tasks),
    )


def _in_blocks(
    work: Callable[[list[Item]], list[Score]], items: list[Item], name: str, progress: Progress, *, size: int = BLOCK
) -> list[Score]:
    scores: list[Score] = []
    if items:
        with progress.stage(name, total=len(items), unit="items") as task:
            for start in range(0, len(items), size):
                block = items[start : start + size]
                scores += work(block)
                task.advance(len(block))
    return scores


def _score_priors(model: LanguageModel, block: Sequence[str]) -> list[float]:
    groups = [block[i : i + PRIOR_GROUP] for i in range(0, len(block), PRIOR_GROUP)]
    answered = model.score_completions([(Message(role="user", content=PRIOR_QUESTION),)] * len(groups), groups)
    return [logprob for scores in answered for logprob, _ in scores]


def _score_facts(model: LanguageModel, prior: dict[str, float], block: Sequence[Fact]) -> list[FactScore]:
    prompts = [(Message(role="user", content=fact.question),) for fact in block]
    answered = model.score_completions(prompts, [fact.choices for fact in block])
    scores = []
    for fact, choices in zip(block, answered, strict=True):
        worth = [logprob - PRIOR_SHARE * prior[text] for text, (logprob, _) in zip(fact.choices, choices, strict=True)]
        said = fact.choices[worth.index(max(worth))]
        right = worth.pop(fact.answer)
        margin = right - max(worth)
        answer = fact.choices[fact.answer]
        scores.append(FactScore(fact.id, fact.kind, f"{fact.kind}: {answer}", margin > 0, margin, fact.question, answer, said))
    return scores


def _score_texts(model: LanguageModel, block: Sequence[Text]) -> list[TextScore]:
    counted = model.bits([text.text for text in block])
    return [TextScore(text.id, text.kind, bits, size) for text, (bits, size) in zip(block, counted, strict=True)]


def _try_functions(model: LanguageModel, block: Sequence[FunctionTask], seed: int) -> list[FunctionScore]:
    answers = model.generate([task.messages for task in block], max_new_tokens=FUNCTION_TOKENS, temperature=0.0, seed=seed)
    passed = judge_functions(block, [answer.text for answer in answers])
    return [
        FunctionScore(task.id, ok, answer.finished, task.request[:LONGEST_SAID], answer.text[:LONGEST_SAID])
        for task, ok, answer in zip(block, passed, answers, strict=True)
    ]
