"""Raw transcripts: where a turn starts, and which rows cannot be trusted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.formats import Row, SetAside, detect, hh, read
from preftune.data.formats.rows import BadRow


def transcript(*turns: str) -> str:
    """Return a transcript from turns such as "H: hello"."""
    names = {"H": "Human", "A": "Assistant"}
    return "".join(f"\n\n{names[turn[0]]}: {turn[3:]}" for turn in turns)


def row(chosen: str, rejected: str) -> Row:
    [found] = hh.rows(1, {"chosen": chosen, "rejected": rejected})
    return found


def messages(row: Row) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in row.prompt.messages]


def test_the_last_turn_is_the_answer_and_all_before_it_the_prompt() -> None:
    prompt = ("H: Hi", "A: Hello", "H: Bye")
    found = row(transcript(*prompt, "A: See you"), transcript(*prompt, "A: What"))
    assert messages(found) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    assert [c.text for c in found.candidates] == ["See you", "What"]
    assert found.judgements[0].ranking == ((found.candidates[0].id,), (found.candidates[1].id,))


@pytest.mark.parametrize(
    "inside", ["women.  Human: Then how", "a\nHuman: b", "Assistant: x", 'the mark "\\n\\nHuman:" starts it', "Human :"]
)
def test_a_role_name_inside_a_turn_does_not_split_it(inside: str) -> None:
    found = row(transcript(f"H: {inside}", f"A: {inside}"), transcript(f"H: {inside}", "A: no"))
    assert messages(found) == [("user", inside)]
    assert found.candidates[0].text == inside


def test_windows_line_ends_and_missing_blank_lines_at_the_start_are_read() -> None:
    found = row("Human: a\r\n\r\nAssistant: b", "  \nHuman: a\r\n \r\nAssistant: c")
    assert messages(found) == [("user", "a")]
    assert [c.text for c in found.candidates] == ["b", "c"]


def test_the_same_role_twice_in_a_shared_prompt_is_one_turn() -> None:
    prompt = ("H: one", "H: two", "A: three", "A: four", "H: five")
    found = row(transcript(*prompt, "A: x"), transcript(*prompt, "A: y"))
    assert messages(found) == [("user", "one\n\ntwo"), ("assistant", "three\n\nfour"), ("user", "five")]


ASIDE = {
    "the two prompts differ": (("H: a", "A: b"), ("H: c", "A: d")),
    "the answer is in two turns": (("H: a", "A: b", "A: c"), ("H: a", "A: b", "A: d")),
    "an answer is empty": (("H: a", "A: b"), ("H: a", "A: ")),
    "there is nothing to learn from two equal answers": (("H: a", "A: b"), ("H: a", "A: b ")),
    "the transcript ends with the human": (("H: a", "A: b", "H: c"), ("H: a", "A: b", "H: d")),
    "the transcript starts with the assistant": (("A: a", "H: b", "A: c"), ("A: a", "H: b", "A: d")),
    "a turn of the prompt is empty": (("H: ", "A: b"), ("H: ", "A: c")),
}


@pytest.mark.parametrize("reason", ASIDE)
def test_rows_that_cannot_be_trusted_are_set_aside(reason: str) -> None:
    chosen, rejected = ASIDE[reason]
    with pytest.raises(BadRow) as bad:
        row(transcript(*chosen), transcript(*rejected))
    assert bad.value.reason == reason


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("no turns at all", "the transcript has no turn"),
        ("Intro." + transcript("H: a", "A: b"), "there is text before the first turn"),
        ("\n\nAssistant: alone", "the transcript starts with the assistant"),
    ],
)
def test_a_transcript_that_does_not_start_with_the_human_is_set_aside(chosen: str, reason: str) -> None:
    with pytest.raises(BadRow) as bad:
        row(chosen, transcript("H: a", "A: c"))
    assert bad.value.reason == reason


line = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r:"), min_size=1, max_size=20).map(str.strip).filter(bool)


@given(st.lists(line, min_size=1, max_size=7).filter(lambda turns: len(turns) % 2 == 1), line, line)
@settings(max_examples=60, deadline=None)
def test_every_conversation_survives_the_round_trip(turns: list[str], better: str, worse: str) -> None:
    prompt = [f"{'HA'[n % 2]}: {turn}" for n, turn in enumerate(turns)]
    if better == worse:
        worse += " not"
    found = row(transcript(*prompt, f"A: {better}"), transcript(*prompt, f"A: {worse}"))
    assert [m.content for m in found.prompt.messages] == turns
    assert [c.text for c in found.candidates] == [better, worse]


def test_the_real_file_gives_the_counts_that_are_known_of_it(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("hh_harmless_test.jsonl.gz")
    assert detect(path) == "hh"
    items = list(read(path))
    # 2312 rows: in 5 the prompts differ, in 4 the chosen answer is empty; 2310 distinct prompts, of which those 9 rows have 9.
    assert len(items) == 2312
    assert Counter(i.reason for i in items if isinstance(i, SetAside)) == {"the two prompts differ": 5, "an answer is empty": 4}
    rows = [i for i in items if isinstance(i, Row)]
    assert len({row.prompt.id for row in rows}) == 2301
    assert all(len(row.judgements) == 1 and not row.unused for row in rows)
    texts = [[c.text for c in row.candidates] for row in rows]
    longer = sum((len(a) > len(b)) + (len(a) == len(b)) / 2 for a, b in texts) / len(rows)
    assert longer == pytest.approx(0.445, abs=0.002)


def test_the_edge_cases_are_read_or_set_aside_as_described(shared_data: Callable[[str], Path]) -> None:
    items = list(read(shared_data("formats/hh_edge_cases.jsonl")))
    assert {i.line: i.reason for i in items if isinstance(i, SetAside)} == {
        1: "an answer is empty",
        3: "the two prompts differ",
        4: "there is nothing to learn from two equal answers",
        7: "the transcript ends with the human",
    }
    assert {i.line: messages(i) for i in items if isinstance(i, Row)} == {
        2: [("user", 'What does "\\n\\nHuman: " mean in a file?')],
        5: [("user", "no leading blank lines")],
        6: [("user", "two in a row\n\nreally")],
    }


def test_transcripts_are_told_from_our_own_rows(tmp_path: Path) -> None:
    chosen, rejected = transcript("H: a", "A: b"), transcript("H: a", "A: c")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Human: x", "chosen": chosen, "rejected": rejected}))
    assert detect(path) == "own"
    path.write_text(json.dumps([{"chosen": chosen, "rejected": rejected}]))
    assert detect(path) == "hh"
