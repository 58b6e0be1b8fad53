"""Tokens against the context: estimated, or counted by a tokenizer."""

from __future__ import annotations

import pytest

from preftune.data.checks import check_pairs
from preftune.data.checks.tokens import TokenCount
from preftune.errors import ModelError
from preftune.records import Message, Pair


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(messages=(Message(role="user", content=prompt),), chosen=chosen, rejected=rejected)


def test_without_a_tokenizer_it_is_an_estimate_that_says_so() -> None:
    report = check_pairs([pair("x" * 40, "y" * 41, "z"), pair("x" * 40, "y" * 40, "z")], context=20)
    assert report.tokens is not None
    assert (report.tokens.over, report.tokens.estimated, report.tokens.characters_a_token) == (1, True, 4.0)
    assert "1 pair is longer than 20 tokens (estimated at 4 characters a token, chat template not counted)" in report.lines()


def test_a_tokenizer_counts_what_the_transformers_library_counts(tmp_path, tiny_tokenizer) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    texts = ["Write a function that adds two numbers", "naïve 🎉 ünïcode", "def add(a, b):\n    return a + b"]

    def length(text: str) -> int:
        return len(tiny_tokenizer(text, add_special_tokens=False)["input_ids"])

    for prompt in texts:
        for chosen in texts:
            total = length(prompt) + max(length(chosen), length("no"))
            for context, over in ((total, 0), (total - 1, 1)):
                count = TokenCount(context, tmp_path)
                count.add(pair(prompt, chosen, "no"))
                assert count.result().over == over
    assert "counted by the tokenizer in" in count.result().by
    assert count.result().characters_a_token > 0


def test_a_folder_without_a_tokenizer_and_a_broken_one_are_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"there is no tokenizer\.json here"):
        check_pairs([], tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        check_pairs([], tokenizer=tmp_path)
