"""The client of rollouts: what it refuses, what it sends, and the backend in the trainer's own process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from preftune.errors import PreftuneError
from preftune.manifest import content_seed
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.load import load_causal_lm
from preftune.rollout import client
from preftune.rollout.backends import LocalRollout
from preftune.rollout.client import Sampler, Sampling, Start, Weights, checksum, insist_on_each_once, weights_of
from preftune.rollout.generate import Sample, generate

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7), (8, 9)]
SAMPLING = Sampling(2, 6, 0.8, frozenset({3}), 0)


@pytest.fixture
def model(tiny_folder):
    return load_causal_lm(tiny_folder("llama"), device=CPU)


def sampler(model, tiny_folder) -> Sampler:
    return Sampler(LocalRollout(), model, Start(tiny_folder("llama"), None), SAMPLING, lambda text: None)


def test_the_local_backend_draws_what_the_generator_does_and_names_the_version(model, tiny_folder):
    drawn = sampler(model, tiny_folder).draw(PROMPTS, ["a", "b"], seed=4, version=7)
    plain = generate(
        model, PROMPTS, samples_per_prompt=2, max_new_tokens=6, temperature=0.8, seed=4, stop_ids=frozenset({3}), pad_id=0, keys=["a", "b"]
    )
    assert [replace(sample, version=0) for sample in drawn] == plain
    assert {sample.version for sample in drawn} == {7}
    assert content_seed(4, "a", 0) != content_seed(4, "a", 1)


GOOD = [Sample(i, k, (1, 3), (-0.5, -0.1), True, version=2) for i in range(2) for k in range(2)]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (GOOD[:-1], "rollout: of 4 samples 1 are lost and 0 came twice. Report this."),
        ([*GOOD, GOOD[1]], "rollout: of 4 samples 0 are lost and 1 came twice. Report this."),
        ([*GOOD[:3], GOOD[0]], "rollout: of 4 samples 1 are lost and 1 came twice. Report this."),
        (GOOD[::-1], "rollout: the samples came in another order. Report this."),
        ([*GOOD[:3], replace(GOOD[3], logprobs=(-0.5,))], "rollout: a sample has 2 tokens and 1 log-probs."),
        ([*GOOD[:3], replace(GOOD[3], ids=(), logprobs=())], "rollout: a sample has 0 tokens and 0 log-probs."),
    ],
)
def test_samples_that_are_lost_doubled_or_broken_end_the_run_with_a_sentence(samples, said):
    with pytest.raises(PreftuneError) as caught:
        insist_on_each_once(samples, 2, SAMPLING)
    assert str(caught.value).startswith(said)
    insist_on_each_once(GOOD, 2, SAMPLING)


def test_a_sample_of_other_weights_is_never_used(model, tiny_folder, monkeypatch):
    monkeypatch.setattr(client.LocalClient, "push_weights", lambda self, weights: setattr(self, "_version", 3))
    with pytest.raises(PreftuneError, match=r"drawn with the weights of round 3, and those of round 4 were asked for"):
        sampler(model, tiny_folder).draw(PROMPTS, ["a", "b"], seed=4, version=4)


def test_of_a_policy_with_an_adapter_the_adapter_alone_is_sent(model):
    sent = weights_of(add_adapter(model, Adapter(rank=4), seed=0), 3)
    assert sent.version == 3
    assert sent.adapter is not None
    assert sent.adapter["r"] == 4
    assert all(".lora_A." in name or ".lora_B." in name for name in sent.tensors)
    assert len(sent.tensors) == 2 * 2 * 7  # two layers of seven matrices


def test_of_a_policy_whose_weights_all_learn_each_is_sent_once_and_is_a_copy(model):
    sent = weights_of(model, 1)
    assert sent.adapter is None
    assert sum(t.numel() for t in sent.tensors.values()) == sum(p.numel() for p in model.parameters())
    before = checksum(sent.tensors)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert checksum(sent.tensors) == before
    assert checksum(weights_of(model, 1).tensors) != before


def test_a_checksum_tells_names_shapes_types_and_values_apart():
    one = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    others = [
        {"a": torch.arange(6.0), "c": torch.zeros(2)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)},
        {"a": torch.arange(6), "b": torch.zeros(2)},
        {"a": torch.arange(6.0), "b": torch.zeros(2).nextafter(torch.ones(2))},
    ]
    assert len({checksum(tensors) for tensors in (one, *others)}) == 5
    assert checksum(dict(reversed(one.items()))) == checksum(one)
    assert checksum({"a": torch.arange(6.0).bfloat16()}) != checksum({"a": torch.arange(6.0).half()})


def test_the_local_backend_needs_no_weights(model, tiny_folder):
    local = client.LocalClient(model)
    assert local.version() is None
    local.push_weights(Weights(5, {}))
    assert (local.version(), local.health()) == (5, {})
    local.close()
