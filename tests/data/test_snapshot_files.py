"""The files of a snapshot: what is written is what is read, in shards of bounded size, and old JSON lines still load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import snapshot_files
from preftune.data.snapshot import load_snapshot
from preftune.data.snapshot_files import PARTS, Example, PartsWriter, read_column, read_part
from preftune.errors import PreftuneError
from preftune.manifest import MANIFEST
from preftune.records import KWise, Message, Pair, Prompt, Thumb, Tie

ASKED = (Message(role="system", content=""), Message(role="user", content="p"))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
messages = st.lists(texts, min_size=1, max_size=3).map(lambda found: tuple(Message(role="user", content=text) for text in found))
pairs = st.builds(Pair, messages=messages, chosen=texts, rejected=texts, weight=st.floats(0, 1), confidence=st.floats(0, 1), check=texts)


def written(folder: Path, **parts: list[Any]) -> dict[str, Any]:
    """Write records to a folder and return what of its manifest is needed to read them."""
    with PartsWriter(folder) as writer:
        for part, records in parts.items():
            for record in records:
                writer.add(part, record)
    return {"files": writer.files}


@given(st.lists(pairs, max_size=6))
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, records: list[Pair]) -> None:
    folder = tmp_path_factory.mktemp("parts")
    manifest = written(folder, train=records)
    assert list(read_part(folder, manifest, "train", Pair)) == records
    assert list(read_column(folder, manifest, "train", "chosen")) == [pair.chosen for pair in records]
    assert list(read_part(folder, manifest, "held_out", Pair)) == []


def test_every_part_keeps_its_fields(tmp_path: Path) -> None:
    about = {"group": "g", "kind": "k", "check": "assert 1"}
    records = {
        "kwise": [KWise(messages=ASKED, completions=("a", "b", "c"), ranks=(1, 2, 2), weight=0.5, **about)],
        "ties": [Tie(messages=ASKED, completions=("a", "b"), **about)],
        "thumbs": [Thumb(messages=ASKED, completion="a", desirable=False, weight=0.5, **about)],
        "train": [Pair(messages=ASKED, chosen="a", rejected="b", strength=2.5, **about)],
        "demonstrations": [Example(messages=ASKED, completion="a", **about)],
        "prompts_held_out": [Prompt(messages=ASKED, kind="k", check="assert 1")],
    }
    manifest = written(tmp_path, **records)
    for part, expected in records.items():
        assert list(read_part(tmp_path, manifest, part, PARTS[part])) == expected
    assert set(manifest["files"]) == {path.name for path in tmp_path.iterdir()} == {f"{part}-00000.parquet" for part in PARTS}


def test_rows_leave_memory_in_groups_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_files, "GROUP_ROWS", 10)
    monkeypatch.setattr(snapshot_files, "SHARD_ROWS", 30)
    records = [Example(messages=ASKED, completion=f"answer {n}") for n in range(75)]
    manifest = written(tmp_path, demonstrations=records)
    mine = {name: rows for name, rows in manifest["files"].items() if name.startswith("demonstrations-")}
    assert mine == {"demonstrations-00000.parquet": 30, "demonstrations-00001.parquet": 30, "demonstrations-00002.parquet": 15}
    assert pq.ParquetFile(tmp_path / "demonstrations-00000.parquet").num_row_groups == 3
    assert list(read_part(tmp_path, manifest, "demonstrations", Example)) == records
    (tmp_path / "demonstrations-00001.parquet").unlink()
    with pytest.raises(PreftuneError, match=r"demonstrations-00001\.parquet: a file of the snapshot is missing"):
        list(read_part(tmp_path, manifest, "demonstrations", Example))


def test_long_texts_end_a_group_and_a_shard_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_files, "GROUP_BYTES", 1000)
    monkeypatch.setattr(snapshot_files, "SHARD_BYTES", 2500)
    manifest = written(tmp_path, demonstrations=[Example(messages=ASKED, completion="x" * 600) for _ in range(8)])
    assert [rows for name, rows in manifest["files"].items() if name.startswith("demonstrations-")] == [6, 2]


def test_a_write_that_fails_says_what_failed_first(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="first"), PartsWriter(tmp_path) as writer:
        writer.add("train", Pair(messages=ASKED, chosen="a", rejected="b"))
        raise RuntimeError("first")


def test_a_snapshot_of_json_lines_still_loads(tmp_path: Path) -> None:
    pair = Pair(messages=ASKED, chosen="a\u2028", rejected="b", weight=0.5)
    old = {name: value for name, value in pair.model_dump().items() if name != "confidence"}  # older versions knew of none
    rows = {part: [] for part in PARTS if part not in snapshot_files.NEW_PARTS} | {
        "train": [old],
        "prompts": [Prompt(messages=ASKED).model_dump()],
    }
    for part, values in rows.items():
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    (tmp_path / MANIFEST).write_text(json.dumps({"id": "0123", "kind": "snapshot", "config": {"held_out": 0.1, "seed": 0}}))
    found = load_snapshot(tmp_path)
    assert (found.train, found.held_out, found.kwise) == ([pair], [], [])
    assert found.prompts == [Prompt(messages=ASKED)]
    assert list(read_column(tmp_path, found.manifest, "train", "weight")) == [0.5]
    (tmp_path / "train.jsonl").write_text('{"messages": [\n')
    with pytest.raises(PreftuneError, match=r"train\.jsonl line 1: the line is damaged"):
        load_snapshot(tmp_path)
    with pytest.raises(PreftuneError, match=r"train\.jsonl line 1: the line is damaged"):
        list(read_column(tmp_path, found.manifest, "train", "weight"))
    (tmp_path / "held_out.jsonl").unlink()
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(PreftuneError, match=r"held_out\.jsonl: a file of the snapshot is missing"):
        load_snapshot(tmp_path)
