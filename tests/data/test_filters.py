"""Filters and aggregation of a snapshot: what is kept, what is left out and counted, and that gold never gets in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from preftune.data.filters import Filters
from preftune.data.snapshot import Snapshot, load_snapshot, snapshot
from preftune.data.store import Store
from preftune.errors import DataError
from preftune.records import Candidate, Demonstration, Judgement, Message, Prompt

PROMPTS = [
    Prompt(messages=(Message(role="user", content=" ".join(f"word{n}x{i}" for i in range(10))),), kind="code" if n % 2 else "talk")
    for n in range(40)
]
CANDIDATES = {
    p.id: [Candidate(prompt_id=p.id, text=f"{name} {n}", source=source) for name, source in (("a", "base"), ("b", "tuned"), ("c", "base"))]
    for n, p in enumerate(PROMPTS)
}


def judged(n: int, order: str, rater: str = "ann", **fields: Any) -> Judgement:
    """Return a judgement on prompt n: "ab" = a is better than b."""
    of = dict(zip("abc", CANDIDATES[PROMPTS[n].id], strict=True))
    fields.setdefault("created", datetime(2026, 1, 1, tzinfo=UTC))
    return Judgement(prompt_id=PROMPTS[n].id, ranking=tuple((of[name].id,) for name in order), rater=rater, **fields)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store with one plain judgement by ann on each of 40 prompts: a is better than b."""
    made = Store.create(tmp_path / "s.db")
    made.add(PROMPTS, [c for found in CANDIDATES.values() for c in found], [judged(n, "ab") for n in range(40)])
    yield made  # type: ignore[misc]
    made.close()


def frozen(store: Store, tmp_path: Path, **options: Any) -> Snapshot:
    filters = {name: value for name, value in options.items() if name in Filters.model_fields}
    others = {name: value for name, value in options.items() if name not in filters}
    return load_snapshot(snapshot(store, tmp_path / "o", held_out=0.4, filters=Filters(**filters), **others))


def pairs_in(found: Snapshot) -> list[tuple[str, str]]:
    """Return (chosen, rejected) of every pair of both sides."""
    return sorted((p.chosen, p.rejected) for p in [*found.train, *found.held_out])


def test_gold_judgements_never_get_in(store: Store, tmp_path: Path) -> None:
    before = snapshot(store, tmp_path / "o", held_out=0.4)
    store.add(judgements=[judged(n, "bac", "bob", picked_by="gold", rewrite="gold!") for n in range(40)])
    found = frozen(store, tmp_path)
    assert pairs_in(found) == sorted((f"a {n}", f"b {n}") for n in range(40))
    assert {p.weight for p in [*found.train, *found.held_out]} == {1.0}
    assert found.kwise + found.held_out_kwise + found.demonstrations + found.held_out_demonstrations == []
    # A store that has gained gold judgements alone gives the same snapshot, by the same name.
    assert snapshot(store, tmp_path / "o", held_out=0.4) == before == found.path


def test_kinds_are_of_prompts_and_leave_the_split_as_it_was(store: Store, tmp_path: Path) -> None:
    store.add(demonstrations=[Demonstration(prompt_id=p.id, text="wish") for p in PROMPTS])
    everything, code = frozen(store, tmp_path), frozen(store, tmp_path, kinds=("code",))
    assert {p.kind for p in [*code.prompts, *code.held_out_prompts]} == {"code"}
    assert len(code.train) + len(code.held_out) == 20
    assert len(code.demonstrations) + len(code.held_out_demonstrations) == 20
    assert {p.id for p in code.prompts} == {p.id for p in everything.prompts if p.kind == "code"}
    assert code.manifest["left_out"]["others"] == {"prompts of another kind": 20}
    assert code.manifest["config"]["filters"] == {"kinds": ["code"]}
    assert code.manifest["moved"] == {"since": everything.path.name, "to_train": [], "to_held_out": []}


