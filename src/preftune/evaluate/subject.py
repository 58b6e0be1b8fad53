"""A loaded model as the evaluation asks for it: scores of given answers, bits of texts, answers of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from preftune.data.batches import Group, collate, split_by_budget
from preftune.data.template import Renderer
from preftune.errors import DataError
from preftune.evaluate.language_model import Generation
from preftune.losses.reduce import sequence_sum
from preftune.manifest import content_seed
from preftune.models.load import batch_logprobs, device_of, insist_on_answers, load_causal_lm, load_renderer, max_context, tree_rows_agree
from preftune.records import Message
from preftune.rollout.generate import Sample, generate
from preftune.rollout.score import token_table
from preftune.rollout.stream import Batcher

TOKEN_BUDGET = 2048


class Subject:
    """One model under evaluation; answers the questions of `language_model.LanguageModel`."""

    def __init__(self, path: Path, *, chat_template: str | None = None) -> None:
        insist_on_answers(path)
        self.path = path
        self.renderer: Renderer = load_renderer(path, chat_template)
        self.model: nn.Module = load_causal_lm(path).requires_grad_(False)
        self.tree = tree_rows_agree(self.model)
        self.max_tokens = max_context(self.model)

    @torch.no_grad()
    def score_completions(
        self, prompts: Sequence[tuple[Message, ...]], completions: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, int]]]:
        """Return (Σ log p in nats, tokens) of each completion, the end token left out; completions of a prompt share its tokens."""
        groups = []
        for index, (messages, texts) in enumerate(zip(prompts, completions, strict=True)):
            ids = [tuple(self.renderer.completion_ids(text)[:-1]) for text in texts]
            if not all(ids):
                raise DataError("an empty completion cannot be scored", str(self.path), "Leave it out.")
            groups.append(Group(tuple(self.renderer.prompt_ids(messages)), tuple(ids), index))
        sums = self._sums(groups)
        return [[(float(s), len(c)) for s, c in zip(own, group.completions, strict=True)] for own, group in zip(sums, groups, strict=True)]

    @torch.no_grad()
    def completion_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Return Σ log p in nats of every completion of each group, end token and all: what preference losses are made of."""
        return [sums.tolist() for sums in self._sums(groups)]

    @torch.no_grad()
    def bits(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Return (bits of all tokens but the first, bytes that these cover) of each text, outside any conversation."""
        groups, sizes = [], []
        for index, text in enumerate(texts):
            whole = self.renderer.raw_ids(text)
            ids = whole[: self.max_tokens]
            if len(ids) < 2:
                raise DataError("a text of one token has no bits to count", str(self.path), "Give longer texts.")
            groups.append(Group((ids[0],), (tuple(ids[1:]),), index))
            read = text if ids == whole else self._text(ids)
            sizes.append(len(read.encode()) - len(self._text(ids[:1]).encode()))
        return [(-float(own[0]) / math.log(2), size) for own, size in zip(self._sums(groups), sizes, strict=True)]

    def generate(self, prompts: Sequence[tuple[Message, ...]], *, max_new_tokens: int, temperature: float, seed: int) -> list[Generation]:
        """Return one answer to each prompt."""
        samples = self.sample(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return [Generation(self.renderer.decode(s.ids), s.finished, len(s.ids)) for s in samples]

    def complete(self, prompts: Sequence[str], *, stops: Sequence[str], max_new_tokens: int, temperature: float, seed: int) -> list[str]:
        """Return how the model goes on with each raw text, up to the first of the stop texts, its end, or the limit.

        A BOS stands before the text where the tokenizer puts one before plain text. Raises DataError where a text fills the context.
        """
        bos = [i for i in self.renderer.tokenizer("")["input_ids"] if i == self.renderer.tokenizer.bos_token_id]
        batcher = Batcher(self.model, pad_id=self.renderer.pad_id)
        read = [self.renderer.raw_ids(prompt) for prompt in prompts]
        drawn: dict[int, list[int]] = {}
        for place, ids in enumerate(read):
            handle = batcher.add(
                [*bos, *ids],
                seed=content_seed(seed, place),
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                stop_ids=self.renderer.stop_ids,
            )
            drawn[handle] = []
        tail = max(map(len, map(str.encode, stops)), default=0) + 4  # a token holds a byte at least; a letter has up to four
        while batcher.busy:
            for step in batcher.step():
                if not step.finished:
                    drawn[step.handle].append(step.token)
                if not step.last and any(stop in self._text(drawn[step.handle][-tail:]) for stop in stops):
                    batcher.cancel(step.handle)
        # Read together with the prompt: some tokenizers drop the blank that a text by itself begins with.
        texts = [self._text([*before, *ids])[len(self._text(before)) :] for before, ids in zip(read, drawn.values(), strict=True)]
        return [_until(text, stops) for text in texts]

    def sample(
        self,
        prompts: Sequence[tuple[Message, ...]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        on_done: Callable[[int], None] = lambda n: None,
    ) -> list[Sample]:
        """Return one sample to each prompt with its tokens and log-probs. temperature 0 = greedy."""
        return generate(
            self.model,
            [self.renderer.prompt_ids(messages) for messages in prompts],
            samples_per_prompt=1,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop_ids=self.renderer.stop_ids,
            pad_id=self.renderer.pad_id,
            on_done=on_done,
        )

    @torch.no_grad()
    def token_logprobs(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """Return (log-probs [S, N], mask [S, N]) of the groups' completions."""
        return token_table(
            lambda batch: batch_logprobs(self.model, batch)[0],
            groups,
            device=device_of(self.model),
            pad_id=self.renderer.pad_id,
            token_budget=TOKEN_BUDGET,
            tree=self.tree,
        )

    def _text(self, ids: list[int]) -> str:
        return str(self.renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _sums(self, groups: Sequence[Group]) -> list[Tensor]:
        result: dict[int, Tensor] = {}
        for part in split_by_budget(groups, TOKEN_BUDGET):
            batch = collate(part, self.renderer.pad_id, tree=self.tree).to(device_of(self.model))
            sums = sequence_sum(batch_logprobs(self.model, batch)[0], batch.sequence, batch.num_sequences).cpu()
            result.update({g.index: own for g, own in zip(part, sums.split([len(g.completions) for g in part]), strict=True)})
        return [result[g.index] for g in groups]


def _until(text: str, stops: Sequence[str]) -> str:
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places, default=len(text))]
