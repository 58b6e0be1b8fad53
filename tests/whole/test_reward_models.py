"""A trained reward model is one folder that scores the same wherever and however it is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preftune.data.batches import Group, collate, encode
from preftune.data.snapshot import load_snapshot
from preftune.errors import ModelError, PreftuneError
from preftune.manifest import read_manifest
from preftune.models.heads import end_scores, load_reward_heads, load_reward_model, read_normalisation
from preftune.models.load import load_renderer
from preftune.progress import Lines
from preftune.rollout.score import score
from preftune.stages.common import pair_items
from preftune.training.loop import read_metrics

both_ways = pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])


@pytest.fixture
def groups(toy) -> list[Group]:
    return encode(load_renderer(toy.base), pair_items(load_snapshot(toy.data).held_out), max_tokens=512).groups


@both_ways
def test_plain_transformers_scores_a_padded_batch_as_we_do(toy, groups, whole):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = toy.run("reward", whole=whole) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = score(load_reward_model(folder), groups, pad_id=tokenizer.pad_token_id, token_budget=512)
    turns = []
    for pair in load_snapshot(toy.data).held_out:
        for answer in (pair.chosen, pair.rejected):
            messages = [{"role": m.role, "content": m.content} for m in pair.messages] + [{"role": "assistant", "content": answer}]
            turns.append(tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n"))  # up to the end token
    batch = tokenizer(turns, return_tensors="pt", padding=True, add_special_tokens=False)
    assert bool((batch["attention_mask"] == 0).any())
    with torch.no_grad():
        theirs = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert model.config.num_labels == 1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_its_padding_is_not_the_end_token_that_carries_the_score(toy):
    folder = toy.run("reward") / "model"
    config = json.loads((folder / "config.json").read_text())
    renderer = load_renderer(folder)
    assert config["pad_token_id"] is not None
    assert config["pad_token_id"] not in renderer.stop_ids
    assert renderer.tokenizer.pad_token_id == config["pad_token_id"]
    assert renderer.end_id == load_renderer(toy.base).end_id


def test_alone_in_a_batch_and_in_a_shared_row_an_answer_scores_the_same(toy, groups):
    model = load_reward_model(toy.run("reward"))
    alone = [Group(g.prompt, (c,), 0) for g in groups for c in g.completions]
    with torch.no_grad():
        expected = torch.cat([end_scores(model, collate([group], 0)) for group in alone])
    for tree in (True, False):
        torch.testing.assert_close(score(model, groups, pad_id=0, token_budget=4096, tree=tree), expected, rtol=0, atol=1e-5)
    assert (expected[0::2] > expected[1::2]).float().mean() > 0.8


def test_the_scores_in_the_manifest_are_those_of_the_folder(toy, groups):
    run = toy.run("reward")
    facts = read_manifest(run)
    scores = score(load_reward_model(run), groups, pad_id=0, token_budget=4096)
    assert facts["held_out"]["margins"] == pytest.approx((scores[0::2] - scores[1::2]).tolist(), abs=1e-3)
    assert read_normalisation(run) == (facts["normalisation"]["mean"], facts["normalisation"]["sd"])
    trained = encode(load_renderer(toy.base), pair_items(load_snapshot(toy.data).train), max_tokens=512).groups
    all_scores = score(load_reward_model(run), trained, pad_id=0, token_budget=4096)
    assert (float(all_scores.mean()), float(all_scores.std())) == pytest.approx(read_normalisation(run), abs=1e-3)


def test_a_reward_model_without_its_head_is_refused_by_ppo(toy, tmp_path):
    elsewhere = toy.copy(tmp_path / "project", toy.run("reward"))
    run = elsewhere.out / toy.run("reward").name
    (weights,) = (run / "model").glob("*.safetensors")
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("score")}, weights, metadata={"format": "pt"})
    shutil.rmtree(run / "on_base")  # with it, PPO would not need the whole model
    with pytest.raises(ModelError, match=r"weights are missing: score\.weight; its rewards would be random"):
        elsewhere.run("ppo", reward_model=str(run))


def test_a_reward_model_of_other_tokens_than_the_policys_is_given_the_text_and_that_is_said_once(toy, tmp_path, tiny_folder, capsys):
    elsewhere = toy.copy(tmp_path / "project", toy.run("reward"))
    shutil.copytree(tiny_folder("mistral"), elsewhere.folder / "other")
    other = elsewhere.run("reward", model=str(elsewhere.folder / "other"), epochs=1)
    run = elsewhere.run("ppo", reward_model=str(other), steps=2, prompts_per_step=2, progress=Lines())
    assert capsys.readouterr().err.count("it is given the text anew") == 1
    assert all(abs(row["reward/score"]) < 10 for row in read_metrics(run))


def test_a_saved_reward_model_that_scores_differently_is_no_finished_run(toy, monkeypatch):
    def load_and_lose_the_head(path: Path, **options: object) -> object:
        model = load_reward_heads(path)
        with torch.no_grad():
            model.score.weight.normal_()
        return model

    monkeypatch.setattr("preftune.stages.reward.load_reward_heads", load_and_lose_the_head)
    before = set(toy.out.glob("[!.]*"))
    with pytest.raises(PreftuneError, match="the saved reward model scores differently by"):
        toy.run("reward", seed=41)
    assert set(toy.out.glob("[!.]*")) == before


def test_a_language_model_is_no_reward_model(toy):
    with pytest.raises(ModelError, match=r"weights are missing: score\.weight"):
        toy.run("ppo", reward_model=str(toy.base))
