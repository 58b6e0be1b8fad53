"""Our generator: a prompt is prefilled once for its k samples, finished rows are dropped, every log-prob is recorded.

A sample's randomness comes from its own seed, so the same seed gives the same text whatever else is in the batch (up to the
last bit of the arithmetic). There is no top-k, top-p or min-p: they would bias the log-probs that reinforcement learning needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from preftune.data.batches import shared_beginning
from preftune.manifest import content_seed
from preftune.models.load import cache_arguments, device_of, output_head, unwrap

CACHE_BYTES = 3 << 29  # 1.5 GiB: what an evaluation on 2 cores can spare beside a small model
FEWEST_ROWS, MOST_ROWS = 8, 128


@dataclass(frozen=True)
class Sample:
    """One sampled completion. ids: its tokens, the end token included where it came. logprobs: of each token when sampled,
    nats, at the sampling temperature. finished: it ended by itself, not by the limit."""

    prompt_index: int
    sample_index: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class _GrowingLayer(DynamicLayer):
    # transformers' dynamic layer copies the whole cache for each new token, and for each row that ends; this one writes into
    # room made ahead, and fills the place of a row that has ended with the last one.
    GROW = 32
    keys: Tensor  # [places, heads, room, D], of which the first `rows` and `used` count
    values: Tensor
    rows: int
    used: int

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.used = 0
        new, rows = key_states.shape[-2], key_states.shape[0]
        if self.used == 0 or self.used + new > self.keys.shape[-2]:
            room = (rows, key_states.shape[1], new + self.GROW)
            old_keys = [self.keys[:rows, :, : self.used]] if self.used else []
            old_values = [self.values[:rows, :, : self.used]] if self.used else []
            self.keys = torch.cat([*old_keys, key_states.new_zeros(*room, key_states.shape[-1])], dim=-2)
            self.values = torch.cat([*old_values, value_states.new_zeros(*room, value_states.shape[-1])], dim=-2)
        self.keys[:rows, :, self.used : self.used + new] = key_states
        self.values[:rows, :, self.used : self.used + new] = value_states
        self.rows, self.used = rows, self.used + new
        return self.keys[:rows, :, : self.used], self.values[:rows, :, : self.used]

    def get_seq_length(self) -> int:
        return self.used if self.is_initialized else 0

    def spread(self, samples: int) -> None:
        """Give each row's place to `samples` copies of it."""
        self.keys, self.values = (x[:, :, : self.used].repeat_interleave(samples, dim=0) for x in (self.keys, self.values))

    def move(self, places: Tensor, sources: Tensor) -> None:
        """Copy rows into places of rows that have ended."""
        self.keys[places, :, : self.used] = self.keys[sources, :, : self.used]
        self.values[places, :, : self.used] = self.values[sources, :, : self.used]


