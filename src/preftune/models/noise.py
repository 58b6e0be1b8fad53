"""NEFTune: noise on the embeddings while fine-tuning, so that a model copies its few examples less closely."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from preftune.models.load import unwrap
from preftune.tensors import TokenBatch


@contextmanager
def noisy_embeddings(model: nn.Module, batch: TokenBatch, *, alpha: float, seeds: Sequence[int]) -> Iterator[None]:
    """Let the model read this batch with uniform noise of ± alpha / √(L·H) on each number of its token embeddings.

    L: the row's tokens, padding not counted; H: the embedding's width. seeds: one a row, so that neither padding nor how a batch is cut
    changes a row's noise. The batch must be whole rows: without a beginning that is computed apart.
    Source: Jain et al. 2310.05914, algorithm 1. Differs: L is the row's own length, not the padded one.
    """
    if batch.beginning:
        raise ValueError("noise is drawn for whole rows, and this batch's beginning is apart")
    lengths = (batch.segment >= 0).sum(1).tolist()

    def add(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        noise = torch.zeros(*batch.ids.shape, embedded.shape[-1])
        for row, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
            limit = alpha / math.sqrt(length * embedded.shape[-1])
            noise[row, :length].uniform_(-limit, limit, generator=torch.Generator().manual_seed(seed))
        padded = embedded.shape[:2] == batch.ids.shape  # else the rows lie one after the other
        return embedded + (noise if padded else noise[batch.attention_mask.cpu()][None]).to(embedded)

    handle = unwrap(model).get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
