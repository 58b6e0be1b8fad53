"""The scalar head: a reward model is a backbone and one linear layer on the hidden state of the answer's end token.

It is transformers' own sequence classification model with one label, so that it loads with its head anywhere. An ensemble is the same
with N labels: N heads on one backbone, each an opinion of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from preftune.data.template import Renderer
from preftune.errors import ModelError
from preftune.losses.logprobs import predicting
from preftune.losses.reduce import sequence_length
from preftune.manifest import write_json
from preftune.models.checkpoint import save_model
from preftune.models.lean import lean_layers
from preftune.models.load import LOADING_ERRORS, device_of, find_device, first_line, fitting_dtype, hidden_states, quiet, unwrap
from preftune.models.parts import load_parts_of
from preftune.parallel import world
from preftune.parallel.shard import shard
from preftune.tensors import TokenBatch

HEAD_NAMES = ("score", "classifier")
NORMALISATION = "normalisation.json"


def scalar_head(model: nn.Module) -> nn.Linear:
    """Return the linear layer that makes the score, or the N scores. Raises ModelError where the model has none."""
    whole = unwrap(model)
    for name in HEAD_NAMES:
        layer = getattr(whole, name, None)
        if isinstance(layer, nn.Linear):
            return layer
    raise ModelError(f"{type(whole).__name__} has no scalar head", "", "Give a folder that preftune train reward has written.")


def with_scalar_head(causal: PreTrainedModel, *, seed: int, heads: int = 1) -> PreTrainedModel:
    """Return a reward model on this LM's backbone, each of its heads drawn from N(0, 1/√(H+1)), bias 0.

    Source of the start: Stiennon et al. 2009.01325, code. The backbone's modules are shared with `causal`, not copied.
    """
    config = causal.config
    config.num_labels = heads
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=causal.dtype)
    setattr(model, model.base_model_prefix, causal.base_model)
    old: nn.Linear = getattr(model, _head_name(model))
    head = nn.Linear(old.in_features, heads, bias=old.bias is not None, dtype=torch.float32)
    with torch.no_grad():
        for place, row in enumerate(head.weight):
            generator = torch.Generator().manual_seed(seed + 1_000_003 * place)
            row.normal_(0.0, 1 / math.sqrt(old.in_features + 1), generator=generator)
        if head.bias is not None:
            head.bias.zero_()
    setattr(model, _head_name(model), head.to(device_of(causal)))
    reward: PreTrainedModel = model
    return reward.eval()


def _head_name(model: nn.Module) -> str:
    return next(n for n in HEAD_NAMES if isinstance(getattr(model, n, None), nn.Linear))


def load_reward_model(path: Path, *, device: torch.device | None = None) -> PreTrainedModel:
    """Return a saved reward model that gives one score; an ensemble's is the mean of its heads, each in its own sd.

    Raises ModelError where any weight, the head's above all, is missing.
    """
    model = load_reward_heads(path, device=device)
    members = read_members(path)
    if len(members) > 1:
        setattr(model, _head_name(model), mean_of_heads(scalar_head(model), [deviation for _, deviation in members]))
        model.config.num_labels = 1
    return model


def mean_of_heads(heads: nn.Linear, deviations: Sequence[float]) -> nn.Linear:
    """Return the head that gives the mean of these heads' scores, each in its own sd and all in their mean sd (as `ensemble_mean`).

    deviations: the sd of each head's scores. The mean of linear heads is a linear head.
    """
    spread = torch.tensor(deviations, device=heads.weight.device)
    shares = spread.mean() / spread / len(deviations)
    one = nn.Linear(heads.in_features, 1, bias=heads.bias is not None, device=heads.weight.device, dtype=torch.float32)
    with torch.no_grad():
        one.weight.copy_((shares @ heads.weight)[None])
        if heads.bias is not None:
            one.bias.copy_(shares @ heads.bias)
    return one


def load_reward_heads(path: Path, *, device: torch.device | None = None) -> PreTrainedModel:
    """Return a saved reward model with all its heads: one, or those of an ensemble.

    Raises ModelError where any weight, the head's above all, is missing.
    """
    folder = path / "model" if (path / "model").exists() else path
    device = device or find_device()
    if world.size() > 1:
        in_parts = load_parts_of(
            AutoModelForSequenceClassification,
            folder,
            device,
            fitting_dtype(device, trained_whole=False),
            trained=False,
            num_labels=len(read_members(path)),
        )
        if in_parts is not None:
            scalar_head(in_parts).float()
            return in_parts
    try:
        with quiet():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(read_members(path)),
                dtype=fitting_dtype(device, trained_whole=False),
                local_files_only=True,
                output_loading_info=True,
            )
    except LOADING_ERRORS as error:
        raise ModelError(f"the reward model cannot be loaded ({first_line(error)})", str(path), "Give a run of train reward.") from error
    if info.get("missing_keys"):
        lost = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"weights are missing: {lost}; its rewards would be random", str(path), "Give a run of train reward.")
    loaded: PreTrainedModel = model.eval()
    scalar_head(loaded).float()
    lean_layers(loaded)
    if world.size() == 1:
        return loaded.to(device)
    shard(loaded, device, trained=False)
    scalar_head(loaded).to(device)
    return loaded


def end_scores(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the score of each sequence, float32 [S], or [S, N] of N heads: the head on the hidden state of its last token, the end token.

    Found by position, never by a pad id, so neither padding nor a pad that equals the end token can move it.
    """
    hidden = hidden_states(model, batch)
    lengths = sequence_length(batch.sequence, batch.num_sequences)
    places = torch.full((batch.num_sequences,), -1, dtype=torch.long, device=hidden.device)
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    places.scatter_reduce_(0, batch.sequence[rows, columns], rows * batch.ids.shape[1] + columns, reduce="amax")
    if bool((lengths == 0).any()):
        raise ModelError("a sequence without a token has no score", "", "Leave empty answers out.")
    last = hidden.flatten(0, 1)[places]
    scores: Tensor = scalar_head(model)(last.float()).squeeze(-1)
    return scores


