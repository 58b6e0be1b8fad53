"""Sampling: the recorded log-probs are the trainer's, the draws are the model's own, and company changes no text."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from scipy.stats import chisquare

from preftune.data.batches import Group, collate
from preftune.errors import DataError
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.load import batch_logprobs, load_causal_lm
from preftune.rollout.generate import generate

CPU = torch.device("cpu")
PAD = 0
NEVER = frozenset({-1})


def ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


# Longer than one family's window of 8 tokens, and of different lengths, so that all but one are padded.
PROMPTS = [ids(13, 1), ids(4, 2), ids(9, 3), ids(1, 4)]


@pytest.fixture(scope="module")
def llama(tiny_folder):
    return load_causal_lm(tiny_folder("llama"), device=CPU)


def sample(model, prompts=PROMPTS, **changes):
    settings = {"samples_per_prompt": 2, "max_new_tokens": 12, "temperature": 0.8, "seed": 5, "stop_ids": NEVER, "pad_id": PAD}
    return generate(model, prompts, **{**settings, **changes})


def texts(samples) -> list[tuple[int, ...]]:
    return [s.ids for s in samples]


def trainers_logprobs(model, prompts, samples, temperature, *, tree) -> list[list[float]]:
    """What the training forward pass says of each sample's tokens."""
    groups = [Group(tuple(p), tuple(s.ids for s in samples if s.prompt_index == i), i) for i, p in enumerate(prompts)]
    batch = collate(groups, PAD, tree=tree)
    with torch.no_grad():
        logprobs, _ = batch_logprobs(model, batch, temperature=temperature)
    return [logprobs[batch.sequence == which].tolist() for which in range(batch.num_sequences)]


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mistral", "gpt2", "phi"])
def test_the_recorded_log_probs_are_those_of_the_trainers_forward_pass(tiny_folder, family, rows):
    model = load_causal_lm(tiny_folder(family), device=CPU)
    # 80 new tokens make the cache grow; stop tokens make rows leave it at different times, and with few rows others take their places.
    stop_ids = frozenset(range(0, 300, 25))
    samples = sample(model, max_new_tokens=80, stop_ids=stop_ids, temperature=0.7, samples_per_prompt=3, batch_rows=rows)
    lengths = [len(s.ids) for s in samples]
    assert len(set(lengths)) > 3
    assert max(lengths) > 35
    for tree in (False, True):
        expected = trainers_logprobs(model, PROMPTS, samples, 0.7, tree=tree)
        for own, theirs in zip(samples, expected, strict=True):
            assert list(own.logprobs) == pytest.approx(theirs, abs=2e-4)


def test_a_model_with_an_adapter_samples_with_it(tiny_folder):
    model = add_adapter(load_causal_lm(tiny_folder("llama"), device=CPU), Adapter(rank=2), seed=1)
    before = sample(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(2))
    after = sample(model)
    assert texts(before) != texts(after)
    for own, theirs in zip(after, trainers_logprobs(model, PROMPTS, after, 0.8, tree=True), strict=True):
        assert list(own.logprobs) == pytest.approx(theirs, abs=1e-4)


def test_samples_come_prompt_by_prompt_and_are_all_there(llama):
    samples = sample(llama, samples_per_prompt=3)
    assert [(s.prompt_index, s.sample_index) for s in samples] == [(i, k) for i in range(4) for k in range(3)]
    assert all(len(s.ids) == len(s.logprobs) == 12 for s in samples)


def test_the_same_seed_gives_the_same_text_alone_in_company_and_in_any_order(llama):
    keys = ["a", "b", "c", "d"]
    together = sample(llama, keys=keys)
    assert texts(together) == texts(sample(llama, keys=keys))
    alone = [s for p, k in zip(PROMPTS, keys, strict=True) for s in sample(llama, [p], keys=[k])]
    assert texts(together) == texts(alone)
    backwards = sample(llama, PROMPTS[::-1], keys=keys[::-1])
    assert texts(together) == [t for i in (3, 2, 1, 0) for t in texts(backwards)[2 * i : 2 * i + 2]]
    others = sample(llama, [PROMPTS[0], ids(30, 9)], keys=["a", "x"])
    assert texts(together)[:2] == texts(others)[:2]
    for rows in (1, 2, 3, 5):  # most of the samples wait for a place that another leaves
        assert texts(together) == texts(sample(llama, keys=keys, batch_rows=rows))
    assert texts(together)[::2] == texts(sample(llama, keys=keys, samples_per_prompt=1))


def test_a_longer_limit_only_makes_texts_longer(llama):
    assert texts(sample(llama, max_new_tokens=40)) != texts(sample(llama))
    assert [t[:12] for t in texts(sample(llama, max_new_tokens=40))] == texts(sample(llama))


