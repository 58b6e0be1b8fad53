"""The base in 4 bits, for QLoRA: bitsandbytes on an NVIDIA GPU. Nothing else of ours imports it or needs it.

Written after bitsandbytes' and transformers' documentation; it was never run, for want of such a GPU (docs/training.md).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from preftune.errors import ConfigError, ModelError
from preftune.manifest import MANIFEST
from preftune.models.load import LOADING_ERRORS, first_line, quiet

KEY = 'key "adapter.kind"'


def load_in_4_bits(path: Path, *, device: torch.device) -> PreTrainedModel:
    """Return a causal LM with its linear layers in 4-bit NormalFloat, their constants quantised again, computing in bfloat16.

    path: a Hugging Face folder, or a run that holds a whole model. Raises ConfigError without CUDA or bitsandbytes, ModelError for a
    base that is not there in full.
    Source: Dettmers et al. 2305.14314, §3. Differs: none.
    """
    if device.type != "cuda":
        raise ConfigError(f"qlora holds the base in 4 bits, which needs an NVIDIA GPU, and this is {device.type}", KEY, "Take lora.")
    if find_spec("bitsandbytes") is None:
        raise ConfigError("qlora needs bitsandbytes, which is not installed", KEY, 'pip install "preftune[qlora]"')
    folder = path / "model" if (path / "model").exists() else path
    if not (folder / "config.json").exists():
        kind = "a run that holds an adapter" if (path / MANIFEST).exists() else "no Hugging Face folder"
        raise ModelError(f"this is {kind}; qlora quantises whole weights", str(path), "Give a model folder (preftune release makes one).")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    try:
        with quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=settings, dtype=torch.bfloat16, device_map={"": device}, local_files_only=True
            )
    except LOADING_ERRORS as error:
        raise ModelError(f"the model cannot be loaded in 4 bits ({first_line(error)})", str(path), "Take lora.") from error
    return model.eval()
