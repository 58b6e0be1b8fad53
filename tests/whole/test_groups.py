"""RLOO, GRPO and its variants as whole stages: they start where they say, refill, and survive odd rewards."""

from __future__ import annotations

import pytest
import torch

from preftune.errors import PreftuneError
from preftune.manifest import read_manifest
from preftune.models.load import load_causal_lm
from preftune.progress import Silent
from preftune.rollout import client
from preftune.rollout.generate import generate
from preftune.stages import experience, group
from preftune.stages.group import VARIANTS, GRPOConfig, RLOOConfig, method_of, plan_grpo, plan_rloo
from preftune.training.loop import read_metrics

SMALL = {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 2}
SEVERAL_UPDATES = {"epochs": 2, "minibatches": 2}
METHODS = [("rloo", {}), *(("grpo", {"variant": variant}) for variant in VARIANTS)]
each_method = pytest.mark.parametrize(("stage", "changes"), METHODS, ids=["rloo", *VARIANTS])


def by_length(toy) -> dict:
    """A reward that often gives two answers the same: how near their length is to four tokens."""
    reward_model = str(toy.run("reward"))
    return {
        "reward_model": reward_model,
        "rewards": [{"model": reward_model, "weight": 0.0}, {"rule": "length", "length": {"target": 4}}],
    }


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@each_method
def test_it_starts_at_ratio_1_with_no_kl_and_samples_as_its_trainer_scores(toy, stage, changes):
    first, second = read_metrics(toy.run(stage, **SMALL, **changes))
    for row in (first, second):
        assert row["policy/ratio"] == 1
        assert row["policy/clip_fraction"] == row["policy/approx_kl"] == 0
        assert 0 <= row["policy/sampler_gap"] < 1e-3
        assert row["policy/updates"] == 1
    assert first["kl/reference"] == pytest.approx(0, abs=1e-4)
    assert second["kl/k3"] > 1e-6  # so it was not nothing that was trained
    # On-policy the surrogate's mean is that of −A, which is 0 for each group, or over the batch, but for weights by length.
    if method_of(toy.config(stage, **changes)).average == "sequences":
        assert abs(first["loss/policy"]) < 1e-5


@pytest.mark.parametrize("stage", ["rloo", "grpo"])
def test_over_several_updates_the_first_ratio_is_1_and_the_later_ones_are_not(toy, stage):
    row = read_metrics(toy.run(stage, **{**SMALL, **SEVERAL_UPDATES, "lr": 2e-2, "steps": 1, "warmup": 0.0}))[0]
    assert row["policy/sampler_gap"] < 1e-3
    assert row["policy/approx_kl"] > 0
    assert row["policy/updates"] > 1


@pytest.mark.parametrize("updates", [{}, {"epochs": 2}], ids=["one update", "several"])
def test_a_sampler_of_another_temperature_than_the_trainer_stops_the_run(toy, monkeypatch, updates):
    monkeypatch.setattr(client, "generate", lambda *args, **kwargs: generate(*args, **{**kwargs, "temperature": 1.3}))
    with pytest.raises(PreftuneError, match=r"^RLOO step 1: sampler and trainer disagree on a token's log-prob by [0-9.]+ nats"):
        toy.run("rloo", seed=31, **SMALL, **updates)


def test_dapo_samples_other_prompts_in_place_of_groups_that_are_all_alike(toy, monkeypatch):
    seen: list[experience.Draw] = []
    measure = experience.Rollouts.measure

    def noted(self, draw, *others, **settings):
        seen.append(draw)
        return measure(self, draw, *others, **settings)

    monkeypatch.setattr(experience.Rollouts, "measure", noted)
    settings = {**SMALL, **by_length(toy), "seed": 5}
    refilled = read_metrics(toy.run("grpo", variant="dapo", **settings))
    filled, seen = seen, []
    plain = read_metrics(toy.run("grpo", variant="dapo", refills=0, **settings))
    assert plain[0]["groups/equal"] > 0
    assert [row["groups/refills"] for row in plain] == [0, 0]
    assert all(0 < row["groups/refills"] <= 3 for row in refilled)
    for draw in filled:
        pairs = draw.scores.view(-1, 2)
        assert 0 < len(pairs) <= 4
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert [g.index for g in draw.groups] == list(range(len(draw.groups)))
        assert [s.ids for s in draw.samples] == [ids for g in draw.groups for ids in g.completions]


