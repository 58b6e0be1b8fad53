"""A whole stage whose samples Ray actors draw."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.rollout_twin import Twin
from tests.whole.test_resuming import KillAfter

from preftune.rollout import client
from preftune.training.loop import read_metrics

ray = pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_run_whose_samples_ray_draws_ends_with_the_weights_of_one_that_draws_its_own(toy):
    small = {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 2}
    here = toy.run("rloo", **small)
    there = toy.run("rloo", **small, rollout={"backend": "ray", "workers": 1})
    assert there != here
    # Not to the last bit: an actor draws fewer prompts at once, so its log-probs, which the KL in the reward is made of, round otherwise.
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (here, there)]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-4, rtol=0.0)
    assert all(row["policy/sampler_gap"] < 1e-3 for row in read_metrics(there))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_run_that_ray_draws_ahead_goes_on_after_an_interruption_and_ends_as_it_has_to(toy, tmp_path, monkeypatch):
    rollout = {"backend": "ray", "workers": 1, "max_staleness": 1}
    small = {"steps": 4, "prompts_per_step": 4, "samples_per_prompt": 2, "seed": 22, "rollout": rollout}
    with monkeypatch.context() as patch:
        patch.setattr(client, "open_client", lambda config, start, note: Twin(start))
        here = toy.run("rloo", **small)
    project = toy.copy(tmp_path / "project", toy.run("reward"))
    with pytest.raises(KeyboardInterrupt):
        project.run("rloo", **small, progress=KillAfter(2))  # while the third batch is under way
    there = project.run("rloo", **small)
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (here, there)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-4, rtol=0.0)
    assert [row["rollout/staleness"] for row in read_metrics(there)] == [0, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_run_whose_rules_ray_asks_scores_as_one_that_asks_them_itself(toy, monkeypatch):
    rewards = [{"rule": "length", "length": {"target": 4}}]
    small = {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 2, "seed": 24, "rewards": rewards}
    with monkeypatch.context() as patch:
        patch.setattr(client, "open_client", lambda config, start, note: Twin(start))
        here = toy.run("rloo", **small, rollout={"backend": "ray", "workers": 1, "max_staleness": 1})
    there = toy.run("rloo", **small, rollout={"backend": "ray", "workers": 1, "max_staleness": 1, "score_workers": 1})
    assert there != here
    for name in ("reward/part/length", "reward/part/model", "reward/score"):
        assert [row[name] for row in read_metrics(there)] == pytest.approx([row[name] for row in read_metrics(here)], abs=1e-3), name
    assert not ray.is_initialized()
