"""Expected numbers are worked out by hand from the published rules."""

import json

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.evaluate.reward_bench import SECTIONS, Item, assess, credit, read_items
from preftune.records import Message, Prompt


def item(number: int, subset: str, answers: tuple[str, ...] = ("good", "bad"), right: int = 1, id: str = "") -> Item:
    return Item(Prompt(messages=(Message(role="user", content=f"question {number}"),)), answers, right, subset, id)


def test_the_top_is_shared_by_all_who_stand_there():
    assert credit([2.0, 1.0], 1) == 1
    assert credit([1.0, 2.0], 1) == 0
    assert credit([1.0, 1.0], 1) == 0.5
    assert credit([3.0, 1.0, 3.0, 3.0], 1) == pytest.approx(1 / 3)


def test_a_section_is_weighted_by_size_and_mathematics_by_as_much_as_code():
    math, code = [item(n, "math-prm") for n in range(447)], [item(447 + n, "hep-python") for n in range(984)]
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    result = assess([*math, *code], [right] * 447 + [wrong] * 984)
    assert result.sections["Reasoning"].value == pytest.approx(0.5)
    assert result.everything.value == pytest.approx(0.5)
    assert (result.subsets["math-prm"].value, result.subsets["hep-python"].value) == (1.0, 0.0)
    assert result.overall is None  # three of the four sections are missing


def test_the_whole_is_the_plain_mean_over_the_four_sections():
    items, scores = [], []
    for place, subsets in enumerate(SECTIONS.values()):
        for n in range(10 * (place + 1)):
            items.append(item(len(items), subsets[0]))
            scores.append([1.0, 0.0] if n % 10 < 5 + place else [0.0, 1.0])
    result = assess(items, scores)
    assert result.overall is not None
    assert result.overall.value == pytest.approx((0.5 + 0.6 + 0.7 + 0.8) / 4)
    assert result.overall.low < result.overall.value < result.overall.high
    assert result.overall.n == 100


def test_best_of_four_has_a_quarter_for_chance_and_the_longest_is_told():
    items = [item(n, "Math", ("right", "w", "w", "longest of all"), 1) for n in range(4)]
    result = assess(items, [[4.0, 1, 2, 3], [1.0, 4, 2, 3], [2.0, 2, 1, 0], None])
    assert result.subsets["Math"].value == pytest.approx(0.5)
    assert (result.chance, result.longer, result.unread) == (0.25, 0.0, 1)


def test_the_ties_follow_the_published_formula():
    answers = ("a", "b", "wrong")
    items = [item(0, "Ties", ("a", "wrong"), 1, "ref:0"), item(0, "Ties", answers, 2, "tied:0")]
    items += [item(1, "Ties", ("a", "wrong"), 1, "ref:1"), item(1, "Ties", answers, 2, "tied:1")]
    # Prompt 0: all right; spread 1, gaps 3 (tied) and 2 (ref). Prompt 1: ref right by 4, a tied answer below the wrong one.
    scores = [[3.0, 1.0], [5.0, 4.0, 1.0], [4.0, 0.0], [5.0, 1.0, 2.0]]
    result = assess(items, scores)
    margin = (np.tanh(2 / 1 - 1) + np.tanh(-1 / 4 - 1)) / 2
    assert result.subsets["Ties"].value == pytest.approx(0.3 * 1.0 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * margin)
    assert result.everything == result.subsets["Ties"]


def test_pairs_of_one_prompt_widen_the_interval():
    random = np.random.default_rng(0)
    right = [[1.0, 0.0] if random.random() < 0.7 else [0.0, 1.0] for _ in range(40)]
    apart = assess([item(n, "own") for n in range(160)], [s for s in right for _ in range(4)]).everything
    together = assess([item(n // 4, "own") for n in range(160)], [s for s in right for _ in range(4)]).everything
    assert together.value == apart.value
    assert together.high - together.low > 1.7 * (apart.high - apart.low)


def test_right_in_all_of_twenty_is_no_certainty():
    result = assess([item(n, "own") for n in range(20)], [[1.0, 0.0]] * 20).everything
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-3)  # Wilson


def test_the_formats_are_read(tmp_path):
    turns = [{"role": "user", "content": "hello"}]
    rows = [
        {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "donotanswer", "id": 7},
        {"prompt": "p", "chosen": ["c"], "rejected": ["r", "s", "t"], "subset": "Focus", "id": "12"},
        {"chosen": [*turns, {"role": "assistant", "content": "c"}], "rejected": [*turns, {"role": "assistant", "content": "r"}]},
    ]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "bench.json").write_text(json.dumps(rows), encoding="utf-8")
    read = read_items(tmp_path / "bench.jsonl")
    assert read == read_items(tmp_path / "bench.json")
    assert [(i.answers, i.right, i.subset) for i in read] == [
        (("c", "r"), 1, "donotanswer"),
        (("c", "r", "s", "t"), 1, "Focus"),
        (("c", "r"), 1, "all"),
    ]
    assert [i.prompt.text for i in read] == ["p", "p", "hello"]

    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), tmp_path / "bench.parquet")
    assert read_items(tmp_path / "bench.parquet")[0] == read[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "p", "chosen": "c"}', "KeyError"),
        ("{", "no JSON"),
        ('{"prompt": "p", "chosen": [], "rejected": []}', "empty"),
        ("", "no pairs"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, line, said):
    (tmp_path / "bench.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_items(tmp_path / "bench.jsonl")
