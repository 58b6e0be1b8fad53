"""The rules: lengths by hand, a check that is run, house style."""

from __future__ import annotations

import pytest

from preftune.rollout.rewards.rules import RuleReward, length_reward
from preftune.rollout.rewards.source import LengthSettings, RewardSource


@pytest.mark.parametrize(("tokens", "reward"), [(0, -1.0), (5, -0.5), (10, 0.0), (12, -0.2), (20, -1.0), (500, -1.0)])
def test_a_target_is_missed_by_shares_of_itself(tokens, reward):
    assert length_reward(tokens, LengthSettings(target=10)) == pytest.approx(reward)


# DAPO's own figures are 16,384 and 4,096; by hand on 100 and 20.
@pytest.mark.parametrize(("tokens", "reward"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0)])
def test_overlong_answers_lose_up_to_1_within_the_buffer(tokens, reward):
    assert length_reward(tokens, LengthSettings(limit=100, buffer=20)) == pytest.approx(reward)


def test_length_counts_the_policys_tokens(asked, noted):
    reward = RuleReward(RewardSource(rule="length", length={"target": 4}), noted)
    assert reward.score(*asked([["four", "", "twelve"]])).scores.tolist() == [0.0, -1.0, -0.5]


def test_a_check_is_run_on_the_code_of_the_answer(asked, noted):
    right, wrong = (f"```python\ndef f(x):\n    return x + {n}\n```" for n in (1, 2))
    facts = [{"check": "assert f(1) == 2"}, {}]
    asks, groups = asked([[right, wrong, "I cannot.", ""], [right]], facts)
    given = RuleReward(RewardSource(rule="tests", seconds=5.0), noted).score(asks, groups)
    assert given.scores.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert noted.notes == ["1 of 5 completions answer prompts without a check: tests gives them 0."]


def test_style_is_the_share_of_the_conventions_that_apply_and_are_followed(asked, noted):
    good = '```python\ndef add(a: int, b: int) -> int:\n    """Return the sum."""\n    return a + b\n```'
    bad = "```python\ndef add(a, b):\n    return a + b\n```"
    given = RuleReward(RewardSource(rule="style"), noted).score(*asked([[good, bad, ""]]))
    assert given.scores.tolist() == [1.0, 0.0, 0.0]
