"""Reports of runs, evaluations, comparisons and whole projects, and two beside each other, from folders that are written here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from tests.evaluate.test_report import Page, check_structure, evaluation, rows, run
from tests.web_site import chromium

from preftune.data.store import Store
from preftune.errors import PreftuneError
from preftune.evaluate.projects import project_story
from preftune.evaluate.report import RunView
from preftune.records import Candidate, Judgement, Message, Prompt
from preftune.release.report import _words, report, story_at

ROOMS = {"evaluation": "reports", "comparison": "reports", "release": "releases", "snapshot": "snapshots"}


def folder(project: Path, manifest: dict[str, Any], **files: Any) -> Path:
    """Write a folder of ours: its manifest, JSON files (name_json) and JSON-lines files (name_jsonl)."""
    path = project / ROOMS.get(manifest["kind"], "runs") / manifest["id"]
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        text = "\n".join(map(json.dumps, content)) if ending == "jsonl" else json.dumps(content)
        (path / f"{stem}.{ending}").write_text(text, encoding="utf-8")
    return path


def trained(project: Path, view: RunView, **changes: Any) -> Path:
    return folder(
        project, view.manifest | {"started": view.manifest["id"]} | changes, metrics_jsonl=view.metrics, samples_jsonl=view.samples
    )


def evaluated(project: Path, name: str, model: str, content: dict[str, Any], **config: Any) -> Path:
    made = {"model": model, "snapshot": "snap", "base": "base", "reward_model": "cd34cd34"}
    manifest = {"id": name, "kind": "evaluation", "inputs": made, "config": {"size": "small", "seed": 0} | config, "started": name}
    return folder(project, manifest, evaluation_json=content)


HELD_OUT = {
    "n": 40, "accuracy": 0.9, "accuracy_interval": [0.8, 0.96], "margins": [2.0] * 36 + [-0.5] * 4, "longer_wins": 0.55,
    "longer_wins_interval": [0.4, 0.7], "same_length": {"value": 0.7, "low": 0.5, "high": 0.85, "n": 12},
    "by_kind": {"loops": {"value": 0.95, "low": 0.8, "high": 0.99, "n": 20}},
    "by_raters": {"split": {"value": 0.6, "low": 0.3, "high": 0.9, "n": 9}},
    "human_agreement": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 60, "error": 0.1, "ceiling": 0.89}, "accuracy_of_heads": [0.9, 0.85],
    "calibration": {"temperature": 1.7, "ece_after": 0.04,
                    "bins_before": [], "bins_after": [{"confidence": 0.8, "accuracy": 0.9, "count": 40}]},
}  # fmt: skip
PROBES = {"probes": {"thanked": {"mean": 0.8, "low": 0.6, "high": 1.0, "n": 40}}, "findings": ["pays 0.8 sd for saying thanks: +0.80 sd"]}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project: SFT, two DPO runs of it, a reward model, RLOO; one DPO and RLOO evaluated; a run that was only begun."""
    trained(tmp_path, run("sft", "5f705f70"))
    trained(tmp_path, run("dpo", "d0d0d0d0", needs="5f705f70", rows=rows(loss__train=0.1, accuracy__train=0.1)))
    trained(tmp_path, run("dpo", "d1d1d1d1", needs="5f705f70", rows=rows(loss__train=0.2)), config={"seed": 0, "lr": 1e-4})
    trained(tmp_path, run("reward", "cd34cd34"), held_out=HELD_OUT, probes=PROBES)
    logged = rows(reward__score=0.1, kl__reference=0.5, entropy=0.1, **{"reward__part/style": 0.1, "reward__part/short": 0.2})
    told = ["Reward rises while answers grow: from 0 to 2 sd. It is learning length."]
    samples = [{"step": s, "prompt": "Write f.", "completion": f"tried {s}", "score": 1.0, "kl": 1.0} for s in (1, 2, 3)]
    rloo = RunView(run("rloo", "a100a100", needs="cd34cd34").manifest | {"warnings": told}, logged, samples)
    trained(tmp_path, rloo)
    evaluated(tmp_path, "e0", "base", evaluation("before", 0.3))
    evaluated(tmp_path, "e1", "d0d0d0d0", evaluation("dpo", 0.8))
    evaluated(tmp_path, "e2", "a100a100", evaluation("rloo", 0.6, verdict="lost"))
    evaluated(tmp_path, "e3", "5f705f70", evaluation("sft", 0.5), seed=1)  # of other requests, so it is not set beside these
    evaluated(tmp_path, "e4", "d0d0d0d0", evaluation("dpo", 0.8))
    (tmp_path / "runs" / ".begun.partial").mkdir()
    return tmp_path


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_project_is_told_from_the_data_to_the_gate(project):
    page = page_of(report(project))
    check_structure(page)
    assert (project / "report.html").exists()
    order = [
        page.html.index(f'<h2 id="{name}">') for name in ("verdict", "data", "reward", "curves", "answers", "retention", "gate", "sources")
    ]
    assert order == sorted(order)
    assert "DPO d0d0d0" in page.text
    assert "DPO d1d1d1" in page.text  # not evaluated, but trained
    assert "RLOO won 20.0 points less style than DPO d0d0d0 on the same 20 requests" in page.text.replace("\u00a0", " ")
    assert "Retention is lost" in page.text
    assert {"#from-run-rloo-a100a100-seconds", "#from-evaluation-dpo-d0d0d0d0-style"} <= set(page.values("href"))


