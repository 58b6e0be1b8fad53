"""Alpaca rows in their four shapes."""

from __future__ import annotations


def test_history_system_and_input_make_the_prompt(taken, ranked, messages):
    fields = {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    [row], [] = taken([fields])
    assert messages(row) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add.\n1 2")]
    assert ranked(row) == [["3"], ["4"]]


def test_an_output_is_a_demonstration_a_thumb_or_in_the_older_form_a_pair(taken, ranked):
    asked = {"instruction": "Add.", "input": ""}
    rows, [aside] = taken(
        [{**asked, "output": "3"}, {**asked, "output": "3", "kto_tag": False}, {**asked, "output": ["3", "4"]}, {**asked, "output": ["3"]}]
    )
    assert rows[0].demonstrations[0].text == "3"
    assert (ranked(rows[1]), rows[1].judgements[0].acceptable) == ([["3"]], ())
    assert ranked(rows[2]) == [["3"], ["4"]]
    assert aside.reason == 'field "output" is a list, but not of a better and a worse answer'


def test_a_history_that_is_none_is_set_aside(taken):
    [_], aside = taken([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "history": [["x"]]}])
    assert [item.reason for item in aside] == ['field "history" is not a list of questions with their answers']
