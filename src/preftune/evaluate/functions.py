"""Small functions to complete, judged by running them: does the tuned model still write Python that works?

The built-in tasks were written for this project in the form of HumanEval (a signature with a docstring, and a test that defines
`check(candidate)`), but far easier, so that a small model solves some. Files in HumanEval's own form can be given instead.
"""

from __future__ import annotations

import ast
import gzip
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from preftune.code.sandbox import run_checks
from preftune.code.style import extract_code
from preftune.errors import DataError
from preftune.evaluate.json_lines import numbered_lines
from preftune.records import Message

REQUEST = "Complete this Python function:\n```python\n{}\n```"


@dataclass(frozen=True)
class FunctionTask:
    """A function to complete: what is asked in the chat, the code it begins with, and a test that defines `check(candidate)`."""

    id: str
    request: str
    entry_point: str
    prompt: str
    test: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """The chat prompt."""
        return (Message(role="user", content=self.request),)

    def program(self, answer: str) -> str | None:
        """Return the code to run for an answer, or None where there is none in it.

        The answer holds the whole function (what its signature needs is taken from the prompt), or its body alone.
        """
        code = extract_code(answer)
        if code is not None and _defines(code, self.entry_point):
            return f"{self.prompt[: self._start]}\n{code}"
        bodies = [answer] if code is None else [textwrap.indent(code, "    "), answer]
        return next((whole for body in bodies if body.strip() and _parses(whole := self.prompt + body)), None)

    @property
    def _start(self) -> int:
        return self.prompt.rfind(f"def {self.entry_point}(")


def function_tasks(path: Path | None = None) -> list[FunctionTask]:
    """Return the built-in tasks, or those of a file in HumanEval's form (.jsonl or .jsonl.gz).

    Raises DataError, with the line, where the file is not in that form.
    """
    if path is None:
        source = (files("preftune.evaluate") / "passages" / "functions.jsonl").read_text(encoding="utf-8")
        return _read_tasks(source, "the built-in functions.jsonl")
    try:
        raw = path.read_bytes()
        source = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"the tasks cannot be read ({error})", str(path), "Give a .jsonl or .jsonl.gz file in HumanEval's form.") from error
    return _read_tasks(source, str(path))


def judge_functions(tasks: Sequence[FunctionTask], answers: Sequence[str]) -> list[bool]:
    """Return for each task whether the code in its answer passes the task's test, run within the sandbox's limits."""
    programs = [task.program(answer) for task, answer in zip(tasks, answers, strict=True)]
    runnable = [(i, program) for i, program in enumerate(programs) if program is not None]
    results = run_checks([(program, f"{tasks[i].test}\n\ncheck({tasks[i].entry_point})") for i, program in runnable])
    passed = {i for (i, _), result in zip(runnable, results, strict=True) if result.ok}
    return [i in passed for i in range(len(tasks))]


def _read_tasks(source: str, where: str) -> list[FunctionTask]:
    tasks: dict[str, FunctionTask] = {}
    for number, line in numbered_lines(source):
        try:
            row = json.loads(line)
            identity, entry_point, prompt, test = (str(row[key]) for key in ("task_id", "entry_point", "prompt", "test"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            fix = "Each line needs task_id, entry_point, prompt and test, as in HumanEval."
            raise DataError(f"this is no task ({error!r})", f"{where} line {number}", fix) from error
        if identity in tasks:
            raise DataError(f'task_id "{identity}" is there twice', f"{where} line {number}", "Give each task its own.")
        if f"def {entry_point}(" not in prompt:
            raise DataError(
                f'the prompt does not begin the function "{entry_point}"', f"{where} line {number}", "Mend prompt or entry_point."
            )
        tasks[identity] = FunctionTask(identity, REQUEST.format(prompt.strip("\n")), entry_point, prompt, test)
    if not tasks:
        raise DataError("there is no task in it", where, "Give a file in HumanEval's form, one task a line.")
    return list(tasks.values())


def _defines(code: str, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name for node in ast.parse(code).body)


def _parses(code: str) -> bool:
    try:
        compile(code, "answer", "exec", ast.PyCF_ONLY_AST)
    except (SyntaxError, ValueError):
        return False
    return True
