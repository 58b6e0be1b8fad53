"""A share of a snapshot's pairs as a snapshot of its own, so that a stage can be tried on less than all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from preftune.data.snapshot import KIND, load_snapshot
from preftune.data.snapshot_files import PARTS, PartsWriter, read_part
from preftune.errors import DataError
from preftune.manifest import begin, content_seed, read_manifest
from preftune.records import Pair

FACTS = ("counts", "votes", "left_out", "groups", "grouped_prompts", "moved")  # what a snapshot's manifest says of its making


def share_of(snapshot: Path, share: float, *, seed: int) -> Path:
    """Return the folder, beside `snapshot`, of a snapshot with this share of its pairs to learn from; all else is as it was.

    The pairs are drawn by whole groups of prompts, in an order that the seed gives: a smaller share lies wholly within a larger one.
    At least one group is left; a share of 1 is the snapshot itself. Raises DataError for a share outside 0 to 1.
    """
    if not 0 < share <= 1:
        raise DataError(f"the share is {share:g}", str(snapshot), "Give one above 0, at most 1.")
    if share == 1:
        return snapshot
    manifest = read_manifest(snapshot)
    train = load_snapshot(snapshot).train
    inputs = {**manifest["inputs"], "snapshot": manifest["id"]}
    final, work = begin(snapshot.parent, KIND, inputs, {"snapshot": snapshot.name, "share": share, "order_seed": seed})
    if work is None:
        return final
    kept = _drawn(train, round(share * len(train)), seed)
    with PartsWriter(work.path) as writer:
        for pair in kept:
            writer.add("train", pair)
        for part, model in PARTS.items():
            if part != "train":
                for record in read_part(snapshot, manifest, part, model):
                    writer.add(part, record)
    facts = {key: manifest[key] for key in FACTS if key in manifest}
    facts["counts"] = {**manifest["counts"], "train": {**manifest["counts"]["train"], "pairs": len(kept)}}
    return work.finish(final, **facts, files=writer.files)


def _drawn(pairs: Sequence[Pair], wanted: int, seed: int) -> list[Pair]:
    """Return the pairs of the first groups that hold at least `wanted` of them, in the pairs' own order."""
    left, groups, sizes = wanted, set[str](), Counter(pair.group for pair in pairs)
    for group in sorted(sizes, key=lambda group: content_seed(seed, group)):
        if left <= 0 and groups:
            break
        groups.add(group)
        left -= sizes[group]
    return [pair for pair in pairs if pair.group in groups]
