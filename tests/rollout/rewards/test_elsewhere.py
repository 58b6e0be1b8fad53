"""Functions, rules and judges asked by real Ray actors: the scores and the words of here, whoever dies."""

from __future__ import annotations

import os
import signal
import warnings

import pytest
import torch
from tests.remote_server import choices, send, serving

from preftune.errors import ConfigError, PreftuneError
from preftune.progress import Silent
from preftune.rollout.backends import RayRollout
from preftune.rollout.rewards.source import RewardSource
from preftune.rollout.rewards.total import open_rewards

ray = pytest.importorskip("ray")
from preftune.rollout.rewards.asking import Given  # noqa: E402
from preftune.rollout.rewards.elsewhere import RewardElsewhere, Scorers, cut, joined  # noqa: E402  it imports ray

FILE = """
import os, time

def picky(prompts, completions, facts):
    found = []
    for text in completions:
        if text == "raise":
            raise ValueError("no such answer")
        if text == "hang":
            time.sleep(60)
        found.append(float("nan") if text == "nan" else len(text) + facts[0].get("bonus", 0))
    return found

def noted(prompts, completions, facts):
    with open(os.path.join(os.path.dirname(__file__), "log"), "a") as file:
        file.write(f"+ {os.getppid()}\\\\n")
        file.flush()
        time.sleep(0.2)
        file.write(f"- {os.getppid()}\\\\n")
    return [1.0 for _ in completions]

number = 3
"""
ANSWERS = [
    ["a", "abcd"],
    ["raise", "abc"],
    ["nan", "ab"],
    ["", "abcde"],
    ["hang", "x"],
    ["yy", "zzz"],
    ["q", "qq"],
    ["r", "rr"],
    ["s", "t"],
]


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine.py").write_text(FILE.replace("\\\\n", "\\n"), encoding="utf-8")
    return folder


def opened(project, sources, workers, run="a run"):
    rollout = RayRollout(backend="ray", score_workers=workers)
    return open_rewards(sources, project=project, renderer=None, progress=Silent(), device=torch.device("cpu"), run=run, rollout=rollout)


def length_verdict(handler, request):
    shown = request.body["messages"][1]["content"]
    send(handler, choices(f"Score: {1 + len(shown) % 10}"))


@pytest.mark.slow
def test_actors_give_the_scores_and_the_failures_of_here_for_functions_rules_and_judges(project, asked):
    with serving(length_verdict) as server:
        sources = [
            RewardSource(function="mine.py:picky", on_error="skip", seconds=2.0),
            RewardSource(rule="length", length={"target": 3}, weight=0.5),
            RewardSource(judge={"url": f"http://127.0.0.1:{server.port}/v1"}, weight=2.0),
        ]
        found = []
        for workers in (0, 2):
            with opened(project, sources, workers, f"run {workers}") as rewards:
                assert all(isinstance(one, RewardElsewhere) for one in rewards.opened) == bool(workers)
                found.append(rewards.score(*asked(ANSWERS, [{"bonus": 1}] * len(ANSWERS))))
                asking = [reward.score(*asked(ANSWERS)) for reward in rewards.opened[:1]]
                assert asking[0].failures.keys() == {2, 4, 8}
                assert asking[0].failures[8] == "did not return within 2 s"
    here, there = found
    assert there.total.tolist() == here.total.tolist()
    assert there.failed.tolist() == here.failed.tolist()
    assert {name: part.tolist() for name, part in there.parts.items()} == {name: part.tolist() for name, part in here.parts.items()}
    assert here.counts["judge/calls"] > 0
    assert there.counts == {**here.counts, "judge/calls": 0.0}, "what was judged here is in the project's cache there"


@pytest.mark.slow
def test_an_actor_that_dies_is_started_again_and_asked_anew_and_none_has_two_parts_at_once(project, asked):
    (project / "log").unlink(missing_ok=True)
    scorers = Scorers(RayRollout(backend="ray", score_workers=2), [RewardSource(function="mine.py:noted")], project, "a run")
    reward = RewardElsewhere(scorers, 0, by_one=False)
    asks, groups = asked([[str(n)] for n in range(8)])
    assert reward.score(asks, groups).scores.tolist() == [1.0] * 8
    log = (project / "log").read_text().split("\n")[:-1]
    assert len([line for line in log if line[0] == "+"]) == 8  # parts
    under_way: set[str] = set()
    for line in log:
        mark, who = line.split()
        assert (who in under_way) == (mark == "-")
        (under_way.remove if mark == "-" else under_way.add)(who)
    victim = int(log[-1].split()[1])
    os.kill(victim, signal.SIGKILL)
    assert reward.score(asks, groups).scores.tolist() == [1.0] * 8
    who = {line.split()[1] for line in (project / "log").read_text().split("\n")[len(log) : -1]}
    assert str(victim) not in who
    assert len(who) == 2
    reward.close()
    reward.close()


@pytest.mark.slow
def test_a_source_that_cannot_be_opened_is_said_as_it_is_here(project):
    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r'mine.py: "number" cannot be used: .*See docs/rewards.md'):
            opened(project, [RewardSource(function="mine.py:number")], workers)


@pytest.mark.slow
def test_a_judge_that_is_gone_and_a_budget_that_is_spent_are_said_as_they_are_here(project, asked):
    with serving(length_verdict) as server:
        judge = RewardSource(judge={"url": f"http://127.0.0.1:{server.port}/v1", "max_calls": 2})
        with opened(project, [judge], 1, "another") as rewards, pytest.raises(PreftuneError, match="budget of 2 calls is spent"):
            rewards.score(*asked([["new one", "new two", "new three"]]))
        assert len(server.seen) == 2


def test_parts_are_whole_prompts_in_their_order_and_what_is_said_of_them_is_put_together(asked):
    asks, groups = asked([["a", "b"], ["c"], ["d", "e", "f"]])
    assert [[ask.text for ask in own] for own, _ in cut(asks, groups, 2)] == [["a", "b", "c"], ["d", "e", "f"]]
    parts = cut(asks, groups, 9)
    assert [[ask.text for ask in own] for own, _ in parts] == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert [group for _, own in parts for group in own] == groups
    given = [Given(torch.tensor([1.0, 2.0]), {1: "x"}, {"n": 1.0}), Given(torch.tensor([3.0])), Given(torch.zeros(3), {0: "y"}, {"n": 2.0})]
    whole = joined(given, [2, 1, 3])
    assert whole.scores.tolist() == [1, 2, 3, 0, 0, 0]
    assert whole.failures == {1: "x", 3: "y"}
    assert whole.counts == {"n": 3.0}
