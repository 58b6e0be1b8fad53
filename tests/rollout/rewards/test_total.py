"""The weighted sum, what fails in it, and what is said of rewards that teach nothing."""

from __future__ import annotations

import pytest
import torch

from preftune.errors import ConfigError, PreftuneError
from preftune.rollout.rewards.asking import Given
from preftune.rollout.rewards.source import RewardSource
from preftune.rollout.rewards.total import Rewards, open_rewards, resolve_sources


class Fixed:
    """Says what it was told to say."""

    def __init__(self, scores, failures=None):
        self.given = Given(torch.tensor(scores), failures or {})

    def score(self, asks, groups):
        return self.given

    def close(self):
        return None


STYLE = RewardSource(rule="style", weight=2.0)
SKIPPING = RewardSource(function="a.py:f", weight=-0.5, on_error="skip")
FOUR = [["one", "two"], ["three", "four"]]


def test_the_total_is_the_weighted_sum_and_each_part_is_kept_apart(asked, noted):
    rewards = Rewards([STYLE, SKIPPING], [Fixed([1.0, 0.5, 0.0, 0.0]), Fixed([2.0, 4.0, 0.0, 1.0])], noted)
    scores = rewards.score(*asked(FOUR))
    assert scores.total.tolist() == [1.0, -1.0, 0.0, -0.5]  # 2 · 1 − ½ · 2, …
    assert scores.parts["style"].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert scores.metrics() == {
        "reward/part/style": 0.375, "reward/part/f": 1.75, "reward/failed": 0.0, "reward/empty": 0.0
    }  # fmt: skip
    assert noted.notes == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_without_a_finite_reward_is_marked_and_counts_nowhere(asked, noted, bad):
    rewards = Rewards([STYLE, SKIPPING], [Fixed([1.0, 1.0, 0.0, 0.0]), Fixed([bad, 1.0, 2.0, 3.0])], noted)
    scores = rewards.score(*asked(FOUR))
    assert scores.failed.tolist() == [True, False, False, False]
    assert scores.total.tolist() == [0.0, 1.5, -1.0, -1.5]
    assert scores.metrics()["reward/failed"] == 0.25
    assert scores.metrics()["reward/part/f"] == 2.0
    said = f'The reward "f" gives {bad} for completion 0 of 4 (prompt 0, "one"). Such samples are left out (1 of 4 here).'
    assert [note.lower() for note in noted.notes] == [said.lower()]
    rewards.score(*asked(FOUR))
    assert len(noted.notes) == 1, "said once"


def test_told_to_stop_a_reward_that_fails_stops_the_run(asked, noted):
    rewards = Rewards([STYLE], [Fixed([0.0, 0.0, 0.0, 0.0], {2: "raised ValueError: no (line 3 of a.py)"})], noted)
    said = r'the reward "style" raised ValueError: no \(line 3 of a\.py\) for completion 2 of 4 \(prompt 1, "three"\)\. The same command'
    with pytest.raises(PreftuneError, match=said):
        rewards.score(*asked(FOUR))


def test_where_nothing_could_be_judged_the_run_stops_whatever_it_was_told(asked, noted):
    rewards = Rewards([SKIPPING], [Fixed([float("nan")] * 4)], noted)
    with pytest.raises(PreftuneError, match="none of the 4 completions could be judged"):
        rewards.score(*asked(FOUR))


def test_constant_rewards_and_empty_answers_are_said_once(asked, noted):
    rewards = Rewards([STYLE], [Fixed([0.25] * 4)], noted)
    scores = rewards.score(*asked([["", " "], ["a", "b"]]))
    rewards.score(*asked([["", " "], ["a", "b"]]))
    assert noted.notes == [
        "All 4 rewards of a step are equal (0.5): nothing can be learned from them.",
        "2 of 4 answers are empty; they are judged like any other.",
    ]
    assert scores.metrics()["reward/empty"] == 0.5


def test_files_and_models_are_found_in_the_project_and_hashed(tmp_path):
    (tmp_path / "mine.py").write_text("def f(prompts, completions, facts): return []\n", encoding="utf-8")
    source = RewardSource(function="mine.py:f")
    (found,), hashes = resolve_sources([source], tmp_path)
    assert found.function == "mine.py:f"
    assert list(hashes) == ["rewards.0.function"]
    (tmp_path / "mine.py").write_text("def f(prompts, completions, facts): return [0]\n", encoding="utf-8")
    assert resolve_sources([source], tmp_path)[1] != hashes, "another function is another run"
    with pytest.raises(ConfigError, match=r'key "rewards\.0\.model": there is no "runs/gone"'):
        resolve_sources([RewardSource(model="runs/gone")], tmp_path)


def test_tests_are_refused_where_no_prompt_has_one(tmp_path, noted):
    with pytest.raises(ConfigError, match="none of the prompts has a check that could be run"):
        open_rewards(
            [RewardSource(rule="tests")],
            project=tmp_path,
            renderer=None,
            progress=noted,
            device=torch.device("cpu"),
            facts=[{"kind": "code"}],
        )
