"""The reference's log-probs, computed once and kept in the project: what preference losses compare with costs no second model.

The reference is the model exactly as training starts from it. With an adapter that is the same model with the adapter off; where
weights themselves are trained it is their state before the first step. Either way the log-probs are taken before anything moves.

They are kept in one SQLite file beside the project's runs, a row for each prompt with its completions. The key is a hash of content:
every weight and the config of the model, the number type, and the token ids with their borders (which say all that a chat template
and a mask could). So another order of the data, another beta, more epochs or a resumed run find them again, and another model, another
template or another answer does not.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from preftune.data.batches import Group, collate, split_by_budget
from preftune.data.rows import IN_MEMORY, Rows
from preftune.errors import DiskError
from preftune.losses.reduce import to_sequences
from preftune.manifest import disk_errors
from preftune.models.adapter import adapter_off
from preftune.models.load import batch_logprobs, device_of, unwrap
from preftune.parallel import world
from preftune.parallel.shard import settle, whole
from preftune.progress import Progress

CACHE = "cache/reference.db"
LAYOUT = 1  # raised when what is stored under a key changes its meaning
NOT_THE_FUNCTION = ("_name_or_path", "transformers_version", "architectures", "use_cache", "eos_token_id", "pad_token_id", "num_labels")


@dataclass(frozen=True)
class Reference:
    """log ref of every completion token, nats: float32 [n] a completion, by the group's place in the data."""

    tokens: Mapping[int, tuple[Tensor, ...]]

    def rows(self, groups: Sequence[Group], which: slice = slice(None)) -> list[Tensor]:
        """Return log ref of the tokens of each completion of the groups, in their order. which: of a group's completions."""
        return [row for group in groups for row in self.tokens[group.index][which]]

    def sums(self, groups: Sequence[Group], which: slice = slice(None)) -> Tensor:
        """Return Σ log ref of each completion of the groups, float32 [S], in their order. which: of a group's completions."""
        return torch.stack([row.sum() for row in self.rows(groups, which)])


