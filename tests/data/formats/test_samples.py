"""All sample files at once: each is taken for what it is, gives what is known of it, and all agree on which answer is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.data.formats import FORMATS, Row, SetAside, detect, direction, read
from preftune.errors import DataError
from preftune.records import pairs_of

# file → format, rows, judgements, demonstrations, rows set aside
SAMPLES = {
    "arena_55k_kaggle.jsonl": ("arena", 9, 9, 0, 3),
    "arena_battles.jsonl": ("arena", 8, 8, 0, 4),
    "argilla_v1_feedback_hf.jsonl": ("argilla", 10, 15, 3, 0),
    "argilla_v1_feedback_records.json": ("argilla", 10, 15, 2, 0),
    "argilla_v2_flat.json": ("argilla", 10, 19, 0, 0),
    "argilla_v2_records.json": ("argilla", 10, 19, 0, 0),
    "axolotl_argilla_chat.jsonl": ("trl", 10, 10, 0, 0),
    "axolotl_chat_template_default.jsonl": ("sharegpt", 12, 12, 0, 0),
    "axolotl_chatml_argilla.jsonl": ("axolotl", 10, 10, 0, 0),
    "axolotl_chatml_icr.jsonl": ("axolotl", 10, 10, 0, 0),
    "axolotl_chatml_intel.jsonl": ("axolotl", 10, 10, 0, 0),
    "axolotl_chatml_prompt_pairs.jsonl": ("own", 10, 10, 0, 0),
    "axolotl_chatml_ultra.jsonl": ("axolotl", 10, 10, 0, 0),
    "axolotl_zephyr_nectar.jsonl": ("nectar", 10, 10, 0, 0),
    "helpsteer2.jsonl": ("helpsteer", 10, 10, 0, 0),
    "hh_edge_cases.jsonl": ("hh", 3, 3, 0, 4),
    "label_studio_pairwise.json": ("label_studio", 10, 11, 0, 0),
    "label_studio_pairwise_json_min.json": ("label_studio", 8, 8, 0, 2),
    "label_studio_ranker.json": ("label_studio", 10, 7, 0, 0),
    "llamafactory_alpaca_ranking.json": ("alpaca", 12, 12, 0, 0),
    "llamafactory_dpo_sharegpt.json": ("sharegpt", 40, 40, 0, 0),
    "llamafactory_dpo_sharegpt_zh.json": ("sharegpt", 10, 10, 0, 0),
    "llamafactory_kto_messages.json": ("sharegpt", 40, 40, 0, 0),
    "llamafactory_sharegpt_kto_tag.json": ("sharegpt", 20, 20, 0, 0),
    "llamafactory_v1_dpo.jsonl": ("sharegpt", 10, 10, 0, 0),
    "mt_bench_human_judgments.jsonl": ("arena", 9, 9, 0, 3),
    "oasst_message.jsonl": ("oasst", 135, 59, 0, 0),
    "oasst_tree.jsonl": ("oasst", 135, 59, 0, 0),
    "open_webui_feedback.json": ("open_webui", 15, 15, 0, 0),
    "openai_preference.jsonl": ("openai", 12, 12, 0, 0),
    "openai_preference_full.jsonl": ("openai", 12, 12, 0, 0),
    "openai_supervised_chat.jsonl": ("chat", 12, 0, 12, 0),
    "sharegpt_conversations.json": ("chat", 39, 0, 39, 0),
    "trl_preference_conversational_explicit.jsonl": ("trl", 12, 12, 0, 0),
    "trl_preference_conversational_implicit.jsonl": ("trl", 12, 12, 0, 0),
    "trl_preference_standard_explicit.jsonl": ("own", 10, 10, 0, 0),
    "trl_preference_standard_implicit.jsonl": ("trl", 10, 10, 0, 0),
    "trl_prompt_completion_conversational.jsonl": ("trl", 12, 0, 12, 0),
    "trl_prompt_completion_standard.jsonl": ("own", 10, 0, 10, 0),
    "trl_prompt_only.jsonl": ("own", 12, 0, 0, 0),
    "trl_unpaired_conversational.jsonl": ("trl", 24, 24, 0, 0),
    "trl_unpaired_standard.jsonl": ("trl", 20, 20, 0, 0),
    "ultrafeedback_binarized.jsonl": ("ultrafeedback", 10, 10, 0, 0),
    "ultrafeedback_full.jsonl": ("ultrafeedback", 10, 10, 0, 0),
}
REFUSED = {
    "trl_stepwise.jsonl": "the steps of one answer",
    "trl_language_modeling.jsonl": "plain text",
    "llamafactory_dataset_info.json": "describes other files",
}
SHARED_PROMPTS = "trl_preference_conversational_explicit.jsonl"  # twelve prompts of which many samples have some
# Raters who are made to disagree with the shared answers, or candidates who are no better and worse ones.
NOT_SHARED = {"hh_edge_cases.jsonl", "openai_preference.jsonl"}


def better_and_worse(path: Path) -> Counter[tuple[str, str, str]]:
    """Return (last user turn, better, worse) of every strict preference, without the white space around."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in read(path):
        if isinstance(row, Row):
            texts = {candidate.id: candidate.text.strip() for candidate in row.candidates}
            for said in row.judgements:
                found.update((row.prompt.text.strip(), texts[a], texts[b]) for a, b in pairs_of(said))
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_taken_for_what_it_is_and_gives_what_is_known_of_it(shared_data: Callable[[str], Path], name: str) -> None:
    path = shared_data(f"formats/{name}")
    items = list(read(path))
    rows = [item for item in items if isinstance(item, Row)]
    counts = (len(rows), sum(len(r.judgements) for r in rows), sum(len(r.demonstrations) for r in rows), len(items) - len(rows))
    assert (detect(path), *counts) == SAMPLES[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_no_other_format_claims_any_row_of_a_sample(shared_data: Callable[[str], Path], name: str) -> None:
    from preftune.data.formats.reading import items
    from preftune.data.formats.rows import Item, fields_of

    claims: Counter[str] = Counter()
    for item in items(shared_data(f"formats/{name}")):
        assert isinstance(item, Item)
        claims.update(form for form in FORMATS if form != "columns" and FORMATS[form].recognises(fields_of(item.value)))
    assert set(claims) == {SAMPLES[name][0]}


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_do_not_take_is_refused_with_the_reason(shared_data: Callable[[str], Path], name: str) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        detect(shared_data(f"formats/{name}"))


def test_all_samples_are_in_one_of_these_tables(shared_data: Callable[[str], Path]) -> None:
    assert {path.name for path in shared_data("formats").iterdir()} == SAMPLES.keys() | REFUSED.keys()


def test_all_samples_agree_on_which_answer_is_better(shared_data: Callable[[str], Path]) -> None:
    """The direction of every format: no file says of two shared answers the reverse of what the plainest one says."""
    reference = {(asked, *sorted((a, b))): a for asked, a, b in better_and_worse(shared_data(f"formats/{SHARED_PROMPTS}"))}
    compared: dict[str, tuple[int, int]] = {}
    for name in SAMPLES.keys() - NOT_SHARED:
        agree = against = 0
        for (asked, better, worse), count in better_and_worse(shared_data(f"formats/{name}")).items():
            expected = reference.get((asked, *sorted((better, worse))))
            agree += count * (expected == better)
            against += count * (expected == worse)
        compared[name] = (agree, against)
    # One of the two raters of the first task of the pairwise sample, and one of argilla_v2, was made to disagree.
    assert {name: against for name, (_, against) in compared.items() if against} == {"label_studio_pairwise.json": 1}
    with_shared = {name for name, (agree, _) in compared.items() if agree}
    formats = {SAMPLES[name][0] for name in with_shared}
    assert formats == set(FORMATS) - {"preftune", "hh", "chat", "oasst", "columns", "openai"} | {"openai"}


def test_every_format_tells_what_it_reads_which_way_it_goes_what_is_left_out_and_the_source() -> None:
    for name, form in FORMATS.items():
        told = str(form.__doc__)
        assert all(f"\n{word}" in told for word in ("Direction: ", "Left out", "Source: ")), name
        assert direction(name)[-1] == ".", name
        assert "{" in told or name == "columns", name


def test_a_format_is_found_though_some_rows_are_of_another_and_those_are_told(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.jsonl"
    parts = [shared_data(f"formats/{name}").read_text() for name in ("openai_preference.jsonl", "ultrafeedback_binarized.jsonl")]
    mixed.write_text("".join(parts))
    assert detect(mixed) == "openai"
    items = list(read(mixed))
    assert Counter(i.reason for i in items if isinstance(i, SetAside)) == {"the row is of another format (ultrafeedback)": 10}
    assert sum(isinstance(i, Row) for i in items) == 12
