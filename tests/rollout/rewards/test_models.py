"""Reward models as a reward: in the policy's tokens where they are the same, else by text; ensembles; what is too long or empty."""

from __future__ import annotations

import pytest
import torch

from preftune.data.batches import Group, collate
from preftune.errors import ConfigError
from preftune.models.heads import end_scores, load_reward_model, save_reward_model, with_scalar_head
from preftune.models.load import load_causal_lm, load_renderer
from preftune.records import Message
from preftune.rollout.rewards.asking import Ask
from preftune.rollout.rewards.models import ModelReward, pessimistic
from preftune.rollout.score import load_scorer

CPU = torch.device("cpu")
PROMPT = (Message(role="user", content="What is two and two?"),)


@pytest.fixture(scope="module")
def reward_folder(tiny_folder, tmp_path_factory):
    """Return the folder of a reward model on a tiny model of a family, its scores said to have mean 0.5 and sd 2."""

    def make(family, seed):
        folder = tmp_path_factory.mktemp(f"reward_{family}_{seed}")
        model = with_scalar_head(load_causal_lm(tiny_folder(family), device=CPU), seed=seed)
        save_reward_model(model, load_renderer(tiny_folder(family)), folder / "model", mean=0.5, deviation=2.0)
        (folder / "manifest.json").write_text('{"kind": "reward"}', encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="module")
def renderer(tiny_folder):
    return load_renderer(tiny_folder("llama"))


@pytest.fixture(scope="module")
def one(reward_folder):
    return reward_folder("llama", 1)


def drawn(renderer, *texts):
    """Return (asks, groups) of completions of PROMPT as the policy would write them."""
    ids = [tuple(renderer.completion_ids(text)) for text in texts]
    asks = [Ask(PROMPT, text, own) for text, own in zip(texts, ids, strict=True)]
    return asks, [Group(tuple(renderer.prompt_ids(PROMPT)), tuple(ids), 0)]


def expected(folder, texts):
    """Return the scores of each text alone, in its model's own tokens, in sd."""
    renderer, model = load_renderer(folder), load_reward_model(folder)
    groups = [Group(tuple(renderer.prompt_ids(PROMPT)), (tuple(renderer.completion_ids(text)),), 0) for text in texts]
    with torch.no_grad():
        return [(float(end_scores(model, collate([group], 0))) - 0.5) / 2.0 for group in groups]


def opened(folders, renderer, noted, uncertainty=None):
    return ModelReward([load_scorer(folder, device=CPU) for folder in folders], renderer, uncertainty, noted, token_budget=256)


def test_a_model_with_the_policys_tokens_reads_them_as_they_are_in_its_own_sd(one, renderer, noted):
    given = opened([one], renderer, noted).score(*drawn(renderer, "It is four.", "Five"))
    assert given.scores.tolist() == pytest.approx(expected(one, ["It is four.", "Five"]), abs=1e-5)
    assert noted.notes == []


def test_a_model_with_other_tokens_is_given_the_text_and_that_is_said_once(reward_folder, renderer, noted):
    other = reward_folder("phi", 2)
    reward = opened([other], renderer, noted)
    for _ in range(2):
        given = reward.score(*drawn(renderer, "It is four.", "Five", ""))
        assert given.scores.tolist() == pytest.approx(expected(other, ["It is four.", "Five", ""]), abs=1e-5)
    assert noted.notes == [f"{other.name} reads other tokens or another chat template than the policy: it is given the text anew."]


def test_an_ensemble_of_two_folders_is_their_mean_less_what_they_disagree(reward_folder, one, renderer, noted):
    two = reward_folder("llama", 5)
    texts = ["It is four.", "Five"]
    pairs = list(zip(expected(one, texts), expected(two, texts), strict=True))
    for uncertainty, by_hand in (
        (None, [(a + b) / 2 for a, b in pairs]),
        (1.0, [min(a, b) for a, b in pairs]),  # of two, mean − sd is the lower one
        ("worst", [min(a, b) for a, b in pairs]),
    ):
        given = opened([one, two], renderer, noted, uncertainty).score(*drawn(renderer, *texts))
        assert given.scores.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert given.counts["reward/uncertainty"] == pytest.approx(sum(abs(a - b) / 2 for a, b in pairs) / 2, abs=1e-5)


def test_pessimism_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(pessimistic(scores, 0.5), torch.tensor([2.0 - 0.5 * (2 / 3) ** 0.5, 0.0]))
    assert pessimistic(scores, "worst").tolist() == [1.0, 0.0]


def test_one_model_with_one_head_cannot_be_unsure(one, renderer, noted):
    with pytest.raises(ConfigError, match="one reward model cannot tell how unsure it is"):
        opened([one], renderer, noted, 1.0)


def test_an_answer_without_a_token_is_read_at_an_end_token(one, renderer, noted):
    asks = [Ask(PROMPT, "", ())]
    given = opened([one], renderer, noted).score(asks, [Group(tuple(renderer.prompt_ids(PROMPT)), ((),), 0)])
    assert given.scores.tolist() == pytest.approx(expected(one, [""]), abs=1e-5)


def test_what_is_longer_than_the_model_reads_is_marked_and_the_rest_is_scored(reward_folder, one, renderer, noted):
    texts = ["It is four.", "a b c " * 300]
    for folder in (one, reward_folder("phi", 2)):
        given = opened([folder], renderer, noted).score(*drawn(renderer, *texts))
        assert list(given.failures) == [1]
        assert given.scores[0] == pytest.approx(expected(folder, texts[:1])[0], abs=1e-5)
