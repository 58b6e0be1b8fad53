"""The reference is the start, to the last bit; it is computed once, found again by its content, and mended where it is broken."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import torch
from peft import LoraConfig, get_peft_model

from preftune.data.batches import Group, collate
from preftune.errors import DiskError
from preftune.losses.logprobs import logprobs_from_logits
from preftune.losses.reduce import to_sequences
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.load import load_causal_lm
from preftune.progress import Silent
from preftune.training import reference as reference_module
from preftune.training.reference import CACHE, reference_logprobs, weights_hash

CPU = torch.device("cpu")


def ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


GROUPS = [
    Group(ids(13, 1), (ids(11, 2), ids(17, 3)), 0),
    Group(ids(5, 4), (ids(9, 5), ids(4, 6), ids(7, 7)), 1),
    Group(ids(21, 8), (ids(3, 9),), 2),
]


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def model(tiny_folder):
    return load_causal_lm(tiny_folder("llama"), device=CPU)


@pytest.fixture
def measure(model, tmp_path):
    """Measure groups under the model, or another, with the project in tmp_path."""

    def run(groups=GROUPS, under=None, *, progress=None, tree=True):
        return reference_logprobs(
            model if under is None else under,
            groups,
            pad_id=0,
            tree=tree,
            token_budget=64,
            project=tmp_path,
            progress=progress or Silent(),
        )

    return run


@pytest.fixture
def computed(monkeypatch):
    """The places of the groups that were computed and not found, in the order of computing."""
    places: list[int] = []
    compute = reference_module._computed

    def told(model, groups, **settings):
        places.extend(g.index for g in groups)
        return compute(model, groups, **settings)

    monkeypatch.setattr(reference_module, "_computed", told)
    return places


def same(one, other) -> bool:
    return one.tokens.keys() == other.tokens.keys() and all(
        torch.equal(a, b) for index, rows in one.tokens.items() for a, b in zip(rows, other.tokens[index], strict=True)
    )


def moved(model):
    """Train the model's adapter, so to speak: switched on it says something else."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return model


# What it says.


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mistral", "gpt2", "phi"])
def test_it_is_what_the_whole_models_logits_say(measure, tiny_folder, family):
    model = load_causal_lm(tiny_folder(family), device=CPU)
    batch = collate(GROUPS, 0, tree=False)
    with torch.no_grad():
        logits = model(batch.ids, attention_mask=batch.attention_mask.long(), position_ids=batch.position_ids).logits
    logprobs = logprobs_from_logits(logits, batch.ids, batch.parent, batch.completion_mask, temperature=1.0)
    values, mask = to_sequences(logprobs, batch.sequence, batch.num_sequences)
    found = measure(under=model)
    rows = [row for group in GROUPS for row in found.tokens[group.index]]
    for row, expected, counted in zip(rows, values, mask, strict=True):
        torch.testing.assert_close(row, expected[counted], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sums(GROUPS[::-1]), values.sum(1)[[5, 2, 3, 4, 0, 1]], rtol=0, atol=1e-4)


def test_with_an_adapter_it_is_the_model_without_it(measure, tiny_folder):
    plain = measure()
    adapted = moved(add_adapter(load_causal_lm(tiny_folder("llama"), device=CPU), Adapter(rank=2), seed=0))
    with torch.no_grad():
        on = reference_module.batch_logprobs(adapted, collate(GROUPS, 0))[0].sum()
    assert abs(float(on) - float(plain.sums(GROUPS).sum())) > 1.0
    assert same(measure(under=adapted), plain)


