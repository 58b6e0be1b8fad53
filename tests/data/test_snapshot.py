"""Snapshots: nothing leaks, the same gives the same, and new data moves no old prompt in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.duplicates import words_of
from preftune.data.importing import import_preferences
from preftune.data.snapshot import Snapshot, load_snapshot, snapshot
from preftune.data.snapshot_files import PARTS
from preftune.data.splits import split_by_hash, split_by_list
from preftune.data.store import Store
from preftune.errors import DataError, PreftuneError
from preftune.manifest import MANIFEST, hash_file
from preftune.records import Candidate, Judgement, Message, Pair, Prompt

DATA_FILES = {f"{part}-00000.parquet" for part in PARTS}


def shingles(messages: tuple[Message, ...]) -> frozenset[tuple[str, ...]]:
    words = words_of(messages)
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> Fraction:
    return Fraction(len(a & b), len(a | b))


def sentence(n: int) -> str:
    return " ".join(f"word{n}x{i}" for i in range(10))


def asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def add(store: Store, *rows: dict[str, object]) -> None:
    """Add rows in our own format."""
    assert store.path
    path = store.path.with_suffix(".rows")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_preferences(path, store)


def pair(text: str, chosen: str = "good", rejected: str = "bad", **fields: object) -> dict[str, object]:
    return {"prompt": text, "chosen": chosen, "rejected": rejected, **fields}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store."""
    made = Store.create(tmp_path / "s.db")
    yield made  # type: ignore[misc]
    made.close()


def asked_in(pairs: list[object]) -> set[str]:
    return {p.messages[-1].content for p in pairs}  # type: ignore[attr-defined]


def test_a_snapshot_holds_all_pairs_demonstrations_and_prompts_on_one_side_each(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n), kind="chat", check="assert 1") for n in range(40)))
    add(store, *({"prompt": sentence(n), "completion": f"so {n}"} for n in range(20, 60)), {"prompt": sentence(99)})
    made = snapshot(store, tmp_path / "snapshots", held_out=0.3, seed=1)
    found = load_snapshot(made)
    assert {p.name for p in made.iterdir()} == DATA_FILES | {MANIFEST}
    assert made.name == found.manifest["id"]
    assert len(found.train) + len(found.held_out) == 40
    assert len(found.demonstrations) + len(found.held_out_demonstrations) == 40
    assert len(found.prompts) + len(found.held_out_prompts) == 61
    trained = {prompt.text for prompt in found.prompts}
    held_out = {prompt.text for prompt in found.held_out_prompts}
    assert not trained & held_out
    assert asked_in([*found.train, *found.demonstrations]) <= trained
    assert asked_in([*found.held_out, *found.held_out_demonstrations]) <= held_out
    one = found.train[0]
    assert (one.chosen, one.rejected, one.weight, one.kind, one.check) == ("good", "bad", 1.0, "chat", "assert 1")
    assert one.group == Prompt(messages=one.messages).id
    counts = found.manifest["counts"]
    assert counts["train"] == {
        "pairs": len(found.train),
        "kwise": 0,
        "ties": 0,
        "thumbs": 0,
        "demonstrations": len(found.demonstrations),
        "prompts": len(found.prompts),
    }
    assert counts["dropped"]["pairs"] == 0
    assert found.manifest["groups"] == 61


def test_the_same_store_and_settings_give_the_same_folder(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n)) for n in range(40)))
    one = snapshot(store, tmp_path / "a")
    written = (one / MANIFEST).stat().st_mtime_ns
    assert snapshot(tmp_path / "s.db", tmp_path / "a") == one
    assert (one / MANIFEST).stat().st_mtime_ns == written
    other = snapshot(str(tmp_path / "s.db"), tmp_path / "b")
    assert other.name == one.name
    assert {n: hash_file(one / n) for n in DATA_FILES} == {n: hash_file(other / n) for n in DATA_FILES}
    names = {snapshot(store, tmp_path / "a", held_out=0.2).name, snapshot(store, tmp_path / "a", seed=1).name, one.name}
    add(store, pair(sentence(0), rater="another"))
    names.add(snapshot(store, tmp_path / "a").name)
    assert len(names) == 4
    assert not [p for p in (tmp_path / "a").iterdir() if p.name.startswith(".")]


