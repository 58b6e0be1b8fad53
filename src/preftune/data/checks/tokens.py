"""How many tokens the pairs have: counted by a tokenizer where a folder is given, else estimated by characters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.errors import ModelError
from preftune.records import Pair

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS_A_TOKEN = 4.0  # of English text in most tokenizers; code and other languages have fewer
SAMPLE_TEXTS = 500


@dataclass(frozen=True)
class Tokens:
    """How many pairs are longer than the context: the prompt with the longer one of its answers.

    by: what counted. The tokens of the chat template itself are not in it (some for each turn). characters_a_token: measured on the
    first texts, or the estimate's assumption.
    """

    context: int
    over: int
    by: str
    characters_a_token: float
    estimated: bool


class TokenCount:
    """Counts pairs that are longer than a context. folder: one with a tokenizer.json, or None for an estimate."""

    def __init__(self, context: int, folder: Path | None = None) -> None:
        self._context, self._folder = context, folder
        self._tokenizer = None if folder is None else _load(folder)
        self._over = self._characters = self._tokens = self._texts = 0

    def add(self, pair: Pair) -> None:
        """Take a pair."""
        texts = [message.content for message in pair.messages]
        answer = max(pair.chosen, pair.rejected, key=len)
        characters = sum(map(len, texts)) + len(answer)
        if self._tokenizer is None:
            self._over += characters / CHARACTERS_A_TOKEN > self._context
            return
        if self._texts < SAMPLE_TEXTS:
            self._texts += 1
            self._characters += characters
            self._tokens += self._count(*texts, answer)
        # A token is at least one byte of UTF-8, so most pairs are known to fit without counting.
        if characters * 4 > self._context and sum(len(_utf8(text)) for text in (*texts, answer)) > self._context:
            prompt = self._count(*texts)
            self._over += prompt + max(self._count(pair.chosen), self._count(pair.rejected)) > self._context

    def _count(self, *texts: str) -> int:
        assert self._tokenizer is not None
        return sum(len(self._tokenizer.encode(_utf8(text).decode(), add_special_tokens=False).ids) for text in texts)

    def result(self) -> Tokens:
        """Return what was counted."""
        ratio = self._characters / self._tokens if self._tokens else CHARACTERS_A_TOKEN
        by = f"counted by the tokenizer in {self._folder}" if self._tokenizer else f"estimated at {CHARACTERS_A_TOKEN:g} characters a token"
        return Tokens(self._context, self._over, by, ratio, estimated=self._tokenizer is None)


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")  # half of a surrogate pair has no bytes of its own


def _load(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder if folder.is_file() else folder / "tokenizer.json"
    if not path.exists():
        raise ModelError("there is no tokenizer.json here", str(folder), "Give the folder of a model, or leave --tokenizer out.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"the tokenizer cannot be read ({error})", str(path), "Give another folder, or leave --tokenizer out.") from error
