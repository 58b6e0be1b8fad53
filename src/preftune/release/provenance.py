"""The way back: from a run over the runs and the snapshot that it was made from, to the rows of the store.

Nothing is believed: each folder on the way is found by the name in its successor's manifest and its hash is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from preftune.data.snapshot_files import read_column
from preftune.data.store import Store
from preftune.errors import PreftuneError
from preftune.manifest import MANIFEST, hash_folder, read_manifest
from preftune.records import Judgement

PROVENANCE = "provenance.json"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Something that went into a run: what for (`model`, `data`, `reward_model`), its name there, and its hash then.

    state: "same" as it was, "changed" since, or "gone". manifest: of a folder of ours that is the same. prompt_ids: of a
    snapshot, the prompts of the pairs and demonstrations to learn from; the store keeps the judgements under these ids.
    """

    role: str
    name: str
    hash: str
    state: str
    path: Path
    manifest: Manifest | None = None
    origins: tuple[Origin, ...] = ()
    prompt_ids: tuple[str, ...] = ()

    def walk(self) -> Iterator[Origin]:
        """Yield this origin and all before it, nearest first, each folder once."""
        seen: set[str] = set()
        waiting = [self]
        while waiting:
            origin = waiting.pop(0)
            if origin.hash not in seen:
                seen.add(origin.hash)
                yield origin
                waiting += origin.origins

    @property
    def base(self) -> Origin:
        """The model at the beginning of the chain of models."""
        before = next((origin for origin in self.origins if origin.role == "model"), None)
        return before.base if before else self

    @property
    def stages(self) -> tuple[Manifest, ...]:
        """The manifests of the runs that tuned this very model, first stage first."""
        before = next((origin.stages for origin in self.origins if origin.role == "model"), ())
        return (*before, self.manifest) if self.manifest and self.manifest["kind"] not in ("snapshot", "release") else before

    @property
    def snapshots(self) -> tuple[Origin, ...]:
        """The snapshots that anything on the way was learned from."""
        return tuple(origin for origin in self.walk() if origin.manifest and origin.manifest["kind"] == "snapshot")


def origin_of(run: Path) -> Origin:
    """Return a run as the origin of its release, with all before it. Raises PreftuneError where it is no run of ours."""
    manifest = read_manifest(run)
    return Origin("run", run.name, manifest["id"], "same", run, manifest, _origins(run, manifest))


def holes(chain: Origin) -> tuple[str, ...]:
    """Return what a card printed from this chain would lack: each folder on the way that is gone or changed, in words."""
    lost = [f"the {origin.role.replace('_', ' ')} {origin.name} is {origin.state}" for origin in chain.walk() if origin.state != "same"]
    return tuple(lost) if lost or chain.snapshots else ("no snapshot that it learned from is known",)


def judgements_behind(release: Path | str, store: Store) -> dict[str, tuple[Judgement, ...]]:
    """Return the judgements that shaped a release: id of a prompt that it learned from → what was judged before the snapshot was made.

    release: a release's folder, of which provenance.json is read. A judgement that the snapshot's filters left out is listed too, as
    are those that a later one supersedes; the snapshot's manifest says how they were brought together. Raises PreftuneError where the
    folder is no release.
    """
    path = Path(release) / PROVENANCE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise PreftuneError(f"there is no {PROVENANCE} that can be read ({error})", str(release), "Give a release's folder.") from error
    frozen: dict[str, datetime] = {}  # prompt → when the last snapshot that holds it was made
    for row in (row for row in rows if row["prompt_ids"]):
        made = datetime.fromisoformat(row["manifest"]["started"]) + timedelta(seconds=1)  # it is told in whole seconds
        frozen |= {prompt: max(made, frozen.get(prompt, made)) for prompt in row["prompt_ids"]}
    found: dict[str, tuple[Judgement, ...]] = dict.fromkeys(frozen, ())
    for prompt, _, judgements, _ in store.contents():
        if prompt.id in frozen:
            found[prompt.id] = tuple(j for j in judgements if j.created <= frozen[prompt.id])
    return found


def _origins(folder: Path, manifest: Manifest) -> tuple[Origin, ...]:
    project = folder.resolve().parent.parent
    found = []
    for role, hashed in manifest["inputs"].items():
        name = manifest["config"].get(role)
        if isinstance(name, str):  # a store or a list of prompts is known by its hash alone
            found.append(_origin(role, name, hashed, project / name))
    return tuple(found)


def _origin(role: str, name: str, hashed: str, path: Path) -> Origin:
    if not path.exists():
        return Origin(role, name, hashed, "gone", path)
    if hash_folder(path) != hashed:
        return Origin(role, name, hashed, "changed", path)
    if not (path / MANIFEST).exists():
        return Origin(role, name, hashed, "same", path)
    manifest = read_manifest(path)
    prompt_ids = _prompt_ids(path, manifest) if manifest["kind"] == "snapshot" else ()
    return Origin(role, name, hashed, "same", path, manifest, _origins(path, manifest), prompt_ids)


def _prompt_ids(snapshot: Path, manifest: Manifest) -> tuple[str, ...]:
    ids: set[str] = set()
    for part in ("train", "demonstrations"):
        ids.update(read_column(snapshot, manifest, part, "group"))
    return tuple(sorted(ids))
