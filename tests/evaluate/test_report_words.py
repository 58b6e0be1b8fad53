"""What a report says must be so: of two stages beside each other, of a project without reinforcement learning, of a short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preftune.evaluate.beside import contents
from preftune.evaluate.findings import healthy
from preftune.evaluate.report import write_report
from preftune.evaluate.sources import Sources
from preftune.evaluate.story import RunView, Story
from preftune.evaluate.tables import data_facts

SFT = {"step": 1, "loss/train": 2.0, "length/completion": 9.0}
DPO = {"step": 1, "loss/train": 0.69, "accuracy/train": 0.5}
ESTIMATE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}


def story(kind: str, rows: list[dict[str, float]], evaluations: dict | None = None) -> Story:
    manifest = {"id": kind, "kind": kind, "warnings": [], "inputs": {}, "config": {}, "hardware": {"cpus": 2, "memory_gib": 23.5}}
    return Story(
        title=kind,
        folder=Path(),
        summary={"folders": {}},
        evaluations=evaluations or {},
        runs={kind: RunView(manifest, rows, [])},
        reports={},
        labels={"before": "Base model", kind: kind.upper()},
        run_labels={kind: kind.upper()},
        snapshot={"counts": {"train": {"pairs": 2, "kwise": 1}}},
        summarised=False,
    )


def test_losses_in_other_units_are_not_drawn_over_each_other_and_a_panel_of_one_run_says_whose_it_is():
    drawn = contents(story("dpo", [DPO] * 3), story("sft", [SFT] * 3))["panels"]
    assert [panel.title for panel in drawn] == ["Loss of A", "Pairs told apart of A", "Loss of B", "Length of B"]
    both = contents(story("dpo", [DPO] * 3), story("dpo", [DPO] * 3))["panels"]
    assert [panel.title for panel in both] == ["Loss", "Pairs told apart"]


def test_the_win_rate_leans_to_nobody_where_nobody_was_trained_on_a_reward_model(tmp_path):
    evaluations = {name: {"win_rate": ESTIMATE, "style": ESTIMATE} for name in ("before", "dpo")}
    page = write_report(story("dpo", [DPO], evaluations), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "leans towards" not in page
    evaluations = {"before": evaluations["before"], "rloo": evaluations["dpo"]}
    page = write_report(story("rloo", [DPO], evaluations), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "RLOO was trained to please a reward model, so the win rate leans towards RLOO." in page


def test_what_a_run_was_too_short_to_look_for_is_not_said_to_be_looked_for():
    assert "both falling" not in healthy(story("dpo", [DPO] * 9))
    assert "both falling" in healthy(story("dpo", [DPO] * 10))


def test_facts_are_in_words():
    made = story("dpo", [DPO])
    told = {fact.name: str(fact.value) for fact in data_facts(made, Sources(made))}
    assert "1 order of three and more" in told["Learned from"]
    assert "memory 23.5 GiB" in told["Hardware"]


def test_columns_that_nothing_was_measured_for_are_left_out(tmp_path):
    evaluations = {name: {"win_rate": ESTIMATE} for name in ("before", "dpo")}
    page = write_report(story("dpo", [DPO], evaluations), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Win rate against the base</th>" in page
    for column in ("Style</th>", "Style won</th>", "Answers that pass their check</th>"):
        assert column not in page
    evaluations = {name: {"style": ESTIMATE, "passes_check": ESTIMATE} for name in ("before", "dpo")}
    page = write_report(story("dpo", [DPO], evaluations), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Style</th>" in page
    assert "Answers that pass their check</th>" in page


def test_a_comparison_says_who_is_better_and_elo_in_whole_points(tmp_path):
    pairs = [
        {"a": "runs/one", "b": "base", "rate": {**ESTIMATE, "value": 0.9}, "prompts": 9, "said": said} for said in ("A", "B", "cannot tell")
    ]
    board = [{"name": "one", "elo": {"value": 1543.74, "low": 1388.84, "high": 1673.38, "n": 24}}]
    compared = replace(story("dpo", []), runs={}, results={"comparison.json": {"pairs": pairs, "leaderboard": board}})
    page = write_report(compared, tmp_path / "r.html").read_text(encoding="utf-8")
    for told in ("ties counted half: one is better.", "ties counted half: base is better.", "it cannot be told which is better."):
        assert told in page
    assert "1,389–1,673" in page
