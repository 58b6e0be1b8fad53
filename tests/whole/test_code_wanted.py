"""Where a team's preferences are not about code, no style of code is measured, and the win rate says what was won."""

from __future__ import annotations

import pytest

from preftune.data.snapshot import load_snapshot
from preftune.errors import ConfigError
from preftune.evaluate import run as evaluation
from preftune.evaluate.code_wanted import asks_for_code
from preftune.evaluate.run import Size, evaluate, read_evaluation
from preftune.release.export import release
from preftune.release.gate import judge
from preftune.release.report import report
from preftune.tuning.strengths import scale

CODE = "def f(x: int) -> int:\n    return x"


@pytest.mark.parametrize(
    ("chosen", "asked"), [([CODE] * 8, True), (["a b"] * 8, False), ([CODE, "a b"] * 4, True), ([CODE] * 3 + ["a"] * 5, False)]
)
def test_code_is_asked_for_where_half_of_the_wished_for_answers_hold_some(make_snapshot, tmp_path, chosen, asked):
    words = ["apple", "brick", "cloud", "drum", "eagle", "fence", "grape", "house"]
    rows = [{"prompt": f"The {word}, please.", "chosen": text, "rejected": "no"} for word, text in zip(words, chosen, strict=True)]
    assert asks_for_code(load_snapshot(make_snapshot(tmp_path, rows, held_out=0.0))) is asked


def test_a_prompt_with_a_check_asks_for_code_whatever_the_answers_are(make_snapshot, tmp_path):
    rows = [{"prompt": f"The {word}.", "chosen": "a", "rejected": "b", "check": "assert f"} for word in ("apple", "brick", "cloud", "drum")]
    assert asks_for_code(load_snapshot(make_snapshot(tmp_path, rows, held_out=0.5)))


@pytest.fixture
def measured(toy, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "SIZES", {"small": Size(prompts=8, max_new_tokens=12, facts=24, texts=2, functions=2)})
    monkeypatch.setattr(evaluation, "judge_style", None)  # not asked for, so not called
    monkeypatch.setattr(evaluation, "run_checks", None)
    made = toy.copy(tmp_path, toy.run("reward"), toy.run("dpo"))
    run, judged_by = (made.out / one.name for one in (toy.run("dpo"), toy.run("reward")))
    return evaluate(run, made.data, base=made.base, reward_model=judged_by, out=tmp_path / "reports", size="small")


def test_where_no_code_is_wished_for_the_gate_asks_the_win_rate(measured):
    told = read_evaluation(measured)
    assert [told[key] for key in ("style", "style_gain", "fully_adherent", "parses")] == [None] * 4
    assert all((row["adherence"], row["parses"], row["verdicts"]) == (None, None, {}) for row in told["answers"])
    asked = judge(told).checks[0]
    assert "win rate" in asked.text
    assert asked.passed == (told["win_rate"]["low"] > 0.5)


def test_its_report_tells_the_win_rate_and_no_style(measured):
    page = report(measured).read_text(encoding="utf-8")
    assert "By the reward model, the answers of" in page
    for word in ("house conventions", "no Python code found", "adherence"):
        assert word not in page.split('id="sources"')[0].split("</style>")[1], word


def test_a_strength_cannot_be_chosen_by_a_style_that_nobody_asks_for(toy):
    with pytest.raises(ConfigError, match="hold no code.*preference"):
        scale(toy.run("dpo"), toy.data, base=toy.base, out=toy.folder / "nothing")


def test_a_release_has_a_report_and_the_report_of_its_evaluation_knows_of_it(measured):
    project = measured.parent.parent
    run = project / read_evaluation(measured)["model"]
    released = release(run, measured, project / "releases", override="A toy, for a test.")
    for folder in (released, measured):
        page = report(folder).read_text(encoding="utf-8")
        assert "was released as" in page
        assert "A toy, for a test." in page
        assert "Nothing was released" not in page
    page = report(released).read_text(encoding="utf-8")
    assert f"Release {released.name}" in page
    assert "By the reward model, the answers of" in page
