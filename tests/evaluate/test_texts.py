from __future__ import annotations

import ast
from collections import Counter

from preftune.evaluate.texts import texts


def test_there_are_passages_of_both_kinds_and_each_is_there_once() -> None:
    found = texts()
    kinds = Counter(text.kind for text in found)
    assert kinds["prose"] >= 60
    assert kinds["code"] >= 40
    assert len({text.id for text in found}) == len({text.text for text in found}) == len(found)


def test_prose_has_about_a_hundred_words_a_passage() -> None:
    for text in texts():
        if text.kind == "prose":
            assert 80 <= len(text.text.split()) <= 130, text.id


def test_code_has_ten_to_twenty_lines_a_passage_in_several_languages() -> None:
    code = [text for text in texts() if text.kind == "code"]
    for text in code:
        assert 10 <= len(text.text.splitlines()) <= 22, text.id
    languages = {text.id.removeprefix("code:").split("-")[0] for text in code}
    assert languages >= {"python", "javascript", "c", "sql", "shell", "html", "java", "go", "rust"}


def test_the_python_passages_parse() -> None:
    for text in texts():
        if text.id.startswith("code:python"):
            ast.parse(text.text)


def test_a_number_takes_the_first_of_each_kind() -> None:
    assert [text.kind for text in texts(3)] == ["prose"] * 3 + ["code"] * 3
    assert texts(3) == [*texts()[:3], *[text for text in texts() if text.kind == "code"][:3]]
