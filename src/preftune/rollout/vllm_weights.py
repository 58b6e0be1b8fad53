"""A policy's weights as a folder that `vllm serve` reads, and what a server has to say of some texts once it has read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from torch import nn

from preftune.data.batches import Group, collate
from preftune.errors import ModelError
from preftune.losses.reduce import to_sequences
from preftune.manifest import disk_errors, replace_folder, write_json
from preftune.models.adapter import add_adapter, merge_in_place
from preftune.models.checkpoint import save_weights
from preftune.models.load import batch_logprobs, load_whole
from preftune.rollout.client import Start, Weights, checksum

ABOUT = "preftune.json"  # beside the weights: which version they are


@dataclass(frozen=True)
class Pushed:
    """Weights that servers are to have. label: what they call them. content: a hash; other weights have another.

    read: the log-probs of the probes' tokens but the first, by these very weights, a row a probe.
    """

    version: int
    label: str
    folder: Path
    content: str
    read: list[list[float]]


def write_weights(
    weights: Weights, start: Start, folder: Path, *, label: str, dtype: torch.dtype, probes: Sequence[Sequence[int]]
) -> Pushed:
    """Write the policy as one Hugging Face folder and return what it is; the folder is there whole, or not at all.

    An adapter is merged into the base in float32 and the whole rounded to `dtype`, the servers' own. The base is read anew each time: it
    is held by nobody between two pushes, and no rounding adds up. probes: token ids.
    """
    model = load_whole(start.base, torch.device("cpu"), torch.float32)
    if weights.adapter is None:
        _insist_on_all(*model.load_state_dict(dict(weights.tensors), strict=False), tied=set(model.all_tied_weights_keys))
    else:
        assert start.adapter is not None
        adapted = add_adapter(model, start.adapter, seed=0)
        unknown = set_peft_model_state_dict(adapted, dict(weights.tensors)).unexpected_keys
        _insist_on_all([], unknown, tied=set())
        model = merge_in_place(adapted)
    model = model.to(dtype)
    part = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder):
        save_weights(model, part)
        content = checksum(model.state_dict())
        write_json(part / ABOUT, {"version": weights.version, "label": label, "content": content})
        replace_folder(part, folder)
    return Pushed(weights.version, label, folder, content, _read(model, probes))


def _insist_on_all(missing: Sequence[str], unknown: Sequence[str], *, tied: set[str]) -> None:
    lost = [*(name for name in missing if name not in tied), *unknown]
    if lost:
        raise ModelError(f"the policy's weights do not fit its base: {', '.join(lost[:3])}", "rollout", "Report this.")


@torch.no_grad()
def _read(model: nn.Module, probes: Sequence[Sequence[int]]) -> list[list[float]]:
    batch = collate([Group(tuple(ids[:1]), (tuple(ids[1:]),), i) for i, ids in enumerate(probes)], 0, tree=False)
    logprobs, mask = to_sequences(batch_logprobs(model, batch)[0], batch.sequence, batch.num_sequences)
    return [row[kept].tolist() for row, kept in zip(logprobs.double(), mask, strict=True)]
