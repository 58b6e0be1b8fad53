"""Each stage learns the planted preference, with an adapter and with all weights, and leaves what the next command takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from preftune.data.batches import collate, encode
from preftune.data.snapshot import load_snapshot
from preftune.losses.reduce import sequence_sum
from preftune.manifest import read_manifest
from preftune.models.load import batch_logprobs, load_causal_lm, load_renderer
from preftune.records import Message
from preftune.rollout.generate import generate
from preftune.stages.common import pair_items
from preftune.training.loop import read_metrics
from preftune.training.metrics import METRICS

each_seed = pytest.mark.parametrize(
    ("whole", "seed"), [(False, 0), (False, 1), (False, 2), (True, 0)], ids=["adapter, seed 0", "1", "2", "all weights"]
)


def held_out_logprobs(model: Path, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Σ log p of the chosen and of the rejected answer of each held-out pair, by plain rows and one pair at a time."""
    loaded, renderer = load_causal_lm(model), load_renderer(model)
    sums = []
    for group in encode(renderer, pair_items(load_snapshot(data).held_out), max_tokens=512).groups:
        batch = collate([group], renderer.pad_id, tree=False)
        with torch.no_grad():
            sums.append(sequence_sum(batch_logprobs(loaded, batch)[0], batch.sequence, 2))
    chosen, rejected = torch.stack(sums).T
    return chosen, rejected


def share_of(letter: str, model: Path, data: Path) -> float:
    """Return in which share of sampled answers to held-out prompts this letter is more frequent than the other one."""
    loaded, renderer = load_causal_lm(model), load_renderer(model)
    prompts = [renderer.prompt_ids(p.messages) for p in load_snapshot(data).held_out_prompts]
    samples = generate(
        loaded, prompts, samples_per_prompt=8, max_new_tokens=8, temperature=1.0, seed=1,
        stop_ids=renderer.stop_ids, pad_id=renderer.pad_id,
    )  # fmt: skip
    other = {"a": "b", "b": "a"}[letter]
    texts = [renderer.decode(s.ids) for s in samples]
    return sum(text.count(letter) > text.count(other) for text in texts) / len(texts)


@each_seed
def test_sft_learns_to_write_the_chosen_answers(toy, whole, seed):
    run = toy.run("sft", whole=whole, seed=seed)
    chosen, rejected = held_out_logprobs(run, toy.data)
    before, other_before = held_out_logprobs(toy.base, toy.data)
    assert (chosen - before).mean() > 0.3
    assert (rejected - other_before).mean() < -0.5


@each_seed
def test_the_reward_model_tells_held_out_pairs_apart(toy, whole, seed):
    facts = read_manifest(toy.run("reward", whole=whole, seed=seed))["held_out"]
    assert facts["n"] >= 10
    assert facts["accuracy"] > 0.8
    assert 0.2 < facts["longer_wins"] < 0.8  # so it is not the length that tells
    assert facts["loss"] < 0.3


@each_seed
def test_dpo_puts_the_chosen_answer_ahead_on_held_out_pairs(toy, whole, seed):
    run = toy.run("dpo", whole=whole, seed=seed)
    chosen, rejected = held_out_logprobs(run, toy.data)
    before, other_before = held_out_logprobs(toy.base, toy.data)
    margins = (chosen - before) - (rejected - other_before)
    assert (margins > 0).float().mean() > 0.9
    assert margins.mean() > 2
    rows = read_metrics(run)
    assert rows[-1]["margin/train"] > 0.5
    assert rows[-1]["accuracy/train"] > 0.9


@each_seed
def test_ppo_raises_the_score_and_the_share_of_answers_that_are_preferred(toy, whole, seed):
    run = toy.run("ppo", whole=whole, seed=seed, reward_model=str(toy.run("reward")))
    rows = read_metrics(run)
    assert rows[-1]["reward/score"] - rows[0]["reward/score"] > 0.4  # in sd of the start's own scores
    assert 0 < rows[-1]["kl/k3"] < 5
    assert share_of("a", run, toy.data) > share_of("a", toy.base, toy.data) + 0.2


