"""Each example of the page on rewards is one that works."""

from __future__ import annotations

import re

import pytest
import yaml

from preftune.config import Config, check_config
from preftune.rollout.rewards.function import FunctionReward
from preftune.rollout.rewards.source import RewardSource, insist_on_names


class Rewards(Config):
    rewards: tuple[RewardSource, ...]


def test_each_config_of_the_page_is_valid_and_every_kind_is_shown(repository):
    page = (repository / "docs" / "rewards.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    sources = [check_config(Rewards, {"rewards": block["rewards"]}, where="docs/rewards.md").rewards for block in blocks]
    for listed in sources:
        insist_on_names(listed)
    shown = {source.rule or source.kind for listed in sources for source in listed}
    assert shown == {"model", "function", "style", "tests", "length", "judge"}


def test_the_function_of_the_page_works(repository, tmp_path, asked):
    page = (repository / "docs" / "rewards.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(code, encoding="utf-8")
    reward = FunctionReward(tmp_path / "my_rewards.py", "brevity", seconds=30)
    given = reward.score(*asked([["a" * 500, ""]]))
    reward.close()
    assert given.scores.tolist() == pytest.approx([-0.5, 0.0])
