"""Freezing the store: pairs, demonstrations and prompts, split so that nothing leaks, in a folder that never changes.

A snapshot holds, as JSON lines: train.jsonl and held_out.jsonl (pairs), demonstrations.jsonl and demonstrations_held_out.jsonl,
prompts.jsonl and prompts_held_out.jsonl (every prompt of each side, also those without a pair), and manifest.json with what was
counted and left out, and why.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from preftune.data.checks import Votes, count_votes
from preftune.data.formats import Row, SetAside, read
from preftune.data.splits import Split, split_by_hash, split_by_list
from preftune.data.store import Store, pairs_from
from preftune.errors import DataError, PreftuneError
from preftune.manifest import MANIFEST, begin, disk_errors, folder_id, hash_file, read_manifest
from preftune.records import Judgement, Message, Pair, Prompt, Record, standing

KIND = "snapshot"
R = TypeVar("R", bound=Record)


class Example(Record):
    """A prompt and a completion to learn from, as a demonstration; `group` is the prompt's id."""

    messages: tuple[Message, ...]
    completion: str
    group: str = ""
    kind: str = ""
    check: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read."""

    path: Path
    train: list[Pair]
    held_out: list[Pair]
    demonstrations: list[Example]
    held_out_demonstrations: list[Example]
    prompts: list[Prompt]
    held_out_prompts: list[Prompt]
    manifest: dict[str, Any]

    def chosen_as_demonstrations(self) -> list[Example]:
        """Return each chosen answer of the training side once, as a demonstration; not one that loses another pair of its prompt."""
        lost = {(pair.messages, pair.rejected) for pair in self.train}
        won = {(p.messages, p.chosen): p for p in self.train if (p.messages, p.chosen) not in lost}
        return [Example(messages=p.messages, completion=p.chosen, group=p.group, kind=p.kind, check=p.check) for p in won.values()]


@dataclass
class _Contents:
    """All that goes into a snapshot, by prompt id where a side has to be found."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    demonstrations: dict[tuple[str, str], Example] = field(default_factory=dict)
    votes: Votes = field(default_factory=Votes)

    def add_judged(self, prompt: Prompt, judgements: list[Judgement], texts: dict[str, str]) -> None:
        self.votes += count_votes(judgements)
        self.pairs += pairs_from(prompt, judgements, texts)
        for judgement in standing(judgements):
            if judgement.rewrite and judgement.rewrite.strip():
                self.add_demonstration(prompt.id, judgement.rewrite)

    def add_demonstration(self, prompt_id: str, text: str) -> None:
        prompt = self.prompts[prompt_id]
        example = Example(messages=prompt.messages, completion=text, group=prompt_id, kind=prompt.kind, check=prompt.check)
        self.demonstrations.setdefault((prompt_id, text), example)


def snapshot(store: Store | Path | str, out: Path, *, held_out: float = 0.1, seed: int = 0, held_out_prompts: Path | None = None) -> Path:
    """Freeze a store's pairs, demonstrations and prompts in `out/<id>` and return that folder; one that is there already is kept.

    store: an open one, or its path or URL. held_out: about which share of the groups of near-duplicate prompts is held out, by a hash with
    the seed. held_out_prompts: a file in our own format; then its prompts are what is held out (with the store's pairs on them and its
    own), all others are trained on, and those nearly alike one of its are left out.
    Raises DataError where there is nothing to learn or nothing on one side.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}", "snapshot", "Give a share from 0 to less than 1.")
    out = Path(out)
    with nullcontext(store) if isinstance(store, Store) else Store.open(store) as opened, opened.frozen():
        config: dict[str, Any] = {"held_out": held_out, "seed": seed}
        inputs = {"store": opened.fingerprint()}
        if held_out_prompts is not None:
            config = {"held_out": "the prompts given"}
            listed = _listed_rows(Path(held_out_prompts))
            inputs["held_out_prompts"] = hash_file(Path(held_out_prompts))
        else:
            listed = []
        final = out / folder_id(KIND, inputs, config)
        if (final / MANIFEST).exists():
            return final
        contents = _gather(opened, listed)
        messages = {name: prompt.messages for name, prompt in contents.prompts.items()}
        if held_out_prompts is None:
            split = split_by_hash(messages, share=held_out, seed=seed)
        else:
            split = split_by_list(messages, {row.prompt.id: row.prompt.messages for row in listed})
        _check_sides(contents, split, opened.where, held_out_pairs_needed=held_out_prompts is None and held_out > 0)
    moved = _moved(out, inputs, config, split)
    final, work = begin(out, KIND, inputs, config)
    if work is None:  # another program was faster
        return final
    counts = _write(work.path, contents, split)
    return work.finish(final, counts=counts, votes=asdict(contents.votes), groups=split.groups, grouped_prompts=split.grouped, moved=moved)


def load_snapshot(path: Path) -> Snapshot:
    """Return a snapshot's contents. Raises PreftuneError where the folder is none, or is damaged."""
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.get("kind") != KIND:
        raise DataError(f"this is a {manifest.get('kind')} folder", str(path), "Give one that preftune snapshot has made.")
    return Snapshot(
        path=path,
        train=_lines(path / "train.jsonl", Pair),
        held_out=_lines(path / "held_out.jsonl", Pair),
        demonstrations=_lines(path / "demonstrations.jsonl", Example),
        held_out_demonstrations=_lines(path / "demonstrations_held_out.jsonl", Example),
        prompts=_lines(path / "prompts.jsonl", Prompt),
        held_out_prompts=_lines(path / "prompts_held_out.jsonl", Prompt),
        manifest=manifest,
    )


