"""Answers written to follow an instruction, and to miss it."""

import json

import pytest

from preftune.errors import DataError
from preftune.evaluate.instructions import CHECKS, Asked, following, follows, is_asked, read_asked
from preftune.records import Message, Prompt

CASES = [
    ("punctuation:no_comma", {}, "No comma here.", "One, two."),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two"),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "one two", "one two three"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "Mr. X is in. He waits!", "Mr. X is in"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen more.",
        "First.\n\nNow more.",
    ),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one*"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:title", {}, "<<A song>>\nla", "A song"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na",
    ),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. I wait", "Bye. A postscript"),
    ("keywords:existence", {"keywords": ["tea", "milk"]}, "Tea with milk", "Tea with milkshake"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "a steam engine", "a cup of Tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "tea, tea", "tea"),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"}, "Zz", "z"),
    ("combination:two_responses", {}, "one\n******\ntwo", "same\n******\nsame"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi.", "Hi."),
    ("startend:end_checker", {"end_phrase": "the end."}, "So it was. The end.", "The end. Or not"),
    ("startend:quotation", {}, '"all of it"', 'all "of" it'),
    ("change_case:english_capital", {}, "ALL OF IT", "All of it"),
    ("change_case:english_lowercase", {}, "all of it", "All of it"),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "SO BIG", "SO big"),
]


@pytest.mark.parametrize(("name", "given", "followed", "missed"), CASES)
def test_an_instruction_is_followed_or_missed(name, given, followed, missed):
    assert follows(followed, name, given) is True
    assert follows(missed, name, given) is False
    assert follows("  ", name, given) is False


def test_every_check_has_a_case():
    assert {name for name, *_ in CASES} == CHECKS.keys()


def test_rates_are_by_instruction_and_by_prompt_and_what_is_not_checked_is_counted():
    prompt = Prompt(messages=(Message(role="user", content="p"),))
    asked = [
        Asked(prompt, (("punctuation:no_comma", {}), ("change_case:english_lowercase", {}))),
        Asked(prompt, (("punctuation:no_comma", {}), ("language:response_language", {"language": "de"}))),
        Asked(prompt, (("language:response_language", {"language": "de"}),)),
    ]
    found = following(["Only this", "kurz", "kurz"], asked)
    assert found["instructions"]["value"] == pytest.approx(2 / 3)
    assert (found["prompts"]["value"], found["prompts"]["n"]) == (0.5, 2)
    assert found["not_checked"] == 2
    assert found["kinds"]["punctuation:no_comma"] == {"followed": 2, "of": 2}


def test_a_file_is_read_and_a_broken_line_named(tmp_path):
    path = tmp_path / "asked.jsonl"
    row = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert is_asked(path)
    assert read_asked(path)[0].instructions == (("punctuation:no_comma", {}),)
    path.write_text(json.dumps(row) + '\n{"prompt": "p"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_asked(path)
    with pytest.raises(DataError, match="num_words"):
        follows("x", "length_constraints:number_words", {})


def test_all_of_the_published_prompts_can_be_checked(shared_data):
    path = shared_data("eval/ifeval_input_data.jsonl")
    asked = read_asked(path)
    assert len(asked) == 541
    found = following(["A short answer."] * len(asked), asked)
    assert found["not_checked"] == 31  # language:response_language
    assert 0.2 < found["instructions"]["value"] < 0.5
