"""Containers: gzip and zstd with a cap, CSV and TSV, Parquet; what is none of these is named for what it is."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from preftune.data.formats import Row, SetAside, detect, opening, read
from preftune.data.formats.reading import Place, items
from preftune.data.formats.tables import delimiter_of
from preftune.errors import DataError

GOOD = {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "What?"}
LINE = json.dumps(GOOD).encode() + b"\n"


def packed(name, data):
    if name == "gzip":
        return gzip.compress(data)
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdCompressor().compress(data)


def texts(path):
    return [[c.text for c in item.candidates] for item in read(path) if isinstance(item, Row)]


# Packed files


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_packed_files_are_unpacked_also_of_several_parts(written, name):
    assert len(texts(written(packed(name, LINE * 3) + packed(name, b"") + packed(name, LINE)))) == 4
    assert detect(written(packed(name, json.dumps([GOOD]).encode()))) == "own"


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_packed_file_that_breaks_off_gives_what_was_whole_and_says_so(written, name):
    lines = b"".join(json.dumps({**GOOD, "prompt": f"{n} {n * 7919}"}).encode() + b"\n" for n in range(6_000))
    whole = packed(name, lines)
    found = list(read(written(whole[: len(whole) * 2 // 3]), "own"))
    assert sum(isinstance(item, Row) for item in found) > 1000
    assert isinstance(found[-1], SetAside)
    assert found[-1].reason == "the compressed file breaks off or is damaged here"


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_bomb_is_refused_before_it_has_grown(written, name):
    """128 MiB of zeros pack to some 130 kB in gzip, 4 kB in zstd; no honest data grow a hundredfold beyond 64 MiB."""
    path = written(packed(name, bytes(2**27)))
    tracemalloc.start()
    with pytest.raises(DataError, match="more than 100 times its size"), opening.opened(path) as (file, _):
        while file.read(2**20):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "content", [LINE * 60_000, b'{"prompt": "' + b"x" * 4_000_000, b"[" + LINE * 60_000, b"a,b\n" + b"c,d\n" * 400_000]
)
def test_lines_one_endless_line_an_array_and_a_table_are_refused_alike(written, monkeypatch, name, content):
    monkeypatch.setattr(opening, "FREE_BYTES", 2**20)
    with pytest.raises(DataError, match="more than 100 times its size"):
        list(items(written(packed(name, content))))


def test_a_small_file_may_grow_by_any_ratio_but_not_over_the_limit(written):
    path = written(gzip.compress(LINE * 20_000, 9))
    assert path.stat().st_size * opening.MAX_RATIO < len(LINE) * 20_000 < opening.FREE_BYTES
    assert sum(1 for _ in items(path)) == 20_000
    with pytest.raises(DataError, match=r"unpacks to more than 0.000977 GiB. .*--max-unpacked-gib"):
        list(items(path, max_unpacked_bytes=2**20))


def test_other_archives_are_named_and_refused(written):
    for magic, what in ((b"PK\x03\x04", "zip archive"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\x00", "xz")):
        with pytest.raises(DataError, match=what):
            detect(written(magic + b"rest"))


def test_the_place_in_the_file_grows_to_its_end(written):
    path = written(LINE * 5000)
    place = Place()
    seen = [place.bytes_read for _ in items(path, place=place)]
    assert seen == sorted(seen)
    assert path.stat().st_size * 0.9 < seen[-1] <= path.stat().st_size


# Tables


@pytest.mark.parametrize(
    ("head", "delimiter"),
    [
        (b"prompt,chosen\na,b\n", ","), (b"\xef\xbb\xbfprompt\tchosen\r\na\tb", "\t"), (b"p;q\n1;2\n", ";"), (b"a,b", ","),
        (b'"a, b",c\n1,2\n', ","),
        (b'{"a": 1, "b": 2}\n', None), (b"[1, 2]\n", None), (b"1, 2\n", ","), (b"plain text\nmore, text\n", None),
        (b"3\n", None), (b"", None), (b"a,a\n1,2\n", None), (b"a,\n1,2\n", None), (b"a,b\n1,2,3\n", None),
    ],
)  # fmt: skip
def test_a_table_is_told_by_its_first_rows(head, delimiter):
    assert delimiter_of(head) == delimiter


def test_cells_may_hold_lines_quotes_and_any_language(written):
    path = written('prompt,chosen,rejected\n"Say ""hi"",\nplease.",„Hallo“,你好\nBye.,"a\r\nb",c\n')
    assert detect(path) == "own"
    rows = list(read(path))
    assert [row.prompt.text for row in rows] == ['Say "hi",\nplease.', "Bye."]
    assert texts(path) == [["„Hallo“", "你好"], ["a\r\nb", "c"]]
    assert [row.line for row in rows] == [2, 4]


def test_broken_rows_of_a_table_are_set_aside_one_by_one(written):
    path = written(b'prompt,chosen,rejected\na,b,c\nd,e\nf,g,h,i\n"j"k,l,m\nn,\xe9,o\np,,q\n\nr,s,t\n')
    found = list(read(path))
    assert [item.line for item in found if isinstance(item, Row)] == [2, 9]
    assert [(item.line, item.reason) for item in found if isinstance(item, SetAside)] == [
        (3, "the row has more or fewer cells than the header"),
        (4, "the row has more or fewer cells than the header"),
        (5, "the line is no row of a table"),
        (6, 'field "chosen" holds bytes that are not UTF-8, or half of a surrogate pair'),
        (7, 'key "chosen" is missing'),
    ]


def test_a_quote_without_end_does_not_swallow_what_came_before(written):
    path = written(b'prompt,chosen,rejected\na,b,c\n"d,e,f\n' + b"g,h,i\n" * 50)
    found = list(read(path))
    assert [item.line for item in found if isinstance(item, Row)] == [2]
    assert found[-1].line == 3


def test_a_cell_larger_than_the_module_allows_by_itself_is_read(written):
    assert len(texts(written(f"prompt,chosen,rejected\na,{'x' * 300_000},b\n"))) == 1


def test_parquet_is_read_like_json_lines(tmp_path: Path, written):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    talk = [{"prompt": [{"role": "user", "content": f"{n}"}], "chosen": [{"role": "assistant", "content": "a"}],
             "rejected": [{"role": "assistant", "content": "b"}], "margin": None if n % 2 else 1.0} for n in range(600)]  # fmt: skip
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(talk), path)
    assert detect(path) == "trl"
    assert [item.prompt.id for item in read(path)] == [item.prompt.id for item in read(written(talk))]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="the Parquet file cannot be read"):
        detect(path)
