"""NEFTune's noise: within its bound, on real tokens alone, the same however a batch is cut, and gone afterwards."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.data.batches import Group, collate
from preftune.models.load import batch_logprobs, hidden_states, load_causal_lm, unwrap
from preftune.models.noise import noisy_embeddings

LONG, SHORT = Group(tuple(range(1, 12)), ((5, 6, 7),), 0), Group((2, 3), ((4, 5, 6),), 1)


@pytest.fixture
def model(tiny_folder):
    return load_causal_lm(tiny_folder("llama"), device=torch.device("cpu"))


def test_the_noise_is_uniform_within_alpha_over_the_root_of_length_times_width(model):
    batch = collate([LONG, SHORT], 0, apart=False)
    embedding = unwrap(model).get_input_embeddings()
    plain = embedding(batch.ids)
    with noisy_embeddings(model, batch, alpha=5.0, seeds=[1, 2]):
        noise = embedding(batch.ids) - plain
    assert torch.equal(embedding(batch.ids), plain)  # it is gone
    for row, length in enumerate((14, 5)):
        limit = 5.0 / math.sqrt(length * plain.shape[-1])
        drawn = noise[row, :length]
        assert drawn.abs().max() <= limit * (1 + 1e-5)
        assert drawn.abs().max() > 0.95 * limit
        assert drawn.abs().mean().item() == pytest.approx(limit / 2, rel=0.15)  # the mean of |u| where u is uniform
        assert torch.equal(noise[row, length:], torch.zeros_like(noise[row, length:]))


def test_neither_padding_nor_the_cut_changes_a_rows_noise(model):
    def logprobs(groups, seeds):
        batch = collate(groups, 0, apart=False)
        with noisy_embeddings(model, batch, alpha=5.0, seeds=seeds):
            return batch_logprobs(model, batch)[0][batch.completion_mask]

    together = logprobs([LONG, SHORT], [1, 2])
    torch.testing.assert_close(together, torch.cat([logprobs([LONG], [1]), logprobs([SHORT], [2])]), rtol=0, atol=1e-5)
    assert (together - logprobs([LONG, SHORT], [3, 4])).abs().max() > 1e-3


def test_a_batch_whose_beginning_is_apart_is_refused(model):
    groups = [Group((*range(1, 12), n), ((5, 6),), n) for n in (13, 14)]
    batch = collate(groups, 0)
    assert batch.beginning
    with pytest.raises(ValueError, match="whole rows"), noisy_embeddings(model, batch, alpha=5.0, seeds=[1, 2]):
        hidden_states(model, batch)
