"""Save a model so that every common runtime loads it, and save a run so that it goes on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import GenerationConfig, PreTrainedModel

from preftune.data.template import Renderer
from preftune.errors import PreftuneError
from preftune.manifest import disk_errors, write_json
from preftune.models.adapter import trainable
from preftune.models.gathered import write_gathered
from preftune.models.load import quiet
from preftune.parallel import world
from preftune.parallel.behind import Behind, wait_for_this_process
from preftune.parallel.saved import AGAIN, load_parts, read_rest, save_parts, shapes_of
from preftune.parallel.shard import fill, local, root_of, settle, spread_like


def save_model(model: PreTrainedModel, renderer: Renderer, folder: Path) -> None:
    """Write weights, config, tokenizer, chat template and generation config as one Hugging Face folder.

    What plain `save_pretrained` of transformers 5 leaves wrong for other readers is put right: a tokenizer class that only
    transformers 5 knows, files that only their owner may read, the chat template in one place only, and a generation config
    without the end-of-turn token (a server would ramble on).
    """
    with disk_errors(folder):
        model.config.eos_token_id = renderer.end_id
        if hasattr(model, "generation_config") and model.can_generate():
            model.generation_config = GenerationConfig(
                bos_token_id=renderer.tokenizer.bos_token_id, eos_token_id=sorted(renderer.stop_ids), pad_token_id=renderer.pad_id
            )
        with quiet():
            save_weights(model, folder)

        def complete() -> None:
            save_tokenizer(renderer, folder)
            _open_to_readers(folder)

        world.from_main(complete)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write weights and configs; sharded ones are gathered a matrix at a time."""
    if root_of(model) is not None:
        write_gathered(model, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)


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


def save_training(
    path: Path, *, models: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer], step: int, state: Any, behind: bool = False
) -> Behind | None:
    """Write what a run needs to go on, whole or not at all: trained weights, optimisers, step, torch's random state, the stage's own.

    One process writes the file `path`; several write a folder beside it, each its part. Either is read by any number of processes.
    behind: a copy is written while training goes on; what is returned has then to be waited for before the next is saved.
    Raises PreftuneError where a weight is not finite, so that the last good checkpoint is never written over by a bad one.
    """
    trained = {name: trainable(model) for name, model in models.items()}
    broken = [key for weights in trained.values() for key, weight in weights.items() if not bool(local(weight).isfinite().all())]
    if any(world.any_of(bool(broken))):
        raise PreftuneError(
            f"{broken[0] if broken else 'a weight of another process'} is not finite after step {step}",
            str(path),
            "The checkpoint before it stands; lower lr.",
        )
    content: dict[str, Any] = {
        "step": step,
        "state": state,
        "models": {name: {key: weight.detach() for key, weight in weights.items()} for name, weights in trained.items()},
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []},
    }
    before = _saved_at(path)
    if world.size() == 1:
        written, kept = path, _copied(content) if behind else content
        end: Callable[[], None] = partial(save_whole, kept, path)
    else:
        written = path.with_name(f"{path.stem}-{step}")
        tensors = {name: tensor for part in (MODELS, OPTIMISERS, STATE) for name, tensor in _tensors(content[part], part).items()}
        end = save_parts(written, tensors, _without_tensors(content), behind=behind)

    def complete() -> None:
        end()
        if world.is_main():
            for older in before:
                if older != written:
                    remove_checkpoint(older)

    if behind:
        return Behind(complete)
    world.from_all(complete)
    return None


def copied_bytes(models: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer]) -> int:
    """Return what a copy that is written behind the training takes: this process's part of what is trained, and of its moments."""
    weights = [weight for model in models.values() for weight in trainable(model).values()]
    moments = [value for optimiser in optimisers.values() for value in _tensors(optimiser.state_dict(), OPTIMISERS).values()]
    return sum(local(tensor).numel() * tensor.element_size() for tensor in (*weights, *moments))


