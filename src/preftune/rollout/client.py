"""The one way in which a stage asks for samples, wherever they are drawn: generate, push_weights, version, health, close.

A backend is a class with these five methods, its settings in `backends.py`, and a case in `open_client`, which imports it where it is
asked for. `LocalClient` draws in the trainer's own processes. Any other lives in the first process alone; `Sampler` gives it the policy's
weights whole, and its samples to all processes.

A sample's randomness comes from (seed, the prompt's key, its number), so one that is drawn again after a lost worker is the same one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from preftune.errors import ConfigError, PreftuneError
from preftune.models.adapter import Adapter
from preftune.models.load import unwrap
from preftune.models.one_base import POLICY
from preftune.parallel import world
from preftune.parallel.shard import settle, whole
from preftune.rollout.backends import RayRollout, RolloutConfig, VllmRollout
from preftune.rollout.generate import Sample, generate

CHECKED = 1 << 20  # numbers of a tensor that its checksum reads at most: of a larger one every n-th


@dataclass(frozen=True)
class Start:
    """What a worker elsewhere loads before it is given weights. base: as `load_causal_lm` takes it; adapter: None = all weights train."""

    base: Path
    adapter: Adapter | None


@dataclass(frozen=True)
class Sampling:
    """How a run's completions are drawn. temperature: of the draws and of their log-probs. No top-k, top-p or min-p: they would bias."""

    samples_per_prompt: int
    max_new_tokens: int
    temperature: float
    stop_ids: frozenset[int]
    pad_id: int


@dataclass(frozen=True)
class Weights:
    """A policy's trained weights after `version` rounds of learning, whole and on the CPU.

    tensors: an adapter's, named as peft saves them, or all of the model's, named as transformers does (tied ones once).
    adapter: peft's settings (LoraConfig.to_dict()) where they are an adapter's; None = they are the model's.
    """

    version: int
    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Any] | None = None


class Client(Protocol):
    """What a backend does. A call returns when its work is done, and raises PreftuneError where it cannot be."""

    def generate(self, prompts: Sequence[Sequence[int]], keys: Sequence[str], sampling: Sampling, *, seed: int) -> list[Sample]:
        """Return samples_per_prompt completions of each prompt (token ids), prompt by prompt, each once, with its weights' version.

        The randomness of sample k of a prompt is `content_seed(seed, key, k)`'s. What a lost worker had is drawn again.
        """
        ...

    def push_weights(self, weights: Weights) -> None:
        """Let all that is drawn from now on be drawn with these weights; raise where that cannot be made sure."""
        ...

    def version(self) -> int | None:
        """Return the version of the weights that were pushed last by this client; None before the first."""
        ...

    def health(self) -> dict[str, float]:
        """Return numbers for the run's metrics, named rollout/…: of a pool, at least how many of it draw."""
        ...

    def close(self) -> None:
        """Give back what it holds; once more does nothing."""
        ...


def open_client(config: RolloutConfig, start: Start, note: Callable[[str], None]) -> Client:
    """Return the client of a backend elsewhere, ready for weights. note: says a sentence to the person who watches.

    Raises PreftuneError where the backend is not installed, not there, or lacks what the config asks for.
    """
    if isinstance(config, VllmRollout):
        from preftune.rollout.vllm import VllmClient

        return VllmClient(config, start, note)
    if isinstance(config, RayRollout):
        insist_on_ray()
        from preftune.rollout.ray_actors import RayClient

        if start.adapter is not None and start.adapter.kind == "qlora":
            raise ConfigError("ray workers hold no model in 4 bits", 'key "adapter.kind"', "Take lora, or rollout.backend=local.")
        return RayClient(config, start, note)
    raise AssertionError(f"{config.backend} is no backend elsewhere")


def insist_on_ray() -> None:
    """Raise ConfigError where the extra is not installed."""
    if find_spec("ray") is None:
        raise ConfigError("ray is not installed", 'key "rollout.backend"', "Run: pip install 'preftune[ray]'.")


