"""Reading our own format: each shape, and each way in which files are broken in the wild."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.formats import Row, SetAside, detect, read
from preftune.errors import DataError
from preftune.records import pairs_of

GOOD = {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "What?"}
GOOD_LINE = json.dumps(GOOD).encode()


def split(path: Path) -> tuple[list[Row], list[SetAside]]:
    items = list(read(path, "own"))
    return [i for i in items if isinstance(i, Row)], [i for i in items if isinstance(i, SetAside)]


def texts_of(row: Row) -> tuple[list[str], list[list[str]]]:
    """Return the answers, and the ranking in their texts."""
    by_id = {c.id: c.text for c in row.candidates}
    return [c.text for c in row.candidates], [[by_id[i] for i in tier] for j in row.judgements for tier in j.ranking]


# What each shape gives


def test_a_pair_is_a_ranking_of_the_chosen_over_the_rejected(written: Callable[..., Path]) -> None:
    fields = {**GOOD, "kind": "chat", "check": "assert 1", "rater": "ann", "strength": 3, "id": "x-1", "source": "tool"}
    [row], [] = split(written([fields]))
    assert texts_of(row) == (["Hello!", "What?"], [["Hello!"], ["What?"]])
    [said] = row.judgements
    assert (said.rater, said.strength, said.picked_by) == ("ann", 3, "import")
    assert (row.prompt.kind, row.prompt.check, row.line, row.unused) == ("chat", "assert 1", 1, ("source",))


def test_a_ranking_is_best_first_with_ties_together(written: Callable[..., Path]) -> None:
    [row], [] = split(written([{"prompt": "p", "answers": ["bad", "good", "fine", "unseen"], "ranking": [[1], [2, 0]]}]))
    assert texts_of(row) == (["bad", "good", "fine", "unseen"], [["good"], ["fine", "bad"]])
    assert len(pairs_of(row.judgements[0])) == 2


def test_the_other_shapes_give_demonstrations_candidates_and_prompts(written: Callable[..., Path]) -> None:
    rows, aside = split(
        written(
            [{"prompt": "p", "completion": "c", "rater": "bob"}, {"prompt": "p", "answers": ["a", "b"]}, {"prompt": "p", "chosen": None}]
        )
    )
    assert not aside
    [wished] = rows[0].demonstrations
    assert (wished.text, wished.author) == ("c", "bob")
    assert (texts_of(rows[1]), rows[1].judgements) == ((["a", "b"], []), ())
    assert (rows[2].candidates, rows[2].judgements, rows[2].demonstrations) == ((), (), ())


def test_a_prompt_may_be_a_conversation(written: Callable[..., Path]) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    [row, other], [] = split(
        written(
            [
                {**GOOD, "prompt": [{"role": r, "content": c, "name": "x"} for r, c in turns]},
                {**GOOD, "system": "Be brief.", "prompt": [{"from": r, "value": c} for r, c in turns[1:]]},
            ]
        )
    )
    assert [(m.role, m.content) for m in row.prompt.messages] == turns
    assert other.prompt == row.prompt


word = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(lambda s: s.strip())


@given(
    st.lists(st.tuples(word, word, word).filter(lambda t: t[1].strip() != t[2].strip()), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_text_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], as_array: bool, escaped: bool
) -> None:
    values = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows]
    path = tmp_path_factory.mktemp("formats") / "rows"
    lines = "".join(json.dumps(v, ensure_ascii=escaped) + "\n" for v in values)
    path.write_bytes((json.dumps(values, ensure_ascii=escaped, indent=1) if as_array else lines).encode())
    items = list(read(path))
    assert [(i.prompt.text, *texts_of(i)[0]) for i in items if isinstance(i, Row)] == rows


# Broken rows among good ones

BROKEN_ROWS = {
    "the line is not JSON": [b'{"prompt": "a", "chos', b"\xef\xbf\xbe", b"prompt,chosen", b'{"a": "\0"}', b"1" * 5000, b"{} {}"],
    "the line is not UTF-8": [b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}', b"\xff\xfe"],
    "the line is nested too deep": [b"[" * 100_000],
    "the row is no JSON object": [b'"text"', b"3", b"null", b"[1, 2]"],
    'key "prompt" is missing': [b"{}", b'{"chosen": "a", "rejected": "b"}', b'{"prompt": null, "completion": "x"}'],
    'key "rejected" is missing': [b'{"prompt": "a", "chosen": "b"}', b'{"prompt": "a", "chosen": "b", "rejected": null}'],
    'key "answers" is missing': [b'{"prompt": "a", "ranking": [[0], [1]]}'],
    'field "prompt" is not text': [b'{"prompt": 3, "completion": "b"}', b'{"prompt": {"text": "a"}, "completion": "b"}'],
    'field "chosen" is not text': [
        b'{"prompt": "a", "chosen": true, "rejected": "b"}',
        b'{"prompt": "a", "chosen": ["b"], "rejected": "c"}',
    ],
    'field "kind" is not text': [b'{"prompt": "a", "completion": "b", "kind": 7}'],
    'field "answers" is not a list of texts': [b'{"prompt": "a", "answers": "bc"}', b'{"prompt": "a", "answers": []}'],
    'field "answers" is not text': [b'{"prompt": "a", "answers": ["b", 1]}'],
    'field "ranking" is not a list of lists': [b'{"prompt": "a", "answers": ["b", "c"], "ranking": [0, 1]}'],
    'field "ranking" names an answer that is not there': [
        b'{"prompt": "a", "answers": ["b", "c"], "ranking": [[0], [2]]}',
        b'{"prompt": "a", "answers": ["b", "c"], "ranking": [[0], [-1]]}',
        b'{"prompt": "a", "answers": ["b", "c"], "ranking": [[0], [true]]}',
    ],
    'field "ranking" is wrong': [
        b'{"prompt": "a", "answers": ["b", "c"], "ranking": [[0], [0]]}',
        b'{"prompt": "a", "answers": ["b", "c"], "ranking": [[0]]}',
    ],
    'field "strength" is wrong': [b'{"prompt": "a", "chosen": "b", "rejected": "c", "strength": 4}'],
    'field "strength" is not a whole number from 0 to 3': [b'{"prompt": "a", "chosen": "b", "rejected": "c", "strength": "much"}'],
    'field "chosen" holds a NUL character': [b'{"prompt": "a", "chosen": "b\\u0000", "rejected": "c"}'],
    'field "prompt" holds bytes that are not UTF-8, or half of a surrogate pair': [b'{"prompt": "\\ud83d", "completion": "c"}'],
    "there is nothing to learn from two equal answers": [
        b'{"prompt": "a", "chosen": "b", "rejected": "b"}',
        b'{"prompt": "a", "answers": ["b", "c", "b"], "ranking": [[0], [1]]}',
    ],
    "two answers differ only in the white space around them": [b'{"prompt": "a", "chosen": "b\\n", "rejected": " b"}'],
    "an answer is empty": [
        b'{"prompt": "a", "chosen": "", "rejected": "b"}',
        b'{"prompt": "a", "chosen": "b", "rejected": " \\n"}',
        b'{"prompt": "a", "completion": ""}',
    ],
    "the prompt, or one of its messages, is empty": [
        b'{"prompt": " ", "completion": "a"}',
        b'{"prompt": [], "completion": "a"}',
        b'{"prompt": [{"role": "user", "content": ""}], "completion": "a"}',
    ],
    "the prompt does not end with the user's turn": [b'{"prompt": [{"role": "assistant", "content": "a"}], "completion": "b"}'],
    "a message has no role": [b'{"prompt": ["a"], "completion": "b"}'],
    "a message has no role that we know (system, user or assistant)": [
        b'{"prompt": [{"from": "tool", "value": "a"}], "completion": "b"}',
        b'{"prompt": [{"content": "a"}], "completion": "b"}',
    ],
    'key "content" is missing': [b'{"prompt": [{"role": "user"}], "completion": "b"}'],
    "the row is of two shapes at once": [b'{"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}'],
    "the row has a label, which our own format does not know": [b'{"prompt": "a", "completion": "b", "label": false}'],
    "the row has a prompt, no answers, and keys that are not ours": [
        b'{"prompt": "a", "chossen": "b"}',
        b'{"prompt": "a", "response": "b"}',
    ],
}


@pytest.mark.parametrize(("reason", "line"), [(reason, line) for reason, lines in BROKEN_ROWS.items() for line in lines])
def test_a_broken_line_is_set_aside_with_its_number_and_reason_and_the_good_go_on(
    written: Callable[..., Path], reason: str, line: bytes
) -> None:
    rows, aside = split(written(b"\n".join([GOOD_LINE, b"", line, GOOD_LINE])))
    assert [(item.line, item.reason) for item in aside] == [(3, reason)]
    assert [row.line for row in rows] == [1, 4]


def test_what_is_set_aside_keeps_its_text_and_says_more(written: Callable[..., Path]) -> None:
    _, aside = split(written(b'{"prompt": "caf\xe9"}\n{"prompt": "a", "chosen": 7, "rejected": "b"}'))
    assert (aside[0].text, aside[0].detail) == ('{"prompt": "caf\ufffd"}', "at byte 15")
    assert (json.loads(aside[1].text)["chosen"], aside[1].detail) == (7, "it is 7")


# Broken files


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD_LINE + b"\r\n" + GOOD_LINE + b"\r\n",
        b"\n\n  \n" + GOOD_LINE + b"\n \n" + GOOD_LINE,
        gzip.compress(GOOD_LINE + b"\n" + GOOD_LINE + b"\n", mtime=0),
        gzip.compress(b"\xef\xbb\xbf" + GOOD_LINE, mtime=0) + gzip.compress(b"\n" + GOOD_LINE, mtime=0),
        b"[" + GOOD_LINE + b"," + GOOD_LINE + b"]",
        b"\xef\xbb\xbf\r\n[\r\n" + GOOD_LINE + b",\r\n" + GOOD_LINE + b"\r\n]\r\n",
        gzip.compress(json.dumps([GOOD, GOOD], indent=4).encode(), mtime=0),
    ],
    ids=["BOM and CRLF", "blank lines", "gzip", "two gzip members", "array", "array with BOM and CRLF", "indented array in gzip"],
)
def test_a_file_may_be_written_in_any_of_these_ways(written: Callable[..., Path], content: bytes) -> None:
    path = written(content)
    assert detect(path) == "own"
    rows, aside = split(path)
    assert len(rows) == 2
    assert not aside


def test_a_line_of_ten_megabytes_is_set_aside_without_being_held(written: Callable[..., Path]) -> None:
    huge = json.dumps({**GOOD, "chosen": "x" * 10_000_000}).encode()
    path = written(b"\n".join([GOOD_LINE, huge, GOOD_LINE]))
    tracemalloc.start()
    rows, aside = split(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(item.line, item.reason, len(item.text)) for item in aside] == [(2, "the line is longer than 8 MiB", 1000)]
    assert [row.line for row in rows] == [1, 3]
    assert peak < 3 * 8 * 2**20


def test_a_truncated_gzip_gives_what_was_whole(written: Callable[..., Path]) -> None:
    whole = gzip.compress(b"".join(json.dumps({**GOOD, "prompt": f"{n} {n * 7919}"}).encode() + b"\n" for n in range(5000)))
    rows, aside = split(written(whole[: len(whole) // 2]))
    assert len(rows) > 1000
    assert aside[-1].reason == "the compressed file breaks off or is damaged here"
    assert aside[-1].line > len(rows)


def test_an_array_that_breaks_off_gives_what_was_whole(written: Callable[..., Path]) -> None:
    text = json.dumps([GOOD, GOOD, GOOD], indent=1)
    rows, [aside] = split(written(text[:-20]))
    # Three lines an object and two braces: the third object starts on line 12.
    assert [row.line for row in rows] == [2, 7]
    assert (aside.line, aside.reason) == (12, "the array cannot be read from here on")
    _, [aside] = split(written("[" + json.dumps(GOOD) + ",\n"))
    assert (aside.line, aside.reason) == (2, "the array has no end")


def test_rows_of_an_array_are_set_aside_one_by_one(written: Callable[..., Path]) -> None:
    content = b"[\n" + GOOD_LINE + b',\n{"prompt": "\xff", "completion": "x"},\n12345,\n' + GOOD_LINE + b"]\nmore"
    rows, aside = split(written(content))
    assert [row.line for row in rows] == [2, 5]
    assert [item.line for item in aside] == [3, 4, 5]
    assert aside[0].reason.startswith('field "prompt" holds bytes that are not UTF-8')
    assert aside[2].reason == "there is more after the end of the array"


def test_a_large_array_on_one_line_is_read_in_pieces(written: Callable[..., Path]) -> None:
    path = written(json.dumps([{**GOOD, "prompt": f"{n} " * 1000} for n in range(2500)]))
    assert path.stat().st_size > 8 * 2**20  # more than one piece
    rows, aside = split(path)
    assert (len(rows), len(aside)) == (2500, 0)
    assert rows[-1].prompt.text == "2499 " * 1000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file has no rows"),
        (b"\n \n", "the file has no rows"),
        (gzip.compress(b"", mtime=0), "the file has no rows"),
        (b"[]", "the file has no rows"),
        (b"prompt chosen\na b\n", "no row can be read; line 1: the line is not JSON"),
        (b"1\n2\n", "the rows are no JSON objects"),
        (b'{"question": "a", "answer": "b"}', "the keys answer, question. Say which key is which: --map prompt=KEY .* The formats are own"),
        (b"PK\x03\x04rest", "a zip archive. Unpack it"),
        ('{"prompt": "a"}'.encode("utf-16"), "UTF-16 text. Save it as UTF-8"),
        (b"SQLite format 3\0", "an SQLite database"),
    ],
)
def test_a_file_that_is_nothing_of_ours_is_named_for_what_it_is(written: Callable[..., Path], content: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        detect(written(content))


def test_a_path_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        list(read(tmp_path / "nothing"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read(tmp_path))
    with pytest.raises(DataError, match=r'there is no format "parquett".*own, preftune, hh'):
        list(read(tmp_path / "nothing", "parquett"))


def test_the_format_is_found_though_the_first_lines_are_broken(written: Callable[..., Path]) -> None:
    assert detect(written(b'{"half\n[]\n{"x": 1}\n' + GOOD_LINE)) == "own"
