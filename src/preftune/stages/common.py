"""What every stage does around its algorithm: the shared keys, opening its inputs, closing its folder."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import Field, model_validator
from torch import nn

from preftune.config import Config
from preftune.data.batches import Encoded, Group, collate
from preftune.data.snapshot import Snapshot, load_snapshot
from preftune.data.template import Renderer
from preftune.errors import ConfigError, DataError
from preftune.manifest import MANIFEST, Work, begin, differences, disk_errors, folder_id, hash_folder, versions, write_json
from preftune.models.adapter import Adapter, add_adapter, freeze_all_but, trainable
from preftune.models.checkpoint import remove_checkpoints, save_model, save_tokenizer
from preftune.models.lean import takes_spans
from preftune.models.load import (
    device_of,
    find,
    find_device,
    load_causal_lm,
    load_renderer,
    max_context,
    name_in,
    tree_rows_agree,
    unwrap,
)
from preftune.models.one_base import leave_policy_alone
from preftune.models.quantised import load_in_4_bits
from preftune.models.recompute import can_recompute, recompute_layers
from preftune.parallel import world
from preftune.progress import Progress, counted
from preftune.records import Message, Pair
from preftune.rollout.rewards.total import resolve_sources
from preftune.tensors import TokenBatch
from preftune.training.held_out import BEST
from preftune.training.loop import Loop, read_metrics
from preftune.training.memory import peak_memory_gib
from preftune.training.optim import Schedule
from preftune.training.plan import Plan


class StageConfig(Config):
    """The keys that every stage has."""

    data: str = Field(description="snapshot folder")
    model: str = Field(description="the model to start from: a Hugging Face folder, a .gguf file, or a run")
    chat_template: str | None = Field(None, description='null = the model\'s own; "plain" for a base model; or a Jinja file')
    adapter: Adapter | None = Field(Adapter(), description="LoRA or its kin (kind, rank, alpha, modules); null = train the weights")
    seed: int = Field(0, ge=0, description="order of the data, start of the adapter, sampling")
    token_budget: int = Field(2048, ge=64, description="tokens computed at once, padding included; the result does not depend on it")
    max_tokens: int = Field(2048, ge=16, description="longest prompt and answer together; longer ones are left out and counted")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which lr rises")
    max_grad_norm: float | None = Field(1.0, gt=0, description="longest gradient; null = any")
    async_checkpoints: bool | None = Field(
        None, description="write checkpoints while training goes on, from a copy in the CPU's memory if it has room; null = on a GPU alone"
    )


class OfflineConfig(StageConfig):
    """The keys that the stages share which learn from examples that are there (PPO makes its own as it goes)."""

    epochs: int = Field(1, ge=1, description="passes over the data; more than 2 over-fit quickly (2203.02155)")
    batch_size: int = Field(16, ge=1, description="examples an optimiser step; an example is a pair, or an answer for sft")
    schedule: Schedule = Field("linear", description="how lr falls after the warm-up: constant (not at all), linear or cosine (to 0)")
    train_only: tuple[str, ...] | None = Field(
        None, min_length=1, description='what is trained or adapted, by name: "layers.2[4-9]", "mlp", "*norm*"; null = all'
    )
    gradient_checkpointing: bool | None = Field(
        None, description="compute each layer again in backward, for memory; the result is the same; null = where the plan does not fit"
    )
    eval_every: int | None = Field(
        None, ge=1, description="steps between measurements of the held-out loss, whose best weights are kept; null = none, the last are"
    )
    patience: int | None = Field(None, ge=1, description="measurements in a row without a better one that end the run; null = any number")
    weight_decay: float = Field(0.0, ge=0, description="share of a matrix, times lr, taken off it a step; never of norms and biases")

    @model_validator(mode="after")
    def _patience_needs_measurements(self) -> OfflineConfig:
        if self.patience is not None and self.eval_every is None:
            raise ValueError('"patience" counts measurements, and "eval_every" asks for none. Set eval_every too')
        return self


OPTIONAL_FILES = ("ptx_text",)  # keys that name a file, where they are set
BEGUN = "begun.json"  # what an unfinished run was begun with; the manifest says it of a finished one

S = TypeVar("S", bound=StageConfig)
T = TypeVar("T")


def resolved(config: S, out: Path, names: tuple[str, ...] = ("data", "model")) -> tuple[S, dict[str, str]]:
    """Return the config with paths as manifests hold them, and the hash of each of these inputs.

    A path is looked for as typed, else below the project (the folder that holds `out`). Raises ConfigError where it is not there.
    """
    project = out.resolve().parent
    changes: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    for name in (*names, *OPTIONAL_FILES):
        value = getattr(config, name, None)
        if value is None:
            continue
        path = next((p for p in (Path(value), find(value, project)) if p.exists()), None)
        if path is None:
            raise ConfigError(f'there is no "{value}"', f'key "{name}"', "Give a folder or file that is there.")
        changes[name], hashes[name] = name_in(path, project), hash_folder(path)
    if sources := getattr(config, "rewards", ()):
        changes["rewards"], more = resolve_sources(sources, project)
        hashes |= more
    if config.chat_template is not None and Path(config.chat_template).is_file():
        hashes["chat_template"] = hash_folder(Path(config.chat_template))  # another text in the same file is another run
    return config.model_copy(update=changes), hashes


@dataclass
class Room:
    """What a stage works with: its inputs, opened."""

    project: Path
    base: Path
    snapshot: Snapshot
    renderer: Renderer
    model: nn.Module
    tree: bool
    max_tokens: int
    apart: bool = True  # what all prompts of a batch begin with is computed once, in a cache

    def batch(self, groups: Sequence[Group]) -> TokenBatch:
        """Return the groups as a batch on the model's device."""
        return collate(groups, self.renderer.pad_id, tree=self.tree, apart=self.apart).to(device_of(self.model))

    @property
    def trained_parameters(self) -> int:
        """How many numbers training changes."""
        return sum(p.numel() for p in trainable(self.model).values())