class LocalClient:
    """Our generator in the trainer's own processes, with the very model that is trained: each draws for its share of the prompts."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._version: int | None = None

    def generate(self, prompts: Sequence[Sequence[int]], keys: Sequence[str], sampling: Sampling, *, seed: int) -> list[Sample]:
        """As `Client`; all processes call it."""
        assert self._version is not None
        samples = draw_here(self._model, prompts, keys, sampling, seed=seed)
        return [replace(sample, version=self._version) for sample in samples]

    def push_weights(self, weights: Weights) -> None:
        """Note the version: the weights are there."""
        self._version = weights.version

    def version(self) -> int | None:
        """As `Client`."""
        return self._version

    def health(self) -> dict[str, float]:
        """Return nothing: what could be ill here is the trainer itself."""
        return {}

    def close(self) -> None:
        """Do nothing."""


def draw_here(model: nn.Module, prompts: Sequence[Sequence[int]], keys: Sequence[str], sampling: Sampling, *, seed: int) -> list[Sample]:
    """Return the samples that this model draws by our generator."""
    return generate(
        model,
        prompts,
        samples_per_prompt=sampling.samples_per_prompt,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=seed,
        stop_ids=sampling.stop_ids,
        pad_id=sampling.pad_id,
        keys=keys,
    )


class Sampler:
    """What a stage draws by: a client, and the policy whose weights it is brought. All processes call its methods alike."""

    def __init__(self, config: RolloutConfig, model: nn.Module, start: Start, sampling: Sampling, note: Callable[[str], None]) -> None:
        self._config, self._model, self._start, self._sampling, self._note = config, model, start, sampling, note
        self.local = config.backend == "local"
        self._client: Client | None = LocalClient(model) if self.local else None  # elsewhere, the first process's alone
        self._thread: ThreadPoolExecutor | None = None  # of one thread, once a draw is begun ahead: what asks the client from then on
        self._promised: int | None = None  # the version that the thread will have pushed last
        if not self.local:
            world.from_main(self._open)

    def _open(self) -> None:
        self._client = open_client(self._config, self._start, self._note)

    @property
    def _open_client(self) -> Client:
        assert self._client is not None
        return self._client

    def draw(self, prompts: Sequence[Sequence[int]], keys: Sequence[str], *, seed: int, version: int) -> list[Sample]:
        """Return the completions of these prompts, prompt by prompt, drawn with the policy as it is now.

        version: how many rounds it has learned; where the client holds others, the weights are pushed first.
        Raises PreftuneError on a sample that is lost, doubled, or of other weights.
        """
        if self._thread is not None:
            return self.begin(prompts, keys, seed=seed, version=version)()
        if self.local:
            samples = self._push_and_generate(Weights(version, {}), prompts, keys, seed)
        else:
            there = world.from_main(lambda: self._open_client.version())
            weights = weights_of(self._model, version) if there != version else None
            samples = world.from_main(lambda: self._push_and_generate(weights, prompts, keys, seed))
        return self._checked(samples, len(prompts), version)

    def begin(self, prompts: Sequence[Sequence[int]], keys: Sequence[str], *, seed: int, version: int) -> Callable[[], list[Sample]]:
        """Begin what `draw` does, after all that was begun before, and return what waits for it and gives the samples.

        The weights are copied now: the policy may go on learning. For a backend elsewhere; as `draw` returns and raises, once waited for.
        """
        assert not self.local
        self._thread = self._thread or ThreadPoolExecutor(1, "rollouts")
        weights = weights_of(self._model, version) if self._promised != version else None
        self._promised = version
        under_way: Future[list[Sample]] | None = None
        if world.is_main():
            under_way = self._thread.submit(self._push_and_generate, weights, prompts, keys, seed)

        def wait() -> list[Sample]:
            samples = world.from_main(lambda: cast("Future[list[Sample]]", under_way).result())
            return self._checked(samples, len(prompts), version)

        return wait

    def _push_and_generate(self, weights: Weights | None, prompts: Sequence[Sequence[int]], keys: Sequence[str], seed: int) -> list[Sample]:
        if weights is not None:
            self._open_client.push_weights(weights)
        return self._open_client.generate(prompts, keys, self._sampling, seed=seed)

    def _checked(self, samples: list[Sample], prompts: int, version: int) -> list[Sample]:
        insist_on_each_once(samples, prompts, self._sampling)
        insist_on_version(samples, version)
        return samples

    def health(self) -> dict[str, float]:
        """Return the client's numbers."""
        return world.from_main(lambda: self._open_client.health())

    def close(self) -> None:
        """Close the client; what is still under way is let go."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()


def weights_of(model: nn.Module, version: int) -> Weights:
    """Return what is trained of a policy, copied to the CPU: whole in the first process, no tensors in others. All processes call it."""
    settle(model)
    settings = model.peft_config[POLICY].to_dict() if isinstance(model, PeftModel) else None
    tensors = {}
    for name, tensor in named_weights(model).items():
        gathered = whole(tensor)  # by all processes together
        if world.is_main():
            tensors[name] = gathered.detach().to("cpu", copy=True).contiguous()
    return Weights(version, tensors, settings)


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what is trained of a policy, by the names of `Weights`; these are the model's own tensors."""
    if isinstance(model, PeftModel):
        adapter: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
        return adapter
    tied = unwrap(model).all_tied_weights_keys
    return {name: tensor for name, tensor in unwrap(model).state_dict().items() if name not in tied}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes and values: weights that any step has changed have another."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        flat = tensors[name].detach().flatten()
        found.update(f"{name} {tuple(tensors[name].shape)} {flat.dtype}".encode())
        every = flat[:: max(1, -(-flat.numel() // CHECKED))]
        found.update(every.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def insist_on_each_once(samples: Sequence[Sample], prompts: int, sampling: Sampling) -> None:
    """Raise PreftuneError unless these are the samples of so many prompts, prompt by prompt, each with a log-prob for each token."""
    places = [(sample.prompt_index, sample.sample_index) for sample in samples]
    wanted = [(i, k) for i in range(prompts) for k in range(sampling.samples_per_prompt)]
    if places != wanted:
        counts = Counter(places)
        lost, doubled = len(set(wanted) - counts.keys()), sum(count > 1 for count in counts.values())
        what = f"of {len(wanted)} samples {lost} are lost and {doubled} came twice"
        raise PreftuneError(what if lost or doubled else "the samples came in another order", "rollout", "Report this.")
    broken = next((s for s in samples if not s.ids or len(s.ids) != len(s.logprobs)), None)
    if broken is not None:
        what = f"a sample has {len(broken.ids)} tokens and {len(broken.logprobs)} log-probs"
        raise PreftuneError(what, "rollout", "Each token needs the log-prob that it was drawn with.")


def insist_on_version(samples: Sequence[Sample], version: int) -> None:
    """Raise PreftuneError where a sample was drawn with other weights than those of this version."""
    other = next((sample.version for sample in samples if sample.version != version), None)
    if other is not None:
        what = f"a sample was drawn with the weights of round {other}, and those of round {version} were asked for"
        raise PreftuneError(what, "rollout", "Its worker was not given the new weights; the same command again goes on from here.")
