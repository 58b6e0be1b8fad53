"""Importing: whole or not at all, twice adds nothing, and all that is set aside is told."""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.processes import READY

from preftune.data import importing
from preftune.data.formats import Row, SetAside, read
from preftune.data.importing import import_preferences
from preftune.data.store import Store
from preftune.errors import ConfigError, DataError, PreftuneError
from preftune.progress import Lines

PAIR = {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "What?"}
ROWS: list[dict[str, object]] = [
    PAIR,
    {**PAIR, "prompt": "Say bye.", "note": "from the old tool"},
    {"prompt": "Say bye.", "completion": "Bye!"},
    {"prompt": "Count.", "answers": ["1 2 3", "3 2 1", "no"], "ranking": [[0, 1], [2]]},
    {"prompt": "Alone."},
]
BROKEN = '{"half\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n{"prompt": "a", "chosen": "c", "rejected": "c"}\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a file of five good rows, three broken ones, and the first good one again."""
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + BROKEN + json.dumps(PAIR) + "\n")
    return path


def test_an_import_counts_every_row_once_and_every_record(tmp_path: Path, source: Path) -> None:
    report = import_preferences(source, tmp_path / "s.db")
    assert (report.format, report.rows, report.new, report.already_there) == ("own", 9, 5, 1)
    assert report.set_aside == {"the line is not JSON": 1, "there is nothing to learn from two equal answers": 2}
    assert report.records == {"prompts": 4, "candidates": 7, "judgements": 3, "demonstrations": 1}
    assert report.unused == {"note": 1}
    with Store.open(tmp_path / "s.db") as store:
        assert store.counts() == report.records
        [noted] = store.imports()
        assert (noted["source"], noted["format"], noted["rows_read"], noted["rows_new"], noted["rows_set_aside"]) == (
            str(source),
            "own",
            9,
            5,
            3,
        )


def test_importing_twice_adds_nothing(tmp_path: Path, source: Path) -> None:
    import_preferences(source, tmp_path / "s.db")
    with Store.open(tmp_path / "s.db") as store:
        before, fingerprint = store.counts(), store.fingerprint()
        report = import_preferences(source, store)
        assert (report.new, report.already_there, sum(report.records.values())) == (0, 6, 0)
        assert (store.counts(), store.fingerprint()) == (before, fingerprint)
    assert len((tmp_path / "s.db.set-aside.jsonl").read_text().splitlines()) == 3


