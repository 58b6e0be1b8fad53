"""Release a run: the gate, then a folder that plain transformers loads, read back and compared before it gets its name.

releases/<id>/  config.json, model.safetensors (merged, float32), tokenizer, chat_template.jinja, generation_config.json
                adapter/ where one was trained, gguf/ where asked for, README.md (the card), the base's licence, provenance.json,
                sha256sums.txt (`sha256sum -c sha256sums.txt`), manifest.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from preftune.errors import ConfigError, DiskError, PreftuneError, Refused
from preftune.manifest import begin, disk_errors, hash_file, read_manifest, write_json
from preftune.progress import Progress, Silent
from preftune.release.card import base_name, card
from preftune.release.folder import load_run, read_back, write_folder
from preftune.release.gate import EVALUATION, check_same_run, judge
from preftune.release.gguf_export import kinds_of, measure_before, write_ggufs
from preftune.release.gguf_write import Kind, check_family, gguf_bytes
from preftune.release.provenance import PROVENANCE, Origin, holes, origin_of

TUNED = ("sft", "dpo", "ppo", "rloo", "grpo")  # the stages whose result writes answers
CHECKSUMS = "sha256sums.txt"
ROOM = 1.1  # times what will be written must be free on the disk


def release(
    run: Path,
    evaluation: Path,
    out: Path = Path("releases"),
    *,
    override: str | None = None,
    gguf: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Write `out/<id>` from a run that its evaluation lets through, and return it; one that is there already is returned.

    evaluation: the folder that `evaluate` wrote for this very run. override: release it although the gate refuses; the card
    then carries the reason. gguf: also GGUF files of these kinds (f32, f16, bf16, q8_0, q4_0), with a Modelfile for Ollama.
    Raises Refused with the gate's reasons, ConfigError where the evaluation is of another model, ModelError where there is no GGUF
    for such a model, and PreftuneError where what was written does not read back as the same model: then nothing is left.
    """
    progress = progress or Silent()
    if override is not None and not override.strip():
        raise ConfigError("the reason is empty", "--override", "Say in a sentence why this model is released against the gate.")
    if read_manifest(run)["kind"] not in TUNED:
        raise ConfigError(f"this is a {read_manifest(run)['kind']} folder", str(run), f"Give a run of preftune train {', '.join(TUNED)}.")
    kinds = kinds_of(gguf)
    check_same_run(run, evaluation)
    measured = _read_evaluation(evaluation)
    chain = origin_of(run)
    gate = judge(measured, holes=holes(chain))
    if not gate.passed and override is None:
        told = f"the gate refuses this model. {' '.join(gate.reasons)}"
        raise Refused(told, str(run), "To release it all the same, say why with --override.")
    reason = None if gate.passed else override
    inputs = {"run": str(read_manifest(run)["id"]), "evaluation": str(read_manifest(evaluation)["id"])}
    final, work = begin(out, "release", inputs, {"override": reason} | ({"gguf": list(kinds)} if kinds else {}))
    if work is None:
        return final
    try:
        _empty(work.path)
        with progress.stage("release", 3 + len(kinds), "parts") as task:
            facts = _write_model(run, work.path, kinds, f"{base_name(chain)}-{work.id}", told=task.advance)
            made = facts.get("gguf")
            if made and "no_modelfile" in made:
                progress.note(f"{made['no_modelfile']}.")
            ids = {"release_id": work.id, "evaluation_id": inputs["evaluation"]}
            text = card(chain, measured, gate, reason, licence=_licence(chain.base.path), gguf=made, **ids)
            _write_papers(work.path, run, chain, text)
            task.advance()
        return work.finish(final, run=run.name, checksums=hash_file(work.path / CHECKSUMS), gate=asdict(gate), **facts)
    except BaseException:
        shutil.rmtree(work.path, ignore_errors=True)
        raise


def _write_model(run: Path, folder: Path, kinds: Sequence[Kind], name: str, *, told: Callable[[], None]) -> dict[str, Any]:
    """Write the model's folder and its GGUF files, read each back, and return what was found."""
    model, renderer = load_run(run)
    if kinds:
        check_family(model.config, run)
    _check_room(folder, model, kinds)
    expected = write_folder(model, renderer, folder)
    before = measure_before(model, renderer, expected) if kinds else None
    del model  # what is read back takes as much room again
    told()
    difference = read_back(folder, renderer, expected)
    told()
    facts: dict[str, Any] = {"read_back": {"prompts": len(expected), "max_logit_difference": difference}}
    if before:
        facts["gguf"] = write_ggufs(folder, kinds, renderer, before, name=name, told=told)
    return facts


def _read_evaluation(folder: Path) -> dict[str, Any]:
    path = folder / EVALUATION
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise PreftuneError(f"this is not JSON ({error})", str(path), "Run preftune evaluate anew.") from error


def _empty(folder: Path) -> None:
    # A release that was killed is begun anew: nothing half written may slip in.
    shutil.rmtree(folder)
    folder.mkdir()


def _check_room(folder: Path, model: PreTrainedModel, kinds: Sequence[Kind]) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    needed = ROOM * (4 * count + sum(gguf_bytes(model.config, count, kind) for kind in kinds))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"the release needs {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free", str(folder.parent), "Make room first."
        )


def _write_papers(folder: Path, run: Path, chain: Origin, text: str) -> None:
    with disk_errors(folder):
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_json(folder / PROVENANCE, _provenance(chain))
        for licence in _licence_files(chain.base.path):
            shutil.copyfile(licence, folder / licence.name)
        if (run / "adapter").exists():
            (folder / "adapter").mkdir()
            for file in sorted((run / "adapter").glob("adapter_*")):
                shutil.copyfile(file, folder / "adapter" / file.name)  # without its mode: others may read it
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        sums = "".join(f"{hash_file(folder / name)}  {name}\n" for name in files)
        (folder / CHECKSUMS).write_text(sums, encoding="utf-8")


def _provenance(chain: Origin) -> list[dict[str, Any]]:
    keys = ("role", "name", "hash", "state", "manifest", "prompt_ids")
    return [{key: getattr(origin, key) for key in keys} for origin in chain.walk()]


def _licence_files(base: Path) -> Iterator[Path]:
    if not base.exists():
        return
    folder = base if base.is_dir() else base.parent  # beside a GGUF file
    names = ("license", "licence", "notice", "copying")
    yield from sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().startswith(names))


def _licence(base: Path) -> str | None:
    """Return the licence that the base's own card names in its metadata, if it has one."""
    path = base / "README.md"
    if not path.is_file():
        return None
    head = path.read_text(encoding="utf-8").split("---\n")
    if len(head) < 3 or head[0]:
        return None
    try:
        values = yaml.safe_load(head[1])
    except yaml.YAMLError:
        return None  # a card that cannot be read names no licence
    named = values.get("license") if isinstance(values, Mapping) else None
    return named if isinstance(named, str) else None
