"""Tables with names of their own: by a map, or by guessing usual names, which is told."""

from __future__ import annotations

import pytest

from preftune.data.formats import Row, columns_of, detect, read
from preftune.data.formats.columns import guess, parse_map
from preftune.errors import ConfigError, DataError

TABLE = "Question,Good one,Bad one,who\nAsk.,one,two,ann\nMore?,three,four,bob\n"
MAP = {"prompt": "Question", "chosen": "Good one", "rejected": "Bad one", "rater": "who"}


def test_a_map_says_which_column_is_which(written, ranked):
    rows = list(read(written(TABLE), map_columns=MAP))
    assert all(isinstance(row, Row) for row in rows)
    assert [ranked(row) for row in rows] == [[["one"], ["two"]], [["three"], ["four"]]]
    assert rows[0].judgements[0].rater == "ann"


def test_a_map_goes_for_json_too_and_other_columns_are_told(written, ranked):
    [row] = read(
        written([{"q": "Ask.", "yes": "one", "no": "two", "note": "x"}]), map_columns={"prompt": "q", "chosen": "yes", "rejected": "no"}
    )
    assert (ranked(row), row.unused) == ([["one"], ["two"]], ("note",))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["Question", "Preferred answer", "Worse"], {"prompt": "Question", "chosen": "Preferred answer", "rejected": "Worse"}),
        (["instruction", "RESPONSE", "Annotator"], {"prompt": "instruction", "completion": "RESPONSE", "rater": "Annotator"}),
        (["prompt", "answer_a", "answer_b", "winner"], None),
        (["prompt", "response", "label"], None),
        (["prompt", "response", "Rating"], None),
        (["question", "prompt", "answer"], None),
        (["question", "chosen"], None),
        (["chosen", "rejected"], None),
    ],
)
def test_only_usual_names_are_guessed_and_nothing_that_rates(names, found):
    assert guess(names) == found


def test_a_guess_is_used_for_tables_alone(written, ranked):
    path = written("Question,Preferred,Worse\nAsk.,one,two\n")
    assert detect(path) == "columns"
    assert [ranked(row) for row in read(path)] == [[["one"], ["two"]]]
    with pytest.raises(DataError, match="no format that we know has rows with the keys"):
        detect(written([{"Question": "Ask.", "Preferred": "one", "Worse": "two"}]))


def test_columns_that_nobody_can_guess_ask_for_a_map(written):
    with pytest.raises(DataError, match=r"has the columns Question, Good one, Bad one, who.*--map prompt=COLUMN"):
        detect(written(TABLE))
    with pytest.raises(DataError, match=r'no column "Qestion".*The columns are Question, Good one'):
        columns_of(written(TABLE), {"prompt": "Qestion"})


def test_a_map_is_read_from_one_word_or_several():
    assert parse_map([]) is None
    assert parse_map(["prompt=Q", "chosen=Good one"]) == {"prompt": "Q", "chosen": "Good one"}
    assert parse_map(["prompt=The question chosen=Good one, rejected=Bad"]) == {
        "prompt": "The question",
        "chosen": "Good one",
        "rejected": "Bad",
    }
    for wrong in ("prompt", "prompt=", "better=x"):
        with pytest.raises(ConfigError, match="is not KEY=COLUMN with a key of ours. The keys are"):
            parse_map([wrong])


def test_strength_in_a_table_is_a_number(written):
    [row] = read(written("prompt,chosen,rejected,strength\na,b,c,2\n"))
    assert row.judgements[0].strength == 2