def test_a_reward_that_is_always_the_same_is_said_and_teaches_nothing(toy):
    notes = Notes()
    constant = {**by_length(toy), "rewards": [{"model": str(toy.run("reward")), "weight": 0.0}], "no_eos_score": 0.0}
    run = group.grpo(toy.config("grpo", kl_coef=0.0, **SMALL, **constant), toy.out, progress=notes)
    assert any(note == "GRPO step 1: every completion scored 0 sd, so the reward tells nothing apart." for note in notes.said)
    assert [row["groups/equal"] for row in read_metrics(run)] == [1, 1]
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before, after = (load_causal_lm(path)(ids).logits for path in (toy.base, run))
    assert torch.equal(before, after)


def test_a_sample_that_could_not_be_scored_teaches_nothing(toy):
    mask, failed = torch.ones(4, 3, dtype=torch.bool), torch.tensor([False, True, False, False])
    logprobs = -torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    seen = experience.Experience([], [], torch.tensor([1.0, 0.5, 0.0, 2.0]), logprobs, 2 * logprobs, logprobs, mask, None, failed=failed)
    for stage, changes in METHODS:
        found = group.advantages_of(method_of(toy.config(stage, **changes)), seen, samples_per_prompt=2)
        assert found[1].tolist() == [0, 0, 0]
        assert (found[[0, 2, 3]] != 0).all()


# Settings.


def test_a_variant_says_what_the_config_leaves_open_and_the_config_wins():
    def method(**changes):
        return method_of(GRPOConfig(data="d", model="m", reward_model="r", **changes))

    assert (method().kl_coef, method().clip, method().kl_in) == (0.04, (0.2, 0.2), "loss")
    dapo = method(variant="dapo", kl_coef=0.1)
    assert (dapo.kl_coef, dapo.clip, dapo.refills, dapo.average) == (0.1, (0.2, 0.28), 3, "tokens")
    assert method(variant="dapo", refills=0, clip_range=(0.1, 0.3)).clip == (0.1, 0.3)
    assert method(kl_in="reward").kl_in == "reward"
    assert method_of(RLOOConfig(data="d", model="m", reward_model="r", kl_coef=0.0)).kl_coef == 0


@pytest.mark.parametrize("kind", [RLOOConfig, GRPOConfig])
def test_a_group_of_one_is_refused_before_anything_is_loaded(kind):
    with pytest.raises(ValueError, match="samples_per_prompt"):
        kind(data="d", model="m", reward_model="r", samples_per_prompt=1)


def test_the_plan_says_what_a_run_takes(toy):
    for stage, plan in (("rloo", plan_rloo), ("grpo", plan_grpo)):
        planned = plan(toy.config(stage, **SMALL), toy.out)
        assert (planned.stage, planned.steps) == (stage, 2)
        assert planned.examples == 8
        assert planned.seconds > 0


def test_rewards_alone_are_enough_and_ppo_needs_a_reward_model_for_its_critic(toy):
    alone = {"reward_model": None, "rewards": [{"rule": "length", "length": {"target": 4}}]}
    run = toy.run("rloo", **SMALL, **alone)
    assert read_manifest(run)["inputs"].keys() == {"data", "model"}
    assert not read_manifest(run)["one_base"]
    assert plan_rloo(toy.config("rloo", **SMALL, **alone), toy.out).steps == 2
    with pytest.raises(ValueError, match='nothing rewards. Set "reward_model", or "rewards"'):
        RLOOConfig(data="d", model="m")
    with pytest.raises(ValueError, match="reward_model"):
        toy.config("ppo", **alone)
