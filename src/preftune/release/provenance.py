"""The way back: from a run over the runs and the snapshot that it was made from, to the rows of the store.

Nothing is believed: each folder on the way is found by the name in its successor's manifest and its hash is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.snapshot_files import read_column
from preftune.manifest import MANIFEST, hash_folder, read_manifest

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
