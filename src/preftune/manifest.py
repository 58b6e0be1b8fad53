"""Folders that are written once: a temporary name, a sync, a rename, and a manifest that says what made them.

The id of a folder is a hash of what made it (kind, inputs, config, preftune's version), so the same command twice finds the
same folder instead of making a second one.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import DiskError, PreftuneError

MANIFEST = "manifest.json"
LIBRARIES = ("preftune", "torch", "transformers", "peft", "safetensors", "numpy", "pydantic", "SQLAlchemy")


def content_seed(*parts: Any) -> int:
    """Return a 63-bit seed that depends on the parts alone: (run seed, step, prompt, sample) and the like."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path) -> str:
    """Return one sha256 for all files of a folder (names and bytes), or for a single file.

    A folder with a manifest is known by its id, which already is the hash of what made it.
    """
    if path.is_file():
        return hash_file(path)
    if (path / MANIFEST).exists():
        return str(read_manifest(path)["id"])
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of our and the main libraries, read without importing them; they stay the same while a process lives."""
    from importlib import metadata  # slow to load, and no help needs it

    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return what the machine is, as far as the standard library tells."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
    }


def folder_id(kind: str, inputs: dict[str, str], config: dict[str, Any]) -> str:
    """Return the id of the folder that these inputs and this config make: 12 hex digits."""
    made_of = {"kind": kind, "inputs": inputs, "config": config, "preftune": versions().get("preftune", "")}
    text = json.dumps(made_of, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(before: dict[str, Any], now: dict[str, Any], *, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return what differs between two nested dicts: dotted key → (value before, value now), None where it is not there."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differences(old, new, path=f"{path}{key}.")
        elif old != new:
            found[f"{path}{key}"] = (old, new)
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest. Raises PreftuneError where there is none or it cannot be read."""
    path = folder / MANIFEST
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if not folder.exists():
            raise PreftuneError("there is no such folder", str(folder), "Look at the path, and at the folder that you are in.") from None
        raise PreftuneError("there is no manifest.json here", str(folder), "Give a folder that preftune has written.") from None
    except json.JSONDecodeError as error:
        raise PreftuneError(f"manifest.json is broken ({error})", str(folder), "Make the folder anew.") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all (temporary name, sync, rename)."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False, default=str)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the disk is read-only"}


def is_of_the_disk(error: BaseException) -> bool:
    """Say whether `disk_errors` has a sentence for it."""
    return _error_number(error) in DISK


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number not in DISK:
            raise
        free = shutil.disk_usage(next(p for p in (where, *where.parents) if p.exists())).free
        raise DiskError(
            f"{DISK[number]} ({free / 2**20:.0f} MiB free)",
            str(where),
            "Nothing that was written before is lost: make room and run the same command again.",
        ) from error


def _error_number(error: BaseException) -> int | None:
    # torch's zip writer hides the OSError behind its own; safetensors and tokenizers, written in Rust, name its number in words.
    cause = error.__cause__ or error.__context__
    for found in (error, cause):
        if isinstance(found, OSError):
            return found.errno
    named = re.search(r"\(os error (\d+)\)", str(error))
    return int(named[1]) if named else None


def sync_folder(folder: Path) -> None:
    """Sync every file of a folder, and the folder, to disk."""
    for file in (p for p in folder.rglob("*") if p.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(temporary: Path, final: Path) -> None:
    """Give a finished temporary folder its final name; an older folder of that name goes only after the new one stands."""
    sync_folder(temporary)
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    if sys.platform != "win32":
        descriptor = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Work:
    """A folder in the making: `path` is where to write; `id` its final name; `started` seconds since the epoch."""

    path: Path
    id: str
    kind: str
    inputs: dict[str, str]
    config: dict[str, Any]
    started: float

    def finish(self, final: Path, **facts: Any) -> Path:
        """Write the manifest, sync, and rename to the final name. Returns the final path."""
        manifest = {
            "id": self.id,
            "kind": self.kind,
            "inputs": self.inputs,
            "config": self.config,
            "versions": versions(),
            "hardware": hardware(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 2),
            **facts,
        }
        write_json(self.path / MANIFEST, manifest)
        with disk_errors(final):
            replace_folder(self.path, final)
        return final


def begin(parent: Path, kind: str, inputs: dict[str, str], config: dict[str, Any]) -> tuple[Path, Work | None]:
    """Return (final folder, the work to do), or (final folder, None) where it is already there.

    parent: e.g. `runs`. inputs: name → hash of each folder or file that goes in. The unfinished folder is
    `.<id>.partial`; it survives a kill, so that a stage resumes from the checkpoints in it; half-written files in it do not.
    """
    name = folder_id(kind, inputs, config)
    final = parent / name
    if (final / MANIFEST).exists():
        return final, None
    partial = parent / f".{name}.partial"
    with disk_errors(parent):
        partial.mkdir(parents=True, exist_ok=True)
    for left in list(partial.rglob(".*.tmp-*")):  # what a kill left in the middle of a write
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
    return final, Work(partial, name, kind, inputs, config, time.time())
