"""What whole next-token distributions say: entropy and KL(policy‖reference), exact over the vocabulary and with gradient.

The estimators of `kl.py` look at the sampled token alone; these look at every token, and still never hold a [tokens × vocabulary] tensor:
the logits are made a chunk at a time, and once more in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from preftune.errors import ShapeError
from preftune.losses.logprobs import Head, predicting
from preftune.tensors import check_shapes


def token_entropy(hidden: Tensor, head: Head, parent: Tensor, mask: Tensor, *, temperature: float, chunk_tokens: int) -> Tensor:
    """Return the entropy of the distribution that each counted token is drawn from, nats, [B, T], 0 where mask is False.

    hidden: float [B, T, H]. parent: int64 [B, T]. mask: bool [B, T], True = counts. temperature: the logits are divided by it.
    chunk_tokens: rows of logits held at once. With gradient, unlike that of `token_logprobs`, which is made beside the log-probs.
    """

    def entropy(rows: Tensor) -> Tensor:
        logprobs = _logprobs(head, rows, temperature)
        values: Tensor = -torch.linalg.vecdot(logprobs.exp(), logprobs)
        return values

    return _in_chunks(entropy, mask, chunk_tokens, predicting(hidden, parent, mask))


def token_kl(
    hidden: Tensor, head: Head, ref_hidden: Tensor, ref_head: Head, parent: Tensor, mask: Tensor, *, temperature: float, chunk_tokens: int
) -> Tensor:
    """Return KL(policy‖reference) of each counted token's distribution, Σ p (log p − log q), nats, [B, T], 0 where mask is False.

    hidden, ref_hidden: float [B, T, H] of policy and reference on the same tokens; both get gradients where they ask for them.
    Raises ShapeError where the two do not speak of the same tokens.
    """
    if hidden.shape[:2] != ref_hidden.shape[:2]:
        raise ShapeError(f"hidden is {list(hidden.shape)} but ref_hidden is {list(ref_hidden.shape)}; the first two should be equal")

    def kl(rows: Tensor, ref_rows: Tensor) -> Tensor:
        logprobs, ref_logprobs = _logprobs(head, rows, temperature), _logprobs(ref_head, ref_rows, temperature)
        values: Tensor = torch.linalg.vecdot(logprobs.exp(), logprobs - ref_logprobs)
        return values

    return _in_chunks(kl, mask, chunk_tokens, predicting(hidden, parent, mask), predicting(ref_hidden, parent, mask))


@torch.no_grad()
def top_logprobs(
    hidden: Tensor, head: Head, parent: Tensor, mask: Tensor, *, top: int, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return (ids [N, top], logprobs [N, top + 1]) of the likeliest tokens at each of the N counted places, row-major; the last column
    is the log-prob of all the others together. Small enough to keep: what `top_kl` needs of a reference.

    Raises ShapeError where the vocabulary has no others.
    """
    vocabulary = head.weight.shape[0]
    if not 0 < top < vocabulary:
        raise ShapeError(f"top is {top}, but should be from 1 to {vocabulary - 1}, one less than the vocabulary")
    rows = predicting(hidden, parent, mask)
    found = []
    for part in rows.split(chunk_tokens):
        logprobs = _logprobs(head, part, temperature)
        ids = logprobs.topk(top).indices
        found.append((ids, _with_rest(logprobs, ids)))
    return torch.cat([ids for ids, _ in found]), torch.cat([values for _, values in found])


def top_kl(
    hidden: Tensor, head: Head, ids: Tensor, ref_logprobs: Tensor, parent: Tensor, mask: Tensor, *, temperature: float, chunk_tokens: int
) -> Tensor:
    """Return KL(policy‖reference) over the reference's likeliest tokens and, as one more, all the others together, nats, [B, T].

    ids: int64 [N, top] and ref_logprobs: float [N, top + 1], as `top_logprobs` gives them of the reference. Never negative, never
    above `token_kl` (what joins tokens loses what tells them apart), and equal to it where the others are equally likely to both.
    Source: the data-processing inequality, Cover & Thomas, Elements of Information Theory, 2.8. Differs: none.
    """
    rows = predicting(hidden, parent, mask)
    check_shapes("N", ids=ids[:, 0], ref_logprobs=ref_logprobs[:, 0], hidden=rows[:, 0])

    def kl(rows: Tensor, ids: Tensor, ref_logprobs: Tensor) -> Tensor:
        logprobs = _with_rest(_logprobs(head, rows, temperature), ids)
        values: Tensor = torch.linalg.vecdot(logprobs.exp(), logprobs - ref_logprobs)
        return values

    return _in_chunks(kl, mask, chunk_tokens, rows, ids, ref_logprobs)


def _logprobs(head: Head, rows: Tensor, temperature: float) -> Tensor:
    return (head.logits(rows) / temperature).log_softmax(-1)


def _with_rest(logprobs: Tensor, ids: Tensor) -> Tensor:
    rest = logprobs.scatter(1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.gather(1, ids), rest], dim=1)


def _in_chunks(value: Callable[..., Tensor], mask: Tensor, chunk_tokens: int, *rows: Tensor) -> Tensor:
    # A chunk keeps its hidden states alone; its logits are made again when its gradient is asked for.
    chunks = zip(*(r.split(chunk_tokens) for r in rows), strict=True)
    values = torch.cat([checkpoint(value, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)
