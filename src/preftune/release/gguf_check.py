"""A GGUF file read back without llama.cpp: by transformers, and its tokens by the rules that the file names.

transformers passes over some of what a file says (the width of a head, soft caps, scaled rotary embeddings, how text is split before
bytes); that is read here from the file and put right, so that what is compared is what the file says.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from preftune.data.template import Renderer
from preftune.models.gguf_reading import read_once
from preftune.models.load import quiet
from preftune.release.folder import MAX_LOGIT_DIFFERENCE, Expected, greedy, insist, logits_of
from preftune.release.gguf_tokens import SPACE, SPLITS, WHOLE_WORDS, Vocabulary
from preftune.release.gguf_write import Kind
from preftune.release.hard_strings import hard_strings


@dataclass(frozen=True)
class Bounds:
    """What storing in fewer bits may change: weights by their root mean square, relative; perplexity by this factor, either way."""

    weights: float
    perplexity: float


# Half a step of each format over weights spread as a normal is, with room; 4 bits are known to cost some points of perplexity.
BOUNDS: dict[Kind, Bounds] = {
    "f32": Bounds(1e-5, 1.0001),
    "f16": Bounds(1e-3, 1.01),
    "bf16": Bounds(4e-3, 1.01),
    "q8_0": Bounds(0.02, 1.01),
    "q4_0": Bounds(0.2, 1.5),
}


@dataclass(frozen=True)
class ReadBack:
    """What was found when a GGUF file was read back.

    max_logit_diff: over all tokens of the prompts. same_answers: of how many prompts the greedy answer is the same. ids_equal: of
    so many strings all. other_in_transformers: of how many strings plain transformers, which does not follow the file in all, makes
    other tokens. perplexity_ratio: the file's over the folder's. weights_error: of the worst tensor, relative root mean square.
    """

    kind: str
    max_logit_diff: float
    prompts: int
    same_answers: int
    strings: int
    ids_equal: bool
    other_in_transformers: int
    perplexity_ratio: float
    weights_error: float


def check_gguf(
    path: Path,
    kind: Kind,
    folder: Path,
    vocabulary: Vocabulary,
    renderer: Renderer,
    expected: Sequence[Expected],
    texts: Sequence[Sequence[int]],
    nll: float,
) -> dict[str, Any]:
    """Compare a GGUF file with the folder that it was written from and return what was found (a ReadBack).

    expected: what the model in memory said. texts: token ids to measure perplexity on, of which the model's mean loss was nll.
    Raises ModelError where tokens differ, where weights or perplexity moved beyond what the format costs, and in float32 where a
    logit differs by more than 1e-4 or a greedy answer does.
    """
    strings, others = compare_tokens(path, vocabulary, renderer)
    model = load_gguf(path)
    bounds = BOUNDS[kind]
    worst = _compare_weights(model, folder, bounds.weights, path)
    difference, same = 0.0, 0
    ends = {vocabulary.special["eos"], vocabulary.special["eot"]}
    insist(ends <= renderer.stop_ids, f"an answer would end at {sorted(ends)}", path)
    model.generation_config.eos_token_id = sorted(renderer.stop_ids)  # a GGUF file names one; readers know the others by their text
    for case in expected:
        difference = max(difference, float((logits_of(model, case.ids) - case.logits).abs().max()))
        same += greedy(model, case.ids) == case.completion
    if kind == "f32":
        insist(difference <= MAX_LOGIT_DIFFERENCE, f"a logit differs by {difference:.2g}", path)
        insist(same == len(expected), "a greedy answer differs", path)
    ratio = math.exp(mean_nll(model, texts) - nll)
    insist(1 / bounds.perplexity <= ratio <= bounds.perplexity, f"its perplexity is {ratio:.4f} times the model's", path)
    return asdict(ReadBack(kind, difference, len(expected), same, strings, True, others, ratio, worst))


def load_gguf(path: Path) -> Any:
    """Return the model that a GGUF file describes, in float32, read by transformers with all that the file says."""
    with quiet(), read_once():
        said = _fields(gguf.GGUFReader(path))
        family = said["general.architecture"]
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        config.head_dim = said[f"{family}.attention.key_length"]
        if family.startswith("gemma"):
            config.query_pre_attn_scalar = config.head_dim  # as llama.cpp does, the 27 B models apart
            config.attn_logit_softcapping = said.get(f"{family}.attn_logit_softcapping")
            config.final_logit_softcapping = said.get(f"{family}.final_logit_softcapping")
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32, local_files_only=True
        )
        factors = next((t.data for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight"), None)
    if factors is not None:
        model.model.rotary_emb.inv_freq /= torch.tensor(factors)
    return model.eval()


def _fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}


def _compare_weights(model: Any, folder: Path, bound: float, path: Path) -> float:
    found: dict[str, Tensor] = model.state_dict()
    worst = 0.0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  # it is no dict
                ours = weights.get_tensor(key).float()
                insist(key in found and found[key].shape == ours.shape, f"the weights {key} did not arrive", path)
                size = float(ours.square().mean().sqrt())
                error = float((found[key] - ours).square().mean().sqrt()) / size if size else float(found[key].abs().max())
                insist(error <= bound, f"the weights {key} are off by {error:.2g} of their size", path)
                worst = max(worst, error)
    return worst


@torch.no_grad()
def mean_nll(model: Any, texts: Sequence[Sequence[int]]) -> float:
    """Return the mean loss of a token given those before it, nats, over all texts."""
    total, count = 0.0, 0
    for ids in texts:
        logits, targets = logits_of(model, list(ids)), torch.tensor(ids)
        total += float(functional.cross_entropy(logits.roll(1, 0), targets, reduction="none")[torch.arange(len(ids)) > 0].sum())
        count += len(ids) - 1
    return total / count


def compare_tokens(path: Path, vocabulary: Vocabulary, renderer: Renderer) -> tuple[int, int]:
    """Return (how many strings were compared, of how many plain transformers makes other tokens from this file).

    Raises ModelError at the first string that the rules of the file cut into other tokens than the tokenizer of the folder.
    """
    strings = hard_strings(sorted(set(renderer.tokenizer.all_special_tokens)))
    if vocabulary.composed:
        strings = [unicodedata.normalize("NFC", text) for text in strings]
    with quiet(), read_once():
        plain = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    followed = tokenizer_of(path)
    others = 0
    for text in strings:
        ours = list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
        theirs = followed.encode(text, add_special_tokens=False).ids
        insist(theirs == ours, f"{text[:40]!r} is cut into other tokens", path)
        others += list(plain(text, add_special_tokens=False)["input_ids"]) != ours
    insist(plain.chat_template == renderer.template, "the chat template came back changed", path)
    return len(strings), others


def tokenizer_of(path: Path) -> Tokenizer:
    """Return the tokenizer that a GGUF file describes, by the rules that llama.cpp has under the names in it."""
    reader = gguf.GGUFReader(path)
    said = _fields(reader)
    tokens, types = (reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    whole = {gguf.TokenType.CONTROL: True, gguf.TokenType.UNKNOWN: True, gguf.TokenType.USER_DEFINED: False}
    added = [AddedToken(t, special=whole[k], normalized=False) for t, k in zip(tokens, types, strict=True) if k in whole]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if said["tokenizer.ggml.model"] == "llama":
        scores = reader.fields["tokenizer.ggml.scores"].contents()
        made = _by_scores(vocabulary, scores, said)
    else:
        merges = [tuple(merge.split(" ", 1)) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=said["tokenizer.ggml.pre"] in WHOLE_WORDS))
        made.pre_tokenizer = pre_tokenizers.Sequence(list(_splitting(said["tokenizer.ggml.pre"])))
        made.decoder = decoders.ByteLevel()
    made.add_special_tokens([token for token in added if token.special])
    made.add_tokens([token for token in added if not token.special])
    return made


def _splitting(name: str) -> Iterator[Any]:
    rule = next((rule for rule, known in SPLITS.items() if known == name), None)
    if name == "smollm":
        yield pre_tokenizers.Digits(individual_digits=True)
    if rule is not None:
        yield pre_tokenizers.Split(Regex(rule), behavior="isolated")
    yield pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)


def _by_scores(vocabulary: dict[str, int], scores: Sequence[float], said: dict[str, Any]) -> Tokenizer:
    # Any two neighbours that make a piece may merge, the piece of the highest score first.
    pairs = [
        (scores[number], (token[:cut], token[cut:]))
        for token, number in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [pair for _, pair in sorted(pairs, key=lambda scored: -scored[0])]
    unknown = next((token for token, number in vocabulary.items() if number == said.get("tokenizer.ggml.unknown_token_id")), None)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    changes: list[Any] = [normalizers.Prepend(SPACE)] if said["tokenizer.ggml.add_space_prefix"] else []
    made.normalizer = normalizers.Sequence([*changes, normalizers.Replace(" ", SPACE)])
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return made