@dataclass
class _Rows:
    # The running rows: which prompt and sample each is, its tokens so far, and its own uniform numbers.
    prompt_index: list[int]
    sample_index: list[int]
    ids: list[list[int]]
    logprobs: list[list[float]]
    uniforms: Tensor  # float64 [R, max_new_tokens]


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    stop_ids: frozenset[int],
    pad_id: int,
    batch_rows: int | None = None,
    keys: Sequence[str] | None = None,
    on_done: Callable[[int], None] = lambda n: None,
) -> list[Sample]:
    """Return samples_per_prompt completions of each prompt, prompt by prompt.

    prompts: token ids. temperature: 0 = the likeliest token each time. seed and keys: a sample's randomness depends on
    (seed, the prompt's key, sample number); keys default to the prompt's place. batch_rows: rows decoded at once;
    None = as many as `rows_that_fit` says.
    on_done: called with the number of samples finished.
    """
    keys = keys or [str(i) for i in range(len(prompts))]
    longest = max(map(len, prompts), default=0) + max_new_tokens
    per_batch = max(1, (batch_rows or rows_that_fit(model, longest)) // samples_per_prompt)
    # Prompts of like length go together, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    samples: list[Sample] = []
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        uniforms = torch.stack(
            [_uniforms(content_seed(seed, keys[i], k), max_new_tokens) for i in chosen for k in range(samples_per_prompt)]
        )
        rows = _Rows(
            [i for i in chosen for _ in range(samples_per_prompt)],
            [k for _ in chosen for k in range(samples_per_prompt)],
            [[] for _ in range(len(chosen) * samples_per_prompt)],
            [[] for _ in range(len(chosen) * samples_per_prompt)],
            uniforms,
        )
        samples += _decode(
            model, [prompts[i] for i in chosen], rows, samples_per_prompt, max_new_tokens, temperature, stop_ids, pad_id, on_done
        )
    return sorted(samples, key=lambda s: (s.prompt_index, s.sample_index))


def rows_that_fit(model: nn.Module, tokens: int) -> int:
    """Return how many rows of so many tokens are decoded at once: as many as keep their keys and values within CACHE_BYTES, 8 to 128.

    On 2 cores a product of 100 rows takes a third less time a row than one of 60; beyond that little is won.
    """
    whole = unwrap(model)
    config: Any = whole.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    row = 2 * config.num_hidden_layers * width * tokens * whole.dtype.itemsize
    return int(min(MOST_ROWS, max(FEWEST_ROWS, CACHE_BYTES // row)))


def _uniforms(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def _decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    rows: _Rows,
    samples_per_prompt: int,
    max_new_tokens: int,
    temperature: float,
    stop_ids: frozenset[int],
    pad_id: int,
    on_done: Callable[[int], None],
) -> list[Sample]:
    device = device_of(model)
    backbone: Any = unwrap(model).base_model
    head = output_head(model)
    cache = Cache(layers=[_GrowingLayer() for _ in range(unwrap(model).config.get_text_config().num_hidden_layers)])
    with_cache = cache_arguments(backbone, cache)
    begun = shared_beginning(prompts)
    if begun:
        backbone(input_ids=torch.tensor([list(prompts[0][:begun])], device=device), **with_cache)
        for layer in cache.layers:
            layer.spread(len(prompts))
    # Padded on the left, so that all rows end together.
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    attend = torch.zeros((len(prompts), width), dtype=torch.bool)
    attend[:, :begun] = True
    for row, prompt in enumerate(prompts):
        own = width - len(prompt) + begun
        ids[row, own:] = torch.tensor(prompt[begun:])
        attend[row, own:] = True
    ids, attend = ids.to(device), attend.to(device)
    positions = (attend.long().cumsum(1) - 1).clamp(min=0)
    out = backbone(input_ids=ids[:, begun:], attention_mask=attend.long(), position_ids=positions[:, begun:], **with_cache)
    hidden = out.last_hidden_state[:, -1]

    for layer in cache.layers:
        layer.spread(samples_per_prompt)
    hidden, attend, position = (x.repeat_interleave(samples_per_prompt, 0) for x in (hidden, attend, positions[:, width - 1]))
    uniforms = rows.uniforms.to(device if device.type != "mps" else "cpu")
    alive = list(range(len(rows.ids)))
    done: list[Sample] = []
    for t in range(max_new_tokens):
        tokens, logprobs = _pick(head.logits(hidden), uniforms[:, t], temperature)
        ended = []
        for place, (row, token, logprob) in enumerate(zip(alive, tokens.tolist(), logprobs.tolist(), strict=True)):
            rows.ids[row].append(token)
            rows.logprobs[row].append(logprob)
            if token in stop_ids or t + 1 == max_new_tokens:
                finished = token in stop_ids
                done.append(
                    Sample(rows.prompt_index[row], rows.sample_index[row], tuple(rows.ids[row]), tuple(rows.logprobs[row]), finished)
                )
                ended.append(place)
        if ended:
            on_done(len(ended))
        if len(ended) == len(alive):
            return done
        if ended:
            order, moved = _closed_up(len(alive), ended)
            if moved:
                places, sources = (torch.tensor(side, device=device) for side in zip(*moved, strict=True))
                for layer in cache.layers:
                    layer.move(places, sources)
            index = torch.tensor(order, device=device)
            attend, position, tokens = attend[index], position[index], tokens[index.to(tokens.device)]
            uniforms = uniforms[index.to(uniforms.device)]
            alive = [alive[place] for place in order]
        attend = torch.cat([attend, attend.new_ones(len(alive), 1)], dim=1)
        position = position + 1
        out = backbone(
            input_ids=tokens[:, None].to(device),
            attention_mask=attend.long(),
            position_ids=position[:, None],
            **with_cache,
        )
        hidden = out.last_hidden_state[:, 0]
    return done


def _closed_up(count: int, ended: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return which old place each remaining row comes from, and the (place, source) of those that move: the last into the gaps."""
    gaps = set(ended)
    left = count - len(gaps)
    from_the_end = (place for place in range(left, count) if place not in gaps)
    order = [place if place not in gaps else next(from_the_end) for place in range(left)]
    return order, [(place, source) for place, source in enumerate(order) if place != source]


def _pick(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    # Inverse-CDF sampling in float64: one uniform number a token, so a row's choice depends on nothing but its own logits.
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    logprobs = (logits / temperature).log_softmax(-1)
    cumulative = logprobs.to(uniforms.device).double().exp().cumsum(-1)
    target = (uniforms * cumulative[:, -1])[:, None].contiguous()
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1).to(logits.device)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)
