"""What a config may say of rewards, and the sentences for what it may not."""

from __future__ import annotations

import pytest

from preftune.config import Config, check_config
from preftune.errors import ConfigError
from preftune.rollout.rewards.source import RewardSource, insist_on_names, with_reward_model


class Stage(Config):
    rewards: tuple[RewardSource, ...] = ()


def read(*entries):
    return check_config(Stage, {"rewards": list(entries)}, where="ppo.yaml", stage="ppo").rewards


def test_a_judge_may_be_a_url_alone():
    (source,) = read({"judge": "http://127.0.0.1:8080/v1"})
    assert source.kind == source.label == "judge"
    assert source.judge.endpoint.url == "http://127.0.0.1:8080/v1"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, 'key "rewards.0" is {}: a reward has exactly one of model, function, rule, judge; none is set here.'),
        ({"model": "a", "rule": "style"}, "model and rule are set here"),
        ({"rule": "stile"}, 'key "rewards.0.rule" is "stile"'),
        ({"rule": "style", "wieght": 2}, 'key "rewards.0.wieght" is unknown. Did you mean "weight"?'),
        ({"function": "rewards.py"}, 'key "rewards.0.function" is "rewards.py": write "file.py:name".'),
        ({"rule": "length"}, '"length" goes with the rule "length"'),
        ({"rule": "length", "length": {"target": 5, "limit": 9}}, 'set one of "target" and "limit"'),
        ({"rule": "length", "length": {"limit": 9}}, '"limit" and "buffer" go together'),
        ({"rule": "length", "length": {"limit": 9, "buffer": 10}}, '"buffer" = 10 is longer than "limit" = 9'),
        ({"rule": "style", "uncertainty": 1}, '"uncertainty" is for "model", and this is a rule.'),
        ({"model": ["a", "b"], "uncertainty": -1}, 'key "rewards.0.uncertainty" is -1'),
        ({"rule": "style", "seconds": 1}, '"seconds" is for "function" and the rule "tests"'),
        ({"judge": "127.0.0.1:8080"}, 'key "rewards.0.judge.url" is "127.0.0.1:8080": write a URL that begins with http:// or https://.'),
        ({"rule": "style", "weight": float("nan")}, 'key "rewards.0.weight"'),
    ],
)
def test_what_is_wrong_is_said_with_its_key(entry, said):
    with pytest.raises(ConfigError) as error:
        read(entry)
    assert said in str(error.value)
    assert error.value.where == "ppo.yaml"


def test_two_of_one_name_are_refused_until_one_has_a_name_of_its_own():
    with pytest.raises(ConfigError, match=r'key "rewards": two rewards are called "brief"\. Give one of them a name\.'):
        insist_on_names(read({"function": "a.py:brief"}, {"function": "b.py:brief"}))
    insist_on_names(read({"function": "a.py:brief"}, {"function": "b.py:brief", "name": "brief_b"}))


def test_the_reward_model_counts_once_whether_or_not_the_list_names_it():
    style, model = read({"rule": "style"}, {"model": "runs/a", "weight": 2.0})
    assert with_reward_model([style], "runs/a") == (RewardSource(model="runs/a"), style)
    assert with_reward_model([style, model], "runs/a") == (style, model)
    assert with_reward_model([], "runs/a") == (RewardSource(model="runs/a"),)
