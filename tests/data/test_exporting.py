"""Exports: what a format can say comes back unchanged, what it cannot is told, and gold never leaves."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.exporting import EXPORTS, ExportReport, export_preferences, export_text
from preftune.data.importing import import_preferences
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.records import Candidate, Demonstration, Judgement, Message, Prompt

RATERS = [str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in ("ann", "bob", "cat")]
WHEN = datetime(2026, 11, 25, 12, tzinfo=UTC)


def asked(text: str, *before: tuple[str, str]) -> Prompt:
    return Prompt(messages=(*(Message(role=r, content=c) for r, c in before), Message(role="user", content=text)))


def answers(prompt: Prompt, *texts: str) -> list[Candidate]:
    return [Candidate(prompt_id=prompt.id, text=text, source="m", sampling={"seed": 1}) for text in texts]


def said(prompt: Prompt, *ranking: list[Candidate], **more: object) -> Judgement:
    return Judgement(prompt_id=prompt.id, ranking=tuple(tuple(c.id for c in tier) for tier in ranking), **{"created": WHEN, **more})


@pytest.fixture
def full(tmp_path: Path) -> Store:
    """A store with one of everything that a rater can say."""
    hello, more, lone = (
        asked("Say hello."),
        asked("And now?", ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")),
        asked("Alone."),
    )
    a, b, c = answers(hello, "Hello!", "What?", "Hé „du“\n你好")
    x, y = answers(more, "x", "y")
    pair = said(hello, [a], [b], rater=RATERS[0], strength=2, presentation=(b.id, a.id), active_seconds=3.5)
    judgements = [
        pair,
        said(hello, [a], [b, c], rater=RATERS[1], rationale="Shorter.", aspects={"clear": {a.id: 5.0, b.id: 1.0}}),
        said(more, [x], rater=RATERS[0], acceptable=(x.id,)),
        said(more, [x], [y], rater=RATERS[1], acceptable=(), picked_by="random", picked_probability=0.25),
        said(more, [y], [x], rater=RATERS[2], rewrite="better y", rewrite_of=y.id),
        said(hello, [c], [a], rater=RATERS[2]),
        said(hello, [b], [a], rater="gold-keeper", picked_by="gold"),
    ]
    undo = Judgement(prompt_id=hello.id, supersedes=judgements[5].id, rater=RATERS[2], created=WHEN)
    gold_undo = Judgement(prompt_id=hello.id, supersedes=judgements[6].id, rater="gold-keeper", created=WHEN)
    unjudged = answers(more, "nobody looked")
    store = Store.create(tmp_path / "full.db")
    store.add(
        [hello, more, lone],
        [a, b, c, x, y, *unjudged],
        [*judgements, undo, gold_undo],
        [Demonstration(prompt_id=more.id, text="wished", author="ann")],
    )
    yield store
    store.close()


def rows_of(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def test_our_own_export_loses_nothing_but_gold(tmp_path: Path, full: Store) -> None:
    report = export_preferences(full, tmp_path / "own.jsonl")
    assert report.left_out == {"judgements that check a rater (gold items, items asked again) kept back": 2}
    assert "gold" not in (tmp_path / "own.jsonl").read_text()
    again = import_preferences(tmp_path / "own.jsonl", tmp_path / "again.db")
    assert (again.format, again.set_aside, again.unused, again.notes) == ("preftune", {}, {}, {})
    with Store.open(tmp_path / "again.db") as store:
        for kind in ("prompts", "candidates", "demonstrations"):
            assert {r.id: r for r in getattr(store, kind)()} == {r.id: r for r in getattr(full, kind)()}
        kept = {j.id: j for j in full.judgements() if j.rater != "gold-keeper"}
        assert {j.id: j for j in store.judgements()} == kept
        # And the way back again is the same file.
        export_preferences(store, tmp_path / "twice.jsonl")
    assert (tmp_path / "twice.jsonl").read_bytes() == (tmp_path / "own.jsonl").read_bytes()


@pytest.mark.parametrize("format", EXPORTS)
def test_the_same_store_gives_the_same_bytes_and_imports_without_a_fault(tmp_path: Path, full: Store, format: str) -> None:
    for name in ("one", "two"):
        export_preferences(full, tmp_path / name, format=format)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    report = import_preferences(tmp_path / "one", tmp_path / f"{format}.db")
    assert report.set_aside == {}
    assert report.format == {"own": "preftune", "llamafactory": "sharegpt", "trl-unpaired": "trl"}.get(format, format)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("format", ["trl", "openai", "llamafactory"])
def test_pairs_come_back_as_the_same_pairs(tmp_path: Path, full: Store, format: str) -> None:
    report = export_preferences(full, tmp_path / "pairs", format=format)
    import_preferences(tmp_path / "pairs", tmp_path / "again.db")
    with Store.open(tmp_path / "again.db") as store:
        found = {(p.messages, p.chosen, p.rejected) for p in store.pairs()}
    # "x" and "y" are an even split; the undone judgement and gold do not count.
    assert {(chosen, rejected) for _, chosen, rejected in found} == {("Hello!", "What?"), ("Hello!", "Hé „du“\n你好"), ("better y", "y")}
    assert report.left_out["ties omitted: the format cannot say tie"] == 1
    assert report.left_out["even splits between raters omitted"] == 1
    assert report.left_out["thumbs on one answer omitted: the format has pairs alone"] == 1
    assert report.left_out["demonstrations omitted: the format has pairs alone"] == 1
    assert report.left_out["rationales omitted: the format has no place for them"] == 1


def test_answers_called_good_enough_or_not_go_out_unpaired_and_come_back(tmp_path: Path, full: Store) -> None:
    report = export_preferences(full, tmp_path / "thumbs", format="trl-unpaired")
    asked_before = [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))]
    # One calls x good, the other calls neither x nor y: so x is an even split.
    assert rows_of(tmp_path / "thumbs") == [
        {
            "prompt": [*asked_before, {"role": "user", "content": "And now?"}],
            "completion": [{"role": "assistant", "content": "y"}],
            "label": False,
        }
    ]
    assert report.left_out == {
        "judgements that check a rater (gold items, items asked again) kept back": 2,
        "comparisons omitted: the format has answers with a label alone": 4,
        "answers omitted that as many call good enough as not": 1,
        "demonstrations omitted: the format has answers with a label alone": 1,
    }
    import_preferences(tmp_path / "thumbs", tmp_path / "again.db")
    with Store.open(tmp_path / "again.db") as store:
        (thumb,) = store.judgements()
        assert ([c.text for c in store.candidates()], thumb.acceptable) == (["y"], ())


def test_trl_rows_are_conversations_with_a_weight(tmp_path: Path, full: Store) -> None:
    report = export_preferences(full, tmp_path / "pairs", format="trl")
    assert {
        "prompt": [{"role": "user", "content": "Say hello."}], "chosen": [{"role": "assistant", "content": "Hello!"}],
        "rejected": [{"role": "assistant", "content": "What?"}], "weight": 1.0,
    } in rows_of(tmp_path / "pairs")  # fmt: skip
    assert any(what.startswith("strengths omitted: 4 judgements have none") for what in report.left_out)


def test_a_margin_is_the_mean_strength_where_all_say_one(tmp_path: Path) -> None:
    prompt = asked("Ask.")
    a, b = answers(prompt, "a", "b")
    with Store.create(tmp_path / "s.db") as store:
        judgements = [
            said(prompt, [a], [b], rater="ann", strength=3),
            said(prompt, [a], [b], rater="bob", strength=2),
            said(prompt, [b], [a], strength=1),
        ]
        store.add([prompt], [a, b], judgements)
        export_preferences(store, tmp_path / "pairs", format="trl")
    [row] = rows_of(tmp_path / "pairs")
    assert (row["margin"], row["weight"]) == (2.5, pytest.approx(1 / 3, abs=1e-6))


def test_argilla_records_keep_each_rater_and_tell_what_they_cannot(tmp_path: Path, full: Store) -> None:
    report = export_preferences(full, tmp_path / "records.json", format="argilla")
    assert report.left_out["rankings with ties omitted: the format cannot say tie"] == 1
    assert report.left_out["thumbs and undos omitted: a record has rankings alone"] == 2
    import_preferences(tmp_path / "records.json", tmp_path / "again.db")
    with Store.open(tmp_path / "again.db") as store:
        found = {(j.prompt_id, j.ranking, j.rater, j.rationale) for j in store.judgements()}
    strict = [j for j in full.judgements() if len(j.ranking) > 1 and all(len(tier) == 1 for tier in j.ranking)]
    undone = {j.supersedes for j in full.judgements() if j.supersedes}
    assert found == {(j.prompt_id, j.ranking, j.rater, j.rationale) for j in strict if j.id not in undone}


def test_the_order_of_answers_in_argilla_says_nothing_of_which_is_better(tmp_path: Path) -> None:
    prompts = [asked(f"{n}") for n in range(60)]
    both = [answers(prompt, "good", "bad") for prompt in prompts]
    with Store.create(tmp_path / "s.db") as store:
        store.add(prompts, [c for two in both for c in two], [said(p, [a], [b]) for p, (a, b) in zip(prompts, both, strict=True)])
        export_preferences(store, tmp_path / "records", format="argilla")
    first = sum(record["fields"]["response_1"] == "good" for record in rows_of(tmp_path / "records"))
    assert 15 < first < 45


def test_the_hint_of_llamafactory_is_its_entry_for_the_file(tmp_path: Path, full: Store) -> None:
    report = export_preferences(full, tmp_path / "pairs.jsonl", format="llamafactory")
    entry = json.loads(report.lines()[-1].split("dataset_info.json: ")[1])
    assert entry["preferences"]["file_name"] == "pairs.jsonl"
    assert entry["preferences"]["ranking"] is True


def test_nothing_to_export_and_an_unknown_format_leave_no_file(tmp_path: Path) -> None:
    prompt = asked("Ask.")
    a, b = answers(prompt, "a", "b")
    with Store.create(tmp_path / "s.db") as store:
        store.add([prompt], [a, b], [said(prompt, [a, b])])
        with pytest.raises(DataError, match=r"nothing to export as trl \(1 ties omitted: the format cannot say tie\)"):
            export_preferences(store, tmp_path / "out", format="trl")
        with pytest.raises(DataError, match='there is no export "csv". Known are own, trl'):
            export_preferences(store, tmp_path / "out", format="csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.db"]


def test_an_export_is_streamed(tmp_path: Path, full: Store) -> None:
    report = ExportReport("own")
    pieces = export_text(full, "own", report)
    next(pieces)
    assert report.rows == 1
    pieces.close()
    assert len(list(full.judgements())) == 9  # the store reads as before


word = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(lambda s: s.strip())


@given(
    st.lists(st.tuples(word, st.lists(word, min_size=2, max_size=5, unique_by=str.strip), st.integers(0, 10**6)), min_size=1, max_size=12)
)
@settings(max_examples=8, deadline=None)
def test_any_text_and_any_weak_order_come_back_from_our_own_export(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, list[str], int]]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    prompts, candidates, judgements = [], [], []
    for text, texts, seed in items:
        prompt = asked(text)
        here = answers(prompt, *texts)
        tiers: dict[int, list[Candidate]] = {}
        for n, candidate in enumerate(here):
            tiers.setdefault(seed // 3**n % 3, []).append(candidate)
        prompts.append(prompt)
        candidates += here
        judgements.append(said(prompt, *(tiers[key] for key in sorted(tiers)), rater=text))
    with Store.create(folder / "s.db") as store, Store.create(folder / "again.db") as again:
        store.add(prompts, candidates, judgements)
        export_preferences(store, folder / "own.jsonl")
        report = import_preferences(folder / "own.jsonl", again)
        assert report.set_aside == {}
        assert {j.id: j for j in again.judgements()} == {j.id: j for j in store.judgements()}
