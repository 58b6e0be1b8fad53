"""Save a model so that every common runtime loads it, and save a run so that it goes on after a kill."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import GenerationConfig, PreTrainedModel

from preftune.data.template import Renderer
from preftune.errors import PreftuneError
from preftune.manifest import disk_errors, write_json
from preftune.models.adapter import trainable
from preftune.models.load import quiet


def save_model(model: PreTrainedModel, renderer: Renderer, folder: Path) -> None:
    """Write weights, config, tokenizer, chat template and generation config as one Hugging Face folder.

    What plain `save_pretrained` of transformers 5 leaves wrong for other readers is put right: a tokenizer class that only
    transformers 5 knows, files that only their owner may read, the chat template in one place only, and a generation config
    without the end-of-turn token (a server would ramble on).
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.config.eos_token_id = renderer.end_id
        if hasattr(model, "generation_config") and model.can_generate():
            model.generation_config = GenerationConfig(
                bos_token_id=renderer.tokenizer.bos_token_id, eos_token_id=sorted(renderer.stop_ids), pad_token_id=renderer.pad_id
            )
        with quiet():
            model.save_pretrained(folder)
        save_tokenizer(renderer, folder)
        _open_to_readers(folder)


def save_tokenizer(renderer: Renderer, folder: Path) -> None:
    """Write the tokenizer with its chat template in both places that readers look at."""
    folder.mkdir(parents=True, exist_ok=True)
    renderer.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend" and (folder / "tokenizer.json").exists():
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("is_local", "local_files_only", "backend"):  # of this machine's loading, not of the tokenizer
        config.pop(key, None)
    config["chat_template"] = renderer.template
    write_json(path, config)
    (folder / "chat_template.jinja").write_text(renderer.template, encoding="utf-8")


def _open_to_readers(folder: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        if file.is_file() and stat.S_IMODE(file.stat().st_mode) == 0o600:
            file.chmod(0o666 & ~mask)


def save_training(path: Path, *, models: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer], step: int, state: Any) -> None:
    """Write what a run needs to go on, whole or not at all: trained weights, optimisers, step, torch's random state, the stage's own.

    Raises PreftuneError where a weight is not finite, so that the last good checkpoint is never written over by a bad one.
    """
    for model in models.values():
        for key, parameter in trainable(model).items():
            if not bool(parameter.isfinite().all()):
                raise PreftuneError(f"{key} is not finite after step {step}", str(path), "The checkpoint before it stands; lower lr.")
    content = {
        "step": step,
        "state": state,
        "models": {name: {k: p.detach() for k, p in trainable(m).items()} for name, m in models.items()},
        "optimisers": {name: o.state_dict() for name, o in optimisers.items()},
        "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []},
    }
    save_whole(content, path)


def save_whole(content: Any, path: Path) -> None:
    """Write what torch.save can write, whole or not at all (temporary name, sync, rename)."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def load_training(path: Path, *, models: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer]) -> tuple[int, Any] | None:
    """Put a saved run's weights, optimisers and random state back in place. Returns (step, state), or None where nothing was saved.

    Raises PreftuneError where the file is broken.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise PreftuneError(
            f"the checkpoint cannot be read ({type(error).__name__})", str(path), "Delete it to start this run anew."
        ) from error
    for name, model in models.items():
        saved = content["models"][name]
        current = trainable(model)
        if saved.keys() != current.keys():
            raise PreftuneError("the checkpoint is of another model", str(path), "Delete it to start this run anew.")
        with torch.no_grad():
            for key, parameter in current.items():
                parameter.copy_(saved[key])
    for name, optimiser in optimisers.items():
        optimiser.load_state_dict(content["optimisers"][name])
    # Our own draws come from seeds of (run, step, example) and need no state; this is for a model or library that draws by itself.
    torch.set_rng_state(content["random"]["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["random"]["cuda"])
    return int(content["step"]), content["state"]
