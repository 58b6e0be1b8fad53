"""Load any causal LM: a Hugging Face folder, a GGUF file, or one of our run folders; on CUDA, MPS or CPU as found."""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import logging as transformers_logging

from preftune.data.batches import Group, collate
from preftune.data.template import Renderer, read_template
from preftune.errors import ModelError
from preftune.losses.logprobs import Head, token_logprobs
from preftune.losses.reduce import to_sequences
from preftune.manifest import MANIFEST, hash_folder, read_manifest
from preftune.models.gguf_reading import read_once, with_plain_weights
from preftune.models.lean import lean_layers, takes_spans
from preftune.models.parts import load_parts_of
from preftune.models.product import product
from preftune.parallel import world
from preftune.parallel.shard import device_of_root, forget, root_of, shard
from preftune.tensors import TokenBatch

TEMPLATE = "chat_template.jinja"
LARGE_BLOCK = 4 << 20  # bytes
# What transformers lets through when a file of a model is broken, cut off or of another kind.
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, EOFError, struct.error, SafetensorError)


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks: by default it gives large ones back at once, and each step pays for them page by page.

    Measured on 2 cores: the first steps of a 135 M model took up to three times as long without it (docs/benchmarks.md).
    """
    if not _on_glibc():
        return
    libc = ctypes.CDLL("libc.so.6")
    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


@functools.cache
def give_back_large_blocks() -> None:
    """Let glibc give each large block back as soon as it is freed: in several processes, where layers are gathered and let go.

    Kept, they leave holes among what stays, which nothing fits into. Measured in docs/benchmarks.md.
    """
    if _on_glibc():
        m_mmap_threshold = -3  # of malloc.h
        ctypes.CDLL("libc.so.6").mallopt(m_mmap_threshold, LARGE_BLOCK)


@functools.cache
def _on_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def freed_memory_is_kept(device: torch.device) -> bool:
    """Say whether `keep_freed_memory` works on what is computed on this device."""
    # Not of several processes: layers that are gathered and let go leave holes of their size.
    return device.type == "cpu" and _on_glibc() and world.size() == 1


def give_back_freed_memory() -> None:
    """Give the memory that the process keeps but does not use back to the system, or to the GPU's driver.

    Between two stages, so that neither pays for what the other needed at its most; within one it is kept (see above).
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if _on_glibc():
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def forget_weights(model: nn.Module) -> None:
    """Free a model's weights, whoever else still holds the model: after this it can be used for nothing."""
    if root_of(model) is not None:
        forget(model)
        return
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.new_empty(0)


def find_device() -> torch.device:
    """Return CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def fitting_dtype(device: torch.device, *, trained_whole: bool) -> torch.dtype:
    """Return bfloat16 on a GPU that computes in it, unless the weights themselves are trained; float32 elsewhere."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported() and not trained_whole
    return torch.bfloat16 if half else torch.float32


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' notices and bars from the terminal: what a person needs is said by us."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _source(path: Path) -> tuple[str, dict[str, str]]:
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if not path.exists():
        raise ModelError("there is no such model", str(path), "Give a Hugging Face folder, a GGUF file or a run of preftune.")
    if not (path / "config.json").exists():
        raise ModelError("this folder holds no config.json", str(path), "Give a Hugging Face folder, a GGUF file or a run of preftune.")
    return str(path), {}


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder, GGUF file or run. Raises ModelError where it cannot be read."""
    folder = tokenizer_folder(path)
    source, extra = _source(folder)
    try:
        with quiet(), read_once():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, local_files_only=True, **extra)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ModelError(
            f"the tokenizer cannot be loaded ({first_line(error)})", str(folder), "The folder needs tokenizer.json."
        ) from error
    return tokenizer


def load_renderer(path: Path, chat_template: str | None = None) -> Renderer:
    """Return the renderer of a model; chat_template as in a config (None, "plain" or a file)."""
    template = read_template(chat_template)
    carried = path / "adapter" / TEMPLATE
    if template is None and carried.exists():  # an adapter's run carries the template that it was trained with
        template = carried.read_text(encoding="utf-8")
    return Renderer(load_tokenizer(path), chat_template=template, where=str(path))


def template_for_base(base: Path, run: Path) -> str | None:
    """Return the file of the template that a run was trained with where its base has none of its own, else None."""
    carried = [file for file in (run / "adapter" / TEMPLATE, run / "model" / TEMPLATE) if file.exists()]
    return str(carried[0]) if carried and not load_tokenizer(base).chat_template else None


def tokenizer_folder(path: Path) -> Path:
    """Return where a model's tokenizer lies: in `model/` of a run, in the base for an adapter's run, else in the folder."""
    if not (path / MANIFEST).exists() or (path / "config.json").exists():
        return path
    return path / "model" if (path / "model").exists() else tokenizer_folder(base_of(path))


def project_of(run: Path) -> Path:
    """Return the folder that holds `runs/`, `reports/` and so on, for a folder in one of them."""
    return run.resolve().parent.parent


def name_in(path: Path, project: Path) -> str:
    """Return a path as manifests hold it: relative to the project where it lies inside, so that a project can be moved."""
    whole = path.resolve()
    return whole.relative_to(project.resolve()).as_posix() if whole.is_relative_to(project.resolve()) else str(whole)


def find(name: str, project: Path) -> Path:
    """Return the path that a manifest's name means."""
    return project / name


