"""Runs whose batches are drawn ahead, with weights some rounds old: which weights, what is made up for, and what a kill leaves."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.rollout_twin import Twin
from tests.vllm_stand_in import StandIn, standing_in
from tests.whole.test_resuming import (  # two of them are fixtures
    KillAfter,
    elsewhere,  # noqa: F401
    saved_when_killed,
    saving_at_each_step,  # noqa: F401
    train_until_killed,
)

from preftune.errors import PreftuneError
from preftune.manifest import content_seed
from preftune.rollout import client
from preftune.training.loop import Loop, read_metrics

SMALL = {"steps": 5, "prompts_per_step": 4, "samples_per_prompt": 2}
MANY = {"steps": 8, "prompts_per_step": 8, "samples_per_prompt": 4}
TIMES = ("seconds", "rollout/wait_seconds")


def by_ray(staleness: int, **more: object) -> dict[str, object]:
    """The settings of a run by Ray, whose place a Twin takes."""
    return {"rollout": {"backend": "ray", "max_staleness": staleness, **more}}


@pytest.fixture
def twins(monkeypatch):
    """Every client elsewhere that is opened from now on."""
    opened: list[Twin] = []

    def open_twin(config, start, note):
        opened.append(Twin(start))
        return opened[-1]

    monkeypatch.setattr(client, "open_client", open_twin)
    return opened


def rows_of(run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_metrics(run)]


@pytest.mark.parametrize("stage", ["rloo", "ppo"])
def test_each_batch_is_drawn_with_the_weights_that_its_number_says_and_none_is_drawn_beyond_the_end(toy, twins, stage):
    rows = read_metrics(toy.run(stage, seed=11, **SMALL, **by_ray(2)))
    seeds = [content_seed(11, step) for step in range(5)]
    assert twins[0].asked == [(0, seeds[0]), (0, seeds[1]), (0, seeds[2]), (1, seeds[3]), (2, seeds[4])]
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 2, 2, 2]
    assert twins[0].closed
    assert rows[0]["policy/sampler_gap"] < 1e-3
    assert rows[0]["mismatch/ess"] == pytest.approx(1, abs=1e-4)
    assert rows[4]["mismatch/kl"] > 10 * rows[0]["mismatch/kl"]


def test_without_staleness_a_batch_is_drawn_with_the_weights_of_its_step(toy, twins):
    rows = read_metrics(toy.run("rloo", seed=12, **SMALL, **by_ray(0)))
    assert [version for version, _ in twins[0].asked] == [0, 1, 2, 3, 4]
    assert {row["rollout/staleness"] for row in rows} == {0}
    assert max(row["policy/sampler_gap"] for row in rows) < 1e-3


def test_the_next_batch_is_drawn_while_this_one_is_learned_from(toy, monkeypatch):
    learned, log = threading.Event(), Loop.log

    def logged(self, step, metrics):
        log(self, step, metrics)
        learned.set()

    def until_a_step_is_learned(number: int) -> None:
        if number == 2:  # would wait in vain if the first step waited for it
            assert learned.wait(60)

    monkeypatch.setattr(Loop, "log", logged)
    monkeypatch.setattr(client, "open_client", lambda config, start, note: Twin(start, until_a_step_is_learned))
    assert len(read_metrics(toy.run("rloo", seed=13, **SMALL, **by_ray(1)))) == 5


def test_it_does_not_matter_how_long_a_draw_takes(toy, elsewhere, twins, monkeypatch):  # noqa: F811
    run = toy.run("rloo", seed=14, **SMALL, **by_ray(2))
    slow = threading.Event()
    monkeypatch.setattr(client, "open_client", lambda config, start, note: Twin(start, lambda number: slow.wait(0.3 * (number % 2))))
    assert rows_of(elsewhere.run("rloo", seed=14, **SMALL, **by_ray(2), reward_model=str(elsewhere.run("reward")))) == rows_of(run)


@pytest.mark.parametrize("stage", ["rloo", "ppo"])
@pytest.mark.parametrize("kills", [(1,), (3, 1)], ids=["once", "twice"])
def test_killed_with_batches_under_way_it_ends_with_the_same_weights(toy, elsewhere, twins, saving_at_each_step, stage, kills):  # noqa: F811
    settings = {"seed": 15, **SMALL, **by_ray(2)}
    undisturbed = toy.run(stage, **settings)
    for steps in kills:
        with pytest.raises(KeyboardInterrupt):
            elsewhere.run(stage, **settings, progress=KillAfter(steps))
    again = elsewhere.run(stage, **settings)
    assert rows_of(again) == rows_of(undisturbed)
    name = "adapter/adapter_model.safetensors"
    assert (again / name).read_bytes() == (undisturbed / name).read_bytes()
    assert (again / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()


def test_samples_of_other_weights_than_were_asked_for_end_the_run(toy, twins, monkeypatch):
    push = Twin.push_weights

    def forget(self, weights):
        push(self, weights)
        self.held = min(self.held, 1)

    monkeypatch.setattr(Twin, "push_weights", forget)
    with pytest.raises(PreftuneError, match="drawn with the weights of round 1, and those of round 2 were asked for"):
        toy.run("rloo", seed=16, **SMALL, **by_ray(1))
    assert twins[0].closed


def test_what_goes_wrong_in_a_draw_ahead_is_said_as_it_is(toy, monkeypatch):
    def gone(number: int) -> None:
        if number == 3:
            raise PreftuneError("no rollout worker is left of 2", "ray", "See its logs.")

    monkeypatch.setattr(client, "open_client", lambda config, start, note: Twin(start, gone))
    with pytest.raises(PreftuneError, match="^ray: no rollout worker is left of 2"):
        toy.run("rloo", seed=17, **SMALL, **by_ray(1))


@pytest.mark.parametrize(("stage", "more"), [("rloo", {}), ("grpo", {}), ("ppo", {})])
def test_old_samples_are_weighed_and_new_ones_as_good_as_not(toy, twins, stage, more):
    def losses(staleness: int, cap: float | None) -> list[float]:
        rows = read_metrics(toy.run(stage, seed=18, **SMALL, **more, **by_ray(staleness, importance_cap=cap)))
        return [row["grad_norm"] for row in rows]

    assert losses(0, 2.0) == pytest.approx(losses(0, None), rel=1e-3)
    weighed, plain = losses(2, 2.0), losses(2, None)
    assert weighed[0] == pytest.approx(plain[0], rel=1e-3)
    assert abs(weighed[-1] - plain[-1]) > 1e-2 * plain[-1]


def test_groups_that_are_refilled_are_drawn_with_the_policy_as_it_is(toy, twins):
    reward_model = str(toy.run("reward"))
    rewards = [{"model": reward_model, "weight": 0.0}, {"rule": "length", "length": {"target": 4}}]
    settings = {**SMALL, "seed": 5, "reward_model": reward_model, "rewards": rewards}
    rows = read_metrics(toy.run("grpo", variant="dapo", **settings, **by_ray(1)))
    assert sum(row["groups/refills"] for row in rows) > 0
    seeds = {content_seed(5, step): (step, max(0, step - 1)) for step in range(5)}
    seeds |= {content_seed(5, step, again): (step, step) for step in range(5) for again in range(1, 4)}
    assert all(version == seeds[seed][1] for version, seed in twins[0].asked)


def test_by_servers_too_and_what_is_under_way_at_the_end_leaves_nothing(toy, tmp_path):
    with standing_in(StandIn(toy.base)) as urls:
        rollout = {"backend": "vllm", "urls": urls, "weights": str(tmp_path / "shared"), "tolerance": 1e-4, "max_staleness": 1}
        rows = read_metrics(toy.run("rloo", rollout=rollout, seed=19, **SMALL))
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1, 1, 1]
    assert all(0.5 < row["mismatch/ess"] <= 1 for row in rows)
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_run_that_learns_far_from_what_it_draws_is_warned(toy, twins):
    from preftune.manifest import read_manifest

    run = toy.run("rloo", seed=20, **{**MANY, "lr": 5e-2}, **by_ray(3))
    assert any(text.startswith("Samples are too old") for text in read_manifest(run)["warnings"])


def train_with_a_twin_until_killed(*given: Any) -> None:
    client.open_client = lambda config, start, note: Twin(start)
    train_until_killed(*given, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rloo", "ppo"])
def test_killed_without_warning_with_batches_under_way_it_still_ends_with_the_same_bytes(toy, elsewhere, twins, stage):  # noqa: F811
    settings = {"seed": 21, **SMALL, **by_ray(2)}
    for saved in (1, 2):
        assert saved_when_killed(elsewhere, train_with_a_twin_until_killed, stage, elsewhere.config(stage, **settings)) == saved
    again, undisturbed = elsewhere.run(stage, **settings), toy.run(stage, **settings)
    name = "adapter/adapter_model.safetensors"
    assert (again / name).read_bytes() == (undisturbed / name).read_bytes()
    assert rows_of(again) == rows_of(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 2])
def test_it_learns_from_old_samples_too(toy, twins, staleness):
    before, after = [], []
    for seed in (1, 2, 3):
        rows = read_metrics(toy.run("rloo", seed=seed, **{**MANY, "steps": 12}, **by_ray(staleness)))
        before.append(rows[0]["reward/score"])
        after.append(rows[-1]["reward/score"])
    assert all(late > early + 0.3 for early, late in zip(before, after, strict=True)), (before, after)