def start(kind: str, config: S, out: Path, names: tuple[str, ...] = ("data", "model")) -> tuple[S, Path, Work | None]:
    """Return (config with resolved paths, the run's folder, the work to do); no work where the same run is there already."""
    world.join()
    world.from_main(lambda: insist_on_rows(config))
    config, hashes = world.of_machine(lambda: resolved(config, out, names))
    insist_on_the_same(versions(), hashes)

    def begun() -> tuple[Path, Work | None]:
        final, work = begin(out, kind, hashes, config.model_dump(mode="json"))
        if work is not None:
            write_json(work.path / BEGUN, _begun(kind, hashes, config))
        return final, work

    return config, *world.from_main(begun)


def insist_on_rows(config: StageConfig) -> None:
    """Raise ConfigError where a step has fewer rows than there are processes, or the adapter is one that cannot be spread."""
    online = getattr(config, "prompts_per_step", None)
    key = "batch_size" if online is None else "prompts_per_step"
    rows = getattr(config, key) // getattr(config, "minibatches", 1)
    if rows < world.size():
        what = f"an optimiser step has {counted(rows, 'rows')}, and there are {world.size()} processes"
        raise ConfigError(what, f'key "{key}"', f"Give {key}={getattr(config, key) * world.size() // rows} or start fewer processes.")
    if world.size() > 1 and config.adapter is not None and config.adapter.kind in ("qlora", "dora"):
        what = f'"{config.adapter.kind}" works in one process, and there are {world.size()}'
        raise ConfigError(what, 'key "adapter.kind"', "Take lora or rslora, whose base is spread over the processes.")


