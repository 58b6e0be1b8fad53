"""Who answers a prompt when candidates are sampled: a model behind a URL, or one that is loaded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from preftune.config import Config
from preftune.data.chat_format import storable
from preftune.data.remote import Ask, Endpoint, RemoteError, Reply, complete_all
from preftune.errors import ModelError
from preftune.manifest import content_seed, hash_folder
from preftune.records import Prompt

if TYPE_CHECKING:
    from torch import nn

    from preftune.data.template import Renderer

Outcome = Reply | RemoteError | None  # an answer, why there is none, or None where the prompt is too long


class SampleSettings(Config):
    """How candidates are sampled."""

    candidates: int = Field(4, ge=1, le=9, description="different answers a prompt (k)")
    temperatures: tuple[float, ...] = Field((0.7, 1.0, 1.3), min_length=1, description="the ladder, which the places climb in turn")
    greedy: bool = Field(False, description="whether each source's first answer is its likeliest one (temperature 0)")
    max_new_tokens: int = Field(512, ge=1, description="longest answer; one that is cut there is marked so")
    tries: int = Field(3, ge=1, le=20, description="how often a place is asked for before it stays empty")
    seed: int = Field(0, ge=0, description="seed of everything random")


class Source(Protocol):
    """What gives answers. identity: what makes two sources the same. facts: what a candidate keeps of how it was made."""

    name: str
    identity: list[str]
    facts: dict[str, Any]

    def answer(self, wishes: Sequence[Wish]) -> Iterator[tuple[Wish, Outcome]]:
        """Yield what came of each wish, as it comes."""
        ...


@dataclass(frozen=True)
class Wish:
    """An answer to be had: for a place among a prompt's candidates, at a temperature; attempt: how often it was asked for before."""

    prompt: Prompt
    source: Source
    place: int
    attempt: int
    temperature: float


class ServedModel:
    """A model behind an OpenAI-style URL."""

    def __init__(self, endpoint: Endpoint, settings: SampleSettings) -> None:
        self.endpoint, self.settings = endpoint, settings
        self.name = endpoint.model
        self.identity = [endpoint.url, endpoint.model]
        self.facts = {"endpoint": endpoint.name, "max_new_tokens": settings.max_new_tokens, "seed": settings.seed}

    def answer(self, wishes: Sequence[Wish]) -> Iterator[tuple[Wish, Outcome]]:
        """Yield the answers as they come, `endpoint.concurrency` under way at once."""
        asks = [Ask(w.prompt.messages, w.temperature, self.settings.max_new_tokens, self._seed(w)) for w in wishes]
        for place, reply in complete_all(self.endpoint, asks):
            yield wishes[place], reply

    def _seed(self, wish: Wish) -> int:
        return content_seed(self.settings.seed, wish.prompt.id, wish.place, wish.attempt) % 2**31  # some servers take 32 bits


class LocalModel:
    """A model of a folder, a GGUF file or a run of ours, loaded when it is first asked."""

    def __init__(self, path: Path, settings: SampleSettings) -> None:
        if not path.exists():
            raise ModelError("there is no such model", str(path), "Give a Hugging Face folder, a GGUF file or a run of preftune.")
        self.path, self.settings = path, settings
        self.name = path.resolve().name
        self.identity = [hash_folder(path)]
        self.facts = {"model": self.identity[0][:16], "max_new_tokens": settings.max_new_tokens, "seed": settings.seed}

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Renderer]:
        from preftune.models.load import load_causal_lm, load_renderer

        return load_causal_lm(self.path).requires_grad_(False), load_renderer(self.path)

    def answer(self, wishes: Sequence[Wish]) -> Iterator[tuple[Wish, Outcome]]:
        """Yield the answers, prompt by prompt; those of one prompt at one temperature share its prefill."""
        together: dict[tuple[float, str], list[Wish]] = {}
        for wish in wishes:
            together.setdefault((wish.temperature, wish.prompt.id), []).append(wish)
        batches: dict[tuple[float, int], list[list[Wish]]] = {}
        for (temperature, _), group in together.items():
            batches.setdefault((temperature, len(group)), []).append(group)
        for (temperature, count), groups in batches.items():
            yield from self._sample(groups, temperature, count)

    def _sample(self, groups: list[list[Wish]], temperature: float, count: int) -> Iterator[tuple[Wish, Reply | None]]:
        from preftune.models.load import max_context
        from preftune.rollout.generate import generate

        model, renderer = self._loaded
        ids = [renderer.prompt_ids(group[0].prompt.messages) for group in groups]
        room = max_context(model) - self.settings.max_new_tokens
        fitting = [place for place, tokens in enumerate(ids) if len(tokens) <= room]
        yield from ((wish, None) for place, group in enumerate(groups) if len(ids[place]) > room for wish in group)
        samples = generate(
            model,
            [ids[place] for place in fitting],
            samples_per_prompt=count,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=temperature,
            seed=self.settings.seed,
            stop_ids=renderer.stop_ids,
            pad_id=renderer.pad_id,
            # The first place and the attempt, so that a further run on the same prompt draws other numbers.
            keys=[f"{groups[p][0].prompt.id} place {groups[p][0].place} try {groups[p][0].attempt}" for p in fitting],
        )
        for sample in samples:
            wish = groups[fitting[sample.prompt_index]][sample.sample_index]
            yield wish, Reply(storable(renderer.decode(sample.ids)), sample.finished)
