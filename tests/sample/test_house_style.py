"""The built-in sample keeps its promises: both answers are right, style alone tells them apart, and nothing held out leaks."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from preftune.code.sandbox import run_checks
from preftune.code.style import CONVENTIONS, judge_style
from preftune.data.importing import import_preferences
from preftune.data.snapshot import load_snapshot, snapshot
from preftune.data.store import Store
from preftune.sample import NEW_KINDS, SampleItem, guidelines, held_out_path, items, train_path

TRAIN, HELD_OUT = items("train"), items("held_out")
ALL = [*TRAIN, *HELD_OUT]
ANSWERS = [(item, answer) for item in ALL for answer in (item.chosen, item.rejected)]
LENGTHS = pytest.mark.parametrize("length", [len, lambda text: len(re.findall(r"\w+", text))], ids=["characters", "words"])
SPLITS = pytest.mark.parametrize("split", [TRAIN, HELD_OUT, ALL], ids=["train", "held_out", "all"])
STYLE_WORDS = re.compile(
    r"hint|annotat|docstring|logg(ing|er)|print|f-string|pathlib|dataclass|comprehension|double quote|early return|enumerate|style", re.I
)
# Words of the requests' common form; what is left says what the task is.
FORM = set("write a an the function class method with that returns return tells whether takes of and or in is are it its to".split())
FORM |= set("from for like such as if when no not on at by which has have one".split())


def code_of(answer: str) -> str:
    assert answer.startswith("```python\n")
    assert answer.endswith("\n```")
    return answer.removeprefix("```python\n").removesuffix("\n```")


def jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def task_words(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", prompt.lower().replace("_", " "))) - FORM


def longer_wins(pairs: list[SampleItem], length) -> float:
    """How often "the longer one is better" is right; a tie is right half the time."""
    wins = [(length(item.chosen) > length(item.rejected)) + 0.5 * (length(item.chosen) == length(item.rejected)) for item in pairs]
    return sum(wins) / len(wins)


def test_there_are_500_pairs_to_train_on_and_100_held_out():
    assert (len(TRAIN), len(HELD_OUT)) == (500, 100)
    assert max(Counter(item.id for item in ALL).values()) == 1
    assert all(re.fullmatch(rf"{item.kind}-\d{{3}}", item.id) for item in TRAIN)
    assert all(re.fullmatch(rf"{item.kind}-h\d{{3}}", item.id) for item in HELD_OUT)


@pytest.mark.slow
def test_both_answers_of_every_item_pass_its_check():
    results = run_checks([(code_of(answer), item.check) for item, answer in ANSWERS])
    assert [(item.id, result.reason) for (item, _), result in zip(ANSWERS, results, strict=True) if not result.ok] == []


@pytest.mark.slow
def test_answers_that_do_nothing_fail_the_checks():
    def stub(item: SampleItem) -> str:
        tree = ast.parse(code_of(item.chosen))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        return "\n".join(f"def {name}(*args, **settings):\n    return None" for name in names)

    passed = [item.id for item, result in zip(ALL, run_checks([(stub(item), item.check) for item in ALL]), strict=True) if result.ok]
    assert len(passed) <= 0.05 * len(ALL), passed


def test_a_chosen_answer_breaks_no_convention_and_follows_some():
    reports = {item.id: judge_style(item.chosen) for item in ALL}
    assert {name: report.broken for name, report in reports.items() if report.broken or len(report.followed) < 2} == {}


def test_a_rejected_answer_breaks_at_least_two_conventions():
    reports = {item.id: judge_style(item.rejected) for item in ALL}
    assert {name: report.broken for name, report in reports.items() if len(report.broken) < 2} == {}


@pytest.mark.parametrize("split", [TRAIN, HELD_OUT], ids=["train", "held_out"])
def test_each_convention_is_broken_in_at_least_a_tenth_of_the_pairs(split):
    broken = Counter(name for item in split for name in judge_style(item.rejected).broken)
    assert {name: broken[name] for name in CONVENTIONS if broken[name] < 0.1 * len(split)} == {}


@SPLITS
@LENGTHS
def test_length_does_not_tell_the_answers_apart(split, length):
    assert 0.4 <= longer_wins(split, length) <= 0.6


@SPLITS
@LENGTHS
def test_the_mean_lengths_are_nearly_equal(split, length):
    chosen, rejected = (sum(length(getattr(item, side)) for item in split) for side in ("chosen", "rejected"))
    assert chosen == pytest.approx(rejected, rel=0.08)


def test_the_new_kinds_are_held_out_alone():
    trained = {item.kind for item in TRAIN}
    assert not trained & set(NEW_KINDS)
    assert {item.kind for item in HELD_OUT} == trained | set(NEW_KINDS)
    assert sum(item.kind in NEW_KINDS for item in HELD_OUT) >= 50


def test_no_held_out_request_is_nearly_alike_one_to_train_on():
    trained = [(item.id, task_words(item.prompt)) for item in TRAIN]
    alike = [(item.id, name) for item in HELD_OUT for name, words in trained if jaccard(task_words(item.prompt), words) >= 0.6]
    assert alike == []


def test_no_two_requests_are_the_same():
    assert len({" ".join(sorted(task_words(item.prompt))) for item in ALL}) == len(ALL)


def test_no_request_speaks_of_style():
    assert [item.id for item in ALL if STYLE_WORDS.search(item.prompt)] == []


def test_a_request_names_what_its_answers_define():
    for item, answer in ANSWERS:
        asked = re.search(r"`(\w+)", item.prompt)
        assert asked, item.id
        assert asked[1] in {getattr(node, "name", "") for node in ast.parse(code_of(answer)).body}, item.id


def test_all_is_plain_ascii_and_short():
    assert [item.id for item in ALL if not item.model_dump_json().isascii()] == []
    assert max(len(item.prompt) for item in ALL) <= 200
    assert max(len(code_of(answer)) for _, answer in ANSWERS) <= 300


def test_the_guidelines_name_every_convention_in_order():
    assert re.findall(r"^\| `([a-z-]+)`", guidelines(), re.M) == list(CONVENTIONS)


def test_the_store_takes_every_pair_with_its_kind_and_check(tmp_path: Path):
    with Store.create(tmp_path / "store.db") as store:
        report = import_preferences(train_path(), store)
        assert (report.rows, report.new, report.set_aside, report.unused) == (500, 500, {}, {})
        stored = {prompt.messages[-1].content: (prompt.kind, prompt.check) for prompt in store.prompts()}
    assert stored == {item.prompt: (item.kind, item.check) for item in TRAIN}


def test_a_snapshot_trains_on_all_500_and_holds_out_the_100(tmp_path: Path):
    with Store.create(tmp_path / "store.db") as store:
        import_preferences(train_path(), store)
        frozen = load_snapshot(snapshot(store, tmp_path / "snapshots", held_out_prompts=held_out_path()))
    assert (len(frozen.train), len(frozen.held_out)) == (500, 100)
    assert frozen.manifest["counts"]["dropped"]["pairs"] == frozen.manifest["counts"]["dropped"]["prompts"] == 0
    assert {pair.chosen for pair in frozen.train} == {item.chosen for item in TRAIN}
    assert {(pair.kind, pair.check) for pair in frozen.held_out} == {(item.kind, item.check) for item in HELD_OUT}