def token_values(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the critic's word on the state in which each counted token is about to be chosen, float32 [B, T], 0 elsewhere."""
    return values_of(hidden_states(model, batch), scalar_head(model), batch)


def values_of(hidden: Tensor, head: nn.Linear, batch: TokenBatch) -> Tensor:
    """Return what a head says of hidden states that are there already, as `token_values`. hidden: float [B, T, H]."""
    rows = predicting(hidden, batch.parent, batch.completion_mask)
    values: Any = head(rows.float()).squeeze(-1)
    zeros = torch.zeros(batch.ids.shape, dtype=torch.float32, device=hidden.device)
    return zeros.masked_scatter(batch.completion_mask, values)


def save_reward_model(
    model: PreTrainedModel, renderer: Renderer, folder: Path, *, mean: float, deviation: float, members: Sequence[tuple[float, float]] = ()
) -> None:
    """Write a reward model that plain transformers loads with its head, and the mean and sd of its scores beside it.

    members: (mean, sd) of each head's own scores, for an ensemble; mean and deviation are then those of the one score that
    `load_reward_model` makes of them.
    transformers finds the last token by looking for the pad token, which must not be the end-of-turn token that carries the
    score; so another control token is named as pad, or none where there is none (then it scores one text at a time).
    """
    tokenizer = renderer.tokenizer
    control = [*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)]
    free = [i for i in control if i not in renderer.stop_ids and i != tokenizer.bos_token_id]
    model.config.pad_token_id = free[0] if free else None
    save_model(model, renderer, folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["pad_token"] = tokenizer.convert_ids_to_tokens(free[0]) if free else None
    write_json(path, settings)
    constants: dict[str, Any] = {"mean": mean, "sd": deviation}
    if len(members) > 1:
        constants["members"] = [{"mean": m, "sd": sd} for m, sd in members]
    write_json(folder / NORMALISATION, constants)


def read_normalisation(reward_model: Path) -> tuple[float, float]:
    """Return (mean, sd) of a reward model's one score over its training answers; (0, 1) where the folder does not say."""
    values = _constants(reward_model)
    return float(values.get("mean", 0.0)), float(values.get("sd", 1.0))


def read_members(reward_model: Path) -> list[tuple[float, float]]:
    """Return (mean, sd) of the scores of each of a reward model's heads over its training answers; (0, 1) where it does not say."""
    values = _constants(reward_model)
    return [(float(one["mean"]), float(one["sd"])) for one in values.get("members", ())] or [read_normalisation(reward_model)]


def _constants(reward_model: Path) -> dict[str, Any]:
    folder = reward_model / "model" if (reward_model / "model").exists() else reward_model
    path = folder / NORMALISATION
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