def test_raters_times_and_strengths_are_of_judgements(store: Store, tmp_path: Path) -> None:
    late = datetime(2026, 3, 1, tzinfo=UTC)
    store.add(judgements=[judged(n, "ba", "bob", strength=n % 4, created=late) for n in range(40)])
    assert pairs_in(frozen(store, tmp_path, raters=("bob",))) == sorted((f"b {n}", f"a {n}") for n in range(40))
    since = frozen(store, tmp_path, since=late)
    assert pairs_in(since) == sorted((f"b {n}", f"a {n}") for n in range(40))
    assert since.manifest["left_out"]["judgements"] == {"before since": 40}
    until = frozen(store, tmp_path, until=datetime(2026, 3, 1))  # no zone is UTC
    assert pairs_in(until) == sorted((f"a {n}", f"b {n}") for n in range(40))
    strong = frozen(store, tmp_path, min_strength=2)
    assert pairs_in(strong) == sorted((f"b {n}", f"a {n}") for n in range(40) if n % 4 >= 2)
    assert strong.manifest["left_out"]["judgements"] == {"no strength": 40, "strength": 20}
    assert strong.manifest["votes"]["judgements"] == 20


def test_what_was_taken_back_does_not_return_by_a_filter(store: Store, tmp_path: Path) -> None:
    undo = [judged(n, "ba", supersedes=judged(n, "ab").id, created=datetime(2026, 3, 1, tzinfo=UTC)) for n in range(20)]
    store.add(judgements=undo)
    found = frozen(store, tmp_path, until=datetime(2026, 2, 1, tzinfo=UTC))
    assert pairs_in(found) == sorted((f"a {n}", f"b {n}") for n in range(20, 40))
    assert found.manifest["votes"]["superseded"] == 20


def test_both_answers_must_come_from_the_sources(store: Store, tmp_path: Path) -> None:
    store.add(judgements=[judged(n, "ca", "bob") for n in range(40)])
    found = frozen(store, tmp_path, sources=("base",))
    assert pairs_in(found) == sorted((f"c {n}", f"a {n}") for n in range(40))
    assert found.manifest["left_out"]["pairs"] == {"source": 40}


def test_agreement_is_the_share_of_votes_for_the_chosen(store: Store, tmp_path: Path) -> None:
    store.add(judgements=[judged(n, "ab" if n < 30 else "ba", "bob") for n in range(40)] + [judged(n, "ab", "cat") for n in range(10, 40)])
    found = frozen(store, tmp_path, min_agreement=0.7)
    assert pairs_in(found) == sorted((f"a {n}", f"b {n}") for n in range(30))
    assert found.manifest["left_out"]["pairs"] == {"agreement": 10}  # two of three
    assert len(pairs_in(frozen(store, tmp_path, min_agreement=0.6))) == 40


def test_the_unbiased_stratum_is_what_was_picked_at_random(store: Store, tmp_path: Path) -> None:
    store.add(judgements=[judged(n, "ba", "bob", picked_by="random", picked_probability=0.5) for n in range(20)])
    found = frozen(store, tmp_path, unbiased_only=True)
    assert pairs_in(found) == sorted((f"b {n}", f"a {n}") for n in range(20))
    assert found.manifest["left_out"]["judgements"] == {"not picked at random": 40}


def test_what_is_too_long_is_left_out_and_counted(store: Store, tmp_path: Path) -> None:
    long = Candidate(prompt_id=PROMPTS[0].id, text="x" * 500)
    store.add(candidates=[long], demonstrations=[Demonstration(prompt_id=PROMPTS[1].id, text="y" * 500)])
    over = Judgement(prompt_id=PROMPTS[0].id, ranking=((long.id,), (CANDIDATES[PROMPTS[0].id][0].id,)), rater="bob")
    store.add(judgements=[over])
    found = frozen(store, tmp_path, max_characters=300)
    assert len(pairs_in(found)) == 40
    assert found.manifest["left_out"] == {"judgements": {}, "pairs": {"too long": 1}, "others": {"demonstrations too long": 1}}
    with pytest.raises(DataError, match="there are no judgements and no demonstrations"):
        frozen(store, tmp_path, max_characters=3)


