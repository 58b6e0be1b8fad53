"""Tasks of lm-eval on a tiny model: our measure is what lm-eval says of the same folder."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import ConfigError, DataError
from preftune.evaluate.choices import read_choices, score_choices
from preftune.evaluate.lm_eval_tasks import read_result
from preftune.evaluate.own_tasks import measure_task
from preftune.evaluate.subject import Subject
from preftune.evaluate.task_settings import parse_task
from preftune.progress import Silent

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'preftune[eval]'")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's and datasets' own
ROWS = [
    {"question": f"What is {a} and {b}?", "choices": [f"{a + b}", f"{a + b + 1} perhaps", "It is four."], "answer": (a * b) % 3}
    for a in range(3)
    for b in range(4)
]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    told = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }
    (tmp_path / "sums.yaml").write_text(json.dumps(told))  # JSON is YAML
    return tmp_path / "sums.yaml"


@pytest.fixture
def subject(tiny_model_folder: Path) -> Subject:
    return Subject(tiny_model_folder)


def measured(subject: Subject, text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure_task(subject, parse_task(text), seed=0, progress=Silent(), name="t")


@needs_lm_eval
@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_an_lm_eval_task_runs_on_local_data_and_agrees_with_our_own_choices(
    subject: Subject, task_file: Path, metric: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    theirs = measured(subject, f"lm-eval={task_file},chat=true,metric={metric}")
    questions, _ = read_choices(tmp_path / "sums.jsonl")
    ours = [item.score for item, _ in score_choices(subject, questions, metric)]
    assert [item.score for item in theirs.items] == ours
    assert 0 < sum(ours) < len(ours)  # neither none nor all, or the comparison would show little
    assert (theirs.name, theirs.unit, theirs.margin) == ("sums", f"share by {metric}", 0.03)
    assert theirs.also == ((f"sums {metric},none", pytest.approx(sum(ours) / len(ours))),)
    assert "What is 0 and 0?" in theirs.items[0].asked


@needs_lm_eval
def test_what_lm_eval_lacks_is_a_sentence(subject: Subject, task_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        measured(subject, f"lm-eval={tmp_path}/none.yaml")
    with pytest.raises(ConfigError, match=r'the metric "f1" does not score single items .* acc, acc_norm'):
        measured(subject, f"lm-eval={task_file},metric=f1,limit=4")
    (tmp_path / "sums.jsonl").unlink()
    with pytest.raises(DataError, match="lm-eval could not run the task .* Nothing is fetched from a hub"):
        measured(subject, f"lm-eval={task_file}")


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_error_says_how_to_get_it(subject: Subject, task_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"lm-eval cannot be loaded .* pip install 'preftune\[eval\]'"):
        measured(subject, f"lm-eval={task_file}")


def sample(doc: int, **scores: object) -> dict[str, object]:
    return {"doc_id": doc, "arguments": [["asked", " said"]], "target": "yes", "filtered_resps": ["x"], "filter": "none"} | scores


def test_a_result_of_lm_eval_becomes_items() -> None:
    result = {
        "results": {"a": {"exact_match,strict": 0.5}, "b": {"exact_match,strict": 1.0}},
        "samples": {
            "a": [sample(0, exact_match=1.0, filter="strict"), sample(1, exact_match=0.0, filter="strict"), sample(0, exact_match=1.0)],
            "b": [sample(0, exact_match=1.0, filter="strict")],
        },
        "higher_is_better": {"a": {"exact_match": True}},
    }
    told = read_result(result, parse_task("lm-eval=group,metric=exact_match:strict"))
    assert [(item.id, item.score, item.right) for item in told.items] == [("a/0", 1.0, "yes"), ("a/1", 0.0, "yes"), ("b/0", 1.0, "yes")]
    assert told.also == (("a exact_match,strict", 0.5), ("b exact_match,strict", 1.0))


def test_a_metric_where_lower_is_better_is_turned_round() -> None:
    result = {
        "results": {"a": {"wer,none": 0.3}},
        "samples": {"a": [sample(0, wer=0.1), sample(1, wer=0.5)]},
        "higher_is_better": {"a": {"wer": False}},
    }
    assert [item.score for item in read_result(result, parse_task("lm-eval=a,metric=wer")).items] == [0.9, 0.5]


def test_a_metric_that_is_no_share_is_refused() -> None:
    result = {"results": {"a": {}}, "samples": {"a": [sample(0, byte_perplexity=[-3.0, 4]), sample(1, byte_perplexity=[-3.0, 4])]}}
    with pytest.raises(ConfigError, match='the metric "byte_perplexity" does not score single items'):
        read_result(result, parse_task("lm-eval=a,metric=byte_perplexity"))