def test_a_dry_run_counts_the_same_and_writes_nothing(tmp_path: Path, source: Path) -> None:
    dry = import_preferences(source, tmp_path / "new" / "s.db", dry_run=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preferences.jsonl"]
    real = import_preferences(source, tmp_path / "s.db")
    assert dry.dry_run
    assert {
        **dry.as_dict(),
        "dry_run": False,
        "set_aside_file": real.set_aside_file,
        "store_made": str(tmp_path / "s.db"),
    } == real.as_dict()
    with Store.open(tmp_path / "s.db") as store:
        again = import_preferences(source, store, dry_run=True)
        assert len(list(store.imports())) == 1
    assert (again.new, again.already_there) == (0, 6)


def test_the_report_shows_which_answer_is_taken_for_better(tmp_path: Path, source: Path) -> None:
    report = import_preferences(source, tmp_path / "s.db")
    assert report.examples[0] == "line 1, user: Say hello.\n  better: Hello!\n  worse: What?"
    assert report.examples[2] == "line 3, user: Say bye.\n  wished: Bye!"
    source.write_text(json.dumps(ROWS[3]) + "\n" + json.dumps({**PAIR, "prompt": "x", "completion": "y", "label": False}) + "\n")
    [example] = import_preferences(source, tmp_path / "s.db", format="own").examples
    assert example == "line 1, user: Count.\n  better: 1 2 3\n  better: 3 2 1\n  worse: no"
    assert len(report.examples) == 3
    lines = report.lines()
    assert lines[0] == f"{source} (own): 9 rows, 5 new, 1 already there"
    assert "  2 set aside: there is nothing to learn from two equal answers (lines 7, 8)" in lines
    assert "Direction: chosen over rejected; a ranking is best first." in lines
    assert "  1 row has a key that is not used: note" in lines
    assert f"  what was set aside: {tmp_path}/s.db.set-aside.jsonl" in lines


def test_what_a_file_holds_does_not_steer_the_terminal(tmp_path: Path, source: Path) -> None:
    source.write_text(json.dumps({**PAIR, "prompt": "a\x1b[2Jb", "k\ud83d\x07": 1}) + "\n")
    report = import_preferences(source, tmp_path / "s.db")
    assert report.examples[0].splitlines()[0] == "line 1, user: a\ufffd[2Jb"
    assert report.unused == {"k\ufffd\ufffd": 1}


def test_a_hostile_file_does_not_swell_the_report(tmp_path: Path, source: Path) -> None:
    source.write_text("".join(json.dumps({**PAIR, "prompt": f"{n}", f"key {n}": 1}) + "\n" for n in range(300)))
    unused = import_preferences(source, tmp_path / "s.db", dry_run=True).unused
    assert (len(unused), unused["(others)"], sum(unused.values())) == (101, 200, 300)


def test_progress_goes_to_the_end_of_the_file(tmp_path: Path, source: Path) -> None:
    source.write_text("".join(json.dumps({**PAIR, "prompt": f"{n}"}) + "\n" for n in range(1300)))
    said = io.StringIO()
    import_preferences(source, tmp_path / "s.db", progress=Lines(stream=said))
    size = source.stat().st_size // 1024
    assert said.getvalue().splitlines()[0] == f"reading preferences.jsonl: {size} KiB"
    assert f"done, {size} KiB in" in said.getvalue().splitlines()[-1]


def test_a_map_and_another_format_do_not_go_together(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConfigError, match='a map of columns does not go with the format "hh"'):
        import_preferences(source, tmp_path / "s.db", format="hh", map_columns={"prompt": "prompt"})


def test_a_file_that_contradicts_itself_late_stores_nothing(tmp_path: Path, source: Path) -> None:
    rows = [{**PAIR, "prompt": f"{n}", "score_chosen": 2, "score_rejected": 1 if n < 900 else 3} for n in range(1200)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"300 of 1,200 rows contradict themselves \(line 901: score_chosen 2 is below score_rejected 3\)"):
        import_preferences(source, tmp_path / "s.db")
    with Store.open(tmp_path / "s.db") as store:
        assert set(store.counts().values()) == {0}


def test_every_sample_imported_twice_adds_nothing(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    with Store.create(tmp_path / "s.db") as store:
        refused = []
        for path in sorted(shared_data("formats").iterdir()):
            try:
                first = import_preferences(path, store)
            except DataError:
                refused.append(path.name)
                continue
            before = store.counts()
            again = import_preferences(path, store)
            assert (again.new, again.already_there, store.counts()) == (0, first.new + first.already_there, before), path.name
            assert first.examples == again.examples, path.name
        assert len(refused) == 3


def test_what_was_set_aside_lies_next_to_the_store_by_source(tmp_path: Path, source: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(PAIR) + '\n{"prompt": "\\ud83d"}\n')
    aside = tmp_path / "s.db.set-aside.jsonl"
    for path in (source, other, source):
        import_preferences(path, tmp_path / "s.db")
    rows = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [(Path(r["source"]).name, r["line"]) for r in rows] == [("other.jsonl", 2)] + [("preferences.jsonl", n) for n in (6, 7, 8)]
    assert rows[1]["text"] == '{"half'
    # Mended, the file leaves nothing behind.
    source.write_text(json.dumps(PAIR))
    other.write_text(json.dumps(PAIR))
    import_preferences(source, tmp_path / "s.db")
    assert import_preferences(other, tmp_path / "s.db").set_aside_file is None
    assert not aside.exists()


def test_a_file_without_a_good_row_makes_no_store(tmp_path: Path, source: Path) -> None:
    source.write_text(BROKEN)
    with pytest.raises(
        DataError, match=r"no row can be used \(2 × there is nothing to learn from two equal answers; 1 × the line is not JSON"
    ):
        import_preferences(source, tmp_path / "s.db")
    source.write_text("")
    with pytest.raises(DataError, match="the file has no rows"):
        import_preferences(source, tmp_path / "s.db")
    assert not (tmp_path / "s.db").exists()


def test_a_file_that_is_not_there_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        import_preferences(tmp_path / "nothing.jsonl", tmp_path / "s.db")
    with pytest.raises(DataError, match="cannot be read"):
        import_preferences(tmp_path, tmp_path / "s.db", format="own")
    assert not (tmp_path / "s.db").exists()


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    source.write_text("".join(json.dumps({**PAIR, "prompt": f"{n}"}) + "\n" for n in range(1200)))

    def breaks(path: Path, name: str | None, **options: Any) -> Iterator[Row | SetAside]:
        for n, item in enumerate(read(path, name, **options)):
            if n == 1100:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(importing, "read", breaks)
    with pytest.raises(KeyboardInterrupt):
        import_preferences(source, tmp_path / "s.db")
    with Store.open(tmp_path / "s.db") as store:
        assert set(store.counts().values()) == {0}
        assert not list(store.imports())


def test_a_full_disk_becomes_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(importing.os, "fsync", full)
    with pytest.raises(PreftuneError, match=r"the disk is full \(\d+ MiB free\)\. Nothing that was written before is lost"):
        import_preferences(source, tmp_path / "s.db")
    with Store.open(tmp_path / "s.db") as store:
        assert set(store.counts().values()) == {0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preferences.jsonl", "s.db"]


def _import_slowly(source: str, store: str, started: object) -> None:
    def slow(path: Path, name: str | None, **options: Any) -> Iterator[Row | SetAside]:
        for n, item in enumerate(read(path, name, **options)):
            if n == 700 and options["place"]:  # after the first batch was written
                started.set()  # type: ignore[attr-defined]
                time.sleep(60)
            yield item

    importing.read = slow
    import_preferences(Path(source), store)


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_half_and_the_next_import_is_whole(tmp_path: Path, source: Path) -> None:
    source.write_text("".join(json.dumps({**PAIR, "prompt": f"{n}"}) + "\n" for n in range(1200)))
    started = READY.Event()
    worker = READY.Process(target=_import_slowly, args=(str(source), str(tmp_path / "s.db"), started))
    worker.start()
    assert started.wait(60)
    worker.kill()
    worker.join()
    with Store.open(tmp_path / "s.db") as store:
        assert set(store.counts().values()) == {0}
    assert import_preferences(source, tmp_path / "s.db").new == 1200
    assert not [p for p in tmp_path.iterdir() if p.name.endswith("-journal")]


def test_the_real_file_is_imported_and_checked(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    report = import_preferences(shared_data("hh_harmless_test.jsonl.gz"), tmp_path / "s.db")
    assert (report.rows, report.new, sum(report.set_aside.values())) == (2312, 2303, 9)
    with Store.open(tmp_path / "s.db") as store:
        assert sum(1 for _ in store.pairs()) == report.records["judgements"] == 2303
