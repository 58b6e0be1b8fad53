"""Requests that come and go while others run: each gets the tokens that it would get alone."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import ConfigError, DataError
from preftune.models.load import load_causal_lm
from preftune.rollout.prefill import CHUNK_TOKENS, PASS_TOKENS, _chunks, prefill
from preftune.rollout.stream import Batcher, closed_up, token_bytes

CPU = torch.device("cpu")
NEVER = frozenset({-1})


def ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.fixture(scope="module")
def llama(tiny_folder):
    return load_causal_lm(tiny_folder("llama"), device=CPU)


def add(batcher: Batcher, prompt, seed: int = 1, **changes) -> int:
    usual = {"temperature": 1.0, "max_new_tokens": 10, "stop_ids": NEVER}
    return batcher.add(prompt, seed=seed, **{**usual, **changes})


def drain(batcher: Batcher, into: dict[int, list[int]] | None = None) -> dict[int, list[int]]:
    found = {} if into is None else into
    while batcher.busy:
        for drawn in batcher.step():
            found.setdefault(drawn.handle, []).append(drawn.token)
    return found


def alone(model, prompt, seed: int = 1, **changes) -> list[int]:
    batcher = Batcher(model, pad_id=0)
    handle = add(batcher, prompt, seed, **changes)
    return drain(batcher)[handle]


def test_requests_added_while_others_run_get_the_tokens_that_they_get_alone(llama):
    asked = [(ids(5, 1), 1, {}), (ids(20, 2), 2, {"temperature": 0.5}), (ids(5, 1), 3, {}), (ids(2, 4), 4, {"max_new_tokens": 25}),
             (ids(9, 5), 5, {"temperature": 0.0}), (ids(90, 6), 6, {"top_p": 0.6})]  # fmt: skip
    batcher, found, handles = Batcher(llama, pad_id=0, max_rows=4), {}, []
    for prompt, seed, changes in asked:
        handles.append(add(batcher, prompt, seed, **changes))
        for _ in range(3):
            for drawn in batcher.step():
                found.setdefault(drawn.handle, []).append(drawn.token)
    drain(batcher, found)
    for handle, (prompt, seed, changes) in zip(handles, asked, strict=True):
        assert found[handle] == alone(llama, prompt, seed, **changes)


def test_each_step_gives_a_token_to_each_request_and_the_last_one_says_so(llama):
    batcher = Batcher(llama, pad_id=0)
    free = alone(llama, ids(5, 1), max_new_tokens=8)
    stop = free[4]
    assert stop not in free[:4]
    first, second = add(batcher, ids(5, 1), stop_ids=frozenset({stop})), add(batcher, ids(7, 2), max_new_tokens=3)
    steps = []
    while batcher.busy:
        steps.append(batcher.step())
    assert [[d.handle for d in step] for step in steps] == [[first, second]] * 3 + [[first]] * 2
    ends = {d.handle: (number, d.finished) for number, step in enumerate(steps) for d in step if d.last}
    assert ends == {first: (4, True), second: (2, False)}
    assert [d.token for step in steps for d in step if d.handle == first] == free[:5]
    assert batcher.step() == []


def test_a_cancelled_request_draws_nothing_more_and_leaves_its_place(llama):
    batcher = Batcher(llama, pad_id=0, max_rows=2)
    handles = [add(batcher, ids(4 + n, n), n) for n in range(4)]
    batcher.step()
    batcher.cancel(handles[0])  # one that runs
    batcher.cancel(handles[3])  # one that waits
    batcher.cancel(999)
    assert [d.handle for d in batcher.step()] == [handles[1], handles[2]]
    found = drain(batcher)
    assert set(found) == {handles[1], handles[2]}
    assert found[handles[2]] == alone(llama, ids(6, 2), 2)[1:]
    batcher.cancel(handles[1])  # one that has ended
    assert not batcher.busy


def test_a_batcher_of_cancelled_requests_is_not_busy(llama):
    batcher = Batcher(llama, pad_id=0)
    handle = add(batcher, ids(4, 1))
    batcher.step()
    batcher.cancel(handle)
    assert not batcher.busy
    assert batcher.step() == []


def test_a_prompt_is_computed_once_for_its_samples_even_where_they_wait_for_each_other(llama, monkeypatch):
    fed = []
    inner = llama.model.forward

    @functools.wraps(inner)  # its signature tells what the cache is called
    def counting(*args, input_ids, **kwargs):
        fed.append(tuple(input_ids.shape))
        return inner(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(llama.model, "forward", counting)
    batcher = Batcher(llama, pad_id=0, max_rows=2)
    for seed in range(5):
        add(batcher, ids(30, 3), seed, max_new_tokens=4)
    drawn = []
    while batcher.busy:
        drawn.append([d.handle for d in batcher.step()])
    assert len({handle for step in drawn for handle in step}) == 5
    assert [shape for shape in fed if shape[1] > 1] == [(1, 30)]
    assert max(map(len, drawn)) == 2


def test_places_that_are_left_are_taken_again_so_that_the_batch_stays_full(llama):
    batcher = Batcher(llama, pad_id=0, max_rows=3)
    for n in range(9):
        add(batcher, ids(3 + n, n), n, max_new_tokens=2 + n % 4)
    widths = []
    while batcher.busy:
        widths.append(len(batcher.step()))
    assert widths[:-4] == [3] * len(widths[:-4])
    assert sum(widths) == sum(2 + n % 4 for n in range(9))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "phi"])
def test_as_many_rows_run_at_once_as_keep_their_keys_and_values_within_the_budget(tiny_folder, family):
    model = load_causal_lm(tiny_folder(family), device=CPU)
    out = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    assert token_bytes(model) == sum(side.nbytes for layer in out.past_key_values.layers for side in (layer.keys, layer.values)) // 3

    def rows(tokens: int) -> int:
        batcher = Batcher(model, pad_id=0, cache_bytes=20 * 40 * token_bytes(model) + 1)
        for seed in range(200):
            add(batcher, (5, 6, 7), seed, max_new_tokens=tokens - 3)
        return len(batcher.step())

    assert [rows(tokens) for tokens in (40, 4, 400)] == [20, 128, 8]


def test_the_memory_of_rows_goes_back_when_all_have_ended(llama):
    batcher = Batcher(llama, pad_id=0)
    for round_ in range(2):
        handle = add(batcher, ids(300, 1), max_new_tokens=3)
        assert drain(batcher)[handle] == alone(llama, ids(300, 1), max_new_tokens=3), round_
        batcher.step()
        assert not batcher._cache.layers


@pytest.mark.parametrize(
    "changes", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}]
)
def test_settings_out_of_bounds_are_refused_with_all_their_values(llama, changes):
    with pytest.raises(ConfigError, match="sampling: temperature .*, top_p .*, max_new_tokens"):
        add(Batcher(llama, pad_id=0), ids(4, 1), **changes)


def test_a_bad_request_leaves_those_that_run_alone(llama):
    batcher = Batcher(llama, pad_id=0)
    handle = add(batcher, ids(4, 1))
    batcher.step()
    with pytest.raises(DataError):
        add(batcher, ())
    assert len(drain(batcher)[handle]) == 9


def test_closing_up_moves_the_last_rows_into_the_gaps():
    assert closed_up(5, [1, 4]) == ([0, 3, 2], [(1, 3)])
    assert closed_up(3, [0, 1, 2]) == ([], [])
    assert closed_up(3, [2]) == ([0, 1], [])


@given(lengths=st.lists(st.integers(1, 700), max_size=9).map(sorted))
@settings(max_examples=60, deadline=None)  # a busy machine is no failure
def test_prompts_are_cut_into_passes_that_compute_the_least_for_nothing(lengths):
    def cost(parts: list[list[int]]) -> int:
        return sum(part[-1] * len(part) + PASS_TOKENS for part in parts)

    found = [lengths[chunk] for chunk in _chunks(lengths)]
    assert [length for part in found for length in part] == lengths
    assert all(len(part) == 1 or part[-1] * len(part) <= CHUNK_TOKENS for part in found)
    every = []  # all ways to cut, as many as there are subsets of the places between two lengths
    for cuts in range(2 ** max(0, len(lengths) - 1)):
        places = [0, *(place for place in range(1, len(lengths)) if cuts >> (place - 1) & 1), len(lengths)]
        every.append([lengths[a:b] for a, b in pairwise(places) if a < b])
    allowed = [way for way in every if all(len(part) == 1 or part[-1] * len(part) <= CHUNK_TOKENS for part in way)]
    assert cost(found) == min(map(cost, allowed))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("shared", [0, 40])
def test_prompts_that_are_computed_together_have_the_keys_values_and_states_that_each_has_alone(tiny_folder, family, shared):
    model = load_causal_lm(tiny_folder(family), device=CPU)
    prompts = [ids(shared, 0) + ids(length, length) for length in (9, 2, 30, 1)]
    for prompt, found in zip(prompts, prefill(model, prompts, 0), strict=True):
        with torch.no_grad():
            out = model.base_model(input_ids=torch.tensor([prompt]), use_cache=True)
        assert found.tokens == len(prompt)
        torch.testing.assert_close(found.hidden, out.last_hidden_state[0, -1], atol=1e-5, rtol=1e-4)
        for layer, keys, values in zip(out.past_key_values.layers, found.keys, found.values, strict=True):
            torch.testing.assert_close(keys, layer.keys[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(values, layer.values[0], atol=1e-5, rtol=1e-4)


def test_prompts_that_share_nothing_are_one_pass_without_padding_where_rows_may_lie_one_after_the_other(llama, monkeypatch):
    fed = []
    inner = llama.model.forward

    @functools.wraps(inner)
    def counting(*args, input_ids, **kwargs):
        fed.append(input_ids.shape[1])
        return inner(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(llama.model, "forward", counting)
    prefill(llama, [ids(length, length) for length in (9, 2, 30)], 0)
    assert fed == [41]
    fed.clear()
    begun = ids(40, 0)
    prefill(llama, [begun + ids(length, length) for length in (9, 2, 30)], 0)
    assert fed == [40 + 41]
    fed.clear()
    prefill(llama, [ids(400, seed) for seed in range(5)], 0)
    assert fed == [800, 800, 400]
