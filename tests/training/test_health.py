"""Each trouble is found where it is, with its numbers in the sentence, and not where all is well."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.training.health import BLIND_ROWS, WINDOW, findings, repetition, text_metrics

WELL = {
    "reward/score": 0.0,
    "reward/score_sd": 1.0,
    "kl/reference": 0.5,
    "length/completion": 40.0,
    "length/finished": 0.97,
    "entropy": 1.2,
    "policy/clip_fraction": 0.1,
    "value/explained_variance": 0.3,
    "text/repetition": 0.05,
    "text/distinct": 1.0,
    "mismatch/ess": 0.98,
    "mismatch/cut": 0.0,
    "mismatch/kl": 0.001,
    "rollout/staleness": 0.0,
}


def run(steps: int = 12, **last: float) -> list[dict[str, float]]:
    """Rows that go from WELL to WELL changed by `last`, evenly; / in a name is written __."""
    end = {**WELL, **{key.replace("__", "/"): value for key, value in last.items()}}
    return [{key: WELL[key] + (end[key] - WELL[key]) * step / (steps - 1) for key in WELL} for step in range(steps)]


TROUBLES = [
    ("length", {"reward__score": 2.0, "length__completion": 90.0}, "Reward rises while answers grow: the score rose from"),
    ("length", {"reward__score": 2.0, "length__completion": 8.0}, "Reward rises while answers shrink"),
    ("kl", {"kl__reference": 40.0}, "Far from the start: KL is 36 nats an answer, over 20"),
    ("kl", {"kl__reference": -3.0}, "Negative KL: -2.7 nats an answer"),
    ("entropy", {"entropy": 0.05}, "Entropy collapses: from 1.1 to"),
    ("unfinished", {"length__finished": 0.4}, "Answers do not end: only 45% end by themselves"),
    ("clipped", {"policy__clip_fraction": 0.6}, "Steps are too large: 55% of the tokens"),
    ("repetition", {"text__repetition": 0.8}, "Answers repeat themselves: 73%"),
    ("mismatch", {"mismatch__ess": 0.2}, "The sampler is another policy: they count as 27% of their number, 0% of their tokens"),
    ("mismatch", {"mismatch__cut": 0.2}, "The sampler is another policy: they count as 98% of their number, 18% of their tokens"),
    ("mismatch", {"mismatch__kl": 0.1, "rollout__staleness": 1.0}, "Samples are too old: they count as 98% of their number, 0% of"),
    ("alike", {"text__distinct": 0.1}, "Samples become alike: 18%"),
    ("alike", {"reward__score_sd": 0.0, "reward__score": 0.1}, "Scores become alike"),
]


def test_a_run_that_goes_well_is_told_nothing():
    assert findings(run(reward__score=3.0, kl__reference=8.0, length__completion=48.0)) == []


@pytest.mark.parametrize(("name", "last", "words"), TROUBLES, ids=[f"{name} {list(last)[-1]}" for name, last, _ in TROUBLES])
def test_each_trouble_is_named_with_what_was_seen(name, last, words):
    found = findings(run(**last) if name != "alike" or "text__distinct" in last else run(40, **last))
    assert [f.name for f in found] == [name]
    assert found[0].text.startswith(words)


def test_longer_answers_without_a_better_score_are_not_called_hacking():
    assert findings(run(length__completion=90.0)) == []


def test_a_critic_is_called_blind_only_after_it_has_been_for_long():
    rows = [{**WELL, "value/explained_variance": -0.5} for _ in range(BLIND_ROWS)]
    assert findings(rows[1:]) == []
    assert [f.name for f in findings(rows)] == ["critic"]
    assert findings([*rows, WELL]) == []


def test_a_target_moves_the_bound_on_the_kl():
    rows = run(kl__reference=40.0)
    assert findings(rows, kl_target=30.0) == []
    assert "over 9" in findings(rows, kl_target=3.0)[0].text


def test_a_metric_that_a_stage_does_not_log_is_not_missed():
    rows = [{k: v for k, v in row.items() if not k.startswith(("value/", "policy/", "entropy"))} for row in run()]
    assert findings(rows) == []
    assert findings([{}] * 20) == []


@given(count=st.integers(0, WINDOW - 1))
def test_the_first_rows_alone_prove_nothing(count):
    assert findings([{**WELL, "length/finished": 0.0}] * count) == []


def test_repetition_by_hand():
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([7] * 8) == pytest.approx(4 / 5)  # five runs of four, all the same
    assert repetition([1, 2, 3, 4] * 2) == pytest.approx(1 / 5)


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6))
def test_the_shares_are_shares_and_do_not_depend_on_the_order(completions):
    found = text_metrics(completions)
    assert all(0 <= value <= 1 for value in found.values())
    assert text_metrics(completions[::-1]) == pytest.approx(found)


def test_one_answer_to_everything_is_seen():
    assert text_metrics([[1, 2]] * 4)["text/distinct"] == 0.25
