"""Answers token by token: requests come and go while others run, and each step gives a token to every one of them.

step:  places of requests that ended are closed up, waiting ones take free places as the cache's budget allows
       a new prompt is computed, unless another request of the same prompt runs: then its keys and values are copied
       those that run already feed their last token; every one draws its next
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from preftune.errors import ConfigError, DataError
from preftune.models.attention import parts_of
from preftune.models.decode import Decoder, packed_bytes
from preftune.models.load import cache_arguments, device_of, max_context, output_head, unwrap
from preftune.rollout.cache import Prefilled, RunningCache
from preftune.rollout.draw import draw, likeliest, uniforms
from preftune.rollout.prefill import prefill

CACHE_BYTES = 3 << 29  # 1.5 GiB: what an evaluation on 2 cores can spare beside a small model
FEWEST_ROWS, MOST_ROWS = 8, 128
PREFILL_TOKENS = 4096  # of new prompts in one step, so that those who run need not wait long


class Drawn(NamedTuple):
    """A token of a request. logprob: nats, at the request's temperature (greedy: at 1), of the whole distribution. last: no more
    tokens come. finished: it ended with a stop token; last and not finished = cut at its limit or at the end of the context. top: the
    likeliest tokens with their log-probs, as many as were asked for."""

    handle: int
    token: int
    logprob: float
    last: bool
    finished: bool
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class _Request:
    handle: int
    prompt: tuple[int, ...]
    seed: int
    temperature: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    top_p: float
    top_logprobs: int
    uniforms: list[float] = field(default_factory=list)
    hidden: Tensor | None = None  # [H], of the prompt's last token: what a further sample of the prompt starts from
    drawn: int = 0
    token: int = -1
    ended: bool = False

    @property
    def length(self) -> int:
        """Tokens that the cache holds: the last drawn one is not yet there."""
        return len(self.prompt) + max(0, self.drawn - 1)


class Batcher:
    """Many requests decoded together, each with its own seed, temperature and limits.

        batcher = Batcher(model, pad_id=renderer.pad_id)
        handle = batcher.add(prompt_ids, seed=1, temperature=1.0, max_new_tokens=256, stop_ids=renderer.stop_ids)
        while batcher.busy:
            for drawn in batcher.step():
                ...                                   # drawn.handle, drawn.token, drawn.logprob, drawn.last, drawn.finished

    `add` and `cancel` may be called between any two steps, not during one: a server calls all of them from one thread, or holds a lock.
    A request's tokens depend on its prompt, seed and settings, not on what else runs (up to the last bit of the arithmetic: a
    product of other rows beside may round otherwise). Requests start in the order in which they were added.

    model: in eval mode; its weights must not change between steps. max_rows: requests that run at once; None = as many as keep
    their keys and values within cache_bytes, 8 to 128. A decoder's copy of the weights is made where it takes half of them at most,
    and counts there too. Raises nothing itself; `add` and `step` say what they raise.
    """

    def __init__(self, model: nn.Module, *, pad_id: int, max_rows: int | None = None, cache_bytes: int | None = None) -> None:
        self.model, self.pad_id, self.max_rows = model, pad_id, max_rows
        self._backbone: Any = unwrap(model).base_model
        budget, packed = CACHE_BYTES if cache_bytes is None else cache_bytes, packed_bytes(model)
        self._packs = packed is not None and 2 * packed <= budget  # then a leaner way is worth a copy of the weights
        self._decoder: Decoder | None = None
        self._budget_tokens = (budget - (packed if packed and self._packs else 0)) // token_bytes(model)
        self._cache = RunningCache()
        self._with_cache = cache_arguments(self._backbone, self._cache)
        self._context = max_context(model)
        self._waiting: deque[_Request] = deque()
        self._rows: list[_Request] = []  # a row's place here is its place in the cache; those that ended stay until the next step
        self._handles = 0

    def add(
        self,
        prompt: Sequence[int],
        *,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        top_p: float = 1.0,
        top_logprobs: int = 0,
    ) -> int:
        """Take a request and return its handle.

        prompt: token ids. seed: of its draws; the same seed and prompt give the same tokens. temperature: 0 = the likeliest token each
        time. max_new_tokens: its limit; the model's context may end it before. top_p: draw from the likeliest tokens that
        hold so much of the probability; for serving alone, since reinforcement learning needs draws from what is scored.
        top_logprobs: how many of the likeliest tokens to give beside each drawn one.
        Raises DataError for a prompt that is empty or fills the context, ConfigError for settings out of bounds.
        """
        if not prompt:
            raise DataError("the prompt holds no token", "sampling", "Give one token at least.")
        room = self._context - len(prompt)
        if room < 1:
            raise DataError(
                f"the prompt has {len(prompt):,} tokens, and the model's context ends at {self._context:,}", "sampling", "Shorten it."
            )
        if not (temperature >= 0 and 0 < top_p <= 1 and max_new_tokens >= 1):
            given = f"temperature {temperature}, top_p {top_p}, max_new_tokens {max_new_tokens}"
            raise ConfigError(given, "sampling", "Use a temperature of at least 0, top_p above 0 and up to 1, and one new token or more.")
        self._handles += 1
        limit = min(max_new_tokens, room)
        self._waiting.append(_Request(self._handles, tuple(prompt), seed, temperature, limit, stop_ids, top_p, top_logprobs))
        return self._handles

    def cancel(self, handle: int) -> None:
        """Give a request up: it draws nothing more. One that is unknown or has ended is left."""
        self._waiting = deque(request for request in self._waiting if request.handle != handle)
        for request in self._rows:
            if request.handle == handle:
                request.ended = True

    @property
    def busy(self) -> bool:
        """Whether some request runs or waits."""
        return bool(self._waiting) or not all(request.ended for request in self._rows)

    @torch.no_grad()
    def step(self) -> list[Drawn]:
        """Draw one token for each request that runs, those that begin now among them; [] when there is none.

        Raises ModelError where the model's logits are no numbers.
        """
        admitted = self._admit()
        prompts = self._prompts(admitted)
        self._close_up()
        hidden = [self._feed_last_tokens()] if self._rows else []
        if admitted:
            self._cache.write([(prompts[prompt], copies) for prompt, copies in _runs(admitted)])
        for request in admitted:
            request.hidden = prompts[request.prompt].hidden
            request.uniforms = uniforms(request.seed, request.max_new_tokens)
            hidden.append(request.hidden[None])
            self._rows.append(request)
            self._waiting.popleft()
        return self._draw(torch.cat(hidden)) if hidden else []

    def _admit(self) -> list[_Request]:
        # Who starts now: in order, while the rows that run at once stay within the limit, and the new prompts within a step's share.
        running = [request for request in self._rows if not request.ended]
        longest = max((len(request.prompt) + request.max_new_tokens for request in running), default=0)
        admitted: list[_Request] = []
        new_tokens = 0
        for request in self._waiting:
            longest = max(longest, len(request.prompt) + request.max_new_tokens)
            rows = len(running) + len(admitted)
            fit = self.max_rows or min(MOST_ROWS, max(FEWEST_ROWS, self._budget_tokens // longest))
            new_tokens += 0 if admitted and request.prompt == admitted[-1].prompt else len(request.prompt)
            if rows and (rows >= fit or new_tokens > PREFILL_TOKENS):
                break
            admitted.append(request)
        return admitted

    def _prompts(self, admitted: Sequence[_Request]) -> dict[tuple[int, ...], Prefilled]:
        # The keys and values of the prompts that begin, each once: from a row of the same prompt, or computed.
        wanted = dict.fromkeys(request.prompt for request in admitted)
        if not wanted:
            return {}
        there = {request.prompt: place for place, request in enumerate(self._rows)}
        found: dict[tuple[int, ...], Prefilled] = {}
        for prompt in wanted:
            if (place := there.get(prompt)) is not None:
                row = self._rows[place]
                assert row.hidden is not None
                found[prompt] = self._cache.prompt_of(place, row.length, len(prompt), row.hidden)
        missing = [prompt for prompt in wanted if prompt not in found]
        return found | dict(zip(missing, prefill(self.model, missing, self.pad_id), strict=True))

    def _close_up(self) -> None:
        ended = [place for place, request in enumerate(self._rows) if request.ended]
        if ended:
            order, moved = closed_up(len(self._rows), ended)
            self._rows = [self._rows[place] for place in order]
            self._cache.keep(moved, [request.length for request in self._rows])

    def _feed_last_tokens(self) -> Tensor:
        """Return the hidden states [rows, H] that predict the next token of the rows that run."""
        device = device_of(self.model)
        self._cache.expect_token()
        width, tokens = self._cache.width + 1, [request.token for request in self._rows]
        lengths = torch.tensor([request.length + 1 for request in self._rows])[:, None]
        if self._packs:
            self._decoder = self._decoder or Decoder(self.model)
            parts = parts_of((width - lengths[:, 0]).tolist(), width)
            hidden = self._decoder.read(torch.tensor(tokens), lengths[:, 0] - 1, self._cache, parts)
            self._cache.took_token()
            return hidden
        attend = torch.arange(width) >= width - lengths
        out = self._backbone(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=attend.long().to(device),
            position_ids=(lengths - 1).to(device),
            **self._with_cache,
        )
        self._cache.took_token()
        last: Tensor = out.last_hidden_state[:, 0]
        return last

    def _draw(self, hidden: Tensor) -> list[Drawn]:
        rows = self._rows
        logits = output_head(self.model).logits(hidden) if self._decoder is None else self._decoder.logits(hidden)
        temperatures = torch.tensor([request.temperature for request in rows])
        top = self._top(logits, temperatures)
        tokens, logprobs = draw(
            logits,
            torch.tensor([request.uniforms[request.drawn] for request in rows], dtype=torch.float64),
            temperatures,
            torch.tensor([request.top_p for request in rows]),
        )
        result = []
        for request, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            request.drawn, request.token = request.drawn + 1, token
            finished = token in request.stop_ids
            request.ended = finished or request.drawn == request.max_new_tokens
            result.append(Drawn(request.handle, token, logprob, request.ended, finished, top.get(request.handle, ())))
        return result

    def _top(self, logits: Tensor, temperatures: Tensor) -> dict[int, tuple[tuple[int, float], ...]]:
        places = [place for place, request in enumerate(self._rows) if request.top_logprobs]
        if not places:
            return {}
        asked = [self._rows[place] for place in places]
        found = likeliest(logits[places], temperatures[places], max(request.top_logprobs for request in asked))
        return {request.handle: tuple(top[: request.top_logprobs]) for request, top in zip(asked, found, strict=True)}


def _runs(admitted: Sequence[_Request]) -> list[tuple[tuple[int, ...], int]]:
    """Return the prompts in order, with how many requests in a row each has."""
    runs: list[tuple[tuple[int, ...], int]] = []
    for request in admitted:
        if runs and runs[-1][0] == request.prompt:
            runs[-1] = (request.prompt, runs[-1][1] + 1)
        else:
            runs.append((request.prompt, 1))
    return runs


def token_bytes(model: nn.Module) -> int:
    """Return how many bytes the keys and values of one token take, in all layers."""
    whole = unwrap(model)
    config: Any = whole.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return int(2 * config.num_hidden_layers * width * whole.dtype.itemsize)


def closed_up(count: int, ended: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return which old place each remaining row comes from, and the (place, source) of those that move: the last into the gaps."""
    gaps = set(ended)
    left = count - len(gaps)
    from_the_end = (place for place in range(left, count) if place not in gaps)
    order = [place if place not in gaps else next(from_the_end) for place in range(left)]
    return order, [(place, source) for place, source in enumerate(order) if place != source]
