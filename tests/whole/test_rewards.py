"""PPO on a sum of rewards: each part is logged, what cannot be judged teaches nothing, and the run's id knows the function."""

from __future__ import annotations

import json

import pytest
import torch

from preftune.cli import app, run_app
from preftune.data.batches import Group
from preftune.errors import ConfigError, PreftuneError
from preftune.manifest import read_manifest
from preftune.progress import Lines
from preftune.rollout.generate import Sample
from preftune.stages.experience import Draw, _filled, learnable
from preftune.training.loop import read_metrics

FUNCTION = """
def some(prompts, completions, facts):
    assert all("reference" in fact for fact in facts)
    return [float("nan") if number % 4 == 0 else text.count("a") / 8 for number, text in enumerate(completions)]
"""


def cli(words: list[str]) -> int:
    return run_app(app, words, debug=True)


@pytest.mark.slow
def test_ppo_learns_from_a_sum_and_leaves_out_what_could_not_be_judged(toy, tmp_path):
    reward = toy.run("reward")
    project = toy.copy(tmp_path / "project", reward)
    (project.folder / "mine.py").write_text(FUNCTION, encoding="utf-8")
    rewards = [
        {"function": "mine.py:some", "weight": 0.5, "on_error": "skip"},
        {"rule": "length", "length": {"limit": 8, "buffer": 4}},
    ]
    settings = {"reward_model": "runs/" + reward.name, "steps": 2, "prompts_per_step": 4, "samples_per_prompt": 4}
    run = project.run("ppo", rewards=rewards, **settings)
    rows = read_metrics(run)
    assert [set(row) & {"reward/part/model", "reward/part/some", "reward/part/length"} for row in rows] == [
        {"reward/part/model", "reward/part/some", "reward/part/length"}
    ] * 2
    assert all(-1 <= row["reward/part/length"] <= 0 <= row["reward/part/some"] for row in rows)
    assert rows[0]["reward/failed"] == 0.25
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["inputs"].keys() >= {"rewards.0.function", "reward_model"}
    assert project.run("ppo", rewards=rewards, **settings) == run, "the same again is there already"
    with pytest.raises(PreftuneError, match=r'the reward "some" gives nan for completion 0 of 16'):
        project.run("ppo", rewards=[{**rewards[0], "on_error": "stop"}], **settings)
    with pytest.raises(ConfigError, match=r'key "rewards\.0\.function": there is no "gone\.py"'):
        project.run("ppo", rewards=[{"function": "gone.py:some"}], **settings)


@pytest.mark.slow
def test_a_reward_model_is_probed_when_it_ends_and_by_command_alike_and_ppo_repeats_what_was_found(toy, tmp_path, capsys):
    reward = toy.run("reward")
    kept = read_manifest(reward)["probes"]
    assert kept["probes"].keys() >= {"repeated", "longer", "thanked", "bulleted", "emptied", "swapped"}
    assert cli(["probe", str(reward), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == kept["findings"]
    assert found["probes"]["thanked"]["mean"] == pytest.approx(kept["probes"]["thanked"]["mean"], abs=1e-4)

    project = toy.copy(tmp_path / "project", reward)
    manifest = project.out / reward.name / "manifest.json"
    told = json.loads(manifest.read_text(encoding="utf-8"))
    told["probes"]["findings"] = ["pays 0.8 sd for saying thanks"]
    manifest.write_text(json.dumps(told), encoding="utf-8")
    project.run("ppo", reward_model=f"runs/{reward.name}", steps=1, progress=Lines())
    assert f"The reward model runs/{reward.name} pays 0.8 sd for saying thanks." in capsys.readouterr().err


def test_what_failed_leaves_the_draw_and_an_emptied_prompt_goes_with_it():
    groups = [Group((1,), ((5,), (6,)), 0), Group((2,), ((7,), (8,)), 1), Group((3,), ((9,), (10,)), 2)]
    samples = [Sample(i // 2, i % 2, (5 + i,), (0.0,), True) for i in range(6)]
    failed = torch.tensor([True, False, True, True, False, False])
    draw = learnable(Draw(groups, samples, torch.arange(6.0), failed=failed))
    assert draw.groups == [Group((1,), ((6,),), 0), Group((3,), ((9,), (10,)), 1)]
    assert [sample.ids for sample in draw.samples] == [(6,), (9,), (10,)]
    assert draw.scores.tolist() == [1.0, 4.0, 5.0]


def test_a_failed_score_becomes_the_mean_of_its_prompt_so_that_it_has_no_advantage():
    scores = torch.tensor([1.0, 9.0, 3.0, 7.0, 7.0, 7.0])
    failed = torch.tensor([False, True, False, True, True, True])
    assert _filled(scores, failed, 3).tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]