def base_of(run: Path) -> Path:
    """Return the model that a run's adapter sits on. Raises ModelError where it is gone or is not the same any more."""
    manifest = read_manifest(run)
    if "model" not in manifest["config"]:
        raise ModelError(
            f"this folder is a {manifest['kind']} and no model", str(run), "Give a run, a release, a model folder or a GGUF file."
        )
    base = find(manifest["config"]["model"], project_of(run))
    if not base.exists():
        raise ModelError(f"its base model {base} is gone", str(run), "Bring it back to that place.")
    if hash_folder(base) != manifest["inputs"]["model"]:
        raise ModelError(f"its base model {base} is not the one that it was trained on", str(run), "Bring the right one back.")
    return base


def insist_on_answers(path: Path) -> None:
    """Raise ModelError where this is a run that gives scores: loaded as a causal LM it would write nonsense, which nobody trained."""
    if (path / MANIFEST).exists() and read_manifest(path)["kind"] == "reward":
        raise ModelError("this is a reward model, which scores answers and writes none", str(path), "Give a run of another stage.")


def load_causal_lm(
    path: Path, *, device: torch.device | None = None, dtype: torch.dtype | None = None, trained_whole: bool = False
) -> PreTrainedModel:
    """Return a causal LM in eval mode, ready to score or sample; where there are several processes, its weights are spread over them.

    path: a Hugging Face folder, a .gguf file, or a run (an adapter is merged into its base in float32). trained_whole: its own weights
    will be trained. Raises ModelError where weights are missing.
    """
    device = device or find_device()
    dtype = dtype or fitting_dtype(device, trained_whole=trained_whole)
    if world.size() == 1:
        keep_freed_memory()
        return load_whole(path, device, dtype)
    give_back_large_blocks()
    folder = path / "model" if (path / MANIFEST).exists() and (path / "model").exists() else path
    in_parts = load_parts_of(AutoModelForCausalLM, folder, device, dtype, trained=trained_whole)
    if in_parts is not None:
        return in_parts
    # A GGUF file is unpacked, and an adapter merged, whole.
    model = load_whole(path, torch.device("cpu"), dtype)
    shard(model, device, trained=trained_whole)
    return model


def load_whole(path: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return a causal LM whole in this process, however many there are; else as `load_causal_lm`."""
    if (path / MANIFEST).exists() and not (path / "config.json").exists():
        if (path / "model").exists():
            return load_whole(path / "model", device, dtype)
        from preftune.models.adapter import merged

        return merged(load_whole(base_of(path), device, torch.float32), path / "adapter").to(dtype)
    source, extra = _source(path)
    unpacked = with_plain_weights() if extra else {}
    try:
        with quiet(), read_once():
            model, info = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, local_files_only=True, output_loading_info=True, **extra, **unpacked
            )
    except LOADING_ERRORS as error:
        raise ModelError(f"the model cannot be loaded ({first_line(error)})", str(path), "Is it a causal LM with its weights?") from error
    if info.get("missing_keys"):
        raise ModelError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}", str(path), "Give the whole model.")
    if "gguf_file" in extra:
        _forget_quantisation(model)
    loaded: PreTrainedModel = model.to(device).eval()
    lean_layers(loaded)
    return loaded


def _forget_quantisation(model: Any) -> None:
    # transformers reads GGUF into plain weights but remembers that they were quantised, and then refuses to save or train them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None


def first_line(error: Exception) -> str:
    """Return what a library says of an error, short enough for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a peft wrapper, or the model itself."""
    of_wrapper: Any = getattr(model, "get_base_model", None)
    inner: Any = of_wrapper() if of_wrapper else model
    whole: PreTrainedModel = inner
    return whole


def max_context(model: nn.Module) -> int:
    """Return how many tokens the model's positions reach."""
    config = unwrap(model).config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**31)


