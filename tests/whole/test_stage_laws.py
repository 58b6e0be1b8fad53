"""What must not change a run does not, and every run starts where it says that it starts."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from preftune.errors import ModelError, PreftuneError
from preftune.models.load import load_causal_lm
from preftune.rollout import client
from preftune.rollout.generate import generate
from preftune.stages import ppo, preference_learner
from preftune.training.loop import read_metrics
from preftune.training.reference import Reference

TWO_STEPS = {
    "sft": {"epochs": 1, "batch_size": 12},
    "reward": {"epochs": 1, "batch_size": 12},
    "dpo": {"epochs": 1, "batch_size": 12},
    "ppo": {"steps": 2, "epochs": 1, "prompts_per_step": 4, "samples_per_prompt": 4},
    "rloo": {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 4},
    "grpo": {"steps": 2, "epochs": 2, "minibatches": 2, "prompts_per_step": 4, "samples_per_prompt": 4},
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {f"{file.relative_to(run)}: {name}": tensor for file in run.rglob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_close(run: Path, other: Path, tolerance: float) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
    rows, expected_rows = read_metrics(run), read_metrics(other)
    assert len(rows) == len(expected_rows)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        # While policy and reference are the same, which answer is ahead is a matter of rounding.
        aside = {"seconds", "accuracy/train"} if row.get("margin/train") == pytest.approx(0, abs=1e-4) else {"seconds"}
        ours_told, theirs_told = ({k: v for k, v in r.items() if k not in aside} for r in (row, expected_row))
        assert ours_told == pytest.approx(theirs_told, abs=max(tolerance, 1e-4), rel=1e-4)


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
@pytest.mark.parametrize("stage", TWO_STEPS)
def test_how_many_tokens_are_computed_at_once_changes_nothing(toy, stage, whole):
    # 64 tokens: about one pair at a time. The learning rate is small, since Adam makes a step of full size of any gradient, be it
    # nothing but rounding.
    settings = {"whole": whole, "lr": 1e-4, **TWO_STEPS[stage]}
    if stage == "ppo":
        settings |= {"value_lr": 1e-4, "reward_model": str(toy.run("reward"))}
    small, large = (toy.run(stage, token_budget=budget, **settings) for budget in (64, 8192))
    assert small != large
    assert_close(small, large, 1e-5)


@pytest.mark.parametrize("stage", ["reward", "dpo", "ppo"])
def test_rows_that_share_a_prompt_give_the_run_of_plain_rows(toy, tmp_path, monkeypatch, stage):
    shared = toy.run(stage, lr=1e-3, **TWO_STEPS[stage])
    elsewhere = toy.copy(tmp_path / "project", toy.run("reward"))
    monkeypatch.setattr("preftune.stages.common.tree_rows_agree", lambda model: False)
    reward_model = {"reward_model": str(elsewhere.out / toy.run("reward").name)} if stage == "ppo" else {}
    plain = elsewhere.run(stage, lr=1e-3, **TWO_STEPS[stage], **reward_model)
    assert plain.name == shared.name
    assert [json.loads((run / "manifest.json").read_text())["tree_rows"] for run in (shared, plain)] == [True, False]
    assert_close(plain, shared, 1e-4)


# The start.


@pytest.fixture(scope="session")
def with_dropout(toy) -> Path:
    """A base model whose config asks for much dropout (GPT-2's three kinds of it), without a chat template of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = toy.folder / "with_dropout"
    config = AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=512, vocab_size=400, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5
    )
    tokenizer = AutoTokenizer.from_pretrained(toy.base)
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["base", "an adapter's run", "a run of all weights", "a model with dropout"])
def start(request, toy) -> dict[str, object]:
    """The settings that name one of four models to start from."""
    match request.param:
        case "base":
            return {}
        case "an adapter's run":
            return {"model": str(toy.run("sft"))}
        case "a run of all weights":
            return {"model": str(toy.run("sft", whole=True))}
    return {"model": str(request.getfixturevalue("with_dropout"))}


def test_dpo_starts_at_log_2_with_every_margin_0(toy, start):
    first = read_metrics(toy.run("dpo", epochs=1, **start))[0]
    assert first["loss/train"] == pytest.approx(math.log(2), abs=2e-6)
    assert [first[name] for name in ("margin/train", "logprobs/chosen", "logprobs/rejected")] == pytest.approx([0, 0, 0], abs=2e-5)


