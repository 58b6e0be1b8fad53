"""A list that may lie in a file is the same list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import rows
from preftune.data.batches import Group
from preftune.data.rows import Rows
from preftune.data.snapshot_files import PartsWriter, StoredPart, read_part
from preftune.errors import PreftuneError
from preftune.records import Message, Pair

ids = st.lists(st.integers(0, 200_000), max_size=5).map(tuple)
groups = st.builds(Group, prompt=ids, completions=st.lists(ids, max_size=3).map(tuple), index=st.integers(0, 99))


@given(st.lists(groups, max_size=12), st.integers(0, 12), st.slices(12), st.integers(-13, 13))
@settings(max_examples=50, deadline=None)
def test_it_is_the_same_list_wherever_it_lies(found: list[Group], in_memory: int, part: slice, place: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "IN_MEMORY", in_memory)
        kept = Rows(found)
        assert kept == found
        assert list(kept) == found
        assert len(kept) == len(found)
        assert kept[part] == found[part]
        if -len(found) <= place < len(found):
            assert kept[place] == found[place]
        else:
            with pytest.raises(IndexError):
                kept[place]
        kept.append(Group((1,), (), 7))  # also after it was read
        assert kept[-1] == Group((1,), (), 7)
        assert kept != found


def test_many_rows_take_little_memory_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "IN_MEMORY", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = Rows(Group(tuple(range(50)), (), n) for n in range(1000))
    assert len(kept._here) == 0
    assert kept[999].index == 999
    assert os.listdir(tmp_path) == []


# Parts that stay in their files

PAIRS = [Pair(messages=(Message(role="user", content=f"{n}"),), chosen="a" * n, rejected="b", group=f"{n // 2}") for n in range(23)]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredPart[Pair]:
    """Pairs in several shards of several row groups."""
    monkeypatch.setattr("preftune.data.snapshot_files.GROUP_ROWS", 3)
    monkeypatch.setattr("preftune.data.snapshot_files.SHARD_ROWS", 7)
    with PartsWriter(tmp_path) as writer:
        for pair in PAIRS:
            writer.add("train", pair)
    assert len([name for name in writer.files if name.startswith("train-")]) == 3  # 9, 9 and 5 rows
    return StoredPart(tmp_path, {"files": writer.files}, "train", Pair)


def test_a_stored_part_is_the_list_of_its_records(stored: StoredPart[Pair]) -> None:
    assert len(stored) == len(PAIRS)
    assert list(stored) == PAIRS
    assert [stored[place] for place in (22, 0, 9, 8, -1, 3)] == [PAIRS[place] for place in (22, 0, 9, 8, -1, 3)]
    assert stored[5:20:4] == PAIRS[5:20:4]
    with pytest.raises(IndexError):
        stored[23]


def test_an_empty_part_has_no_records(stored: StoredPart[Pair], tmp_path: Path) -> None:
    folder, manifest, *_ = stored._source
    empty = StoredPart(folder, manifest, "held_out", Pair)
    assert len(empty) == 0
    assert list(empty) == list(read_part(folder, manifest, "held_out", Pair)) == []


def test_a_shard_that_is_gone_cut_or_damaged_is_named(stored: StoredPart[Pair], tmp_path: Path) -> None:
    shard = tmp_path / "train-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:20] + bytes(len(whole) - 400) + whole[-380:])  # its footer is as it was
    with pytest.raises(PreftuneError, match=r"train-00001.parquet: the file is damaged.*Make the snapshot anew"):
        stored[10]
    for bad in (whole[:100], None):
        shard.unlink()
        if bad is not None:
            shard.write_bytes(bad)
        with pytest.raises(PreftuneError, match=r"train-00001.parquet: .*(is damaged|is missing)"):
            StoredPart(*stored._source)
