from __future__ import annotations

import gzip
import itertools
import json
import os
from pathlib import Path

import pytest

from preftune.errors import DataError
from preftune.evaluate.code_tasks import CodeTask, pass_at_k, passed, read_code_tasks

HUMAN_EVAL = {
    "task_id": "T/0",
    "entry_point": "twice",
    "prompt": "def twice(x):\n    '''Return x doubled.'''\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
MBPP = {"task_id": 11, "text": "Write twice.", "code": "def twice(x):\r\n    return 2 * x", "test_list": ["assert twice(2) == 4"]}


def written(folder: Path, *rows: object) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def read(folder: Path, row: dict[str, object]) -> CodeTask:
    return read_code_tasks(written(folder, row, {**row, "task_id": 99}))[0][0]


def test_human_eval_is_gone_on_with_and_run(tmp_path: Path) -> None:
    task = read(tmp_path, HUMAN_EVAL)
    assert task.prompt == HUMAN_EVAL["prompt"]
    assert passed([task] * 3, ["    return 2 * x\n", "    return x\n", "no code"], chat=False) == [True, False, False]
    assert passed([task], ["```python\ndef twice(x):\n    return x + x\n```"], chat=True) == [True]


def test_mbpp_stands_in_its_frame_with_the_papers_examples_before_it(tmp_path: Path) -> None:
    examples = [{**MBPP, "task_id": i, "text": f"Example {i}.", "code": f"code_{i}"} for i in (4, 2, 3, 5)]
    tasks, set_aside = read_code_tasks(written(tmp_path, *examples, MBPP, {**MBPP, "task_id": 12}))
    assert ([task.id for task in tasks], set_aside) == (["11", "12"], [])
    one = "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n"
    one += "assert twice(2) == 4\n[BEGIN]\n"
    shown = "".join(f"{one.format(f'Example {i}.')}code_{i}\n[DONE]\n\n" for i in (2, 3, 4))
    assert tasks[0].prompt == shown + one.format("Write twice.")
    answers = [MBPP["code"] + "\n", "def twice(x):\n    return x\n", "```python\ndef twice(x): return 2 * x\n```"]
    assert passed([tasks[0]] * 2, answers[:2], chat=False) == [True, False]
    assert passed([tasks[0]] * 2, [answers[2], "I cannot."], chat=True) == [True, False]


def test_every_solution_of_the_real_files_passes(shared_data) -> None:
    for name, key, rows in (("HumanEval.jsonl.gz", "canonical_solution", 164), ("eval/mbpp_test_11_310.jsonl", "code", 300)):
        path = shared_data(name)
        tasks, set_aside = read_code_tasks(path)
        assert (len(tasks), set_aside) == (rows, [])
        some = tasks[:40]
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        answers = [json.loads(line)[key] for line in raw.decode().split("\n")[: len(some)]]
        assert passed(some, answers, chat=False) == [True] * len(some)


BAD = [
    "import os\n    for _ in range(100):\n        os.fork()",
    "import subprocess\n    subprocess.run(['true'])",
    "x = bytearray(10 ** 10)",
    "import socket\n    socket.create_connection(('127.0.0.1', 9))",
    "import urllib.request\n    urllib.request.urlopen('http://127.0.0.1:9')",
    "open('/tmp/preftune_was_here', 'w')",
    "open('big', 'wb').write(bytes(10 ** 8))",
    "import os\n    os._exit(0)",
    "raise SystemExit(0)",
    "import os, signal\n    os.kill(os.getppid(), signal.SIGKILL)",
    "import os\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "import socket\n    try:\n        socket.create_connection(('127.0.0.1', 9))\n    except OSError:\n        pass",
    "try:\n        open('/tmp/preftune_was_here', 'w')\n    except OSError:\n        pass",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limits are those of systems that fork")
def test_code_that_forks_eats_memory_reaches_out_or_leaves_counts_as_failed_and_harms_no_other(tmp_path: Path) -> None:
    task = read(tmp_path, HUMAN_EVAL)
    answers = [f"    {bad}\n    return 2 * x\n" for bad in BAD]
    good = "    return 2 * x\n"
    assert passed([task] * (len(BAD) + 2), [good, *answers, good], chat=False) == [True, *[False] * len(BAD), True]
    assert not Path("/tmp/preftune_was_here").exists()


def test_code_without_end_counts_as_failed(tmp_path: Path) -> None:
    assert passed([read(tmp_path, HUMAN_EVAL)], ["    while True: pass\n"], chat=False) == [False]


def test_bad_rows_are_set_aside_and_the_good_ones_kept(tmp_path: Path) -> None:
    rows = [HUMAN_EVAL, {**HUMAN_EVAL, "task_id": "T/1"}, HUMAN_EVAL, "{", {"task_id": 5}, {**HUMAN_EVAL, "task_id": 6, "entry_point": "f"}]
    tasks, set_aside = read_code_tasks(written(tmp_path, *rows, {**MBPP, "task_id": 7, "test_list": []}, {"text": "q"}))
    assert [task.id for task in tasks] == ["T/0", "T/1"]
    assert [line.split(":")[0] for line in set_aside] == [f"line {n}" for n in range(3, 9)]
    assert set_aside[0] == "line 3: its task_id T/0 is that of line 1"
    assert 'does not begin the function "f"' in set_aside[3]
    with pytest.raises(DataError, match="it has 0 rows that can be used, and two are the least"):
        read_code_tasks(written(tmp_path, "{"))


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 0, 1), (5, 2, 1), (5, 2, 3), (6, 5, 2), (4, 4, 4), (3, 1, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_passing_answer(n: int, correct: int, k: int) -> None:
    subsets = list(itertools.combinations([i < correct for i in range(n)], k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
