"""Several roles on one base in memory: each with adapters of its own and, where it gives numbers, a head; the base is held once.

A role reads like a model: `hidden_states`, `end_scores` and `token_values` take it. While it computes, its adapters are on and no
others. Source of the idea: Santacroce et al. 2309.00754 ("Hydra-RLHF"). Differs: the critic starts from the reward model, by
taking its adapter along, frozen, below the critic's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig

from preftune.errors import ModelError
from preftune.manifest import disk_errors
from preftune.models.adapter import kept_as_trained
from preftune.models.lean import takes_spans
from preftune.models.load import unwrap
from preftune.parallel.shard import ROOT, root_of

POLICY, REWARD, CRITIC = "default", "reward", "critic"  # adapters; peft's own name for the first
ON_BASE = "on_base"  # folder of a reward run that holds its adapter and head, beside the whole model
HEAD = "head.safetensors"  # of a reward model, beside its adapter
WEIGHTS = "adapter_model.safetensors"


class _Backbone:
    """The layers of a shared base with some of its adapters on."""

    def __init__(self, shared: PeftModel, adapters: tuple[str, ...]) -> None:
        self._shared, self._adapters = shared, adapters
        self._layers: Any = unwrap(shared).base_model
        self.forward = self._layers.forward  # for its signature
        self.__dict__[ROOT] = root_of(self._layers)

    def __call__(self, **arguments: Any) -> Any:
        with adapters_on(self._shared, self._adapters):
            return self._layers(**arguments)

    def takes_spans(self) -> bool:
        """As `lean.takes_spans`, with these adapters."""
        with adapters_on(self._shared, self._adapters):
            return takes_spans(self._layers)


class Role(nn.Module):
    """What one role has of a shared base. Only what it trains, and its head, are registered: an optimiser sees nothing of others.

    adapters: those that are on while it computes. trained: the one of them that it trains. head: gives its numbers.
    """

    def __init__(self, shared: PeftModel, adapters: Sequence[str], *, trained: str | None = None, head: nn.Linear | None = None) -> None:
        super().__init__()
        self._shared = (shared,)  # in a tuple, or torch would register all of it
        self._layers = _Backbone(shared, tuple(adapters))
        self.adapter = nn.ParameterDict({name.replace(".", "/"): p for name, p in _weights_of(shared, trained).items()})
        if head is not None:
            self.score = head

    @property
    def base_model(self) -> _Backbone:
        """The layers that `hidden_states` calls."""
        return self._layers

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's."""
        words: nn.Module = unwrap(self._shared[0]).get_input_embeddings()
        return words

    @property
    def config(self) -> PretrainedConfig:
        """The base's."""
        config: PretrainedConfig = unwrap(self._shared[0]).config
        return config

    @property
    def dtype(self) -> torch.dtype:
        """The base's."""
        dtype: torch.dtype = unwrap(self._shared[0]).dtype
        return dtype


def _weights_of(shared: PeftModel, adapter: str | None) -> dict[str, nn.Parameter]:
    return {name: p for name, p in shared.named_parameters() if adapter is not None and f".{adapter}." in f"{name}."}


@contextmanager
def adapters_on(model: PeftModel, names: Sequence[str]) -> Iterator[None]:
    """Run with these adapters and no others; what is trained and what is frozen stays as it is, within and after."""
    tuner: Any = model.base_model
    before = list(tuner.active_adapters)
    if before == list(names):
        yield
        return
    with kept_as_trained(model) as keep:
        tuner.set_adapter(list(names), inference_mode=True)
        keep()
        try:
            yield
        finally:
            tuner.set_adapter(before, inference_mode=True)


def save_head(head: nn.Linear, adapter_folder: Path) -> None:
    """Write a reward model's head beside its adapter, so that both can be put on a base that is in memory already."""
    with disk_errors(adapter_folder):
        save_file({name: value.detach().contiguous() for name, value in head.state_dict().items()}, adapter_folder / HEAD)


def reward_role(shared: PeftModel, adapter_folder: Path) -> Role:
    """Return the reward model whose adapter and head lie in this folder, on the policy's base, frozen.

    The caller has made sure that the base is the one that the reward model was trained on.
    Raises ModelError where a weight is missing: the rewards would be wrong in silence.
    """
    with kept_as_trained(shared):
        shared.load_adapter(str(adapter_folder), REWARD, is_trainable=False)
    found, expected = (
        load_file(adapter_folder / WEIGHTS),
        get_peft_model_state_dict(shared, adapter_name=REWARD, save_embedding_layers=False),
    )
    if found.keys() != expected.keys():
        what = f'the reward model\'s adapter does not fit: "{sorted(expected.keys() ^ found.keys())[0]}" is on one side only'
        raise ModelError(what, str(adapter_folder), "Train the reward model anew.")
    saved = load_file(adapter_folder / HEAD)
    head = nn.Linear(saved["weight"].shape[1], len(saved["weight"]), bias="bias" in saved, device=next(shared.parameters()).device)
    head.load_state_dict(saved)
    return Role(shared, (REWARD,), head=head.requires_grad_(False)).eval()


def critic_role(shared: PeftModel, *, seed: int) -> Role:
    """Return a critic on the policy's base: the reward model's adapter, frozen, and over it one of its own as the policy's, fresh.

    Its head is zero, as that of a critic with a model of its own. `reward_role` comes first. seed: of the adapter's start.
    """
    with kept_as_trained(shared), torch.random.fork_rng():
        torch.manual_seed(seed)
        shared.add_adapter(CRITIC, copy.deepcopy(shared.peft_config[POLICY]))
    for parameter in _weights_of(shared, CRITIC).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    whole = unwrap(shared)
    head = zero_head(whole.config.get_text_config().hidden_size, next(whole.parameters()).device)
    return Role(shared, (REWARD, CRITIC), trained=CRITIC, head=head).eval()


def policy_role(shared: PeftModel) -> Role:
    """Return what of a shared base the policy trains."""
    return Role(shared, (POLICY,), trained=POLICY).eval()


def zero_head(width: int, device: torch.device) -> nn.Linear:
    """Return a head that says 0 everywhere: the mean of scores in their own unit."""
    head = nn.Linear(width, 1, bias=True, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def leave_policy_alone(shared: PeftModel) -> None:
    """Take every adapter but the policy's from a base: what is left is saved as any other policy."""
    for name in [name for name in shared.peft_config if name != POLICY]:
        shared.delete_adapter(name)
