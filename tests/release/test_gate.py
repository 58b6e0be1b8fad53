"""The gate lets through what is shown to be better and shown to have kept what it knew, and says why not otherwise."""

from __future__ import annotations

import pytest

from preftune.errors import ConfigError, DataError
from preftune.manifest import write_json
from preftune.release.gate import check_same_run, judge


def only_reason(evaluation) -> str:
    gate = judge(evaluation)
    assert not gate.passed
    assert len(gate.reasons) == 1
    return gate.reasons[0]


def test_a_model_that_won_and_kept_passes_with_no_reason(evaluation):
    gate = judge(evaluation)
    assert gate.passed
    assert gate.reasons == ()
    assert [check.name for check in gate.checks] == ["preference won", "knowledge kept", "code still works", "near the base", "answers end"]
    assert "+31.4 points (95 % interval +26.1 to +36.2, n = 100)" in gate.checks[0].text


def test_a_card_with_a_hole_refuses_and_is_asked_for_only_where_one_is_printed(evaluation):
    assert judge(evaluation, holes=()).checks[-1].name == "card complete"
    assert judge(evaluation, holes=()).passed
    gate = judge(evaluation, holes=("the data snapshots/12 is gone", "the run is changed"))
    assert gate.reasons == ("The card would lack what only these could tell: the data snapshots/12 is gone; the run is changed.",)


def test_lost_and_not_proved_refuse_in_different_words(evaluation, set_retention):
    set_retention("lost")
    lost = only_reason(evaluation)
    set_retention("not proved")
    unproved = only_reason(evaluation)
    assert (
        lost
        == "Retention is lost: it fell by more than its margin on facts -0.50 points, -7.19 points at worst, margin 3.00 points, n = 1,000."
    )
    assert unproved.startswith("Retention is not proved: the items are too few")
    assert "facts -0.50 points, -3.45 points at worst" in unproved
    assert "prose" not in lost + unproved  # it is kept
    assert "functions" not in lost + unproved  # it is not gated


def test_a_task_of_the_teams_own_is_judged_like_the_others(evaluation, set_retention):
    verdict = evaluation["retention"]["verdict"]
    facts = next(task for task in verdict["tasks"] if task["name"] == "facts")
    verdict["tasks"].append({**facts, "name": "rules", "margin": 0.05, "lower": -0.02})
    assert judge(evaluation).passed
    assert "rules -2.00 points at worst (margin 5.00 points)" in judge(evaluation).checks[1].text
    verdict["overall"] = verdict["tasks"][-1]["verdict"] = "not proved"
    verdict["tasks"][-1] |= {"lower": -0.07, "n": 60}
    facts["verdict"] = "not proved"  # by the correction for several tasks alone: its bound is within its margin
    told = only_reason(evaluation)
    assert "rules -0.50 points, -7.00 points at worst, margin 5.00 points, n = 60" in told
    assert "facts" not in told


@pytest.mark.parametrize(
    ("low", "difference", "high", "passes"),
    [(-0.305, -0.15, 0.02, True), (-0.6, -0.45, -0.258, False), (-0.3, -0.2, -0.1, True), (-0.3, -0.2, -0.101, False)],
)
def test_functions_that_are_proved_to_fall_refuse_and_others_do_not(evaluation, low, difference, high, passes):
    functions = next(t for t in evaluation["retention"]["verdict"]["tasks"] if t["name"] == "functions")
    functions |= {"low": low, "difference": difference, "high": high}
    gate = judge(evaluation)
    assert gate.passed is passes
    if not passes:
        assert only_reason(evaluation).startswith(f"Fewer functions pass their tests: {100 * difference:+.1f} points (95 % interval")


def test_retention_that_was_not_measured_refuses(evaluation):
    evaluation["retention"]["verdict"] = None
    assert only_reason(evaluation) == "Retention was not measured against the base, so nobody knows what was lost."


@pytest.mark.parametrize("low", [0.0, -0.01, float("nan")])
def test_a_gain_whose_interval_reaches_zero_is_not_won_even_when_the_win_rate_is(evaluation, low):
    evaluation["style_gain"]["low"] = low
    assert only_reason(evaluation).startswith("A gain in style over the base is not shown")


@pytest.mark.parametrize(("low", "passes"), [(0.51, True), (0.5, False), (0.42, False)])
def test_without_a_style_the_win_rate_decides(evaluation, low, passes):
    evaluation["style_gain"] = None
    evaluation["win_rate"]["low"] = low
    assert judge(evaluation).passed is passes


def test_a_model_of_which_no_preference_was_measured_is_refused(evaluation):
    evaluation["style_gain"] = evaluation["win_rate"] = None
    assert only_reason(evaluation).startswith("Neither a gain in style nor a win rate")


@pytest.mark.parametrize(("kl", "passes"), [(50.0, True), (50.1, False), (float("nan"), False)])
def test_answers_too_far_from_the_base_are_refused(evaluation, kl, passes):
    evaluation["kl"]["value"] = kl
    assert judge(evaluation).passed is passes


def test_a_drift_that_was_not_measured_is_refused(evaluation):
    evaluation["kl"] = None
    assert only_reason(evaluation) == "The KL from the base was not measured."


@pytest.mark.parametrize(
    ("before", "after", "passes"),
    [(None, 0.50, True), (None, 0.49, False), (0.95, 0.86, True), (0.95, 0.84, False), (0.30, 0.45, False), (0.30, 0.55, True)],
)
def test_answers_must_go_on_ending_by_themselves(evaluation, before, after, passes):
    evaluation["ends_by_itself"]["value"] = after
    if before is not None:
        evaluation["before"] = {"ends_by_itself": {"value": before, "low": before, "high": before, "n": 100}}
    assert judge(evaluation).passed is passes


def test_all_that_is_wrong_is_said_at_once(evaluation, set_retention):
    set_retention("lost")
    evaluation["kl"]["value"] = 80.0
    assert len(judge(evaluation).reasons) == 2


def test_something_else_than_an_evaluation_is_a_sentence():
    with pytest.raises(DataError, match=r"evaluation\.json: this is no evaluation of preftune .*Run preftune evaluate anew"):
        judge({"style": 1})


def test_an_evaluation_of_another_model_is_not_this_runs(tmp_path):
    for name, manifest in (("run", {"id": "aaa"}), ("report", {"id": "ccc", "inputs": {"model": "bbb", "base": "aaa"}})):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "manifest.json", manifest)
    with pytest.raises(ConfigError, match=r"there is no evaluation\.json here"):
        check_same_run(tmp_path / "run", tmp_path / "report")
    write_json(tmp_path / "report" / "evaluation.json", {})
    with pytest.raises(ConfigError, match="this evaluation is of another model \\(bbb\\), not of aaa"):
        check_same_run(tmp_path / "run", tmp_path / "report")
