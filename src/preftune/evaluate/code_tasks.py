"""HumanEval and MBPP from their own files: code that a model writes, run against tests in the sandbox.

As plain text (the default, and what published numbers are): HumanEval's prompt is gone on with up to the first line that begins
something new, MBPP's stands in the frame of its paper and ends at [DONE]. In the chat: the same task as a user would ask it.
Settings as in openai/human-eval (its README and `execution.py`), Austin et al. 2021, and lm-eval's `humaneval` and `mbpp`.
Differs: code runs without installed packages, within the limits of `code/sandbox.py` (5 s, 512 MiB), where the reference has 3 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from preftune.code.sandbox import run_checks
from preftune.code.style import extract_code
from preftune.evaluate.functions import REQUEST, FunctionTask
from preftune.evaluate.task_files import BadRow, read_items, text_of
from preftune.records import Message

HUMAN_EVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MBPP_STOPS = ("[DONE]",)
MBPP_FRAME = "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n{}\n[BEGIN]\n"
MBPP_REQUEST = "Write Python code for this task:\n{}\n\nIt should pass these tests:\n```python\n{}\n```"
EXAMPLE_IDS = (2, 3, 4)  # of MBPP's first ten, which are for prompts: the paper's three
LAST_EXAMPLE = 10


@dataclass(frozen=True)
class CodeTask:
    """A task whose answer is run. prompt: the plain text to go on with; begun: the part of it that belongs to the code.

    check: what must run to its end after the code. function: how an answer in the chat is read, for HumanEval.
    """

    id: str
    prompt: str
    request: str
    begun: str
    check: str
    stops: tuple[str, ...]
    function: FunctionTask | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The task as a user asks it."""
        return (Message(role="user", content=self.request),)

    def program(self, answer: str, *, chat: bool) -> str | None:
        """Return the code to run for an answer, or None where there is none in it."""
        if not chat:
            return self.begun + answer
        return self.function.program(answer) if self.function else extract_code(answer)


def read_code_tasks(path: Path) -> tuple[list[CodeTask], list[str]]:
    """Return the tasks of a file in HumanEval's or MBPP's form, and the rows set aside, each with line and reason.

    MBPP's tasks 1 to 10 are for prompts and are not asked: 2, 3 and 4 stand before each task where the file holds them.
    Raises DataError as `read_items` does.
    """
    seen: dict[str, int] = {}
    examples: dict[int, str] = {}

    def read(row: dict[str, Any], line: int) -> CodeTask | None:
        identity = str(row.get("task_id", ""))
        if not identity:
            raise BadRow("it has no task_id")
        if (before := seen.setdefault(identity, line)) != line:
            raise BadRow(f"its task_id {identity} is that of line {before}")
        if "entry_point" in row:
            return _human_eval(identity, row)
        task = _mbpp(identity, row)
        if identity.isdigit() and int(identity) <= LAST_EXAMPLE:
            if int(identity) in EXAMPLE_IDS:
                examples[int(identity)] = f"{task.prompt}{text_of(row, 'code')}\n[DONE]\n\n"
            return None
        return task

    tasks, set_aside = read_items(path, read)
    shown = "".join(examples[i] for i in EXAMPLE_IDS if i in examples)
    return [task if task.function else replace(task, prompt=shown + task.prompt) for task in tasks], set_aside


def _human_eval(identity: str, row: dict[str, Any]) -> CodeTask:
    name, prompt, test = (text_of(row, key) for key in ("entry_point", "prompt", "test"))
    if f"def {name}(" not in prompt:
        raise BadRow(f'its prompt does not begin the function "{name}"')
    function = FunctionTask(identity, REQUEST.format(prompt.strip("\n")), name, prompt, test)
    return CodeTask(identity, prompt, function.request, prompt, f"{test}\n\ncheck({name})", HUMAN_EVAL_STOPS, function)


def _mbpp(identity: str, row: dict[str, Any]) -> CodeTask:
    told = text_of(row, "text", "prompt")
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise BadRow('it has neither entry_point (HumanEval) nor a "test_list" of texts (MBPP)')
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    shown = "\n".join(tests)
    return CodeTask(identity, MBPP_FRAME.format(told, shown), MBPP_REQUEST.format(told, shown), "", f"{setup}\n{shown}", MBPP_STOPS)


def passed(tasks: Sequence[CodeTask], answers: Sequence[str], *, chat: bool) -> list[bool]:
    """Return for each task whether the code of its answer passes its test.

    Code that tries to fork, to reach the network or to write elsewhere has failed, even if it catches the refusal and answers rightly.
    """
    programs = [task.program(answer, chat=chat) for task, answer in zip(tasks, answers, strict=True)]
    results = run_checks([(program or "raise SystemExit('no code')", task.check) for task, program in zip(tasks, programs, strict=True)])
    return [result.ok and not result.refused and program is not None for result, program in zip(results, programs, strict=True)]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k answers passes, from n answers of which `correct` passed.

    Source: Chen et al. 2021, eq. 1: 1 − C(n − c, k) / C(n, k), as a product so that large n do no harm. Differs: none.
    """
    return 1.0 - prod(1.0 - k / i for i in range(n - correct + 1, n + 1)) if n - correct >= k else 1.0