def test_the_chosen_answers_are_demonstrations_unless_they_lose_elsewhere() -> None:
    ranked = [("a", "b"), ("a", "c"), ("b", "c")]
    pairs = [Pair(messages=asked("p"), chosen=c, rejected=r, group="p", kind="k", check="assert 1") for c, r in ranked]
    pairs.append(Pair(messages=asked("q"), chosen="b", rejected="a", group="q"))
    found = Snapshot(Path(), pairs, [], [], [], [], [], {}).chosen_as_demonstrations()
    assert [(e.messages[-1].content, e.completion, e.group) for e in found] == [("p", "a", "p"), ("q", "b", "q")]
    assert (found[0].kind, found[0].check) == ("k", "assert 1")


def test_a_rewrite_is_a_demonstration_unless_it_was_undone(store: Store, tmp_path: Path) -> None:
    prompts = [Prompt(messages=asked(sentence(n))) for n in range(30)]
    candidates = [[Candidate(prompt_id=p.id, text=t) for t in "ab"] for p in prompts]
    ranking = [tuple((c.id,) for c in two) for two in candidates]
    first = Judgement(prompt_id=prompts[0].id, ranking=ranking[0], rater="ann", rewrite="undone")
    rewritten = [Judgement(prompt_id=p.id, ranking=r, rewrite=f"better {p.text}") for p, r in zip(prompts[1:], ranking[1:], strict=True)]
    undo = Judgement(prompt_id=prompts[0].id, ranking=ranking[0][::-1], rater="ann", supersedes=first.id)
    store.add(prompts, [c for two in candidates for c in two], [first, undo, *rewritten])
    found = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.5))
    both = [*found.demonstrations, *found.held_out_demonstrations]
    assert sorted(e.completion for e in both) == sorted(f"better {p.text}" for p in prompts[1:])
    assert found.manifest["votes"] == {
        "judgements": 31,
        "superseded": 1,
        "compared": 30,
        "ties": 0,
        "even_splits": 0,
        "contradictions": 0,
        "word_pairs": 0,
        "agreeing": 0,
    }
    assert {(p.chosen, p.rejected) for p in [*found.train, *found.held_out] if p.group == prompts[0].id} == {("b", "a")}


# What is on which side

word = st.sampled_from("abcdefgh")
sentences = st.lists(word, min_size=6, max_size=20)


@st.composite
def families(draw: st.DrawFn) -> list[str]:
    """Return texts in which many are nearly alike: each family is a sentence and edits of one place."""
    found = []
    for words in draw(st.lists(sentences, min_size=2, max_size=8)):
        found.append(" ".join(words))
        for place, other in draw(st.lists(st.tuples(st.integers(0, 19), word), max_size=3)):
            found.append(" ".join(other if n == place else w for n, w in enumerate(words)))
    return list(dict.fromkeys(found))


@given(families(), st.integers(0, 100), st.floats(0.1, 0.9))
@settings(max_examples=80, deadline=None)
def test_no_prompt_of_one_side_is_nearly_alike_one_of_the_other(texts: list[str], seed: int, share: float) -> None:
    prompts = {text: asked(text) for text in texts}
    split = split_by_hash(prompts.items(), share=share, seed=seed)
    assert split.train | split.held_out == set(texts)
    for one in split.train:
        for other in split.held_out:
            assert jaccard(shingles(asked(one)), shingles(asked(other))) < Fraction(4, 5)


