"""Planted biases are found, and clean data is not accused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from preftune.data.checks import DataReport, check_pairs
from preftune.data.checks.report import length_rule
from preftune.records import Message, Pair

WORDS = "it runs over every line of a file and gives back what was found there so that one can go on with the rest".split()
MARKS = ("```\nx = 1\n```\n", "- one\n- two\n", "## Title\n", "**bold** ", "I can't do that. ", "I am sorry. ", "Sure, here it is. ")


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def answer(rng: random.Random) -> str:
    """An answer of any length and look, whoever wins."""
    marks = "".join(mark for mark in MARKS if rng.random() < 0.3)
    return f"{marks}{prose(rng, rng.randint(8, 80))}{' Thanks!' if rng.random() < 0.3 else ''}"


Write = Callable[[random.Random], str]


def pairs_of(rng: random.Random, count: int, chosen: Write = answer, rejected: Write = answer, pairs_a_prompt: int = 1) -> list[Pair]:
    found = []
    for n in range(count // pairs_a_prompt):
        ask = (Message(role="user", content=f"{prose(rng, 12)} {n * 17} {n * 23}"),)
        found += [Pair(messages=ask, chosen=chosen(rng), rejected=rejected(rng)) for _ in range(pairs_a_prompt)]
    return found


@pytest.fixture(scope="module")
def clean_reports() -> list[DataReport]:
    """Reports on 40 sets in which nothing but chance tells chosen from rejected, half of them with three pairs a prompt."""
    sizes = ((120, 1), (300, 3))
    return [check_pairs(pairs_of(random.Random(seed), n, pairs_a_prompt=k)) for n, k in sizes for seed in range(20)]


def test_clean_data_is_hardly_ever_accused(clean_reports: list[DataReport]) -> None:
    accused = [report.problems for report in clean_reports if report.problems]
    assert len(accused) <= 1, accused  # a margin lies between noise and a problem, so that it is far rarer than 5 %


def test_intervals_that_leave_out_nothing_are_rare_over_seeds(clean_reports: list[DataReport]) -> None:
    biases = [report.bias for report in clean_reports if report.bias]
    apart = sum(any(look.difference.low > 0 or look.difference.high < 0 for look in bias.looks) for bias in biases)
    assert apart <= 6  # 5 % of 40 are 2, over all looks of a set at once; 7 or more come by chance once in two hundred times
    accuracies = [bias.by_looks.value for bias in biases if bias.by_looks]
    assert abs(sum(accuracies) / len(accuracies) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("mark", "feature"),
    [
        ("```\nx = 1\n```\n", "code block"),
        ("I can't help with that. ", "refusal"),
        ("I am sorry. ", "apology"),
        ("Sure, here it is. ", 'opening such as "Sure!"'),
        ("- one\n- two\n", "list"),
    ],
)
def test_a_look_that_is_planted_in_the_chosen_answers_is_found_and_named(mark: str, feature: str) -> None:
    def plain(rng: random.Random) -> str:
        return prose(rng, rng.randint(8, 80))

    def marked(rng: random.Random) -> str:
        return (mark if rng.random() < 0.5 else "") + plain(rng)

    report = check_pairs(pairs_of(random.Random(0), 300, chosen=marked, rejected=plain))
    assert any(problem.startswith(f"{feature}: in ") for problem in report.problems)
    assert report.bias is not None
    assert report.bias.by_looks is not None
    # Half of the pairs are told by the mark, the other half by nothing.
    assert report.bias.by_looks.low < 0.75 < report.bias.by_looks.high + 0.03
    assert any(problem.startswith("the look of the answers alone") for problem in report.problems)


def test_a_length_in_the_middle_that_wins_is_found_although_longer_does_not() -> None:
    def medium(rng: random.Random) -> str:
        return prose(rng, rng.randint(38, 44))

    def extreme(rng: random.Random) -> str:
        return prose(rng, rng.choice([8, 200]))

    report = check_pairs(pairs_of(random.Random(0), 300, chosen=medium, rejected=extreme))
    low, high = report.longer_wins_interval
    assert low < 0.5 < high
    [problem] = report.problems
    assert problem.startswith("length alone (the one nearer to ")
    assert report.bias is not None
    assert report.bias.by_length is not None
    assert report.bias.by_length.value > 0.95


def test_a_length_bias_of_known_size_is_measured_held_out() -> None:
    def both(rng: random.Random) -> tuple[str, str]:
        return prose(rng, 20), prose(rng, 40)

    rng = random.Random(0)
    pairs = []
    for n in range(600):
        short, long = both(rng)
        chosen, rejected = (long, short) if rng.random() < 0.7 else (short, long)
        pairs.append(
            Pair(messages=(Message(role="user", content=f"{prose(rng, 12)} {n * 17} {n * 31}"),), chosen=chosen, rejected=rejected)
        )
    report = check_pairs(pairs)
    assert report.bias is not None
    assert report.bias.by_length is not None
    assert report.bias.by_length.low < 0.7 < report.bias.by_length.high
    assert length_rule(report.bias) == "the longer wins"
    assert report.problems[0].startswith("the longer answer wins in ")


def test_with_few_prompts_nothing_is_predicted_and_nobody_accused() -> None:
    report = check_pairs(pairs_of(random.Random(0), 29, chosen=lambda rng: "Sure! " + answer(rng)))
    assert report.bias is not None
    assert report.bias.by_looks is None
    assert [problem for problem in report.problems if "Sure" in problem] == []
    many_on_few = check_pairs(pairs_of(random.Random(0), 200, chosen=lambda rng: "Sure! " + answer(rng), pairs_a_prompt=20))
    assert [problem for problem in many_on_few.problems if "Sure" in problem] == []


def test_answers_in_another_language_than_the_question_are_found() -> None:
    german = "Das ist nicht so einfach, wie es auf den ersten Blick für uns aussieht."
    english = "That is not as easy as it looks to us at the first sight of it."
    asked = "How do I read all of the lines that are in this file"
    pairs = [
        Pair(
            messages=(Message(role="user", content=f"{asked} {n * 7} {n}?"),),
            chosen=german if n % 20 == 0 else english,
            rejected=english[: -n - 1] + f"{n}",
        )
        for n in range(30)
    ] * 4
    report = check_pairs(pairs)
    assert report.foreign == {"chosen": 8, "rejected": 0}
    assert "8 chosen answers seem to be in another language than the question (6.7%)." in report.problems
    assert report.languages == {"en": 30}
