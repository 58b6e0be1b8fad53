"""A GGUF file for llama.cpp, Ollama and LM Studio, written from a Hugging Face folder tensor by tensor.

What llama.cpp's converter does to the weights is done here: the rows of q and k of a Llama are put into the order of its rotary
embedding, 1 is added to Gemma's norms, a tied head is left out, vectors stay in float32. A model that llama.cpp would compute
otherwise is refused in words. Source: the `gguf` package, whose tables of names and quantisers are used.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig

from preftune.data.template import Renderer
from preftune.errors import ModelError
from preftune.manifest import disk_errors
from preftune.release.gguf_tokens import FOLDER_ALONE, Vocabulary, read_vocabulary

Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
Array = NDArray[Any]
KINDS: dict[Kind, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
# transformers' name of a family → llama.cpp's. Mistral is a Llama there.
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3_text": "gemma3"}
WORDS = ("token_embd.weight", "output.weight")  # at 4 bits these lose most, so they get 8
GEMMA3_PERIOD = 6  # llama.cpp takes each sixth layer to look at everything


def check_family(config: Any, where: Path) -> None:
    """Raise ModelError where llama.cpp would not compute what this model (its transformers config) computes."""
    kind = config.model_type
    if kind not in FAMILIES:
        known = ", ".join(sorted(set(FAMILIES)))
        raise ModelError(f"no GGUF is written for a model of type {kind}, only for {known}", str(where), FOLDER_ALONE)
    trouble = next((told for holds, told in _needs(config) if not holds), None)
    if trouble:
        raise ModelError(f"llama.cpp would compute this {kind} model otherwise: {trouble}", str(where), FOLDER_ALONE)


def _needs(config: Any) -> Iterator[tuple[bool, str]]:
    kind, layers, width = config.model_type, config.num_hidden_layers, config.head_dim if hasattr(config, "head_dim") else None
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    yield activation == ("gelu_pytorch_tanh" if kind.startswith("gemma") else "silu"), f"its activation is {activation}"
    yield not getattr(config, "mlp_bias", False), "it has biases in its feed-forward layers"
    yield not getattr(config, "attention_bias", False), "it has biases in its attention"
    ropes = _ropes(config)
    scaled = {str(rope.get("rope_type", "default")) for rope in ropes.values()} - {"default"}
    yield scaled <= ({"llama3"} if kind == "llama" else set()), f"its rotary embedding is scaled ({', '.join(sorted(scaled))})"
    yield all(rope.get("partial_rotary_factor") in (None, 1.0) for rope in ropes.values()), "only a part of each head is rotated"
    if kind.startswith("qwen"):
        yield not getattr(config, "use_sliding_window", False), "its layers look at a window alone"
    if kind.startswith("gemma"):
        period = 2 if kind == "gemma2" else GEMMA3_PERIOD
        pattern = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
        yield list(config.layer_types) == pattern, f"its windowed layers are not all but each {'second' if period == 2 else 'sixth'}"
        largest = layers == (46 if kind == "gemma2" else 62)  # the 27 B models scale their attention in another way
        scale = config.hidden_size // config.num_attention_heads if largest else width
        yield config.query_pre_attn_scalar == scale, f"its attention is scaled by {config.query_pre_attn_scalar}, not by {scale}"
        yield not getattr(config, "use_bidirectional_attention", False), "it looks ahead"
    if kind == "gemma3_text":
        yield config.attn_logit_softcapping is None, "its attention is capped"
        yield ropes["sliding_attention"]["rope_theta"] == 10_000, "its windowed layers rotate by another base than 10,000"


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    rope: dict[str, Any] = config.rope_parameters
    return rope if "full_attention" in rope else {"full_attention": rope}


@dataclass(frozen=True)
class _Tensor:
    # One tensor of the file, and how its numbers are made when its turn comes.
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    read: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // int(block) * int(size)


def write_gguf(folder: Path, path: Path, kind: Kind, *, renderer: Renderer, name: str) -> Vocabulary:
    """Write a Hugging Face folder as one GGUF file and return its vocabulary.

    kind: how the matrices are stored. name: what readers show. Raises ModelError where llama.cpp would compute or tokenise otherwise
    than transformers, and DiskError where the disk is full; no file is left then.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    check_family(config, folder)
    family = FAMILIES[config.model_type]
    with disk_errors(path.parent), ExitStack() as open_files:
        tensors = list(_tensors(folder, config, kind, open_files))
        rows = next(tensor.shape[0] for tensor in tensors if tensor.name == WORDS[0])
        vocabulary = read_vocabulary(folder, renderer, rows)
        writer = gguf.GGUFWriter(path, family)
        try:
            _add_shape(writer, config, rows)
            _add_general(writer, kind, name)
            _add_vocabulary(writer, vocabulary)
            for tensor in tensors:
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(tensor.read()), tensor.kind))
            writer.flush()
        except BaseException as error:
            _drop(writer, path)
            if isinstance(error, OSError) and error.errno is None:  # numpy says in words that not all was written
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        writer.close()
    return vocabulary