def test_the_words_of_a_store_are_counted_by_its_database(tmp_path: Path) -> None:
    prompt = Prompt(messages=(Message(role="user", content="What?"),))
    answers = [Candidate(prompt_id=prompt.id, text=text) for text in ("a", "b")]
    first = Judgement(prompt_id=prompt.id, ranking=tuple((answer.id,) for answer in answers), rater="Ann")
    moment = datetime(2026, 3, 1, 23, 30, tzinfo=timezone(timedelta(hours=-2)))  # the second of March in UTC
    told = [(0, "import", "Ann"), (1, "random", "Ann"), (2, "random", "Bob"), (3, "gold", "Bob")]
    said = [first.model_copy(update={"strength": n, "picked_by": by, "rater": who, "created": moment}) for n, by, who in told]
    with Store.create(tmp_path / "s.db") as store:
        assert _words(store) == (0, None, [])
        store.add([prompt], answers, said)
        asked: list[str] = []
        event.listen(store._engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
        assert _words(store) == (2, moment, [("random", 2), ("import", 1), ("gold", 1)])
        assert _words(store)[1].strftime("%Y-%m-%d") == "2026-03-02"
    assert len(asked) == 6
    assert all("count(" in one or "max(" in one for one in asked)  # no judgement itself is read


def test_only_what_measured_the_same_is_set_beside_each_other(project):
    story = project_story(project)
    assert story.methods == ["dpo-d0d0d0d0", "rloo-a100a100"]
    assert list(story.runs) == ["sft-5f705f70", "reward-cd34cd34", "dpo-d0d0d0d0", "dpo-d1d1d1d1", "rloo-a100a100"]


def test_a_reward_run_is_read_beside_length_people_and_heads(project):
    page = page_of(report(project / "runs" / "cd34cd34"))
    check_structure(page)
    said = page.text.replace("\u00a0", " ")
    for words in (
        "prefers the chosen answer in 90.0 % (95 % CI 80.0–96.0, n = 40)", "about as long, it is right in 70.0 %",
        "Two raters agree in 80.0 %",
        "would agree with one of them in 89.0 %", "best temperature is 1.70, so it is surer than it is right",
        "2 heads, right in 90.0 %, 85.0 %",
        "loops", "split", "thanked", "a perfect model, by raters", "with its temperature",
    ):  # fmt: skip
        assert words in said, words
    assert "Warning: The reward model pays 0.8 sd for saying thanks" in said


def test_an_rl_run_shows_its_rewards_apart_its_warnings_and_its_samples(project):
    path = report(project / "runs" / "a100a100")
    assert path == project / "runs" / "a100a100.html"  # the folder itself is written once
    page = page_of(path)
    check_structure(page)
    for words in (
        "Parts of the reward",
        "short",
        "Entropy",
        "Warning: RLOO: reward rises while answers grow",
        "What RLOO wrote along the way",
        "tried 3",
    ):
        assert words in page.text, words
    assert "Retention" not in page.text  # nothing was evaluated, so there is no such section


def test_an_evaluation_is_told_with_its_base_and_what_led_to_it(project):
    story = story_at(project / "reports" / "e2")
    assert list(story.evaluations) == ["before", "rloo-a100a100"]
    assert set(story.runs) == {"reward-cd34cd34", "rloo-a100a100"}
    check_structure(page_of(report(project / "reports" / "e2")))


def test_two_runs_beside_each_other_show_what_differs_and_both_curves(project):
    page = page_of(report(project / "runs" / "d0d0d0d0", project / "runs" / "d1d1d1d1"))
    check_structure(page)
    cells = page.text
    assert "config.lr" in cells
    assert "config.seed" not in cells.partition("What differs")[2].partition("Curves over each other")[0]
    assert "A: training pairs" in page.text
    assert "B: training pairs" in page.text


def test_two_evaluations_beside_each_other_are_compared_request_by_request(project):
    page = page_of(report(project / "reports" / "e1", project / "reports" / "e2", out=project / "two.html"))
    check_structure(page)
    said = page.text.replace("\u00a0", " ")
    assert "−20.0 points (95 % CI −20.0 to −20.0, n = 20): they differ" in said
    assert "dashed line" in said


def test_a_comparison_says_who_won_and_shows_answers(tmp_path):
    estimate = {"value": 0.46, "low": 0.38, "high": 0.54, "n": 137}
    pairs = [{"a": "x/one.jsonl", "b": "x/two.jsonl", "prompts": 137, "rate": estimate, "said": "cannot tell"}]
    manifest = {"id": "c0c0", "kind": "comparison", "inputs": {}, "config": {}}
    answers = {"x/one.jsonl": "a red <b>fox</b>", "x/two.jsonl": "a blue <b>fox</b>"}
    row = {"id": "p1", "prompt": "Animal?", "answers": answers, "verdicts": [{"a": "x/one.jsonl", "b": "x/two.jsonl", "verdict": 1.0}]}
    page = page_of(report(folder(tmp_path, manifest, comparison_json={"pairs": pairs}, answers_jsonl=[row])))
    check_structure(page)
    said = page.text.replace("\u00a0", " ")
    told = "one.jsonl against two.jsonl: it wins 46.0 % (95 % CI 38.0–54.0) of 137 prompts, ties counted half: "
    assert f"{told}it cannot be told which is better." in said
    assert "A is preferred" in said
    assert "<del>red</del>" in page.html


def test_what_tells_no_story_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(PreftuneError, match="there is no such folder"):
        report(tmp_path / "nothing")
    with pytest.raises(PreftuneError, match="no run, evaluation or release of preftune here"):
        report(tmp_path)


@pytest.mark.browser
def test_a_column_sorts_in_a_browser_and_the_policy_lets_no_other_script_in(browser, project):
    page = browser.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.goto(report(project).as_uri())
    table = page.locator("table.sortable").first
    for expected in (["80.0", "60.0", "30.0"], ["30.0", "60.0", "80.0"]):
        table.get_by_role("button", name="Style", exact=True).click()
        cells = table.locator("tbody td:nth-child(2)").all_inner_texts()
        assert [cell.split("\u00a0")[0] for cell in cells] == expected
    assert trouble == []
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.got = 1'}))")
    assert page.evaluate("window.got") is None
    assert any("Content Security Policy" in told for told in trouble)