class _Kept(Mapping[int, tuple[Tensor, ...]]):
    """A tensor for each completion of a group, by the group's place in the data; in a file where there are many (`data.rows`)."""

    def __init__(self) -> None:
        self._indices = array("q")  # rising, as groups stand in the order of the data
        self._rows: Rows[list[NDArray[np.float32]]] = Rows()

    def add(self, group: Group, row: Tensor) -> None:
        assert not self._indices or self._indices[-1] < group.index
        self._indices.append(group.index)
        self._rows.append([part.numpy() for part in row.split([len(c) for c in group.completions])])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        place = bisect_left(self._indices, index)
        if place == len(self._indices) or self._indices[place] != index:
            raise KeyError(index)
        return tuple(torch.tensor(part) for part in self._rows[place])

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def reference_logprobs(
    model: nn.Module, groups: Sequence[Group], *, pad_id: int, tree: bool, token_budget: int, project: Path, progress: Progress
) -> Reference:
    """Return the reference's log-probs of every completion token.

    model: as training starts, so call this before the first step and before a checkpoint is put back. tree: rows share their prompt.
    token_budget: tokens computed at once on a GPU; on a CPU each group is computed alone, so that its log-probs, to the last bit, depend
    on nothing but its content. project: the folder that holds `runs`. What is found broken is computed anew, and said.
    """
    device, found = device_of(model), _Kept()
    frozen = adapter_off(model) if hasattr(model, "peft_config") else nullcontext()
    kept = _opened(project / CACHE, progress) if world.is_main() else nullcontext()  # one process has the cache, and all hear what is in it
    with progress.stage("reference log-probs", len(groups), "groups") as task, kept as cache, frozen:
        space = f"{LAYOUT} {weights_hash(model)} {unwrap(model).dtype} {device.type} {tree}"
        for begun in range(0, len(groups), IN_MEMORY):
            block = groups[begun : begun + IN_MEMORY]
            keys = {group.index: _key(space, group) for group in block}
            rows, broken = world.from_main(partial(_read, cast(sqlite3.Connection, cache), block, keys))
            if broken:
                progress.note(f"{broken} of {len(block)} entries of {project / CACHE} were broken and are computed anew.")
            if rows:
                task.advance(len(rows))
            missing = [group for group in block if group.index not in rows]
            parts = split_by_budget(missing, 1 if device.type == "cpu" else token_budget)
            for start in range(0, len(parts), world.size()):  # a part for each process at once
                for computed in world.spread(parts[start : start + world.size()], partial(_computed, model, pad_id=pad_id, tree=tree)):
                    if cache is not None:
                        _write(cache, [(keys[index], row) for index, row in computed.items()], project / CACHE)
                    rows.update(computed)
                    task.advance(len(computed))
            for group in block:
                found.add(group, rows[group.index])
    return Reference(found)


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of what the model computes without its adapter: each weight (name, type, bytes) and the config."""
    settle(model)
    plain_model = unwrap(model)
    config = {key: value for key, value in plain_model.config.to_dict().items() if key not in NOT_THE_FUNCTION}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    named: dict[str, Tensor] = {**dict(plain_model.named_parameters()), **dict(plain_model.named_buffers())}
    for name, tensor in sorted(named.items()):
        if "lora_" in name or "modules_to_save" in name:
            continue  # what training adds; switched off, it has no part in the reference
        plain = name.replace("base_layer.", "").replace("original_module.", "")
        value = whole(tensor.detach()).cpu().contiguous()
        digest.update(f"{plain} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _key(space: str, group: Group) -> bytes:
    return hashlib.sha256(f"{space} {group.prompt} {group.completions}".encode()).digest()


@torch.no_grad()
def _computed(model: nn.Module, groups: Sequence[Group], *, pad_id: int, tree: bool) -> dict[int, Tensor]:
    # By group: the log-probs of all its completions' tokens, one after the other.
    batch = collate(groups, pad_id, tree=tree).to(device_of(model))
    logprobs, _ = batch_logprobs(model, batch)
    values, mask = to_sequences(logprobs, batch.sequence, batch.num_sequences)
    flat = values[mask].float().cpu()
    return dict(zip((g.index for g in groups), flat.split([g.num_completion_tokens for g in groups]), strict=True))


@contextmanager
def _opened(path: Path, progress: Progress) -> Iterator[sqlite3.Connection]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = _connected(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, full, not to be opened: nothing is wrong with what it holds
            raise _not_usable(path, error) from error
        progress.note(f"{path} is broken ({error}): it is begun anew, and all reference log-probs are computed again.")
        path.unlink()
        connection = _connected(path)
    with closing(connection):
        yield connection


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS logprobs (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL)")
        connection.commit()
        if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages are damaged")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _not_usable(path: Path, error: sqlite3.Error) -> DiskError:
    return DiskError(f"the reference's log-probs cannot be kept ({error})", str(path), "Make room or leave to write there, and run again.")


def _read(cache: sqlite3.Connection, groups: Sequence[Group], keys: dict[int, bytes]) -> tuple[dict[int, Tensor], int]:
    rows: dict[int, Tensor] = {}
    broken = 0
    for group in groups:
        key = keys[group.index]
        found: Any = cache.execute("SELECT value, checksum FROM logprobs WHERE key = ?", (key,)).fetchone()
        if found is None:
            continue
        value, checksum = found
        if isinstance(value, bytes) and len(value) == 4 * group.num_completion_tokens and zlib.crc32(key + value) == checksum:
            rows[group.index] = torch.from_numpy(np.frombuffer(value, dtype="<f4").astype(np.float32))
        else:
            broken += 1
    return rows, broken


def _write(cache: sqlite3.Connection, rows: list[tuple[bytes, Tensor]], path: Path) -> None:
    # One transaction: whole or not at all. Another run that computes the same rows at the same time writes the same bytes.
    values = [(key, row.numpy().astype("<f4").tobytes()) for key, row in rows]
    try:
        with cache:
            cache.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?, ?)", [(k, v, zlib.crc32(k + v)) for k, v in values])
    except sqlite3.OperationalError as error:
        raise _not_usable(path, error) from error
