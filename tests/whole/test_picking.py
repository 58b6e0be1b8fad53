"""A reward picks the best and the worst of a prompt's candidates; what it picked is learned by SFT and by DPO."""

from __future__ import annotations

import json

import pytest

from preftune.cli import main
from preftune.data.filters import Filters
from preftune.data.snapshot import load_snapshot, snapshot
from preftune.data.store import Store
from preftune.errors import DataError, ModelError
from preftune.records import Candidate, Message, Prompt, standing
from preftune.rollout.pick import pick

WORDS = ("lantern", "copper", "meadow", "violin", "harbour", "pepper")


@pytest.fixture
def candidates():
    """Prompts with four candidates each, of two sources, of which those that say "a" are the better ones."""
    prompts = [Prompt(messages=[Message(role="user", content=f"{word}, {word}?")]) for word in WORDS]

    def of(texts, source, **sampling):
        return [Candidate(prompt_id=p.id, text=text, source=source, sampling=sampling) for p in prompts for text in texts]

    return prompts, of


@pytest.fixture
def store(tmp_path, candidates):
    prompts, of = candidates
    with Store.create(tmp_path / "store.db") as opened:
        opened.add(prompts=prompts, candidates=[*of(["a a a", "b b b"], "first"), *of(["b b"], "second")])
        yield opened


def judged(store):
    return {prompt.id: standing(judgements) for prompt, judgements, _ in store.judged()}


def test_the_best_and_the_worst_are_noted_with_every_score_and_by_whom(toy, store):
    run = toy.run("reward")
    report = pick(store, run)
    assert (report.prompts, report.picked, report.rater) == (6, 6, f"reward:{run.name}")
    texts = {c.id: c.text for c in store.candidates()}
    for (judgement,) in judged(store).values():
        (best,), (worst,) = judgement.ranking
        scores = judgement.aspects["reward"]
        assert texts[best] == "a a a"
        assert len(scores) == 3
        assert scores[best] == max(scores.values()) > scores[worst] == min(scores.values())
        assert judgement.rater == f"reward:{run.name}"


def test_what_was_picked_is_not_scored_again(toy, store, monkeypatch):
    pick(store, toy.run("reward"))
    before = judged(store)
    monkeypatch.setattr("preftune.rollout.score.load_scorer", None)  # so that any work would fail
    report = pick(store, toy.run("reward"))
    assert (report.picked, report.known) == (0, 6)
    assert judged(store) == before


def test_where_new_candidates_have_come_the_new_judgement_takes_the_old_ones_place(toy, store, candidates):
    pick(store, toy.run("reward"))
    store.add(candidates=candidates[1](["a a a a"], "second"))
    assert pick(store, toy.run("reward")).picked == 6
    for judgements in judged(store).values():
        (judgement,) = judgements
        assert len(judgement.aspects["reward"]) == 4


def test_only_candidates_of_the_sources_asked_for_and_no_cut_ones(toy, store, candidates):
    store.add(candidates=candidates[1](["a a"], "second", finished=False))
    report = pick(store, toy.run("reward"), sources=["second"])
    assert (report.prompts, report.picked, report.few, report.cut) == (6, 0, 6, 6)
    with pytest.raises(DataError, match="no prompt has a candidate by third"):
        pick(store, toy.run("reward"), sources=["third"])


def test_a_dpo_run_judges_too_and_others_give_no_score(toy, store):
    assert pick(store, toy.run("dpo")).picked == 6
    with pytest.raises(ModelError, match="a sft folder gives no score"):
        pick(store, toy.run("sft"))
    with pytest.raises(ModelError, match="there is no such run"):
        pick(store, toy.out / "none")


def test_the_best_is_learned_by_sft_and_the_pairs_by_dpo(toy, store, tmp_path, capsys):
    run = toy.run("reward")
    with pytest.raises(SystemExit) as left:
        main(["pick", str(run), "--store", str(tmp_path / "store.db"), "--json"])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["picked"] == 6
    data = snapshot(tmp_path / "store.db", tmp_path / "snapshots", held_out=0.0, filters=Filters(raters=(f"reward:{run.name}",)))
    found = load_snapshot(data)
    assert [d.completion for d in found.chosen_as_demonstrations()] == ["a a a"] * 6
    for stage in ("sft", "dpo"):
        assert toy.run(stage, data=str(data), epochs=1).exists()