def _drop(writer: Any, path: Path) -> None:
    with suppress(OSError):  # what is still to be written does not fit either; the file goes anyway
        writer.close()
    path.unlink(missing_ok=True)


def gguf_bytes(config: Any, parameters: int, kind: Kind) -> int:
    """Return about how large the file will be; parameters: their number."""
    block, size = gguf.GGML_QUANT_SIZES[KINDS[kind][0]]
    words = int(config.vocab_size * config.hidden_size)  # kept in 8 bits at 4
    names = 64 * int(config.vocab_size)  # of the tokens, and the merges
    return parameters * int(size) // int(block) + (words // 2 if kind == "q4_0" else 0) + names


def context_of(config: Any) -> int:
    """Return up to how many tokens llama.cpp computes what the model computes: it knows no window in a Mistral."""
    context, window = int(config.max_position_embeddings), getattr(config, "sliding_window", None)
    return min(context, int(window)) if config.model_type == "mistral" and window else context


def _add_shape(writer: Any, config: Any, rows: int) -> None:
    rope = _ropes(config)["full_attention"]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_of(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(rows)
    if config.model_type.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
        if config.attn_logit_softcapping:
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_general(writer: Any, kind: Kind, name: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for role, number in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(vocabulary.space_first)
    writer.add_chat_template(vocabulary.template)


def _tensors(folder: Path, config: Any, kind: Kind, open_files: ExitStack) -> Iterator[_Tensor]:
    family = FAMILIES[config.model_type]
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    if factors := _rope_factors(config):
        yield _Tensor("rope_freqs.weight", (len(factors),), GGMLQuantizationType.F32, lambda: np.array(factors, np.float32))
    for file in sorted(folder.glob("*.safetensors")):
        weights: Any = open_files.enter_context(safe_open(file, framework="pt"))
        for key in weights.keys():  # noqa: SIM118  # it is no dict
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise ModelError(f"llama.cpp has no name for the weights {key}", str(folder), FOLDER_ALONE)
            shape = tuple(weights.get_slice(key).get_shape())
            yield _Tensor(name, shape, _stored_as(name, shape, kind), _reader(weights, key, config))


def _stored_as(name: str, shape: tuple[int, ...], kind: Kind) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = KINDS["q8_0" if kind == "q4_0" and name in WORDS else kind][0]
    fits = shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
    return wanted if fits else GGMLQuantizationType.F16


def _reader(weights: Any, key: str, config: Any) -> Callable[[], Array]:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2], 0)
    permuted = heads and FAMILIES[config.model_type] == "llama"
    offset = config.model_type.startswith("gemma") and key.endswith("norm.weight")

    def read() -> Array:
        values: Array = weights.get_tensor(key).float().numpy()
        if permuted:  # transformers rotates the halves of a head, llama.cpp's Llama its neighbours
            values = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        return values + 1 if offset else values

    return read


def _rope_factors(config: Any) -> list[float]:
    """Return by how much llama.cpp divides each frequency where the rotary embedding is scaled as Llama 3.1's is; else nothing."""
    rope = _ropes(config)["full_attention"]
    if rope.get("rope_type") != "llama3":
        return []
    width = config.head_dim
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    found = []
    for i in range(0, width, 2):
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * rope["rope_theta"] ** (i / width))  # within the context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
