"""Freezing the store: pairs, orders, demonstrations and prompts, split so that nothing leaks, in a folder that never changes.

A snapshot holds the parts train and held_out (pairs), kwise and kwise_held_out (orders over three and more answers), demonstrations and
demonstrations_held_out, ties and thumbs (two answers called alike; one called good enough or not) with their held-out halves, prompts
and prompts_held_out (every prompt of each side, also those without a pair) as Parquet files, and manifest.json with what was counted and
left out, and why. All is read and written prompt by prompt; what the split needs in memory is the prompts alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from preftune.data import rows
from preftune.data.aggregate import all_undecided
from preftune.data.filters import Filters, SizeLimit
from preftune.data.formats import Row, SetAside, read
from preftune.data.rows import Rows
from preftune.data.snapshot_contents import Aggregate, Counts, aggregation_of, contents_of, write_contents
from preftune.data.snapshot_files import Example, PartsWriter, StoredPart, read_part
from preftune.data.splits import Split, split_by_hash, split_by_list
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.manifest import MANIFEST, begin, folder_id, hash_file, read_manifest
from preftune.progress import counted
from preftune.records import KWise, Message, Pair, Prompt, Record, Thumb, Tie

KIND = "snapshot"
GIVEN = "the prompts given"
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read."""

    path: Path
    train: Sequence[Pair]
    held_out: Sequence[Pair]
    demonstrations: Sequence[Example]
    held_out_demonstrations: Sequence[Example]
    prompts: Sequence[Prompt]
    held_out_prompts: Sequence[Prompt]
    manifest: dict[str, Any]
    kwise: Sequence[KWise] = ()
    held_out_kwise: Sequence[KWise] = ()
    ties: Sequence[Tie] = ()
    thumbs: Sequence[Thumb] = ()
    held_out_ties: Sequence[Tie] = ()

    def chosen_as_demonstrations(self, *, held_out: bool = False) -> Sequence[Example]:
        """Return each chosen answer of one side once, as a demonstration; not one that loses another pair of its prompt.

        The pairs of a prompt stand together in a snapshot, so that only they are looked at together.
        """
        found: Rows[Example] = Rows()
        for messages, group in groupby(self.held_out if held_out else self.train, key=lambda pair: pair.messages):
            pairs = list(group)
            lost = {pair.rejected for pair in pairs}
            for p in {pair.chosen: pair for pair in pairs if pair.chosen not in lost}.values():
                found.append(Example(messages=messages, completion=p.chosen, group=p.group, kind=p.kind, check=p.check))
        return found


def snapshot(
    store: Store | Path | str,
    out: Path,
    *,
    held_out: float = 0.1,
    seed: int = 0,
    held_out_prompts: Path | None = None,
    aggregate: Aggregate = "majority",
    rater_weights: Path | None = None,
    filters: Filters | None = None,
) -> Path:
    """Freeze a store's pairs, orders, demonstrations and prompts in `out/<id>` and return that folder; one that is there already is kept.

    store: an open one, or its path or URL. held_out: about which share of the groups of near-duplicate prompts is held out, by a hash with
    the seed. held_out_prompts: a file in our own format; then its prompts are what is held out (with the store's pairs on them and its
    own), all others are trained on, and those nearly alike one of its are left out. aggregate: how several raters become one preference
    (`data/aggregate.py`). rater_weights: a YAML or JSON file for "weighted". filters: what is kept. Gold judgements never are.
    Raises DataError where there is nothing to learn or nothing on one side.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}", "snapshot", "Give a share from 0 to less than 1.")
    if (aggregate == "weighted") != (rater_weights is not None):
        raise DataError(f'aggregate is "{aggregate}" and rater_weights is {rater_weights}', "snapshot", 'Weights go with "weighted" alone.')
    out, filters = Path(out), filters or Filters()
    limit = SizeLimit(filters)
    config: dict[str, Any] = {"held_out": held_out, "seed": seed} if held_out_prompts is None else {"held_out": GIVEN}
    config |= {"aggregate": aggregate, "filters": filters.as_config()}
    with nullcontext(store) if isinstance(store, Store) else Store.open(store) as opened, opened.frozen():
        files = {"held_out_prompts": held_out_prompts, "rater_weights": rater_weights, "tokenizer": limit.tokenizer}
        listed = _listed_rows(Path(held_out_prompts)) if held_out_prompts is not None else []
        inputs = _store_hashes(opened, filters) | {name: hash_file(Path(path)) for name, path in files.items() if path is not None}
        final = out / folder_id(KIND, inputs, config)
        if (final / MANIFEST).exists():
            return final
        split = _split(opened, listed, held_out=held_out if held_out_prompts is None else None, seed=seed)
        aggregation = aggregation_of(opened, listed, filters, aggregate, rater_weights)
        moved = _moved(out, inputs, config, split)
        final, work = begin(out, KIND, inputs, config)
        if work is None:  # another program was faster
            return final
        try:
            with PartsWriter(work.path) as writer:
                counts = write_contents(writer, contents_of(opened, listed), split, aggregation, filters, limit)
            _check_sides(counts, split, opened.where, held_out_pairs_needed=held_out_prompts is None and held_out > 0)
        except DataError:
            shutil.rmtree(work.path)
            with suppress(OSError):  # it holds other snapshots
                out.rmdir()
            raise
    facts = {"counts": counts.as_dict(), "votes": asdict(counts.votes), "left_out": counts.left_out(), **aggregation.facts}
    facts |= {"groups": split.groups, "grouped_prompts": split.grouped, "moved": moved, "files": writer.files}
    return work.finish(final, **facts)


def load_snapshot(path: Path) -> Snapshot:
    """Return a snapshot's contents. Raises PreftuneError where the folder is none, or is damaged.

    A part of up to `rows.IN_MEMORY` rows is a list; a larger one stays in its files and is read as it is gone through.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.get("kind") != KIND:
        raise DataError(f"this is a {manifest.get('kind')} folder", str(path), "Give one that preftune snapshot has made.")
    return Snapshot(
        path=path,
        train=_part(path, manifest, "train", Pair),
        held_out=_part(path, manifest, "held_out", Pair),
        demonstrations=_part(path, manifest, "demonstrations", Example),
        held_out_demonstrations=_part(path, manifest, "demonstrations_held_out", Example),
        prompts=_part(path, manifest, "prompts", Prompt),
        held_out_prompts=_part(path, manifest, "prompts_held_out", Prompt),
        manifest=manifest,
        kwise=_part(path, manifest, "kwise", KWise),
        held_out_kwise=_part(path, manifest, "kwise_held_out", KWise),
        ties=_part(path, manifest, "ties", Tie),
        thumbs=_part(path, manifest, "thumbs", Thumb),
        held_out_ties=_part(path, manifest, "ties_held_out", Tie),
    )


