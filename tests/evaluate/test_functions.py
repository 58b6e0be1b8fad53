from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path

import pytest

from preftune.errors import DataError
from preftune.evaluate.functions import FunctionTask, function_tasks, judge_functions

ROW = {
    "task_id": "T/0",
    "entry_point": "twice",
    "prompt": "import math\n\n\ndef helper(x):\n    return x + x\n\n\ndef twice(x):\n    '''Return x doubled.'''\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(math.inf) == math.inf\n",
}


@pytest.fixture
def twice(tmp_path: Path) -> FunctionTask:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(ROW))
    return function_tasks(path)[0]


def solutions() -> list[str]:
    lines = (files("preftune.evaluate") / "passages" / "functions.jsonl").read_text().splitlines()
    return [json.loads(line)["canonical_solution"] for line in lines]


def test_every_solution_passes_its_test() -> None:
    tasks = function_tasks()
    assert len(tasks) >= 60
    answers = [f"Here it is:\n```python\n{task.prompt}{body}```\nIt works." for task, body in zip(tasks, solutions(), strict=True)]
    assert judge_functions(tasks, answers) == [True] * len(tasks)


def test_no_test_is_passed_by_a_function_that_returns_a_constant() -> None:
    tasks = function_tasks()
    for body in ("    return None\n", "    return True\n"):
        assert not any(judge_functions(tasks, [f"```python\n{task.prompt}{body}```" for task in tasks]))


def test_every_test_has_three_asserts_and_the_request_holds_the_signature() -> None:
    for task in function_tasks():
        assert task.test.count("assert candidate(") >= 3, task.id
        assert f"def {task.entry_point}(" in task.request
        assert task.messages[-1].role == "user"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("Sure!\n```python\ndef twice(x):\n    return 2 * x\n```", True),
        ("    return helper(x)\n", True),
        ("```python\nreturn helper(x)\n```", True),
        ("```python\ndef twice(x):\n    return helper(x)\n```", True),
        ("```python\ndef twice(x):\n    return x\n```", False),
        ("```python\ndef double(x):\n    return 2 * x\n```", False),
        ("I would multiply it by two.", False),
        ("", False),
    ],
)
def test_an_answer_is_judged_by_what_its_code_does(twice: FunctionTask, answer: str, passes: bool) -> None:
    assert judge_functions([twice], [answer]) == [passes]


def test_a_packed_file_reads_like_a_plain_one(tmp_path: Path, twice: FunctionTask) -> None:
    path = tmp_path / "tasks.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW) + "\n\n").encode()))
    assert function_tasks(path) == [twice]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "there is no task in it"),
        (json.dumps(ROW) + "\n{", r"tasks.jsonl line 2: this is no task"),
        (json.dumps({"task_id": "a"}), r"line 1: this is no task \(KeyError\('entry_point'\)\)"),
        ("[1]", "line 1: this is no task"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), 'line 2: task_id "T/0" is there twice'),
        (json.dumps({**ROW, "entry_point": "thrice"}), 'the prompt does not begin the function "thrice"'),
    ],
)
def test_a_broken_file_is_refused_with_the_line(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        function_tasks(path)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the tasks cannot be read"):
        function_tasks(tmp_path / "none.jsonl")
    damaged = tmp_path / "bad.jsonl.gz"
    damaged.write_bytes(b"not packed")
    with pytest.raises(DataError, match="the tasks cannot be read"):
        function_tasks(damaged)