def insist_on_the_same(libraries: dict[str, str], hashes: dict[str, str]) -> None:
    """Raise ConfigError where a process runs other versions, or found another model or data, than the first one."""
    said = world.of_all((socket.gethostname(), {"version": libraries, "input": hashes}))

    def compare() -> None:
        (first_host, first), *others = said
        for number, (host, other) in enumerate(others, start=1):
            for key, (here, there) in differences(first, other).items():
                what = f"{key.replace('.', ' ')} is {here} in process 0 on {first_host} and {there} in process {number} on {host}"
                raise ConfigError(what, "torchrun", "Give every machine the same environment, models and data.")

    world.from_main(compare)


def _begun(kind: str, hashes: dict[str, str], config: Config) -> dict[str, Any]:
    return {"kind": kind, "preftune": versions().get("preftune", ""), "inputs": hashes, "config": config.model_dump(mode="json")}


def insist_on_unfinished(kind: str, config: Any, out: Path, names: tuple[str, ...] = ("data", "model")) -> None:
    """Raise ConfigError unless a run with these settings was begun; where one was begun with others, name each difference.

    A run that is finished already is no error: there is nothing left to do.
    """
    config, hashes = resolved(config, out, names)
    name = folder_id(kind, hashes, config.model_dump(mode="json"))
    if (out / name / MANIFEST).exists() or (out / f".{name}.partial" / BEGUN).exists():
        return
    wanted = _begun(kind, hashes, config)
    begun = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f".*.partial/{BEGUN}"))}
    found = {name: differences(said, wanted) for name, said in begun.items() if said["kind"] == kind}
    if not found:
        raise ConfigError(f"there is no unfinished {kind} run", str(out), "Leave --resume out to start one.")
    nearest = min(found, key=lambda name: len(found[name]))
    said = "; ".join(f"{key.removeprefix('config.')} is {before} there and {now} here" for key, (before, now) in found[nearest].items())
    raise ConfigError(
        f"the unfinished {kind} run was begun with other settings: {said}",
        str(out / nearest),
        "Set them as they are there, or leave --resume out to start a new run.",
    )


def open_room(config: StageConfig, out: Path, progress: Progress) -> Room:
    """Load the snapshot, the renderer and the policy of a resolved config. Dropout is off: the model stays in eval mode."""
    project = out.resolve().parent
    base = find(config.model, project)
    renderer = load_renderer(base, config.chat_template)
    own = config if isinstance(config, OfflineConfig) else None
    model = load_policy(base, config.adapter, seed=config.seed, only=own.train_only if own else None)
    tree = tree_rows_agree(model)
    if not tree:
        progress.note("This model reads shared-prompt rows differently, so each answer gets a row of its own (slower).")
    limit = min(config.max_tokens, max_context(model))
    # Where rows are padded, a beginning computed apart is one more pass through the layers, which other processes do not make.
    apart = world.size() == 1 or takes_spans(unwrap(model).base_model)
    room = Room(project, base, load_snapshot(find(config.data, project)), renderer, model, tree, limit, apart)
    return recomputing(room) if own is not None and own.gradient_checkpointing else room


def settle(config: OfflineConfig, room: Room, plan: Callable[[Room], Plan], progress: Progress) -> tuple[Room, Plan]:
    """Return the room and its plan; where it does not fit the memory and the config leaves it open, layers are computed again.

    What does not fit even so is said. plan: the stage's plan in a room.
    """
    planned = plan(room)
    (tight,) = world.any_of(bool(planned.advice))
    if tight and config.gradient_checkpointing is None and can_recompute(room.model):
        progress.note(f"Layers are computed again in the backward pass, since {planned.peak_memory_gib:.1f} GiB would not fit.")
        room = recomputing(room)
        planned = plan(room)
    for warning in planned.warnings():
        progress.note(warning)
    return room, planned


def recomputing(room: Room) -> Room:
    """Return the room with its model's layers computed again in backward, which a cache would not survive."""
    recompute_layers(room.model)
    return replace(room, apart=False)


