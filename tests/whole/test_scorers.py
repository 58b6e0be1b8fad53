"""Whatever gives a score is loaded by one function: a reward model, an ensemble of heads, a DPO run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preftune.data.batches import Group, encode
from preftune.data.snapshot import load_snapshot
from preftune.errors import ModelError
from preftune.evaluate.subject import Subject
from preftune.models.heads import load_reward_heads, load_reward_model, save_reward_model, scalar_head, with_scalar_head
from preftune.models.load import load_causal_lm, load_renderer
from preftune.rollout.score import load_scorer, score
from preftune.stages.common import pair_items

CPU = torch.device("cpu")
MEMBERS = [(0.5, 2.0), (-1.0, 0.5), (0.0, 1.0)]


@pytest.fixture
def groups(toy) -> list[Group]:
    return encode(load_renderer(toy.base), pair_items(load_snapshot(toy.data).held_out), max_tokens=512).groups


@pytest.fixture(scope="module")
def ensemble(toy, tmp_path_factory) -> Path:
    model = with_scalar_head(load_causal_lm(toy.base, device=CPU), seed=5, heads=3)
    folder = tmp_path_factory.mktemp("ensemble") / "model"
    save_reward_model(model, load_renderer(toy.base), folder, mean=0.1, deviation=1.5, members=MEMBERS)
    return folder


def test_a_reward_run_scores_as_its_model_does_and_in_its_own_standard_deviations(toy, groups):
    run = toy.run("reward")
    scorer = load_scorer(run, device=CPU)
    raw = score(load_reward_model(run, device=CPU), groups, pad_id=0, token_budget=512)
    assert scorer.tree
    assert scorer.num_scores == 1
    torch.testing.assert_close(scorer.score(groups), raw, rtol=0, atol=1e-5)
    trained = encode(scorer.renderer, pair_items(load_snapshot(toy.data).train), max_tokens=512).groups
    told = scorer.standardised(trained)
    assert float(told.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(told.std()) == pytest.approx(1.0, abs=1e-3)


def test_an_ensemble_gives_the_score_of_each_head(ensemble, groups):
    scorer = load_scorer(ensemble, device=CPU)
    scores = scorer.score(groups, token_budget=64)
    assert scorer.num_scores == 3
    assert scores.shape == (2 * len(groups), 3)
    mean, deviation = torch.tensor(MEMBERS).T
    torch.testing.assert_close(scorer.standardised(groups), (scores - mean) / deviation, rtol=0, atol=1e-5)
    heads = scalar_head(load_reward_heads(ensemble, device=CPU)).weight
    assert heads.shape[0] == 3
    assert not torch.equal(heads[0], heads[1])


def test_who_wants_one_score_of_an_ensemble_gets_the_mean_of_its_heads_each_in_its_own_sd(ensemble, groups):
    one = score(load_reward_model(ensemble, device=CPU), groups, pad_id=0, token_budget=512)
    deviation = torch.tensor([sd for _, sd in MEMBERS])
    expected = (load_scorer(ensemble, device=CPU).score(groups) / deviation).mean(1) * deviation.mean()
    torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)


def test_plain_transformers_loads_an_ensemble_with_all_its_heads(ensemble, groups):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(ensemble, local_files_only=True)
    assert model.config.num_labels == 3
    ids = torch.tensor([groups[0].prompt + groups[0].completions[0]])
    with torch.no_grad():
        theirs = model(ids).logits[0]
    torch.testing.assert_close(theirs, load_scorer(ensemble, device=CPU).score(groups)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
def test_a_dpo_run_scores_by_its_log_ratios(toy, groups, whole):
    run = toy.run("dpo", whole=whole)
    policy, reference = (Subject(path).completion_logprobs(groups) for path in (run, toy.base))
    expected = 0.1 * (torch.tensor(policy) - torch.tensor(reference)).flatten()
    scorer = load_scorer(run, device=CPU)
    found = scorer.score(groups)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found[0::2] > found[1::2]).float().mean() > 0.8  # it learned what the pairs say


def test_what_gives_no_score_says_so(toy):
    with pytest.raises(ModelError, match=r"a sft folder gives no score.*Give a run of train reward, or of train dpo"):
        load_scorer(toy.run("sft"), device=CPU)
    with pytest.raises(ModelError, match='a run with loss "simpo" compares with no fixed reference, so it implies no reward'):
        load_scorer(toy.run("dpo", loss="simpo", epochs=1), device=CPU)
