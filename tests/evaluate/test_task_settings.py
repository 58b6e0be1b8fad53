from __future__ import annotations

from pathlib import Path

import pytest

from preftune.errors import ConfigError, DataError
from preftune.evaluate.task_settings import TaskSettings, check_names, parse_task
from preftune.project import PROJECT_FILE, read_project


def test_a_task_is_read_from_the_command_line() -> None:
    task = parse_task("choices=data/rules.jsonl,margin=0.05,metric=acc_norm,name=rules")
    assert (task.kind, task.file, task.margin, task.metric, task.title) == ("choices", Path("data/rules.jsonl"), 0.05, "acc_norm", "rules")
    assert parse_task("functions=HumanEval.jsonl.gz").title == "HumanEval"
    assert parse_task("lm-eval=arc_easy,few_shot=5").few_shot == 5
    assert parse_task("lm-eval=tasks/ours.yaml").title == "ours"
    assert parse_task("facts=2000").limit == 2000


def test_a_task_is_read_from_the_project_file(tmp_path: Path) -> None:
    (tmp_path / PROJECT_FILE).write_text(
        "retention:\n  - {kind: choices, file: rules.jsonl, gated: false}\n  - {kind: facts, limit: 2000}\n"
    )
    rules, facts = read_project(tmp_path).retention
    assert (rules.title, rules.gated, rules.margin) == ("rules", False, 0.03)
    assert (facts.title, facts.limit) == ("facts", 2000)
    (tmp_path / PROJECT_FILE).write_text("retention:\n")
    assert read_project(tmp_path).retention == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rules.jsonl", '"rules.jsonl" is no retention task. Use one of: facts=LIMIT, choices=FILE, functions=FILE, lm-eval=TASK'),
        ("quiz=rules.jsonl", '"quiz=rules.jsonl" is no retention task'),
        ("choices=a.jsonl,margn=0.1", 'key "margn" is unknown. Did you mean "margin"?'),
        ("choices=a.jsonl,margin=0", 'key "margin" is 0'),
        ("choices=a.jsonl,metric=f1", "choices are scored by acc or acc_norm"),
        ("functions=a.jsonl,k=10", "pass@10 needs 10 samples, and there are 1"),
        ("functions=a.jsonl,samples=5", "samples at temperature 0 are all alike"),
        ("choices=a.jsonl,chat=true", "chat is no key of a task of kind choices; it has file, gated, kind, limit, margin, metric, name"),
        ("facts=2000,gated=false", "gated is no key of a task of kind facts"),
        ("choices=facts.jsonl", 'the name "facts" is that of a built-in task; set name'),
    ],
)
def test_what_is_wrong_is_said(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_task(text)
    assert sentence in str(error.value)


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match='two tasks are called "a"'):
        check_names([parse_task("choices=a.jsonl"), parse_task("functions=a.jsonl")])


def test_a_task_is_named_by_its_file_and_its_margin(tmp_path: Path) -> None:
    path = tmp_path / "rules.jsonl"
    path.write_text("one")
    first = TaskSettings(kind="choices", file=path).to_manifest()
    path.write_text("two")
    assert first["margin"] == 0.03
    assert TaskSettings(kind="choices", file=path).to_manifest()["sha256"] != first["sha256"]
    path.unlink()
    with pytest.raises(DataError, match="there is no such file. It is named by the retention task rules"):
        TaskSettings(kind="choices", file=path).to_manifest()