def load_policy(base: Path, adapter: Adapter | None, *, seed: int, only: Sequence[str] | None = None) -> nn.Module:
    """Return the model to train: with a fresh adapter, or with its own weights trained. only: patterns of what is adapted or trained."""
    device = find_device()
    if adapter is not None:
        in_4_bits = adapter.kind == "qlora"
        frozen = load_in_4_bits(base, device=device) if in_4_bits else load_causal_lm(base, device=device)
        policy: nn.Module = add_adapter(frozen, adapter, seed=seed, only=only)
        return policy
    whole: nn.Module = load_causal_lm(base, device=device, trained_whole=True)
    freeze_all_but(whole, only or ("*",))
    return whole


def finish(room: Room, work: Work, final: Path, loop: Loop, encoded: Encoded, planned: Plan | None = None, **facts: Any) -> Path:
    """Drop the checkpoint and give the folder its final name; the stage has saved its result in it. Tells planned against real."""
    world.wait_for_all()
    loop.settle()  # a run that ended before its last step may still be writing
    peak, trained_for = peak_memory_gib(), read_metrics(work.path)[-1]["seconds"]
    if planned is not None:
        loop.progress.note(planned.against(seconds=trained_for, peak_memory_gib=peak))
        facts["planned"] = {"training_seconds": round(planned.seconds, 1), "peak_memory_gib": round(planned.peak_memory_gib, 2)}

    def close() -> Path:
        loop.close()
        (work.path / BEGUN).unlink()
        remove_checkpoints(work.path / BEST)
        return work.finish(
            final,
            data=encoded.facts(),
            trained_parameters=next(iter(loop.trained_parameters.values())),  # of the first model: PPO's second is its critic
            training_seconds=round(trained_for, 1),
            peak_memory_gib=round(peak, 2),
            tree_rows=room.tree,
            **facts,
        )

    return world.from_main(close)


def save_policy(room: Room, folder: Path) -> None:
    """Write the adapter (on its base, whose hash is in the manifest), or the whole model."""
    if hasattr(room.model, "peft_config"):
        leave_policy_alone(room.model)  # without the adapters of other roles on its base

        def save() -> None:
            with disk_errors(folder):
                save_adapter(room.model, folder / "adapter", base=name_in(room.base, room.project))
                save_tokenizer(room.renderer, folder / "adapter")

        world.from_main(save)
    else:
        whole: Any = room.model
        save_model(whole, room.renderer, folder / "model")


def save_adapter(model: Any, folder: Path, *, base: str) -> None:
    """Write a peft adapter that others can read; the same run gives the same bytes, in whichever folder its project lies."""
    # No adapter of ours is on an embedding; asked to find out, peft looks for a config beside the base, and then on the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base, "target_modules": sorted(settings["target_modules"])}
    write_json(path, settings)
    (folder / "README.md").unlink(missing_ok=True)  # peft's is an empty form that names this machine's folders
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


def something_held_out(examples: Sequence[T], config: OfflineConfig) -> Sequence[T]:
    """Return the held-out examples that the run measures on, none where it does not. Raises DataError where there are none to."""
    if config.eval_every is not None and not examples:
        raise DataError("nothing is held out to measure on, as eval_every asks", config.data, "Take preftune snapshot --held-out 0.1.")
    return examples if config.eval_every is not None else ()


class Grouped(Protocol):
    """What belongs to a prompt."""

    @property
    def group(self) -> str:
        """The prompt's id."""
        ...


def namer(examples: Sequence[Grouped]) -> Callable[[list[Group]], str]:
    """Return what names a micro-batch of these for an error: the place of each in the data, from 0, and its prompt's id."""
    return lambda groups: "rows " + ", ".join(f"{g.index} (prompt {examples[g.index].group or 'unnamed'})" for g in groups)


def pair_items(pairs: Iterable[Pair]) -> list[tuple[Sequence[Message], list[str]]]:
    """Return (messages, [chosen, rejected]) of pairs: group i of the encoding holds sequences 2i (chosen) and 2i + 1."""
    return [(p.messages, [p.chosen, p.rejected]) for p in pairs]