@given(families(), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_no_trained_prompt_is_nearly_alike_one_that_was_given_to_be_held_out(texts: list[str], number: int) -> None:
    listed = texts[:number]
    split = split_by_list([(text, asked(text)) for text in [*texts[number:], *listed]], listed)
    assert split.held_out == set(listed)
    assert split.train | split.held_out | split.dropped == set(texts)
    alike = [
        any(jaccard(shingles(asked(one)), shingles(asked(other))) >= Fraction(4, 5) for other in split.held_out) for one in split.train
    ]
    assert not any(alike)


@given(families(), families(), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_new_prompts_move_an_old_one_only_with_its_whole_group_into_an_older_group(old: list[str], new: list[str], seed: int) -> None:
    before = split_by_hash([(text, asked(text)) for text in old], share=0.5, seed=seed)
    after = split_by_hash([(text, asked(text)) for text in dict.fromkeys(old + new)], share=0.5, seed=seed)
    groups_before = split_groups(old)
    groups_after = split_groups(list(dict.fromkeys(old + new)))
    for text in old:
        if (text in before.train) != (text in after.train):
            assert groups_after[text] != groups_before[text]  # its group was joined to one with an older first prompt
            assert old.index(groups_after[text]) < old.index(groups_before[text])


def split_groups(texts: list[str]) -> dict[str, str]:
    """Return the first text of each text's group, by comparing each two until nothing changes."""
    first = {text: text for text in texts}
    sets = {text: shingles(asked(text)) for text in texts}
    alike = [(a, b) for a in texts for b in texts if jaccard(sets[a], sets[b]) >= Fraction(4, 5)]
    changed = True
    while changed:
        changed = False
        for a, b in alike:
            if texts.index(first[b]) < texts.index(first[a]):
                first[a] = first[b]
                changed = True
    return first


def test_about_the_wanted_share_of_groups_is_held_out() -> None:
    split = split_by_hash([(f"{n}", asked(sentence(n))) for n in range(2000)], share=0.2, seed=3)
    # Binomial(2000, 0.2) has mean 400 and standard deviation 17.9; 5 of those on each side.
    assert 310 < len(split.held_out) < 490
    assert (split.groups, split.grouped) == (2000, 0)


def test_new_data_moves_no_old_prompt(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n)) for n in range(60)))
    old = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.3))
    add(store, *(pair(sentence(n)) for n in range(60, 120)), *(pair(sentence(n) + " more") for n in range(20)))
    new = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.3))
    assert asked_in(old.train) <= asked_in(new.train)
    assert asked_in(old.held_out) <= asked_in(new.held_out)
    assert new.manifest["moved"] == {"since": old.path.name, "to_train": [], "to_held_out": []}
    assert (new.manifest["groups"], new.manifest["grouped_prompts"]) == (120, 40)


def test_a_prompt_that_joins_two_groups_moves_the_younger_and_that_is_reported(store: Store, tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(23)]
    # 20 words make 18 shingles; moved by two words 16 are common (16/20 = 0.8), moved by three 15 (15/21), too few.
    left, right = " ".join(words[:20]), " ".join(words[3:])
    between = " ".join(words[1:21])
    assert jaccard(shingles(asked(left)), shingles(asked(right))) < Fraction(4, 5)
    seed = next(s for s in range(99) if len(split_by_hash([(pid(t), asked(t)) for t in (left, right)], share=0.5, seed=s).train) == 1)
    rest = [pair(sentence(n)) for n in range(20)]
    add(store, pair(left), pair(right), *rest)
    old = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.5, seed=seed))
    add(store, pair(between))
    new = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.5, seed=seed))
    side = "to_train" if right in asked_in(old.held_out) else "to_held_out"
    assert new.manifest["moved"] == {"since": old.path.name, "to_train": [], "to_held_out": [], side: [pid(right)]}
    together = asked_in(new.train) if left in asked_in(new.train) else asked_in(new.held_out)
    assert {left, right, between} <= together


def pid(text: str) -> str:
    return Prompt(messages=asked(text)).id


# Prompts that are given to be held out


def test_given_prompts_are_held_out_and_those_nearly_alike_are_dropped_and_counted(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n)) for n in range(10)), pair(sentence(0) + " more"), {"prompt": sentence(1) + " more", "completion": "x"})
    given_file = tmp_path / "held_out.jsonl"
    rows = [{"prompt": sentence(0)}, {"prompt": sentence(1)}, pair(sentence(50), "new good", "new bad"), pair(sentence(0))]
    given_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_snapshot(snapshot(store, tmp_path / "o", held_out_prompts=given_file))
    assert asked_in(found.held_out) == {sentence(0), sentence(1), sentence(50)}
    assert len(found.held_out) == 3  # the store's own pair of prompt 0 is the one that the file repeats
    assert {p.text for p in found.held_out_prompts} == {sentence(0), sentence(1), sentence(50)}
    assert asked_in(found.train) == {sentence(n) for n in range(2, 10)}
    assert found.manifest["counts"]["dropped"] == {
        "pairs": 1,
        "kwise": 0,
        "ties": 0,
        "thumbs": 0,
        "demonstrations": 1,
        "prompts": 2,
        "reason": "nearly alike a prompt that was given to be held out",
    }
    assert found.manifest["inputs"]["held_out_prompts"] == hash_file(given_file)