def _part(folder: Path, manifest: dict[str, Any], part: str, model: type[R]) -> Sequence[R]:
    size = sum(count for name, count in manifest.get("files", {}).items() if name.rpartition("-")[0] == part)
    return StoredPart(folder, manifest, part, model) if size > rows.IN_MEMORY else list(read_part(folder, manifest, part, model))


def _listed_rows(path: Path) -> list[Row]:
    rows = []
    for item in read(path, "own"):
        if isinstance(item, SetAside):
            raise DataError(f"{item.reason} {item.detail}".strip(), f"{path} line {item.line}", "Every held-out prompt must be readable.")
        rows.append(item)
    if not rows:
        raise DataError("the file has no rows", str(path), "Give the prompts that are to be held out.")
    return rows


def _store_hashes(store: Store, filters: Filters) -> dict[str, str]:
    """Return the hash of what the store holds; times, sources and how an item was picked count where a filter looks at them."""
    hashes = {"store": store.fingerprint()}
    if filters.since or filters.until or filters.unbiased_only or filters.sources:
        hashes["filtered"] = store.details_fingerprint()
    return hashes


def _split(store: Store, listed: list[Row], *, held_out: float | None, seed: int) -> Split:
    """Return the split of all prompts, by a hash where a share to hold out is given, else by the list."""
    theirs = {row.prompt.id: row.prompt.messages for row in listed}

    def prompts() -> Iterator[tuple[str, Sequence[Message]]]:
        new = dict(theirs)
        for prompt in store.prompts():
            new.pop(prompt.id, None)
            yield prompt.id, prompt.messages
        yield from new.items()

    return split_by_hash(prompts(), share=held_out, seed=seed) if held_out is not None else split_by_list(prompts(), theirs)


def _check_sides(counts: Counts, split: Split, where: str, *, held_out_pairs_needed: bool) -> None:
    name = next((n for n in ("pairs", "thumbs") if any(side[n] for side in counts.sides.values())), "demonstrations")
    total = sum(side[name] for side in counts.sides.values())
    left_out = counts.judgements.total() + counts.pairs.total()
    if not total and left_out:
        why = ", ".join(f"{n:,} by {reason}" for reason, n in (counts.judgements + counts.pairs).most_common())
        raise DataError(f"everything that could be learned was left out ({why})", where, "Filter less.")
    if not total and counts.votes.compared:
        raise DataError(
            f"{all_undecided(counts.votes.compared)}, so there is nothing to learn",
            where,
            "Collect strict preferences, or look at preftune check.",
        )
    if not total:
        raise DataError("there are no judgements and no demonstrations, so there is nothing to learn", where, "Import some first.")
    what = f"{counted(total, name)} ({counted(split.groups, 'groups')} of near-duplicate prompts)"
    fix = "Take another seed or share of held-out groups, or add more prompts."
    if not counts.sides["train"][name]:
        raise DataError(f"none of the {what} is left to train on", where, fix)
    if held_out_pairs_needed and not counts.sides["held_out"][name]:
        raise DataError(f"none of the {what} is held out, so nothing could be measured", where, fix)


def _moved(out: Path, inputs: dict[str, str], config: dict[str, Any], split: Split) -> dict[str, Any]:
    """Return which prompts are on another side than in the newest snapshot that was split by the same settings, if there is one."""
    earlier = []
    for path in out.glob(f"[!.]*/{MANIFEST}"):
        manifest = read_manifest(path.parent)
        same_list = manifest.get("inputs", {}).get("held_out_prompts") == inputs.get("held_out_prompts")
        same_split = [manifest.get("config", {}).get(key) == config.get(key) for key in ("held_out", "seed")]
        if manifest.get("kind") == KIND and same_list and all(same_split):
            earlier.append((path.stat().st_mtime_ns, path.parent, manifest))
    if not earlier:
        return {"since": None, "to_train": [], "to_held_out": []}
    _, last, manifest = max(earlier, key=lambda one: one[:2])
    were_train = {prompt.id for prompt in read_part(last, manifest, "prompts", Prompt)}
    were_held_out = {prompt.id for prompt in read_part(last, manifest, "prompts_held_out", Prompt)}
    return {
        "since": last.name,
        "to_train": sorted(were_held_out & split.train),
        "to_held_out": sorted(were_train & split.held_out),
    }