def _listed_rows(path: Path) -> list[Row]:
    rows = []
    for item in read(path, "own"):
        if isinstance(item, SetAside):
            raise DataError(f"{item.reason} {item.detail}".strip(), f"{path} line {item.line}", "Every held-out prompt must be readable.")
        rows.append(item)
    if not rows:
        raise DataError("the file has no rows", str(path), "Give the prompts that are to be held out.")
    return rows


def _gather(store: Store, listed: list[Row]) -> _Contents:
    contents = _Contents(prompts={prompt.id: prompt for prompt in store.prompts()})
    judged: dict[str, tuple[list[Judgement], dict[str, str]]] = {}
    for row in listed:  # what the list says of a prompt is added to what the store says
        contents.prompts.setdefault(row.prompt.id, row.prompt)
        judgements, texts = judged.setdefault(row.prompt.id, ([], {}))
        texts |= {candidate.id: candidate.text for candidate in row.candidates}
        if row.judgement and row.judgement.id not in {j.id for j in judgements}:
            judgements.append(row.judgement)
    for prompt, judgements, texts in store.judged():
        more, more_texts = judged.pop(prompt.id, ([], {}))
        known = {j.id for j in judgements}
        contents.add_judged(prompt, [*judgements, *(j for j in more if j.id not in known)], texts | more_texts)
    for name, (judgements, texts) in judged.items():
        contents.add_judged(contents.prompts[name], judgements, texts)
    for demonstration in [*store.demonstrations(), *(row.demonstration for row in listed if row.demonstration)]:
        contents.add_demonstration(demonstration.prompt_id, demonstration.text)
    return contents


def _check_sides(contents: _Contents, split: Split, where: str, *, held_out_pairs_needed: bool) -> None:
    groups = [pair.group for pair in contents.pairs] or [example.group for example in contents.demonstrations.values()]
    if not groups and contents.votes.compared:
        raise DataError(
            f"all {contents.votes.compared:,} comparisons are ties or even splits, so there is nothing to learn",
            where,
            "Collect strict preferences, or look at preftune check.",
        )
    if not groups:
        raise DataError("there are no judgements and no demonstrations, so there is nothing to learn", where, "Import some first.")
    what = f"{len(groups):,} {'pairs' if contents.pairs else 'demonstrations'} ({split.groups:,} groups of near-duplicate prompts)"
    fix = "Take another seed or share of held-out groups, or add more prompts."
    if not any(group in split.train for group in groups):
        raise DataError(f"none of the {what} is left to train on", where, fix)
    if held_out_pairs_needed and not any(group in split.held_out for group in groups):
        raise DataError(f"none of the {what} is held out, so nothing could be measured", where, fix)


def _write(folder: Path, contents: _Contents, split: Split) -> dict[str, Any]:
    place = {name: number for number, name in enumerate(contents.prompts)}
    demonstrations = sorted(contents.demonstrations.values(), key=lambda example: (place[example.group], example.completion))
    sides = {"train": split.train, "held_out": split.held_out, "dropped": split.dropped}
    files = {
        "train": ("train.jsonl", "demonstrations.jsonl", "prompts.jsonl"),
        "held_out": ("held_out.jsonl", "demonstrations_held_out.jsonl", "prompts_held_out.jsonl"),
    }
    counts: dict[str, Any] = {}
    for side, names in sides.items():
        parts: dict[str, list[Record]] = {
            "pairs": [pair for pair in contents.pairs if pair.group in names],
            "demonstrations": [example for example in demonstrations if example.group in names],
            "prompts": [prompt for name, prompt in contents.prompts.items() if name in names],
        }
        counts[side] = {part: len(records) for part, records in parts.items()}
        for file, records in zip(files.get(side, ()), parts.values(), strict=False):
            with disk_errors(folder / file), (folder / file).open("w", encoding="utf-8") as lines:
                lines.writelines(record.model_dump_json() + "\n" for record in records)
    counts["dropped"]["reason"] = "nearly alike a prompt that was given to be held out"
    return counts


def _moved(out: Path, inputs: dict[str, str], config: dict[str, Any], split: Split) -> dict[str, Any]:
    """Return which prompts are on another side than in the newest snapshot that was split by the same settings, if there is one."""
    earlier = []
    for path in out.glob(f"[!.]*/{MANIFEST}"):
        manifest = read_manifest(path.parent)
        same_list = manifest.get("inputs", {}).get("held_out_prompts") == inputs.get("held_out_prompts")
        if manifest.get("kind") == KIND and manifest.get("config") == config and same_list:
            earlier.append((path.stat().st_mtime_ns, path.parent))
    if not earlier:
        return {"since": None, "to_train": [], "to_held_out": []}
    last = max(earlier)[1]
    were_train = {prompt.id for prompt in _lines(last / "prompts.jsonl", Prompt)}
    were_held_out = {prompt.id for prompt in _lines(last / "prompts_held_out.jsonl", Prompt)}
    return {
        "since": last.name,
        "to_train": sorted(were_held_out & split.train),
        "to_held_out": sorted(were_train & split.held_out),
    }


def _lines(path: Path, model: type[R]) -> list[R]:
    records: list[R] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                records.append(model.model_validate_json(line))
    except FileNotFoundError:
        raise PreftuneError("a file of the snapshot is missing", str(path), "Make the snapshot anew.") from None
    except ValidationError as error:
        where = f"{path} line {len(records) + 1}"
        raise PreftuneError(f"the line is damaged ({error.errors()[0]['msg']})", where, "Make the snapshot anew.") from error
    return records