def test_a_module_that_is_trained_whole_beside_the_adapter_counts_as_it_was_at_the_start(measure, tiny_folder, computed, tmp_path):
    plain = measure()
    computed.clear()
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["mlp"])
    adapted = get_peft_model(load_causal_lm(tiny_folder("llama"), device=CPU), config).eval()
    assert same(measure(under=adapted), plain)
    assert computed == []
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    (tmp_path / CACHE).unlink()
    # Its layers are wrapped and so computed in transformers' own way, which rounds otherwise than ours.
    for found, expected in zip(measure(under=adapted).rows(GROUPS), plain.rows(GROUPS), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert sorted(computed) == [0, 1, 2]


def test_a_group_says_the_same_to_the_last_bit_whatever_it_is_measured_beside(measure, tmp_path):
    beside = measure()
    (tmp_path / CACHE).unlink()
    alone = {group.index: measure([group]).tokens[group.index] for group in GROUPS}
    assert all(torch.equal(a, b) for index, rows in beside.tokens.items() for a, b in zip(rows, alone[index], strict=True))


# What it is found by.


def test_it_is_computed_once_and_found_again_in_any_order_and_under_any_number(measure, computed):
    first = measure()
    assert sorted(computed) == [0, 1, 2]
    computed.clear()
    assert same(measure(), first)
    renumbered = [Group(g.prompt, g.completions, 10 - g.index) for g in reversed(GROUPS)]
    again = measure(renumbered)
    assert computed == []
    assert all(torch.equal(a, b) for i in range(3) for a, b in zip(first.tokens[i], again.tokens[10 - i], strict=True))


def test_only_what_is_new_is_computed(measure, computed):
    measure(GROUPS[:2])
    computed.clear()
    measure()
    assert computed == [2]


def test_the_same_tokens_with_another_border_are_another_entry(measure, computed):
    prompt, (only,) = GROUPS[2].prompt, GROUPS[2].completions
    measure([GROUPS[2]])
    computed.clear()
    measure([Group(prompt[:-1], ((*prompt[-1:], *only),), 2)])  # what a template that starts the answer a token earlier would give
    measure([Group(prompt, (only[:-1], only[-1:]), 2)])
    assert computed == [2, 2]


def test_rows_that_share_their_prompt_and_rows_that_do_not_are_kept_apart(measure, computed):
    measure()
    computed.clear()
    measure(tree=False)
    assert sorted(computed) == [0, 1, 2]


def test_another_weight_or_another_setting_of_the_model_is_another_reference(model):
    before = weights_hash(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    changed = weights_hash(model)
    model.config.rms_norm_eps = 0.1
    assert len({before, changed, weights_hash(model), weights_hash(model.to(torch.bfloat16))}) == 4


def test_an_adapter_does_not_change_whose_reference_it_is(model, tiny_folder):
    before = weights_hash(model)
    assert weights_hash(moved(add_adapter(model, Adapter(rank=2), seed=7))) == before
    other = load_causal_lm(tiny_folder("qwen3"), device=CPU)
    assert weights_hash(other) != before


# What it survives.


def edited(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE logprobs SET value = zeroblob(length(value)) WHERE rowid = 2",
        "UPDATE logprobs SET value = substr(value, 1, length(value) - 4) WHERE rowid = 2",
        "UPDATE logprobs SET value = 'words' WHERE rowid = 2",
        "UPDATE logprobs SET checksum = checksum + 1 WHERE rowid = 2",
    ],
)
def test_a_broken_entry_is_computed_anew_and_said(measure, computed, tmp_path, harm):
    first = measure()
    edited(tmp_path / CACHE, harm)
    computed.clear()
    heard = Heard()
    assert same(measure(progress=heard), first)
    assert len(computed) == 1
    assert heard.notes == [f"1 of 3 entries of {tmp_path / CACHE} were broken and are computed anew."]
    computed.clear()
    quiet = Heard()
    assert same(measure(progress=quiet), first)
    assert (computed, quiet.notes) == ([], [])


def test_entries_that_were_swapped_are_broken(measure, computed, tmp_path):
    pair = [Group(ids(4, 1), (ids(3, 2),), 0), Group(ids(4, 3), (ids(3, 4),), 1)]
    first = measure(pair)
    with closing(sqlite3.connect(tmp_path / CACHE)) as connection, connection:
        (one, two) = connection.execute("SELECT value, checksum FROM logprobs ORDER BY rowid").fetchall()
        for place, row in ((1, two), (2, one)):
            connection.execute("UPDATE logprobs SET value = ?, checksum = ? WHERE rowid = ?", (*row, place))
    computed.clear()
    assert same(measure(pair), first)
    assert sorted(computed) == [0, 1]


@pytest.mark.parametrize("left", [b"this is no database", None], ids=["another file", "cut in the middle"])
def test_a_broken_file_is_begun_anew_and_said(measure, computed, tmp_path, left):
    first = measure()
    path = tmp_path / CACHE
    path.write_bytes(left * 100 if left else path.read_bytes()[: path.stat().st_size // 2 + 100])
    computed.clear()
    heard = Heard()
    assert same(measure(progress=heard), first)
    assert sorted(computed) == [0, 1, 2]
    assert len(heard.notes) == 1
    assert heard.notes[0].startswith(f"{path} is broken (")
    assert heard.notes[0].endswith("it is begun anew, and all reference log-probs are computed again.")


def test_a_kill_in_the_middle_keeps_what_was_computed(measure, computed, monkeypatch):
    write = reference_module._write

    def killed_at_the_second(cache, rows, path):
        if len(computed) == 2:
            raise KeyboardInterrupt
        write(cache, rows, path)

    with monkeypatch.context() as patch:
        patch.setattr(reference_module, "_write", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            measure()
    kept = computed[0]
    computed.clear()
    measure()
    assert sorted([*computed, kept]) == [0, 1, 2]


def test_a_project_that_cannot_be_written_is_told(measure, tmp_path):
    (tmp_path / CACHE).mkdir(parents=True)
    with pytest.raises(DiskError, match=r"the reference's log-probs cannot be kept \(unable to open database file\)"):
        measure()