def test_a_broken_line_among_the_given_prompts_is_refused(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n)) for n in range(10)))
    given_file = tmp_path / "held_out.jsonl"
    given_file.write_text(json.dumps({"prompt": sentence(0)}) + '\n{"prompt": ""}\n')
    with pytest.raises(DataError, match=r"held_out\.jsonl line 2: the prompt, or one of its messages, is empty"):
        snapshot(store, tmp_path / "o", held_out_prompts=given_file)
    given_file.write_text("")
    with pytest.raises(DataError, match="the file has no rows"):
        snapshot(store, tmp_path / "o", held_out_prompts=given_file)


# Errors


def test_ties_alone_are_refused(store: Store, tmp_path: Path) -> None:
    add(store, *({"prompt": sentence(n), "answers": ["a", "b", "c"], "ranking": [[0, 1, 2]]} for n in range(4)))
    with pytest.raises(DataError, match=r"all 12 comparisons are ties or even splits, so there is nothing to learn\. Collect strict"):
        snapshot(store, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_even_split_between_raters_gives_no_pair_and_is_counted(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n)) for n in range(20)))
    add(store, pair(sentence(0), "bad", "good", rater="other"), pair(sentence(1), rater="other"))
    add(store, {"prompt": sentence(2), "answers": ["good", "new"], "ranking": [[0, 1]], "rater": "other"})
    found = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.4))
    assert len(found.train) + len(found.held_out) == 19
    votes = found.manifest["votes"]
    assert (votes["compared"], votes["ties"], votes["even_splits"], votes["contradictions"]) == (21, 1, 1, 1)


def test_nothing_to_learn_or_nothing_on_one_side_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no judgements and no demonstrations"):
        snapshot(store, tmp_path / "o")
    add(store, *(pair(sentence(0), "good", f"bad {n}") for n in range(7)))
    with pytest.raises(
        DataError, match=r"none of the 7 pairs \(1 group of near-duplicate prompts\) is held out, so nothing could be measured"
    ):
        snapshot(store, tmp_path / "o", held_out=1e-9)
    with pytest.raises(DataError, match="is left to train on"):
        snapshot(store, tmp_path / "o", held_out=1 - 1e-9)
    with pytest.raises(DataError, match=r"held_out is 1\.5"):
        snapshot(store, tmp_path / "o", held_out=1.5)
    assert not (tmp_path / "o").exists()
    assert len(load_snapshot(snapshot(store, tmp_path / "o", held_out=0)).train) == 7


def test_demonstrations_alone_make_a_snapshot(store: Store, tmp_path: Path) -> None:
    add(store, *({"prompt": sentence(n), "completion": "x"} for n in range(30)))
    found = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.3))
    assert found.train == []
    assert len(found.demonstrations) + len(found.held_out_demonstrations) == 30


def test_what_is_no_snapshot_or_a_damaged_one_says_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=r"there is no manifest\.json here"):
        load_snapshot(tmp_path)
    (tmp_path / MANIFEST).write_text('{"kind": "run"}')
    with pytest.raises(DataError, match="this is a run folder"):
        load_snapshot(tmp_path)
    add(store, *(pair(sentence(n)) for n in range(20)))
    made = snapshot(store, tmp_path / "o", held_out=0.3)
    train = made / "train-00000.parquet"
    whole = train.read_bytes()
    train.write_bytes(whole[:100] + bytes(100) + whole[200:])
    with pytest.raises(PreftuneError, match=r"train-00000\.parquet: the file is damaged after row 0 \(.*Make the snapshot anew"):
        load_snapshot(made)
    train.write_bytes(whole[:-20])
    with pytest.raises(PreftuneError, match=r"train-00000\.parquet: the file is damaged"):
        load_snapshot(made)
    shutil.copy(made / "held_out-00000.parquet", train)
    with pytest.raises(PreftuneError, match=r"train-00000\.parquet: the file has \d+ rows, the manifest says \d+"):
        load_snapshot(made)
    train.write_bytes(whole)
    (made / "prompts-00000.parquet").unlink()
    with pytest.raises(PreftuneError, match=r"prompts-00000\.parquet: a file of the snapshot is missing"):
        load_snapshot(made)