def output_head(model: nn.Module) -> Head:
    """Return the model's output layer with its soft cap and scale, where it has them."""
    whole = unwrap(model)
    layer: Any = whole.get_output_embeddings()
    config = whole.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
    return Head(layer.weight, getattr(layer, "bias", None), softcap=cap, scale=scale, product=product)


def hidden_states(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the last hidden states [B, T, H] (after the final norm): what the output layer and the scalar heads read."""
    backbone: Any = unwrap(model).base_model
    if takes_spans(backbone):
        return _without_padding(model, backbone, batch)
    if batch.beginning and root_of(backbone) is not None:  # one pass through the layers a batch, as in the other processes
        return hidden_states(model, batch.with_beginning_in_rows())[:, len(batch.beginning) :]
    # Plain rows are padded on the right, so a causal model never looks at padding.
    mask = None if batch.plain and not batch.beginning else _masks(unwrap(model), batch.tree_mask)
    cache = after_beginning(model, batch.beginning, len(batch.ids)) if batch.beginning else {"use_cache": False}
    return _last_states(backbone, input_ids=batch.ids, attention_mask=mask, position_ids=batch.position_ids, **cache)


def _last_states(backbone: Any, **inputs: Any) -> Tensor:
    root = root_of(backbone)
    states: Tensor = backbone(**inputs).last_hidden_state if root is None else root.read(backbone, **inputs)
    return states


def _without_padding(model: nn.Module, backbone: Any, batch: TokenBatch) -> Tensor:
    counted = batch.attention_mask.nonzero(as_tuple=True)
    found = _row_after_row(model, backbone, batch, counted, use_cache=False)[len(batch.beginning) :]
    return found.new_zeros(*batch.ids.shape, found.shape[-1]).index_put(counted, found)


def _row_after_row(model: nn.Module, backbone: Any, batch: TokenBatch, counted: tuple[Tensor, ...], **cache: Any) -> Tensor:
    """Return the hidden states [P + N, H] of the beginning and then of all rows, one after the other: what is padding is not computed.

    counted: the rows and the columns of the N tokens that are no padding, int64 [N] each.
    """
    begun = len(batch.beginning)
    beginning = torch.tensor(batch.beginning, dtype=torch.long, device=batch.ids.device)
    ends = (begun + batch.attention_mask.sum(1).cumsum(0)).tolist()
    states = _last_states(
        backbone,
        input_ids=torch.cat([beginning, batch.ids[counted]])[None],
        attention_mask=_masks(unwrap(model), batch.packed_mask),
        position_ids=torch.cat([torch.arange(begun), batch.position_ids[counted]])[None],
        spans=[(0, begun, 0)] * bool(begun) + [(start, stop, begun) for start, stop in pairwise([begun, *ends])],
        **cache,
    )
    return states[0]


def read_rows(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, DynamicCache]:
    """Return (hidden states [P + N, H], keys and values of as many tokens) of the beginning and then all rows, one after the other.

    model: one whose layers all take spans (see `takes_spans`).
    """
    backbone: Any = unwrap(model).base_model
    cache = DynamicCache()
    counted = batch.attention_mask.nonzero(as_tuple=True)
    return _row_after_row(model, backbone, batch, counted, **cache_arguments(backbone, cache)), cache


def after_beginning(model: nn.Module, beginning: Sequence[int], rows: int) -> dict[str, Any]:
    """Return the arguments that let a forward pass of `rows` rows go on after tokens that all of them begin with.

    The beginning is computed once, with gradient where gradients are on.
    """
    backbone: Any = unwrap(model).base_model
    cache = DynamicCache()
    ids = torch.tensor([list(beginning)], device=device_of(model))
    backbone(input_ids=ids, **cache_arguments(backbone, cache))
    for layer in cache.layers:
        layer.keys, layer.values = (x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values))
    return cache_arguments(backbone, cache)


def cache_arguments(backbone: Any, cache: Cache) -> dict[str, Any]:
    """Return the arguments that give a model a cache: newer versions of transformers call it `cache`, older ones `past_key_values`."""
    name = "cache" if "cache" in signature(backbone.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


def _masks(model: PreTrainedModel, mask_of: Callable[[int | None], Tensor]) -> Tensor | dict[str, Tensor]:
    # transformers takes a mask of four dimensions as it is, so a layer's sliding window has to be in it.
    config: Any = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds:
        masks = {"full_attention": mask_of(None), "sliding_attention": mask_of(window)}
        return {kind: _fitting(model, mask) for kind, mask in masks.items()}
    return _fitting(model, mask_of(None if kinds else window))


def _fitting(model: PreTrainedModel, mask: Tensor) -> Tensor:
    # As what is added to the attention's logits: made once here, where torch would make it, and keep it for backward, in every layer.
    hidden = float("-inf") if model.config._attn_implementation == "sdpa" else torch.finfo(model.dtype).min
    zeros = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
    return zeros.masked_fill_(mask.logical_not(), hidden)


def device_of(model: nn.Module) -> torch.device:
    """Return where the model computes."""
    return device_of_root(model) or next(model.parameters()).device


@torch.no_grad()
def tree_rows_agree(model: nn.Module, *, tolerance: float = 1e-3, read: Callable[[TokenBatch], Tensor] | None = None) -> bool:
    """Say whether this model gives shared-prompt rows the same log-probs as plain rows (one with a recurrent state does not).

    read: what is compared instead, a value (or several) a sequence: the scores of a reward model. A probe on random tokens; where it
    fails, the stages fall back to plain rows, as they do where layers look back in a way that the probe is too short to see.
    """
    kinds = set(getattr(unwrap(model).config.get_text_config(), "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        return False
    words: Any = unwrap(model).get_input_embeddings()
    device = device_of(model)
    generator = torch.Generator().manual_seed(0)
    length = min(96, max_context(model) // 3)
    ids = torch.randint(0, words.weight.shape[0], (4, length), generator=generator).tolist()
    begun = tuple(ids[3][: length // 2])
    groups = [
        Group(begun + tuple(ids[0][: length // 2]), (tuple(ids[1]), tuple(ids[2][: length // 2])), 0),
        Group((*begun, 1), (tuple(ids[2]),), 1),
    ]

    def logprobs_of(batch: TokenBatch) -> Tensor:
        return to_sequences(batch_logprobs(model, batch)[0], batch.sequence, batch.num_sequences)[0]

    shared, plain = ((read or logprobs_of)(collate(groups, 0, tree=tree).to(device)) for tree in (True, False))
    return bool((shared - plain).abs().max() < (tolerance if words.weight.dtype == torch.float32 else 0.1))


BLOCK = 1024  # entries of the vocabulary whose logits are held at once: 2.4 MB for 600 tokens, which a core's cache holds or nearly
GPU_BLOCK = 16_384  # there many at once multiply faster
CHUNK_TOKENS = 32  # tokens' worth of logits that a plan counts for a block: what 1,500 tokens have at a vocabulary of 49,152


def batch_logprobs(model: nn.Module, batch: TokenBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (logprobs, entropy) of the counted tokens of a batch, float32 [B, T], 0 elsewhere, with gradient in logprobs."""
    return logprobs_of(hidden_states(model, batch), model, batch, temperature=temperature)


def logprobs_of(hidden: Tensor, model: nn.Module, batch: TokenBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return what the model's output layer says of hidden states that are there already, as `batch_logprobs`. hidden: float [B, T, H]."""
    return token_logprobs(
        hidden,
        output_head(model),
        batch.ids,
        batch.parent,
        batch.completion_mask,
        temperature=temperature,
        block=BLOCK if batch.ids.device.type == "cpu" else GPU_BLOCK,
    )
