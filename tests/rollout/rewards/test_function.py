"""A Python function as a reward, and all that can be wrong with one."""

from __future__ import annotations

import os
import time

import pytest

from preftune.errors import ConfigError
from preftune.rollout.rewards.function import FunctionReward

FILE = """
import os, sys, time
from helper import PENALTY

def brief(prompts, completions, facts):
    print("this is no answer")
    assert prompts[0][0]["role"] == "user"
    return [PENALTY * len(text) + fact.get("bonus", 0) + fact["tokens"] for text, fact in zip(completions, facts)]

def picky(prompts, completions, facts):
    found = []
    for text in completions:
        if text == "raise":
            raise ValueError("no such answer")
        if text == "hang":
            time.sleep(60)
        if text == "die":
            os._exit(3)
        found.append({"nan": float("nan"), "none": None, "text": "0.5", "list": [1]}.get(text, 1.0))
    return found

def one_number(prompts, completions, facts):
    return 0.5

def too_few(prompts, completions, facts):
    return [1.0] * (len(completions) - 1)

class Array:
    def __init__(self, values): self.values = values
    def __iter__(self): return iter(self.values)

def array_like(prompts, completions, facts):
    return Array([True] * len(completions))

number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "mine.py").write_text(FILE, encoding="utf-8")
    (folder / "helper.py").write_text("PENALTY = -1\n", encoding="utf-8")
    return folder / "mine.py"


@pytest.fixture
def opened(file):
    made = []

    def make(name, seconds=30.0):
        made.append(FunctionReward(file, name, seconds=seconds))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def test_it_is_called_with_prompts_completions_and_facts_and_imports_its_neighbours(opened, asked):
    given = opened("brief").score(*asked([["ab", "abcd"], ["a"]], [{"bonus": 3}, {}]))
    assert given.scores.tolist() == [3.0, 3.0, 0.0]  # −1 a character, + 1 a token (the same here), + the bonus
    assert given.failures == {}


def test_what_it_cannot_judge_is_named_and_the_rest_keeps_its_rewards(opened, asked):
    given = opened("picky").score(*asked([["fine", "raise", "nan"], ["none", "text", "list", "die", "fine"]]))
    assert given.scores[0] == given.scores[7] == 1.0
    assert given.failures == {
        1: "raised ValueError: no such answer (line 14 of mine.py)",
        2: "gives nan",
        3: "gives None, which is not a number,",
        4: "gives '0.5', which is not a number,",
        5: "gives [1], which is not a number,",
        6: "ended its process with status 3",
    }


def test_one_that_hangs_is_cut_at_the_time_limit_and_after_three_the_rest_is_not_tried(opened, asked):
    began = time.monotonic()
    reward = opened("picky", seconds=1.0)
    given = reward.score(*asked([["fine", "hang", "fine", "hang", "hang", "hang", "fine"]]))
    assert time.monotonic() - began < 30
    assert sorted(given.failures) == [1, 3, 4, 5, 6]
    assert given.failures[1] == "did not return within 1 s"
    assert given.failures[6].startswith("hung for the 3 before in a row")
    assert given.scores[[0, 2]].tolist() == [1.0, 1.0]
    assert reward.score(*asked([["fine"]])).scores.tolist() == [1.0], "it works again afterwards"


@pytest.mark.parametrize(
    ("name", "said"),
    [("one_number", "returned 0.5 and not a list of numbers"), ("too_few", "returned 0 rewards for 1 completions")],
)
def test_a_wrong_shape_is_said(opened, asked, name, said):
    assert opened(name).score(*asked([["a", "b"]])).failures == {0: said, 1: said}


def test_anything_that_can_be_gone_through_is_taken(opened, asked):
    assert opened("array_like").score(*asked([["a", "b"]])).scores.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("name", "said"), [("absent", 'there is no function "absent" in it'), ("number", "there is no function")])
def test_a_function_that_is_not_there_is_said_before_anything_is_sampled(file, name, said):
    with pytest.raises(ConfigError, match=said):
        FunctionReward(file, name, seconds=1.0)


def test_a_file_that_cannot_be_imported_is_said_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\nraise RuntimeError('no licence')\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"RuntimeError: no licence \(line 2 of broken\.py\)"):
        FunctionReward(tmp_path / "broken.py", "f", seconds=1.0)


def test_no_process_is_left_behind(file):
    reward = FunctionReward(file, "brief", seconds=1.0)
    process = reward._process._child.pid
    reward.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
