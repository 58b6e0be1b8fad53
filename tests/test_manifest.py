"""Folders that are written once: same command, same folder; a kill or a full disk leaves no half one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from preftune import manifest
from preftune.errors import PreftuneError
from preftune.manifest import begin, differences, folder_id, hash_file, hash_folder, read_manifest, write_json

INPUTS, CONFIG = {"data": "abc"}, {"lr": 1e-5}


def make(parent: Path, **facts) -> Path:
    final, work = begin(parent, "sft", INPUTS, CONFIG)
    assert work is not None
    (work.path / "model.bin").write_bytes(b"weights")
    return work.finish(final, **facts)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_differs_is_told_by_its_dotted_key_with_both_values():
    before = {"lr": 1.0, "adapter": {"rank": 8, "alpha": 16}, "data": "a", "same": [1, 2], "gone": 3}
    now = {"lr": 2.0, "adapter": {"rank": 4, "alpha": 16}, "data": "a", "same": [1, 2], "new": {"x": 1}}
    assert differences(before, now) == {"adapter.rank": (8, 4), "gone": (3, None), "lr": (1.0, 2.0), "new": (None, {"x": 1})}
    assert differences({"adapter": None}, {"adapter": {"rank": 4}}) == {"adapter": (None, {"rank": 4})}
    assert differences(before, before) == {}


def test_the_same_command_twice_finds_the_folder_that_is_there(tmp_path):
    folder = make(tmp_path)
    again, work = begin(tmp_path, "sft", INPUTS, CONFIG)
    assert (again, work) == (folder, None)


@pytest.mark.parametrize(
    ("kind", "inputs", "config"),
    [("dpo", INPUTS, CONFIG), ("sft", {"data": "abd"}, CONFIG), ("sft", INPUTS, {"lr": 2e-5}), ("sft", INPUTS, {})],
)
def test_another_kind_input_or_config_makes_another_id(kind, inputs, config):
    assert folder_id(kind, inputs, config) != folder_id("sft", INPUTS, CONFIG)


def test_the_order_of_keys_is_nothing_to_the_id():
    assert folder_id("sft", {"a": "1", "b": "2"}, {"x": 1, "y": 2}) == folder_id("sft", {"b": "2", "a": "1"}, {"y": 2, "x": 1})


def test_another_version_of_preftune_makes_another_id(monkeypatch):
    before = folder_id("sft", INPUTS, CONFIG)
    monkeypatch.setattr(manifest, "versions", lambda: {"preftune": "99.0"})
    assert folder_id("sft", INPUTS, CONFIG) != before


def test_a_manifest_tells_what_made_the_folder(tmp_path):
    folder = make(tmp_path, pairs=500)
    told = read_manifest(folder)
    assert told["id"] == folder.name
    assert (told["kind"], told["inputs"], told["config"], told["pairs"]) == ("sft", INPUTS, CONFIG, 500)
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["hardware"]["cpus"] == os.cpu_count()


def test_nothing_stands_under_the_final_name_before_it_is_finished(tmp_path):
    final, work = begin(tmp_path, "sft", INPUTS, CONFIG)
    (work.path / "half").write_text("x")
    assert not final.exists()
    assert work.path.name == f".{final.name}.partial"


def test_an_unfinished_folder_is_found_again_with_what_is_in_it(tmp_path):
    _, work = begin(tmp_path, "sft", INPUTS, CONFIG)
    (work.path / "checkpoint").write_text("step 3")
    _, again = begin(tmp_path, "sft", INPUTS, CONFIG)
    assert (again.path / "checkpoint").read_text() == "step 3"


@pytest.mark.parametrize("at", ["replace_folder", "write_json", "sync_folder"])
@pytest.mark.slow
def test_a_kill_in_the_middle_of_finishing_leaves_no_half_folder_and_the_next_try_succeeds(tmp_path, at):
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from preftune import manifest
        final, work = manifest.begin(Path(sys.argv[1]), "sft", {INPUTS!r}, {CONFIG!r})
        (work.path / "model.bin").write_bytes(b"weights")
        manifest.{at} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        work.finish(final)
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [f".{folder_id('sft', INPUTS, CONFIG)}.partial"]
    assert (make(tmp_path) / "model.bin").read_bytes() == b"weights"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_a_sentence_and_what_was_there_stays(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(manifest.os, "fsync", full_disk)
    with pytest.raises(PreftuneError, match=r"the disk is full \(\d+ MiB free\).*Nothing that was written before is lost"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "old": 1\n}\n'


def test_a_full_disk_while_finishing_leaves_the_unfinished_folder_to_go_on_with(tmp_path, monkeypatch):
    final, work = begin(tmp_path, "sft", INPUTS, CONFIG)
    monkeypatch.setattr(manifest, "sync_folder", full_disk)
    with pytest.raises(PreftuneError, match="the disk is full"):
        work.finish(final)
    assert not final.exists()
    monkeypatch.undo()
    assert make(tmp_path) == final


def test_another_trouble_with_the_disk_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "no" / "such" / "a.json", {})


def test_a_folder_without_a_manifest_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(PreftuneError, match=r"there is no manifest\.json here"):
        read_manifest(tmp_path)


def test_a_broken_manifest_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "manifest.json").write_text('{"id": ')
    with pytest.raises(PreftuneError, match=r"manifest\.json is broken"):
        read_manifest(tmp_path)


def test_a_file_is_hashed_by_its_bytes(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "abc").write_bytes(b"abc")
    # The digests that FIPS 180-4 gives for these two messages.
    assert hash_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_folder(tmp_path / "abc") == hash_file(tmp_path / "abc")


def test_a_folder_is_hashed_by_its_names_and_bytes_and_known_by_its_id(tmp_path):
    one, two, named = tmp_path / "one", tmp_path / "two", tmp_path / "named"
    for folder, name in ((one, "a"), (two, "a"), (named, "b")):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / name).write_text("x")
    assert hash_folder(one) == hash_folder(two) != hash_folder(named)
    (two / "sub" / "a").write_text("y")
    assert hash_folder(one) != hash_folder(two)
    write_json(one / "manifest.json", {"id": "3f9c"})
    assert hash_folder(one) == "3f9c"
