"""The prompts of new requests, computed: their keys, values and last hidden states, with as little as may be computed for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from preftune.data.batches import Group, collate, shared_beginning
from preftune.models.lean import takes_spans
from preftune.models.load import after_beginning, cache_arguments, device_of, read_rows, unwrap
from preftune.rollout.cache import Prefilled

PASS_TOKENS = 64  # what a forward pass costs by itself, in tokens: the weights are read once
CHUNK_TOKENS = 1024  # of prompts in one forward pass: longer ones are no faster, and hold more activations


@torch.no_grad()
def prefill(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> list[Prefilled]:
    """Return each prompt's keys, values and last hidden state.

    What all prompts begin with is computed apart. Where the layers take rows one after the other, there is no padding; elsewhere prompts
    of like length go together.
    """
    if not prompts:
        return []
    if takes_spans(unwrap(model).base_model):
        return [one for part in _filled(prompts) for one in _prefill_rows(model, part, pad_id)]
    begun = shared_beginning(prompts)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: dict[int, Prefilled] = {}
    for chunk in _chunks([len(prompts[place]) - begun for place in order]):
        places = order[chunk]
        found |= zip(places, _prefill_chunk(model, [prompts[place] for place in places], begun, pad_id), strict=True)
    return [found[place] for place in range(len(prompts))]


def _filled(prompts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Yield the prompts in order, as many at a time as `CHUNK_TOKENS` holds, one at least."""
    start = tokens = 0
    for stop, prompt in enumerate(prompts):
        if stop > start and tokens + len(prompt) > CHUNK_TOKENS:
            yield prompts[start:stop]
            start, tokens = stop, 0
        tokens += len(prompt)
    yield prompts[start:]


def _prefill_rows(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> list[Prefilled]:
    batch = collate([Group(tuple(prompt), (), place) for place, prompt in enumerate(prompts)], pad_id)
    hidden, cache = read_rows(model, batch.to(device_of(model)))
    begun, stop = len(batch.beginning), len(batch.beginning)
    found = []
    for prompt in prompts:
        own = slice(stop, stop := stop + len(prompt) - begun)
        keys, values = (
            [torch.cat([side[0, :, :begun], side[0, :, own]], dim=1) for side in sides]
            for sides in zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        )
        found.append(Prefilled(keys, values, hidden[stop - 1]))
    return found


def _chunks(lengths: Sequence[int]) -> list[slice]:
    """Return how rising lengths are best cut into passes, each padded to its longest: the least tokens, a further pass counted as some."""
    cost, cut = [0], [0]
    for stop in range(1, len(lengths) + 1):
        starts = [start for start in range(stop) if stop - start == 1 or lengths[stop - 1] * (stop - start) <= CHUNK_TOKENS]
        costs = [cost[start] + lengths[stop - 1] * (stop - start) + PASS_TOKENS for start in starts]
        cost.append(min(costs))
        cut.append(starts[costs.index(min(costs))])
    chunks, stop = [], len(lengths)
    while stop:
        chunks.append(slice(cut[stop], stop))
        stop = cut[stop]
    return chunks[::-1]


def _prefill_chunk(model: nn.Module, prompts: Sequence[Sequence[int]], begun: int, pad_id: int) -> list[Prefilled]:
    backbone: Any = unwrap(model).base_model
    device = device_of(model)
    width = max(map(len, prompts)) - begun
    # Padded on the right: a causal model never looks there, so no mask is needed.
    ids = torch.tensor([[*prompt[begun:], *[pad_id] * (width + begun - len(prompt))] for prompt in prompts], device=device)
    arguments = after_beginning(model, prompts[0][:begun], len(prompts)) if begun else cache_arguments(backbone, DynamicCache())
    positions = torch.arange(begun, begun + width, device=device).expand(len(prompts), -1)
    out = backbone(input_ids=ids, position_ids=positions, **arguments)
    cache = next(value for value in arguments.values() if isinstance(value, DynamicCache))
    return [
        Prefilled(
            [layer.keys[row, :, : len(prompt)] for layer in cache.layers],
            [layer.values[row, :, : len(prompt)] for layer in cache.layers],
            out.last_hidden_state[row, len(prompt) - 1 - begun],
        )
        for row, prompt in enumerate(prompts)
    ]