@pytest.mark.parametrize(
    ("stage", "whole", "seed"),
    [("rloo", False, 0), ("rloo", False, 1), ("rloo", False, 2), ("rloo", True, 0), ("grpo", False, 0), ("grpo", True, 0)],
)
def test_groups_raise_the_score_and_the_share_of_answers_that_are_preferred(toy, stage, whole, seed):
    run = toy.run(stage, whole=whole, seed=seed, reward_model=str(toy.run("reward")))
    rows = read_metrics(run)
    assert rows[-1]["reward/score"] - rows[0]["reward/score"] > 0.4  # in sd of the start's own scores
    assert 0 < rows[-1]["kl/k3"] < 5
    assert share_of("a", run, toy.data) > share_of("a", toy.base, toy.data) + 0.2
    assert {name for row in rows for name in row} <= METRICS.keys()
    manifest = read_manifest(run)
    assert manifest["kind"] == stage
    assert manifest["method"]["baseline"] == {"rloo": "others", "grpo": "group_sd"}[stage]
    assert (run / "model" if whole else run / "adapter").exists()


def test_the_start_prefers_neither_letter(toy):
    # The tests above would prove nothing on a start that writes "a" anyway.
    assert 0.25 < share_of("a", toy.base, toy.data) < 0.65


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_every_metric_of_a_run_is_defined(toy, stage):
    named = {name for row in read_metrics(toy.run(stage)) for name in row}
    assert named <= METRICS.keys()


@pytest.mark.parametrize("stage", ["reward", "ppo"])  # one saves whole models, one adapters
def test_a_library_call_prints_nothing(toy, stage, capfd):
    toy.run(stage, seed=77)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("stage", "whole"), [("sft", False), ("dpo", False), ("ppo", False), ("ppo", True), ("rloo", False)])
def test_a_run_answers_and_is_taken_by_every_later_stage(toy, stage, whole):
    run = toy.run(stage, whole=whole)
    assert (run / "model").exists() == whole
    assert (run / "adapter").exists() != whole
    assert not list(run.glob("checkpoint*"))
    renderer = load_renderer(run)
    prompt = renderer.prompt_ids([Message(role="user", content="Anything?")])
    settings = {"samples_per_prompt": 1, "max_new_tokens": 8, "temperature": 0.0, "seed": 0}
    sample = generate(load_causal_lm(run), [prompt], stop_ids=renderer.stop_ids, pad_id=renderer.pad_id, **settings)
    assert sample[0].ids
    for later in ("sft", "reward", "dpo", "ppo"):
        small = {"steps": 1} if later == "ppo" else {"epochs": 1, "batch_size": 24}
        assert read_manifest(toy.run(later, model=str(run), **small))["inputs"]["model"] == read_manifest(run)["id"]


def test_the_manifest_says_what_a_stranger_needs_to_repeat_the_run(toy):
    run = toy.run("ppo")
    manifest = read_manifest(run)
    assert manifest["kind"] == "ppo"
    assert manifest["config"]["model"] == "base"  # relative to the project, which can be moved
    assert manifest["config"]["data"] == f"snapshots/{toy.data.name}"
    assert manifest["inputs"].keys() == {"data", "model", "reward_model"}
    assert manifest["data"] == {"groups": 24, "left_out": {}, "turns_dropped": 0}
    assert manifest["trained_parameters"] > 0
    assert manifest["peak_memory_gib"] > 0
    assert manifest["versions"].keys() >= {"python", "preftune", "torch", "transformers", "peft"}


def test_ppo_keeps_samples_of_every_step_that_can_be_read(toy):
    lines = (toy.run("ppo") / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert {row["step"] for row in rows} == {1, 2, 3, 4, 5, 6}
    assert all(row["prompt"] and set(row) == {"step", "prompt", "completion", "score", "kl", "finished"} for row in rows)