def test_a_snapshot_that_was_cut_off_is_made_whole(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n)) for n in range(20)))
    made = snapshot(store, tmp_path / "o", held_out=0.3)
    whole = {n: hash_file(made / n) for n in DATA_FILES}
    (made / MANIFEST).unlink()
    made.rename(made.with_name(f".{made.name}.partial"))
    for left in ("train-00000.parquet", "train-00007.parquet"):
        (made.with_name(f".{made.name}.partial") / left).write_text("half")
    assert snapshot(store, tmp_path / "o", held_out=0.3) == made
    assert {n: hash_file(made / n) for n in DATA_FILES} == whole
    assert {p.name for p in made.iterdir()} == DATA_FILES | {MANIFEST}


@pytest.mark.slow
def test_the_real_file_gives_a_snapshot_without_a_leak(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    import_preferences(shared_data("hh_harmless_test.jsonl.gz"), tmp_path / "s.db")
    found = load_snapshot(snapshot(tmp_path / "s.db", tmp_path / "o"))
    assert len(found.train) + len(found.held_out) == 2303
    # Binomial(2250 groups or so, 0.1): mean 225, standard deviation 14.
    assert 155 < len(found.held_out_prompts) < 300
    talks = [[(m.role, m.content) for m in p.messages] for p in found.prompts]
    for held_out in ([(m.role, m.content) for m in p.messages] for p in found.held_out_prompts):
        assert not [
            talk for talk in talks if len(held_out) > 1 < len(talk) and (talk[: len(held_out)] == held_out or held_out[: len(talk)] == talk)
        ]


def test_a_pairs_strength_is_the_mean_of_those_who_prefer_it_and_said_so(store: Store, tmp_path: Path) -> None:
    rows = [pair(sentence(0), strength=strength, rater=rater) for rater, strength in (("a", 1), ("b", 2), ("c", None))]
    rows.append(pair(sentence(0), "bad", "good", strength=3, rater="d"))
    add(store, *({key: value for key, value in row.items() if value is not None} for row in rows), pair(sentence(1)))
    found = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.0))
    assert {p.messages[0].content: (p.strength, p.weight) for p in found.train} == {sentence(0): (1.5, 0.5), sentence(1): (None, 1.0)}


def test_ties_and_thumbs_are_kept_and_thumbs_alone_are_enough(store: Store, tmp_path: Path) -> None:
    prompts = [Prompt(messages=asked(sentence(n))) for n in range(4)]
    candidates = [Candidate(prompt_id=p.id, text=text) for p in prompts for text in ("one", "two")]
    thumbs = [Judgement(prompt_id=c.prompt_id, ranking=((c.id,),), acceptable=(c.id,) * (c.text == "one")) for c in candidates]
    with store.writer() as writer:
        writer.add(prompts, candidates, thumbs)
    found = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.0))
    assert sorted((t.completion, t.desirable) for t in found.thumbs) == [("one", True)] * 4 + [("two", False)] * 4
    assert (found.train, found.ties) == ([], [])
    with store.writer() as writer:
        writer.add(judgements=[Judgement(prompt_id=prompts[0].id, ranking=(tuple(c.id for c in candidates[:2]),))])
    found = load_snapshot(snapshot(store, tmp_path / "o", held_out=0.0))
    assert [set(t.completions) for t in found.ties] == [{"one", "two"}]
    assert found.manifest["counts"]["train"]["ties"] == 1


def test_a_prompt_with_half_of_a_surrogate_pair_is_set_aside_with_the_reason(store: Store, tmp_path: Path) -> None:
    add(store, *(pair(sentence(n)) for n in range(40)))
    broken = Prompt(messages=asked(f"{sentence(41)} \ud83d"))  # import refuses it; a program may have put it there
    answers = [Candidate(prompt_id=broken.id, text=text) for text in ("good", "bad")]
    store.add([broken], answers, [Judgement(prompt_id=broken.id, ranking=tuple((answer.id,) for answer in answers))])
    found = load_snapshot(snapshot(store, tmp_path / "snapshots", held_out=0.3))
    assert len(found.train) + len(found.held_out) == len(found.prompts) + len(found.held_out_prompts) == 40
    assert found.manifest["left_out"]["others"] == {"prompts with half of a surrogate pair": 1}
