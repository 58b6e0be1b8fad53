"""The vocabulary of a GGUF file: which tokenizer of llama.cpp's is meant, its tokens, their kinds, scores and merges.

llama.cpp knows two that matter here. `gpt2` is byte-level BPE, whose pre-tokenizer is only named in the file: a wrong name gives other
tokens without any error, so the name is found by the rule itself, and a rule that is not in the table is refused. `llama` is what
SentencePiece does: pieces with scores, bytes where no piece fits, no pre-tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from preftune.data.template import Renderer
from preftune.errors import ModelError
from preftune.records import Message

BEFORE_NUMBERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
AFTER_NUMBERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
UNCASED = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# How the tokenizer splits by a regular expression before bytes → the name that llama.cpp has for it.
SPLITS = {
    rf"{BEFORE_NUMBERS}|\p{{N}}{{1,3}}|{AFTER_NUMBERS}": "llama-bpe",
    rf"{BEFORE_NUMBERS}|\p{{N}}|{AFTER_NUMBERS}": "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{CASED}*{UNCASED}+|[^\r\n\p{{L}}\p{{N}}]?{CASED}+{UNCASED}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
WHOLE_WORDS = ("llama-bpe", "tekken")  # under these names llama.cpp takes a word that is a token as it is, without merging
SPACE = "\u2581"  # SentencePiece's
FOLDER_ALONE = "Release the folder alone: leave out --gguf."


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of the tokens, in the order of their ids; one entry for each row of the embeddings.

    model: "gpt2" or "llama". pre: the pre-tokenizer's name. scores: of SentencePiece's pieces. space_first: a space is put before
    each text. composed: the tokenizer composes its text first (Unicode NFC), which llama.cpp leaves to who calls it.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    space_first: bool
    composed: bool
    template: str


def read_vocabulary(folder: Path, renderer: Renderer, rows: int) -> Vocabulary:
    """Return the vocabulary of a Hugging Face folder for a model of so many rows of embeddings.

    Raises ModelError where its tokenizer is none that llama.cpp would know.
    """
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("there is no tokenizer.json, so nobody knows its rules", str(folder), FOLDER_ALONE) from None
    model = content["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"no GGUF is written for a tokenizer of kind {model.get('type')}", str(path), FOLDER_ALONE)
    pieces = bool(model.get("byte_fallback"))
    pre, space_first, composed = _pieces_rule(content, path) if pieces else _bytes_rule(content, path)
    if not pieces and bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS):
        raise ModelError(f'its rule for whole words (ignore_merges) is not the one that "{pre}" means', str(path), FOLDER_ALONE)
    tokens, types = _tokens(content, rows, path, pieces=pieces)
    merges = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    tokenizer: Any = renderer.tokenizer
    ids, asked = list(tokenizer("a")["input_ids"]), renderer.prompt_ids([Message(role="user", content="Hi")])
    special = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    # The end of a turn is the end: what reads the file stops there, whatever ended the base's texts.
    special |= {"eos": renderer.end_id, "eot": renderer.end_id}
    return Vocabulary(
        model="llama" if pieces else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        scores=_scores(tokens, merges) if pieces else None,
        merges=[] if pieces else [" ".join(pair) for pair in merges],
        special={name: number for name, number in special.items() if number is not None},
        # Where a conversation begins without BOS, none may be put before it, whatever the tokenizer does to plain text.
        add_bos=tokenizer.bos_token_id is not None and ids[:1] == asked[:1] == [tokenizer.bos_token_id],
        add_eos=len(ids) > 1 and ids[-1] == tokenizer.eos_token_id,
        space_first=space_first,
        composed=composed,
        template=renderer.template,
    )


def _bytes_rule(content: dict[str, Any], path: Path) -> tuple[str, bool, bool]:
    normalizer = _plain(content.get("normalizer"))
    if normalizer not in (None, {"type": "NFC"}):
        raise ModelError(f"llama.cpp would not change text as its tokenizer does ({normalizer})", str(path), FOLDER_ALONE)
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    name = None
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if _splits(steps[0]):
            name = "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and _splits(steps[1]):
            name = "smollm"
        case ["Split", "ByteLevel"] if steps[0]["behavior"] == "Isolated" and not steps[0]["invert"] and not _splits(steps[1]):
            name = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    if name is None or steps[-1].get("add_prefix_space"):
        raise ModelError("its pre-tokenizer is none that llama.cpp has a name for", str(path), FOLDER_ALONE)
    return name, False, normalizer is not None


def _pieces_rule(content: dict[str, Any], path: Path) -> tuple[str, bool, bool]:
    def change(step: dict[str, Any]) -> tuple[str, Any]:
        return step["type"], step.get("prepend") or (step.get("pattern", {}).get("String"), step.get("content"))

    changes = [change(step) for step in _steps(content.get("normalizer"), "normalizers")]
    spaces = ("Replace", (" ", SPACE))
    before = [step for step in _steps(content.get("pre_tokenizer"), "pretokenizers") if step["type"] != "Split"]  # Gemma's splits nothing
    if changes in ([("Prepend", SPACE), spaces], [spaces]) and not before:
        return "default", len(changes) == 2, False
    if not changes and [step["type"] for step in before] == ["Metaspace"] and not before[0].get("split"):
        return "default", before[0]["prepend_scheme"] != "never", False
    raise ModelError("llama.cpp would not change text as its tokenizer does before it looks for pieces", str(path), FOLDER_ALONE)


def _steps(rule: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if rule is None:
        return []
    return list(rule[key]) if rule["type"] == "Sequence" else [rule]


def _splits(step: dict[str, Any]) -> bool:
    return bool(step.get("use_regex", True))


def _plain(rule: dict[str, Any] | None) -> dict[str, Any] | None:
    steps = _steps(rule, "normalizers")
    return steps[0] if len(steps) == 1 else rule


def _tokens(content: dict[str, Any], rows: int, path: Path, *, pieces: bool) -> tuple[list[str], list[int]]:
    vocabulary: dict[str, int] = content["model"]["vocab"]
    named = {number: text for text, number in vocabulary.items()}
    types = dict.fromkeys(named, int(TokenType.NORMAL))
    if pieces:
        types |= {vocabulary[name]: int(TokenType.BYTE) for byte in range(256) if (name := f"<0x{byte:02X}>") in vocabulary}
        if (unknown := content["model"].get("unk_token")) in vocabulary:
            types[vocabulary[unknown]] = int(TokenType.UNKNOWN)
    for token in content.get("added_tokens", []):
        number, text = token["id"], token["content"]
        if types.get(number) == TokenType.UNKNOWN:
            continue
        # One that is no control token is looked for in the text as it was typed, spaces and all.
        named[number] = text if token["special"] or not pieces else text.replace(SPACE, " ")
        types[number] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    if max(named) >= rows:
        raise ModelError(f"there are {max(named) + 1:,} tokens for {rows:,} embeddings", str(path), FOLDER_ALONE)
    # Rows that only pad the embeddings to a round number get a name, so that each id has one.
    return [named.get(i, f"[PAD{i}]") for i in range(rows)], [types.get(i, int(TokenType.UNUSED)) for i in range(rows)]


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    # llama.cpp merges the pair whose piece has the highest score; the merges stand in that order.
    ranks: dict[str, float] = {}
    for left, right in merges:
        ranks.setdefault(left + right, -float(len(ranks)))
    return [ranks.get(token, -float(len(ranks))) for token in tokens]