def test_another_seed_another_key_and_another_sample_give_another_text(llama):
    first = sample(llama, [PROMPTS[0]], keys=["a"])
    assert (
        len({*texts(first), *texts(sample(llama, [PROMPTS[0]], keys=["a"], seed=6)), *texts(sample(llama, [PROMPTS[0]], keys=["b"]))}) == 6
    )


def test_sampling_leaves_torchs_own_random_state_alone(llama):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = sample(llama)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert texts(sample(llama)) == texts(first)


def test_padding_of_prompts_on_the_left_changes_no_log_prob(llama):
    alone = [s for i, p in enumerate(PROMPTS) for s in sample(llama, [p], keys=[str(i)])]
    padded = sample(llama, pad_id=7)
    assert texts(padded) == texts(alone)
    for own, theirs in zip(padded, alone, strict=True):
        assert own.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_the_first_tokens_of_a_model_have_the_frequencies_of_its_softmax(llama):
    with torch.no_grad():
        probabilities = (llama(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / 0.5).softmax(0)
    samples = sample(llama, [PROMPTS[0]], samples_per_prompt=1000, max_new_tokens=1, temperature=0.5, batch_rows=1000)
    likely = probabilities.topk(6).indices
    observed = torch.tensor([sum(s.ids[0] == int(t) for s in samples) for t in likely])
    observed = torch.cat([observed, 1000 - observed.sum()[None]])
    expected = torch.cat([probabilities[likely], 1 - probabilities[likely].sum()[None]]) * 1000
    assert chisquare(observed.numpy(), expected.numpy()).pvalue > 0.001


def test_temperature_zero_is_transformers_greedy_decoding(llama):
    ours = sample(llama, temperature=0.0, max_new_tokens=20, samples_per_prompt=1)
    for prompt, own in zip(PROMPTS, ours, strict=True):
        whole = llama.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=PAD,
        )
        assert own.ids == tuple(whole[0, len(prompt) :].tolist())
    for own, theirs in zip(ours, trainers_logprobs(llama, PROMPTS, ours, 1.0, tree=False), strict=True):
        assert list(own.logprobs) == pytest.approx(theirs, abs=1e-4)


def test_a_sample_ends_with_its_first_stop_token_which_it_keeps(llama):
    unstopped = sample(llama, max_new_tokens=30)
    stop_ids = frozenset(range(0, 300, 10))
    for free, stopped in zip(unstopped, sample(llama, max_new_tokens=30, stop_ids=stop_ids), strict=True):
        place = next((i for i, token in enumerate(free.ids) if token in stop_ids), None)
        assert stopped.ids == (free.ids if place is None else free.ids[: place + 1])
        assert stopped.finished == (place is not None)


def test_a_sample_that_the_limit_cuts_is_unfinished_even_beside_one_that_ends_there(llama):
    free = sample(llama, [PROMPTS[0]], max_new_tokens=5)
    assert not any(s.finished for s in free)
    last = free[0].ids[-1]
    assert last not in free[0].ids[:-1] + free[1].ids
    first, second = sample(llama, [PROMPTS[0]], max_new_tokens=5, stop_ids=frozenset({last}))
    assert (first.finished, second.finished) == (True, False)
    assert (first.ids, second.ids) == (free[0].ids, free[1].ids)


def test_every_sample_is_told_once_when_it_is_done(llama):
    told: list[int] = []
    samples = sample(llama, max_new_tokens=30, stop_ids=frozenset(range(0, 300, 10)), on_done=told.append, batch_rows=4)
    assert sum(told) == len(samples) == 8
    assert all(n > 0 for n in told)


def test_no_prompt_gives_no_sample(llama):
    assert sample(llama, []) == []


def test_a_prompt_without_a_token_is_refused(llama):
    with pytest.raises(DataError, match="the prompt holds no token"):
        sample(llama, [PROMPTS[0], ()])


def test_a_prompt_that_fills_the_context_is_refused_and_one_that_nearly_does_is_cut_there(llama):
    assert llama.config.max_position_embeddings == 512
    with pytest.raises(DataError, match="the prompt has 512 tokens, and the model's context ends at 512"):
        sample(llama, [ids(512, 5)])
    first, second, *_ = sample(llama, [ids(507, 5), PROMPTS[0]])
    assert len(first.ids) == len(second.ids) == 5
    assert not first.finished


def test_a_models_own_generation_settings_do_not_narrow_the_draws(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "narrow")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 1, "top_p": 0.01, "temperature": 0.01}))
    samples = sample(load_causal_lm(folder, device=CPU), [PROMPTS[0]], samples_per_prompt=8, temperature=1.0)
    assert len(set(texts(samples))) == 8
