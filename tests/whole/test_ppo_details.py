"""The switches of PPO: each does what it says on a run, and nothing that must not change a run does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from preftune.errors import ConfigError, DataError
from preftune.manifest import read_manifest
from preftune.models.one_base import ON_BASE
from preftune.stages import experience, ppo, rounds
from preftune.stages.ppo_config import PPOConfig
from preftune.training.loop import read_metrics
from preftune.training.optim import adamw

SMALL = {"steps": 2, "epochs": 1, "prompts_per_step": 4, "samples_per_prompt": 2, "lr": 1e-3}


def learned(run: Path) -> dict[str, torch.Tensor]:
    return {f"{file.relative_to(run)}: {name}": t for file in run.rglob("*.safetensors") for name, t in load_file(file).items()}


def policy_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def losses(run: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(run)]


# One base.


def test_where_all_come_from_one_base_it_is_in_memory_once(toy):
    assert read_manifest(toy.run("ppo", **SMALL))["one_base"]
    assert not read_manifest(toy.run("ppo", model=str(toy.run("sft")), **SMALL))["one_base"]  # the reward model is not of this start
    assert not read_manifest(toy.run("ppo", whole=True, **SMALL))["one_base"]


def test_one_base_gives_what_models_of_their_own_give(toy, tmp_path):
    shared = toy.run("ppo", **SMALL)
    elsewhere = toy.copy(tmp_path / "project", toy.run("reward"))
    reward_model = elsewhere.out / toy.run("reward").name
    shutil.rmtree(reward_model / ON_BASE)
    apart = elsewhere.run("ppo", reward_model=str(reward_model), **SMALL)
    assert (read_manifest(shared)["one_base"], read_manifest(apart)["one_base"]) == (True, False)
    for row, other in zip(read_metrics(shared), read_metrics(apart), strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in other.items() if k != "seconds"}, abs=2e-4, rel=1e-3
        )
    ours, theirs = policy_of(shared), policy_of(apart)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-4)
    names = {name.split(".")[-2] for name in load_file(shared / "critic.safetensors") if "lora" in name}
    assert names == {"critic"}  # neither the reward model's adapter nor the policy's
    assert sorted(p.name for p in (shared / "adapter").iterdir()) == sorted(p.name for p in (apart / "adapter").iterdir())


def test_an_ensemble_on_the_policys_base_keeps_all_its_heads(toy, tmp_path):
    ensemble = toy.run("reward", heads=3, epochs=1)
    shared = toy.run("ppo", reward_model=str(ensemble), **{**SMALL, "steps": 1})
    elsewhere = toy.copy(tmp_path / "project", ensemble)
    shutil.rmtree(elsewhere.out / ensemble.name / ON_BASE)
    apart = elsewhere.run("ppo", reward_model=str(elsewhere.out / ensemble.name), **{**SMALL, "steps": 1})
    assert (read_manifest(shared)["one_base"], read_manifest(apart)["one_base"]) == (True, False)
    for name in ("reward/uncertainty", "reward/score"):
        assert losses(shared, name) == pytest.approx(losses(apart, name), abs=1e-4)
    assert losses(shared, "reward/uncertainty")[0] > 0


# Each switch does something.

SWITCHES = {
    "kl_estimator": {"kl_estimator": "k3", "kl_coef": 5.0},
    "whiten off": {"whiten": None},
    "whiten by minibatch": {"whiten": "minibatch", "minibatches": 2},
    "value clip": {"critic": {"clip_range": 1e-5}},
    "score clip": {"scoring": {"clip": 0.1}},
    "running unit": {"scoring": {"unit": "running"}},
    "own unit": {"scoring": {"unit": "own"}},
    "rewards whitened": {"scoring": {"whiten_rewards": True}},
    "reference follows": {"reference_ema": 0.1, "kl_coef": 5.0},
    "missing end": {"scoring": {"missing_end": "add"}, "max_new_tokens": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_changes_what_is_learned(toy, name):
    plain = {"kl_coef", "minibatches", "lr", "max_new_tokens"}
    beside = {key: value for key, value in SWITCHES[name].items() if key in plain}
    ours, theirs = (learned(toy.run("ppo", **{**SMALL, **changes})) for changes in (SWITCHES[name], beside))
    assert any(not torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_early_stop_leaves_updates_out(toy):
    settings = {**SMALL, "epochs": 3, "minibatches": 2, "lr": 0.05}
    assert min(losses(toy.run("ppo", kl_stop=1e-6, **settings), "policy/updates")) < 6
    assert losses(toy.run("ppo", kl_stop=None, **settings), "policy/updates") == [6, 6]


def test_in_its_first_steps_the_critic_learns_alone(toy):
    run = toy.run("ppo", critic={"warmup_steps": 2}, **SMALL)
    assert all(int(t.count_nonzero()) == 0 for name, t in policy_of(run).items() if "lora_B" in name)
    assert any(int(t.count_nonzero()) for name, t in load_file(run / "critic.safetensors").items() if "lora_B" in name)
    assert "policy/ratio" not in read_metrics(run)[0]
    assert losses(run, "loss/value")


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
def test_a_critic_that_is_a_head_on_the_policy(toy, whole):
    run = toy.run("ppo", whole=whole, critic={"shared": 0.1}, minibatches=1, **SMALL)
    head = load_file(run / "critic.safetensors")
    assert head.keys() == {"weight", "bias"}
    assert int(head["weight"].count_nonzero())
    rows = read_metrics(run)
    assert rows[0]["value/mean"] == 0  # its head starts at zero
    assert rows[0]["loss/policy"] == pytest.approx(0, abs=0.2)  # whitened advantages at ratio 1; the value loss is told apart
    assert rows[0]["policy/ratio"] == pytest.approx(1, abs=1e-5)


def test_the_mix_is_learned_beside_the_reward(toy, tmp_path):
    text = tmp_path / "texts.txt"
    text.write_text("Use pathlib, and type hints.\n\n" * 40, encoding="utf-8")
    run = toy.run("ppo", ptx_coef=20.0, ptx_text=str(text), **{**SMALL, "steps": 6, "lr": 1e-2})
    nll = losses(run, "loss/ptx")
    assert nll[-1] < nll[0] - 0.5
    assert abs(losses(run, "loss/policy")[0]) < 0.2  # told without the mix's share, which is 20 times as much
    assert "loss/ptx" not in read_metrics(toy.run("ppo", **SMALL))[0]
    text.write_text("Another text.", encoding="utf-8")
    other = toy.run("ppo", ptx_coef=20.0, ptx_text=str(text), **{**SMALL, "steps": 1})
    assert read_manifest(other)["inputs"]["ptx_text"] != read_manifest(run)["inputs"]["ptx_text"]


def test_a_mix_of_no_text_or_of_a_file_that_is_gone_is_a_sentence(toy, tmp_path):
    text = tmp_path / "texts.txt"
    text.write_text(" \n\n ", encoding="utf-8")
    with pytest.raises(DataError, match="there is no text in it"):
        toy.run("ppo", ptx_coef=1.0, ptx_text=str(text), **SMALL)
    with pytest.raises(ConfigError, match='key "ptx_text": there is no ".*gone.txt"'):
        toy.run("ppo", ptx_coef=1.0, ptx_text=str(tmp_path / "gone.txt"), **SMALL)


def test_with_mix_and_shared_critic_too_it_is_nothing_how_many_tokens_are_computed_at_once(toy):
    more = {"ptx_coef": 1.0, "critic": {"shared": 0.1}, **SMALL, "lr": 1e-4}
    small, large = (learned(toy.run("ppo", token_budget=budget, **more)) for budget in (64, 8192))
    for name, expected in large.items():
        torch.testing.assert_close(small[name], expected, rtol=0, atol=1e-5)


def test_every_epoch_takes_each_group_once_in_an_order_of_its_own():
    config = PPOConfig(data="d", model="m", reward_model="r", prompts_per_step=6, minibatches=3, epochs=2)
    groups = [ppo.Group((1,), ((2,),), n) for n in range(6)]
    found = [[group.index for group in part] for part in rounds.minibatches(config, groups, 4)]
    assert [len(part) for part in found] == [2] * 6
    first, second = ([n for part in epoch for n in part] for epoch in (found[:3], found[3:]))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second
    assert found == [[group.index for group in part] for part in rounds.minibatches(config, groups, 4)]


def test_adams_first_step_is_that_of_the_papers_eps():
    line = torch.nn.Linear(1, 1, bias=False)
    optimiser = adamw(line, eps=ppo.ADAM_EPS)
    optimiser.param_groups[0]["lr"] = 1.0
    before = line.weight.item()
    line.weight.grad = torch.full((1, 1), 1e-6)
    optimiser.step()
    assert before - line.weight.item() == pytest.approx(0.090909, abs=1e-5)


def test_one_minibatch_is_whitened_by_itself():
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    groups = [ppo.Group((1,), ((2, 3), (4,)), 0), ppo.Group((1,), ((5, 6), (7, 8)), 1)]
    zeros = torch.zeros(4, 2)
    seen = experience.Experience(groups, [], torch.zeros(4), zeros, zeros, zeros, mask, None)
    advantages = torch.tensor([[1.0, 2.0], [6.0, 99.0], [50.0, 60.0], [70.0, 80.0]])
    own = ppo._whitened(ppo.Batch(seen, zeros, advantages, zeros), [groups[0]]).advantages
    assert own[:2][mask[:2]].tolist() == pytest.approx([-0.925820, -0.462910, 1.388730], abs=1e-5)  # mean 3, sd √(14/3)
    assert float(own[2:].abs().sum()) == 0


# Troubles.


def test_a_trouble_is_said_once_kept_in_the_manifest_and_ends_the_run_that_asks_for_it(toy):
    settings = {**SMALL, "steps": 6, "max_new_tokens": 2}
    run = toy.run("ppo", stop_on=["unfinished"], **settings)
    manifest = read_manifest(run)
    assert (manifest["steps"], manifest["stopped_on"], len(read_metrics(run))) == (3, "unfinished", 3)
    assert [text.split(":")[0] for text in manifest["warnings"]] == ["Answers do not end"]
    on = read_manifest(toy.run("ppo", **settings))
    assert (on["steps"], on["stopped_on"]) == (6, None)
    assert sum(text.startswith("Answers do not end") for text in on["warnings"]) == 1


def test_each_step_keeps_samples_and_says_how_they_read(toy):
    run = toy.run("ppo", **SMALL)
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
    assert all(0 <= row["text/repetition"] < 1 and 0 < row["text/distinct"] <= 1 for row in read_metrics(run))


# What does not fit together.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ptx_text": "x.txt"}, '"ptx_text" is what "ptx_coef" weighs'),
        ({"critic": {"shared": 0.1, "warmup_steps": 1}}, '"critic.warmup_steps" needs a critic of its own'),
        ({"stop_on": ["boredom"]}, "stop_on"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        PPOConfig(data="d", model="m", reward_model="r", **changes)
