"""The one renderer: messages to token ids and a completion mask, with proofs.

Training, sampling, scoring, evaluation and the release all render through here. At load it proves, on probe conversations,
that a prompt's rendering is a prefix of the rendering with the answer, that there is one BOS, and that the answer ends in a
token that is learned; otherwise it refuses with the reason. Text that a person typed never becomes a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from preftune.errors import DataError, ModelError
from preftune.records import Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
MAX_TEMPLATE_CHARACTERS = 65_536  # a template is code; nothing honest is longer

_PROBES: tuple[tuple[tuple[Message, ...], str], ...] = (
    ((Message(role="user", content="What is two and two?"),), "It is four."),
    ((Message(role="user", content="Ends in a space "),), "word"),
    ((Message(role="user", content="Hi"), Message(role="assistant", content="Hello."), Message(role="user", content="And now?")), "Code."),
    ((Message(role="user", content="Write f."),), "```python\ndef f() -> int:\n    return 1\n```"),
)


@dataclass(frozen=True)
class _Ending:
    lead: str  # what the template puts between the generation prompt and the answer (Mistral: one space)
    end: str  # the text of the end-of-turn token
    end_id: int


ANCHOR = "."  # what a text is encoded or decoded after where nothing else precedes it: a beginning is treated differently


class Renderer:
    """Renders conversations for one tokenizer. `end_id`: the end-of-turn token. `pad_id`: fills rows, never counted.

    tokenizer: from a model folder. chat_template: None = the tokenizer's own; "plain" = `User: … Assistant: …`; else the
    text of a template. Raises ModelError where there is no template, or where a proof fails.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None, where: str = "") -> None:
        self.tokenizer = tokenizer
        self.where = where or str(getattr(tokenizer, "name_or_path", "the tokenizer"))
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own  # some tokenizers name several
        self.template: str = PLAIN_TEMPLATE if chat_template == "plain" else chat_template or own or ""
        if not self.template:
            raise ModelError(
                "the tokenizer has no chat template, so nobody knows how a question becomes text",
                self.where,
                'Set chat_template to "plain" for a base model, or to a file that holds a Jinja template.',
            )
        if len(self.template) > MAX_TEMPLATE_CHARACTERS:
            raise ModelError(f"the chat template has {len(self.template):,} characters", self.where, "Give one of at most 65,536.")
        self._specials = sorted({t for t in tokenizer.all_special_tokens if t} | set(tokenizer.get_added_vocab()), key=len, reverse=True)
        self._context = self._find_context()
        self._ending = self._prove()
        self.end_id = self._ending.end_id
        self.stop_ids = frozenset({self.end_id} | ({tokenizer.eos_token_id} - {None}))
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.end_id
        self._anchor = self._encode(ANCHOR, split_special=True)
        # What stands before an answer once it is decoded: the lead, and the space that some tokenizers put after a special token.
        self._decoded_lead = self._decode_after_anchor(self._completion(_PROBES[0][1], self._ending.lead)).partition(_PROBES[0][1])[0]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Return the prompt as text, the start of the answer's turn included."""
        return self._render(messages, generate=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the prompt, the start of the answer's turn included."""
        return self._encode_rendered(messages)

    def completion_ids(self, text: str) -> list[int]:
        """Return the token ids of an answer and its end-of-turn token. Control tokens in the text are taken as letters."""
        return [*self._completion(text, self._ending.lead), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens, without the end-of-turn token and what follows it."""
        kept = list(ids)
        for place, token in enumerate(kept):
            if token in self.stop_ids:
                kept = kept[:place]
                break
        return self._decode_after_anchor(kept).removeprefix(self._decoded_lead)

    def raw_ids(self, text: str) -> list[int]:
        """Return the token ids of plain text, outside any conversation, with no special token added or read."""
        return self._encode(text, split_special=True)

    def fit_prompt(self, messages: Sequence[Message], max_tokens: int) -> tuple[list[int], int]:
        """Return (prompt ids within max_tokens, how many oldest turns left for it).

        Whole turns leave, oldest first, the system message and the last user turn stay. Raises DataError where the last
        turn alone is too long.
        """
        kept = list(messages)
        start = 1 if kept[0].role == "system" else 0
        dropped = 0
        while True:
            ids = self.prompt_ids(kept)
            if len(ids) <= max_tokens:
                return ids, dropped
            if len(kept) - start <= 1:
                raise DataError(
                    f"the last turn of the prompt has {len(ids):,} tokens and {max_tokens:,} fit",
                    self.where,
                    "Shorten it or raise the limit.",
                )
            gone = 2 if kept[start].role == "user" and kept[start + 1].role == "assistant" else 1
            del kept[start : start + gone]
            dropped += gone

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, chat_template=self.template, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            raise ModelError(
                f"the chat template cannot render this conversation ({error})", self.where, "See its roles and order."
            ) from error
        return str(text)

    def _encode(self, text: str, *, split_special: bool) -> list[int]:
        if not text:
            return []
        ids: Any = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special)["input_ids"]
        return list(ids)

    def _encode_after(self, context: str, text: str, *, split_special: bool) -> list[int]:
        # SentencePiece's heirs (Llama 2, Mistral) put a space before a text that stands alone but not before one that follows
        # another, so a text is encoded where it stands. Where it would merge with what precedes, it is encoded after something
        # else, or alone: what precedes is the prompt, whose tokens are fixed when an answer is sampled.
        for preceding in filter(None, (context, ANCHOR)):
            before = self._encode(preceding, split_special=split_special)
            whole = self._encode(preceding + text, split_special=split_special)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self._encode(text, split_special=split_special)

    def _completion(self, text: str, lead: str) -> list[int]:
        if any(special in text for special in self._specials):
            return self._encode_after(self._after_special(self._context), lead + text, split_special=True)
        return self._encode_after(self._context, lead + text, split_special=False)

    def _decode_after_anchor(self, ids: Sequence[int]) -> str:
        text, before = (
            str(self.tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for part in ([*self._anchor, *ids], self._anchor)
        )
        return text.removeprefix(before)

    def _after_special(self, text: str) -> str:
        ends = [text.rfind(special) + len(special) for special in self._specials if special in text]
        return text[max(ends, default=0) :]

    def _find_context(self) -> str:
        # What stands before every answer: the end that all generation prompts share, from its last special token on.
        prompts = [self._render(messages, generate=True)[::-1] for messages, _ in _PROBES]
        length = 0
        while length < min(map(len, prompts)) and len({prompt[length] for prompt in prompts}) == 1:
            length += 1
        shared = prompts[0][:length][::-1]
        starts = [shared.rfind(special) for special in self._specials]
        return shared[max([*starts, 0]) :]

    def _encode_rendered(self, messages: Sequence[Message]) -> list[int]:
        if not any(special in m.content for m in messages for special in self._specials):
            return self._encode(self._render(messages, generate=True), split_special=False)
        # Someone typed a control token. Render with stand-ins of private-use letters, so that only the template's own
        # control tokens are read as such and what was typed is encoded as letters.
        marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
        stand_ins = [Message(role=m.role, content=mark) for m, mark in zip(messages, marks, strict=True)]
        rest, ids = self._render(stand_ins, generate=True), []
        for message, mark in zip(messages, marks, strict=True):
            before, found, after = rest.partition(mark)
            if not found:
                continue  # the template leaves this turn out (some drop old ones)
            ids += self._encode(before, split_special=False)
            ids += self._encode_after(self._after_special(before), message.content, split_special=True)
            rest = after
        return ids + self._encode(rest, split_special=False)

    def _prove(self) -> _Ending:
        endings = [self._prove_prefix(messages, answer) for messages, answer in _PROBES]
        if len(set(endings)) > 1:
            raise ModelError("the template ends answers in different ways", self.where, "Give one that closes each turn alike.")
        ending = endings[0]
        for messages, _ in _PROBES:
            self._prove_one_bos(messages)
        self._prove_tokens(*_PROBES[0], ending)
        return ending

    def _prove_prefix(self, messages: Sequence[Message], answer: str) -> _Ending:
        prompt = self._render(messages, generate=True)
        whole = self._render([*messages, Message(role="assistant", content=answer)], generate=False)
        if not whole.startswith(prompt):
            place = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
            raise ModelError(
                f"the chat template renders the prompt differently once an answer follows (character {place}: "
                f"{prompt[place : place + 30]!r} alone, {whole[place : place + 30]!r} before an answer)",
                self.where,
                "Give a template whose prompt does not depend on what follows.",
            )
        lead, found, suffix = whole[len(prompt) :].partition(answer)
        if not found:
            raise ModelError("the chat template changes the answer's text", self.where, "Give a template that keeps it as it is.")
        end = next((s for s in self._specials if suffix.lstrip().startswith(s)), None)
        if end is None:
            raise ModelError(
                f"no end-of-turn token follows an answer (but {suffix[:20]!r}), so the model would never learn to stop",
                self.where,
                "Give a template that closes the assistant's turn with a special token.",
            )
        end_id = self.tokenizer.convert_tokens_to_ids(end)
        return _Ending(lead, end, int(end_id))

    def _prove_one_bos(self, messages: Sequence[Message]) -> None:
        bos = self.tokenizer.bos_token_id
        ids = self._encode_rendered(messages)
        if bos is not None and ids[:2] == [bos, bos]:
            raise ModelError("the prompt begins with two BOS tokens", self.where, "Let either the template or the tokenizer add it.")

    def _prove_tokens(self, messages: Sequence[Message], answer: str, ending: _Ending) -> None:
        # The ids we train on are what anyone gets who renders the whole conversation and encodes it at once.
        ours = [*self._encode_rendered(messages), *self._completion(answer, ending.lead), ending.end_id]
        whole = self._render([*messages, Message(role="assistant", content=answer)], generate=False)
        theirs = self._encode(whole, split_special=False)[: len(ours)]
        if ours != theirs:
            place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
            raise ModelError(
                f"the prompt's tokens are not a prefix of the whole's (token {place}: {self.tokenizer.decode(ours[place : place + 3])!r} "
                f"against {self.tokenizer.decode(theirs[place : place + 3])!r})",
                self.where,
                "Give a template that ends the generation prompt at a token's border.",
            )


def read_template(value: str | None) -> str | None:
    """Return the template that a config's `chat_template` means: None, "plain", or the text of a file."""
    if value is None or value == "plain":
        return value
    path = Path(value)
    if not path.is_file():
        raise ModelError("there is no such file", value, 'Set chat_template to "plain", or to a file with a Jinja template.')
    return path.read_text(encoding="utf-8")
