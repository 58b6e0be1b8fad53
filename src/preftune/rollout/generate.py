"""Our generator: a prompt is computed once for its k samples, rows that end make room for others, every log-prob is recorded.

A sample's randomness comes from its own seed, so the same seed gives the same text whatever else is in the batch (up to the
last bit of the arithmetic). There is no top-k, top-p or min-p: they would bias the log-probs that reinforcement learning needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from preftune.manifest import content_seed
from preftune.parallel import world
from preftune.parallel.shard import whole_for_a_while
from preftune.rollout.stream import Batcher


@dataclass(frozen=True)
class Sample:
    """One sampled completion. ids: its tokens, the end token included where it came. logprobs: of each token when sampled,
    nats, at the sampling temperature. finished: it ended by itself, not by the limit. version: how many rounds the policy that drew it had
    learned."""

    prompt_index: int
    sample_index: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    version: int = 0


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
    None = as many as the cache's budget allows (see `Batcher`). on_done: called with the number of samples finished.
    A sample is cut, and unfinished, where the model's context ends. Raises DataError for a prompt that is empty or fills the context.
    Of several processes each samples for its share of the prompts, and all get all.
    """
    keys = keys or [str(i) for i in range(len(prompts))]
    batcher = Batcher(model, pad_id=pad_id, max_rows=batch_rows)
    places: dict[int, tuple[int, int]] = {}
    # Prompts of like length go together, so that little is padded.
    for i in sorted(range(world.rank(), len(prompts), world.size()), key=lambda i: (len(prompts[i]), i)):
        for k in range(samples_per_prompt):
            handle = batcher.add(
                prompts[i],
                seed=content_seed(seed, keys[i], k),
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
            )
            places[handle] = (i, k)
    ids: dict[int, list[int]] = {handle: [] for handle in places}
    logprobs: dict[int, list[float]] = {handle: [] for handle in places}
    samples: list[Sample] = []
    with whole_for_a_while(model):
        while batcher.busy:
            before = len(samples)
            for handle, token, logprob, last, finished, _ in batcher.step():
                ids[handle].append(token)
                logprobs[handle].append(logprob)
                if last:
                    samples.append(Sample(*places[handle], tuple(ids[handle]), tuple(logprobs[handle]), finished))
            if len(samples) > before:
                on_done(len(samples) - before)
    everyone = [sample for share in world.of_all(samples) for sample in share]
    return sorted(everyone, key=lambda s: (s.prompt_index, s.sample_index))
