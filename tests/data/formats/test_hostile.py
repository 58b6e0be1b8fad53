"""Whatever a row holds, reading ends in records, a reason, or a sentence: never in a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from preftune.data.formats import FORMATS, Row, SetAside, read
from preftune.data.formats.reading import items
from preftune.data.formats.rows import Item
from preftune.errors import DataError

SAMPLES = {
    "arena_55k_kaggle.jsonl": "arena", "arena_battles.jsonl": "arena", "argilla_v1_feedback_hf.jsonl": "argilla",
    "argilla_v1_feedback_records.json": "argilla", "argilla_v2_flat.json": "argilla", "argilla_v2_records.json": "argilla",
    "axolotl_chatml_ultra.jsonl": "axolotl", "axolotl_zephyr_nectar.jsonl": "nectar", "helpsteer2.jsonl": "helpsteer",
    "hh_edge_cases.jsonl": "hh", "label_studio_pairwise.json": "label_studio", "label_studio_pairwise_json_min.json": "label_studio",
    "label_studio_ranker.json": "label_studio", "llamafactory_alpaca_ranking.json": "alpaca", "llamafactory_v1_dpo.jsonl": "sharegpt",
    "llamafactory_sharegpt_kto_tag.json": "sharegpt", "oasst_tree.jsonl": "oasst", "oasst_message.jsonl": "oasst",
    "open_webui_feedback.json": "open_webui", "openai_preference_full.jsonl": "openai", "openai_supervised_chat.jsonl": "chat",
    "trl_preference_conversational_implicit.jsonl": "trl", "trl_unpaired_conversational.jsonl": "trl",
    "ultrafeedback_binarized.jsonl": "ultrafeedback", "ultrafeedback_full.jsonl": "ultrafeedback",
}  # fmt: skip
NASTY: list[Any] = [
    None, True, 0, -1, 1e308, 10**400, "", " ", "N/A", "\ud83d", "a\0b", [], [[]], [None], ["x", 3], {}, {"a": {}}, {"value": None}, "1",
    [{}], [{"role": "user"}], [{"role": "assistant", "content": []}], {"role": "tool", "content": "x"}, "nan",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in inner for found in [(*path, key), *places(part, (*path, key))]]


def spoilt(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """Return a copy of a value with one part replaced."""
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = by
    return copy


def rows_of(file: Path, values: list[Any], format: str | None) -> list[Row]:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    found: list[Row | SetAside] = []
    with suppress(DataError):  # a file may be refused as a whole, at its end
        found.extend(read(file, format))
    return [item for item in found if isinstance(item, Row)]


@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_part_of_a_row_is_replaced_no_other_row_is_lost(shared_data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    chance = random.Random(name)
    values = [item.value for item in items(shared_data(f"formats/{name}")) if isinstance(item, Item)][:4]
    changed: list[Any] = []
    for _ in range(120):
        value = chance.choice(values)
        changed.append(spoilt(value, chance.choice(places(value)), chance.choice(NASTY)))
    alone = rows_of(tmp_path / "alone.jsonl", values, SAMPLES[name])
    among = rows_of(tmp_path / "among.jsonl", [*changed, "nothing", *values], SAMPLES[name])
    rows_of(tmp_path / "among.jsonl", changed, None)  # nor does looking for the format end in a traceback
    for row in among:
        for record in (row.prompt, *row.candidates, *row.judgements, *row.demonstrations):
            assert "\\u0000" not in record.model_dump_json()  # which also fails for half of a surrogate pair
    assert {row.prompt.id for row in alone} <= {row.prompt.id for row in among if row.line > len(changed)}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_nothing_like_it_are_set_aside_by_every_format(tmp_path: Path, name: str) -> None:
    if name == "columns":
        pytest.skip("reads any keys that its map names")
    file = tmp_path / "other.jsonl"
    rows = [
        {},
        [],
        3,
        "x",
        None,
        {"a": 1},
        {"prompt": {}},
        {"messages": 3},
        {"answers": [3]},
        {"fields": {}},
        {"data": {}, "annotations": [0]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [type(item) for item in read(file, name)] == [SetAside] * len(rows)


def test_a_conversation_that_would_swell_is_set_aside(tmp_path: Path) -> None:
    turn = "x" * 15_000
    messages = [{"role": role, "content": turn} for _ in range(150) for role in ("user", "assistant")]
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n")
    [item] = read(file, "chat")
    assert isinstance(item, SetAside)
    assert item.reason == "the conversation is too long to be taken apart"