def test_ppo_starts_at_ratio_1_with_no_kl_and_samples_as_its_trainer_scores(toy, start):
    reward_model = str(toy.run("reward"))
    if "with_dropout" in str(start):
        reward_model = str(toy.run("reward", epochs=1, **start))
    run = toy.run("ppo", steps=2, epochs=1, minibatches=1, prompts_per_step=4, reward_model=reward_model, **start)
    first, second = read_metrics(run)
    for row in (first, second):  # one update a step, so each step's is the first after sampling
        assert row["policy/ratio"] == pytest.approx(1, abs=1e-5)
        assert row["policy/clip_fraction"] == 0
        assert row["policy/sampler_gap"] < 1e-3
    assert first["kl/reference"] == pytest.approx(0, abs=1e-4)
    assert first["kl/k3"] == pytest.approx(0, abs=1e-6)
    assert second["kl/k3"] > 1e-5  # so it was not nothing that was trained


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_ppo_takes_every_log_prob_at_the_temperature_of_sampling(toy, temperature):
    run = toy.run("ppo", steps=1, epochs=1, minibatches=1, temperature=temperature)
    assert read_metrics(run)[0]["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert read_metrics(run)[0]["policy/sampler_gap"] < 1e-3


def test_a_sampler_of_another_temperature_than_the_trainer_stops_the_run(toy, monkeypatch):
    monkeypatch.setattr(client, "generate", lambda *args, **kwargs: generate(*args, **{**kwargs, "temperature": 1.3}))
    with pytest.raises(PreftuneError, match=r"^PPO step 1: sampler and trainer disagree on a token's log-prob by [0-9.]+ nats"):
        toy.run("ppo", seed=31)


def test_a_policy_that_moves_between_sampling_and_learning_stops_the_run(toy, monkeypatch):
    sample = ppo._Learner.sample

    def sample_then_move(self, *args):
        batch = sample(self, *args)
        with torch.no_grad():
            for name, parameter in self.room.model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1)
        return batch

    monkeypatch.setattr(ppo._Learner, "sample", sample_then_move)
    with pytest.raises(PreftuneError, match=r"PPO step 1: the first ratio is [0-9.]+ and not 1"):
        toy.run("ppo", seed=32)


def test_a_reference_that_is_not_the_start_is_refused(toy, monkeypatch):
    measure = preference_learner.reference_logprobs

    def from_elsewhere(*args, **settings):
        found = measure(*args, **settings)
        return Reference({index: tuple(row - 0.5 / len(row) for row in rows) for index, rows in found.tokens.items()})

    monkeypatch.setattr(preference_learner, "reference_logprobs", from_elsewhere)
    with pytest.raises(PreftuneError, match=r"^DPO step 1: policy and reference differ by 0\.5000 nats before anything was learned"):
        toy.run("dpo", seed=33)
    assert not [p for p in toy.out.glob("[!.]*") if json.loads((p / "manifest.json").read_text())["config"]["seed"] == 33]


def test_the_reference_of_a_chain_is_the_run_below_and_not_the_base(toy):
    # After SFT the run's own log-probs are the reference: measured from the base, the margin at step 1 would not be 0.
    sft, dpo = toy.run("sft"), toy.run("dpo", model=str(toy.run("sft")), epochs=1)
    assert json.loads((dpo / "manifest.json").read_text())["config"]["model"] == f"runs/{sft.name}"
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        base, tuned = (load_causal_lm(path)(ids).logits for path in (toy.base, sft))
    assert (base - tuned).abs().max() > 0.01


# What a run stands on.


def test_a_base_that_changed_under_an_adapters_run_is_refused(toy, tmp_path):
    run = toy.run("sft")
    elsewhere = toy.copy(tmp_path / "project", run)
    config = json.loads((elsewhere.base / "config.json").read_text())
    (elsewhere.base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(ModelError, match="is not the one that it was trained on. Bring the right one back"):
        elsewhere.run("dpo", model=str(elsewhere.out / run.name))


def test_a_project_that_was_moved_goes_on_and_finds_its_runs(toy, tmp_path):
    sft, reward_model = toy.run("sft"), toy.run("reward")
    here = toy.copy(tmp_path / "here", sft, reward_model)
    dpo = here.run("dpo", model=str(here.out / sft.name), epochs=1)
    shutil.move(here.folder, tmp_path / "there")
    there = replace(toy, folder=tmp_path / "there", base=tmp_path / "there" / "base", data=tmp_path / "there" / "snapshots" / toy.data.name)
    found = there.run("dpo", model=str(there.out / sft.name), epochs=1)
    assert found == there.out / dpo.name
    assert (load_causal_lm(found)(torch.tensor([[1, 2]])).logits - load_causal_lm(toy.base)(torch.tensor([[1, 2]])).logits).abs().max() > 0
    small = {"steps": 1, "prompts_per_step": 4, "reward_model": str(there.out / reward_model.name)}
    assert there.run("ppo", model=str(found), **small).exists()
