"""What of a model is trained: LoRA and its kin through peft (adding, switching off, merging), or chosen parameters."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from preftune.config import Config
from preftune.errors import ConfigError
from preftune.models.load import device_of, unwrap
from preftune.models.lora import LoraLinear
from preftune.parallel.shard import root_of, settle, update


class Adapter(Config):
    """A LoRA adapter (Hu et al. 2106.09685) or one of its kin: small trained matrices beside the frozen weights."""

    kind: Literal["lora", "rslora", "dora", "qlora"] = Field(
        "lora", description="rslora: for high ranks; dora: direction and length apart, slower; qlora: lora on a base in 4 bits (NVIDIA GPU)"
    )
    rank: int = Field(16, ge=1, le=1024, description="rank of each update")
    alpha: float = Field(32.0, gt=0, description="strength: updates are scaled by alpha / rank (rslora: alpha / √rank)")
    modules: tuple[str, ...] | None = Field(None, description="names of the linear layers to adapt; null = all but the output head")


def linear_names(model: PreTrainedModel) -> list[str]:
    """Return the last name parts of all linear layers in the backbone (the output head is not among them)."""
    backbone: Any = model.base_model
    return sorted({name.split(".")[-1] for name, module in backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)})


def add_adapter(model: PreTrainedModel, adapter: Adapter, *, seed: int, only: Sequence[str] | None = None) -> PeftModel:
    """Return the model with a fresh adapter: only the adapter is trained, and its start changes nothing (B = 0).

    only: patterns (see `matching`) that a linear layer's name must fit to be adapted; None = any.
    Raises ConfigError where a module or a pattern is not there, naming those that are.
    Source: Hu et al. 2106.09685 (lora); Kalajdzievski 2312.03732 (rslora); Liu et al. 2402.09353 (dora); Dettmers et al. 2305.14314 (qlora:
    the model has to be loaded in 4 bits).
    """
    present = linear_names(model)
    modules = list(adapter.modules or present)
    missing = [m for m in modules if m not in present]
    if missing:
        raise ConfigError(f'"{missing[0]}" is not in this model', 'key "adapter.modules"', f"It has: {', '.join(present)}.")
    if only is not None:
        layers = [name for name, _ in model.named_modules() if name.split(".")[-1] in modules]
        modules = matching(layers, only)
    conv = any(isinstance(m, Conv1D) for m in model.modules())
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=0.0,
        target_modules=modules,
        fan_in_fan_out=conv,
        use_rslora=adapter.kind == "rslora",
        use_dora=adapter.kind == "dora",
    )
    if not conv and adapter.kind in ("lora", "rslora"):  # the others need layers of peft's own
        config._register_custom_module({nn.Linear: LoraLinear})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped: PeftModel = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device_of(wrapped), torch.float32)
    return wrapped


def freeze_all_but(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze every parameter but those that fit one of the patterns (see `matching`)."""
    named = dict(model.named_parameters())
    chosen = set(matching(named, patterns))
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that fit a pattern: whole parts of the dotted name, with * and [0-9] as in file names.

    "layers.1" fits "model.layers.1.mlp.up_proj.weight" and not "model.layers.10…"; so do "layers.[01].mlp" and "up_proj".
    Raises ConfigError where a pattern fits none, naming what there is.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in names if fnmatch.fnmatchcase(f".{name}.", f"*.{pattern}.*")]
        if not fitting:
            present = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
            raise ConfigError(f'"{pattern}" fits nothing in this model', 'key "train_only"', f"It has: {', '.join(present)}.")
        found |= set(fitting)
    return [name for name in names if name in found]


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Run the model as it was before training: the reference costs nothing."""
    if not isinstance(model, PeftModel):
        raise TypeError("adapter_off needs a model with an adapter")
    with kept_as_trained(model), model.disable_adapter():
        yield


@contextmanager
def kept_as_trained(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Undo at the end, and whenever the yielded function is called, what peft does to requires_grad as adapters are switched."""
    trained = {id(p) for p in model.parameters() if p.requires_grad}

    def keep() -> None:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in trained)

    before = list(model.parameters())
    try:
        yield keep
    finally:
        keep()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name; of sharded ones this process's parts, as DTensors."""
    settle(model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def merged(base: PreTrainedModel, adapter_folder: Path) -> PreTrainedModel:
    """Return the base with a saved adapter added into its weights (in the base's dtype; give float32)."""
    with_adapter = PeftModel.from_pretrained(base, str(adapter_folder))
    whole: PreTrainedModel = with_adapter.merge_and_unload(safe_merge=True)
    return whole.eval()


def merge_in_place(model: nn.Module) -> PreTrainedModel:
    """Return the plain model with its adapter added into the weights."""
    if not isinstance(model, PeftModel):
        return unwrap(model)
    if root_of(model) is None:
        whole: PreTrainedModel = model.merge_and_unload(safe_merge=True)
        return whole
    settle(model)
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            for name in layer.active_adapters:
                update(layer.base_layer.weight, layer.get_delta_weight(name))
    settle(model)
    plain: PreTrainedModel = model.unload()
    return plain