def _copied(value: Any) -> Any:
    """Return nested values whose tensors are copies in the CPU's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return type(value)(_copied(inner) for inner in value) if isinstance(value, list | tuple) else value


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, whichever of the two kinds it is; one that is not there is no error."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_checkpoints(path: Path) -> None:
    """Remove all checkpoints of the run whose file would be `path`."""
    for saved in _saved_at(path):
        remove_checkpoint(saved)


def _saved_at(path: Path) -> list[Path]:
    # The oldest first. There is more than one only where a kill came after a save and before the older one went.
    folders = sorted(path.parent.glob(f"{path.stem}-[0-9]*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    if not path.exists():
        return folders
    if not folders:
        return [path]
    step = int(_read_file(path)["step"])
    return sorted([path, *folders], key=lambda saved: step if saved == path else int(saved.name.rpartition("-")[2]))


MODELS, OPTIMISERS, STATE = "models", "optimisers", "state"


def _tensors(value: Any, name: str) -> dict[str, Tensor]:
    """Return the tensors in nested dicts, by the path to each."""
    if isinstance(value, Tensor):
        return {name: value}
    if not isinstance(value, dict):
        return {}
    return {path: tensor for key, inner in value.items() for path, tensor in _tensors(inner, f"{name}/{key}").items()}


def _without_tensors(value: Any, inside: str = "") -> Any:
    """Return nested dicts without the tensors that are saved by parts: those of the models, the optimisers and the stage."""
    if not isinstance(value, dict):
        return value
    keep = inside == "random"
    return {key: _without_tensors(inner, inside or key) for key, inner in value.items() if keep or not isinstance(inner, Tensor)}


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

    path: as for `save_training`; on how many processes it was saved makes no difference. Raises PreftuneError where it is broken.
    """
    wait_for_this_process()  # where this process has been here before, and was interrupted
    saved = world.from_main(lambda: _saved_at(path))  # one word on it: files come and go
    if not saved:
        return None
    content = _read_folder(saved[-1], models, optimisers) if saved[-1].is_dir() else _read_file(saved[-1])
    for name, model in models.items():
        current = trainable(model)
        if content[MODELS][name].keys() != current.keys():
            raise PreftuneError("the checkpoint is of another model", str(saved[-1]), AGAIN)
        for key, parameter in current.items():
            fill(parameter, content[MODELS][name][key])
        settle(model)
    for name, optimiser in optimisers.items():
        known = content[OPTIMISERS][name]
        for place, weight in enumerate(_parameters(optimiser)):
            for key, value in known["state"].get(place, {}).items():
                known["state"][place][key] = spread_like(weight, value)
        # The settings of its groups are the config's, and how weights fall into groups depends on the number of processes.
        optimiser.load_state_dict({"state": known["state"], "param_groups": optimiser.state_dict()["param_groups"]})
    # Our own draws come from seeds of (run, step, example) and need no state; this is for a model or library that draws by itself.
    torch.set_rng_state(content["random"]["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["random"]["cuda"])
    return int(content["step"]), content["state"]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise PreftuneError(f"the checkpoint cannot be read ({type(error).__name__})", str(path), AGAIN) from error


def _read_folder(folder: Path, models: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """Return what several processes saved, as `_read_file` does; sharded tensors as this process's parts."""
    content: dict[str, Any] = world.from_main(lambda: read_rest(folder))
    saved = shapes_of(folder)
    templates: dict[str, Tensor] = {}
    for name, model in models.items():
        content[MODELS][name] = {key: torch.empty_like(weight.detach()) for key, weight in trainable(model).items()}
        templates |= _tensors(content[MODELS][name], f"{MODELS}/{name}")
    for name, optimiser in optimisers.items():
        state = content[OPTIMISERS][name]["state"]
        for place, parameter in enumerate(_parameters(optimiser)):
            for key in ADAM & {path.rpartition("/")[2] for path in saved if path.startswith(f"{OPTIMISERS}/{name}/state/{place}/")}:
                state.setdefault(place, {})[key] = torch.zeros(()) if key == "step" else torch.empty_like(parameter.detach())
        templates |= _tensors(state, f"{OPTIMISERS}/{name}/state")
    for path in saved.keys() - templates.keys():
        if path.startswith(f"{STATE}/"):
            templates[path] = torch.empty(saved[path].size, dtype=saved[path].properties.dtype)
            *way, last = path.split("/")[1:]
            inner = content[STATE]
            for key in way:
                inner = inner.setdefault(key, {})
            inner[last] = templates[path]
    if saved.keys() != templates.keys():
        raise PreftuneError("the checkpoint is of another model", str(folder), AGAIN)
    load_parts(folder, templates)
    return content


ADAM = {"step", "exp_avg", "exp_avg_sq"}


def _parameters(optimiser: Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