def test_tokens_are_counted_by_the_tokenizer(store: Store, tmp_path: Path, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    sizes = {p.id: len(tiny_tokenizer(p.text, add_special_tokens=False)["input_ids"]) for p in PROMPTS}
    answers = {n: max(len(tiny_tokenizer(f"{name} {n}", add_special_tokens=False)["input_ids"]) for name in "ab") for n in range(40)}
    limit = max(sizes[p.id] + answers[n] for n, p in enumerate(PROMPTS)) - 1
    expected = [n for n, p in enumerate(PROMPTS) if sizes[p.id] + answers[n] <= limit]
    found = frozen(store, tmp_path, max_tokens=limit, tokenizer=tmp_path)
    assert pairs_in(found) == sorted((f"a {n}", f"b {n}") for n in expected)
    assert 0 < len(expected) < 40
    assert "tokenizer" in found.manifest["inputs"]
    assert found.manifest["config"]["filters"] == {"max_tokens": limit}
    with pytest.raises(DataError, match=r"there is no tokenizer\.json here"):
        frozen(store, tmp_path, max_tokens=9, tokenizer=tmp_path / "o")


def test_a_ranking_of_three_is_an_order_too(store: Store, tmp_path: Path) -> None:
    store.add(judgements=[judged(n, "cab", "bob") for n in range(40)])
    found = frozen(store, tmp_path)
    orders = sorted(k.completions for k in [*found.kwise, *found.held_out_kwise])
    assert orders == sorted((f"c {n}", f"a {n}", f"b {n}") for n in range(40))
    assert {k.group for k in found.kwise} == {p.id for p in found.prompts}
    assert found.manifest["counts"]["train"]["kwise"] == len(found.kwise)


def test_weights_of_raters_decide_and_nought_leaves_one_out(store: Store, tmp_path: Path) -> None:
    store.add(judgements=[judged(n, "ba", "bob", rewrite="mine", rewrite_of=None) for n in range(40)])
    weights = tmp_path / "weights.yaml"
    weights.write_text("ann: 1\nbob: 3\n")
    found = frozen(store, tmp_path, aggregate="weighted", rater_weights=weights)
    assert pairs_in(found) == sorted((f"b {n}", f"a {n}") for n in range(40))
    assert {p.weight for p in found.train} == {0.5}  # 3/4 − 1/4
    weights.write_text("bob: 0\n")
    found = frozen(store, tmp_path, aggregate="weighted", rater_weights=weights)
    assert pairs_in(found) == sorted((f"a {n}", f"b {n}") for n in range(40))
    assert found.demonstrations == []
    assert found.manifest["left_out"]["judgements"] == {"weight 0": 40}
    for options in ({"aggregate": "weighted"}, {"rater_weights": weights}):
        with pytest.raises(DataError, match=r'Weights go with "weighted" alone'):
            frozen(store, tmp_path, **options)


def test_dawid_and_skene_where_there_is_too_little_leaves_no_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are 1\.00 raters an item"):
        frozen(store, tmp_path, aggregate="dawid-skene")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_dawid_and_skene_with_enough(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("crowdkit", reason="the extra crowd is not installed")
    # All three pairs of a ranking of three count, so 40 prompts give each rater 120 items.
    store.add(judgements=[judged(n, "abc" if n % 8 else "bca", rater) for n in range(40) for rater in ("bob", "cat", "dan")])
    found = frozen(store, tmp_path, aggregate="dawid-skene", raters=("bob", "cat", "dan"))
    assert len(pairs_in(found)) == 120
    assert all(0.99 < p.confidence <= 1 for p in found.train)
    assert found.manifest["dawid_skene"]["rater_accuracy"] == {name: pytest.approx(1.0, abs=1e-3) for name in ("bob", "cat", "dan")}


def test_filters_that_leave_nothing_say_why(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"everything that could be learned was left out \(40 by rater\)\. Filter less"):
        frozen(store, tmp_path, raters=("nobody",))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 5}, "belong together"),
        ({"since": datetime(2026, 2, 1), "until": datetime(2026, 1, 1)}, "is not before until"),
        ({"min_agreement": 0.4}, "greater than or equal to 0.5"),
        ({"tags": ("x",)}, "Extra inputs are not permitted"),
    ],
)
def test_filters_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Filters(**options)
