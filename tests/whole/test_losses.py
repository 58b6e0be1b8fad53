"""`preftune train dpo loss=…`: every loss starts where it should, learns what was planted, and refuses keys that mean nothing to it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from preftune.config import load_config
from preftune.data.batches import collate, encode
from preftune.data.snapshot import load_snapshot, snapshot
from preftune.data.store import Store
from preftune.errors import ConfigError, DataError, PreftuneError
from preftune.losses.reduce import sequence_sum
from preftune.manifest import read_manifest
from preftune.models.load import batch_logprobs, load_causal_lm, load_renderer
from preftune.records import Candidate, Judgement, Message, Prompt
from preftune.stages import preference_config, preference_learner
from preftune.stages.common import pair_items
from preftune.stages.preference_data import preferences_of
from preftune.stages.preference_losses import LOSSES, LossName
from preftune.training.loop import read_metrics
from preftune.training.metrics import METRICS

EVERY = sorted(LOSSES)
# Where each starts with its own keys, worked out by hand: log-ratios 0 in the formula of its paper.
STARTS = {
    **dict.fromkeys(("dpo", "cdpo", "robust", "dpop", "ln_dpo", "ld_dpo", "aot"), math.log(2)),
    "kto": 0.5, "ipo": 0.25, "ipo_sum": 25.0, "hinge": 1.0, "bco": 2 * math.log(2), "apo_zero": 1.0, "apo_down": 1.0,
    "exo": 0.5 * math.log(0.5 / 0.99) + 0.5 * math.log(0.5 / 0.01),
}  # fmt: skip


def held_out_margins(model, data) -> torch.Tensor:
    """Return log π(chosen) − log π(rejected) of each held-out pair, by plain rows."""
    loaded, renderer = load_causal_lm(model), load_renderer(model)
    found = []
    for group in encode(renderer, pair_items(load_snapshot(data).held_out), max_tokens=512).groups:
        batch = collate([group], renderer.pad_id, tree=False)
        with torch.no_grad():
            chosen, rejected = sequence_sum(batch_logprobs(loaded, batch)[0], batch.sequence, 2)
        found.append(chosen - rejected)
    return torch.stack(found)


def test_the_table_and_the_names_agree():
    assert set(LOSSES) == set(get_args(LossName))


@pytest.fixture(scope="session")
def rich(toy):
    """A snapshot of every kind of judgement, in which what says "a" is better than what says "b" and the number of words does not matter.

    12 prompts each with: a pair and its strength; a ranking of four with a tie at the top; a tie; two thumbs up and two down.
    """
    folder = toy.folder / "rich"
    folder.mkdir()
    prompts = [Prompt(messages=(Message(role="user", content=f"Number {n}?"),)) for n in range(48)]
    answers = {p.id: [Candidate(prompt_id=p.id, text=text) for text in ("a a a", "a a", "b b b", "b b")] for p in prompts}
    said = []
    for n, prompt in enumerate(prompts):
        first, second, third, fourth = (candidate.id for candidate in answers[prompt.id])
        match n % 4:
            case 0:
                better, worse = (first, fourth) if n % 8 else (second, third)
                said.append(Judgement(prompt_id=prompt.id, ranking=((better,), (worse,)), strength=1 + n % 3))
            case 1:
                said.append(Judgement(prompt_id=prompt.id, ranking=((first, second), (third,), (fourth,))))
            case 2:
                said.append(Judgement(prompt_id=prompt.id, ranking=((first, second),)))
            case 3:
                said += [
                    Judgement(prompt_id=prompt.id, ranking=((c,),), acceptable=(c,) * (c in (first, second)))
                    for c in (first, second, third, fourth)
                ]
    with Store.create(folder / "store.db") as store, store.writer() as writer:
        writer.add(prompts, [c for found in answers.values() for c in found], said)
    return snapshot(folder / "store.db", folder / "snapshots", held_out=0.0)


@pytest.mark.parametrize("loss", EVERY)
def test_every_loss_starts_where_it_should_and_learns_the_planted_preference(toy, rich, loss):
    data = toy.data if LOSSES[loss].data == "pairs" else rich
    run = toy.run("dpo", loss=loss, seed=5, data=str(data), epochs=2 if data == toy.data else 6)
    rows = read_metrics(run)
    if loss in STARTS:
        assert rows[0]["loss/train"] == pytest.approx(STARTS[loss], rel=1e-4)
    gained = held_out_margins(run, toy.data) - held_out_margins(toy.base, toy.data)
    assert gained.mean() > 0.5
    assert (gained > 0).float().mean() > 0.75
    assert {name for row in rows for name in row} <= METRICS.keys()
    assert rows[-1]["margin/train"] > rows[0]["margin/train"]


@pytest.mark.parametrize("loss", ["simpo", "cpo", "orpo"])
def test_a_loss_without_a_reference_computes_none(toy, monkeypatch, loss):
    monkeypatch.setattr(preference_learner, "reference_logprobs", None)
    run = toy.run("dpo", loss=loss, seed=6, epochs=1)
    named = {name for row in read_metrics(run) for name in row}
    assert "logprobs/chosen_per_token" in named
    assert not named & {"logprobs/chosen", "logprobs/rejected", "logprobs/both_fall"}


@pytest.mark.parametrize("loss", ["rpo", "aot", "bco", "ld_dpo", "orpo"])
def test_how_many_tokens_are_computed_at_once_changes_nothing(toy, loss):
    # aot ranks the whole batch, and bco's shift is that of all steps before.
    small, large = (read_metrics(toy.run("dpo", loss=loss, lr=1e-4, epochs=1, token_budget=budget)) for budget in (64, 8192))
    for ours, theirs in zip(small, large, strict=True):
        for name in ours.keys() - {"seconds", "accuracy/train", "logprobs/both_fall"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4, rel=1e-4), name


def test_ipo_by_sums_is_another_loss_than_by_means(toy):
    sums, means = (read_metrics(toy.run("dpo", loss=loss, beta=0.5, epochs=1))[-1] for loss in ("ipo_sum", "ipo"))
    assert sums["loss/train"] != pytest.approx(means["loss/train"], rel=1e-2)


def test_the_nll_term_is_the_mean_over_answers_of_nats_a_token(toy):
    first = read_metrics(toy.run("dpo", loss="rpo", epochs=1))[0]
    assert first["loss/nll"] == pytest.approx(-first["logprobs/chosen_per_token"], abs=1e-6)
    assert first["loss/train"] == pytest.approx(math.log(2) + first["loss/nll"], abs=1e-3)
    half = read_metrics(toy.run("dpo", nll_weight=0.5, epochs=1))[0]
    assert half["loss/train"] == pytest.approx(math.log(2) + 0.5 * first["loss/nll"], abs=1e-3)


def test_bco_shifts_by_the_mean_reward_of_the_steps_before(toy):
    # One pair a step, so that the loss of a step follows from its two rewards and those of the steps before.
    rows = read_metrics(toy.run("dpo", loss="bco", batch_size=1, epochs=1, lr=1e-3, seed=8))
    rewards = [(0.1 * row["logprobs/chosen"], 0.1 * row["logprobs/rejected"]) for row in rows]
    for step in (0, 5, 23):
        before = [sum(pair) / 2 for pair in rewards[:step]]
        shift = sum(before) / len(before) if before else 0.0
        chosen, rejected = rewards[step]
        expected = math.log1p(math.exp(shift - chosen)) + math.log1p(math.exp(rejected - shift))
        assert rows[step]["loss/train"] == pytest.approx(expected, abs=1e-5)
    assert abs(shift) > 1e-3


def test_a_loss_that_starts_elsewhere_stops_the_run(toy, monkeypatch):
    broken = replace(LOSSES["ipo"], start=lambda k: 9.0)
    monkeypatch.setattr(preference_learner, "LOSSES", {**LOSSES, "ipo": broken})
    with pytest.raises(PreftuneError, match=r"^DPO step 1: the loss is 0\.2500 before anything was learned, where ipo starts at 9\.0000"):
        toy.run("dpo", loss="ipo", seed=9)


class Heard:
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        from preftune.progress import Silent

        self.notes: list[str] = []
        self.stage = Silent().stage

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_a_run_whose_chosen_and_rejected_both_fall_says_so_once_and_in_its_manifest(toy, loss):
    # Learning that the *unlikely* of two alike answers is better costs both: the model leaves what it used to say.
    heard = Heard()
    run = toy.run("dpo", loss=loss, lr=0.1, epochs=5, batch_size=8, whole=True, progress=heard, seed=10)
    said = [note for note in heard.notes if "both fall" in note]
    assert read_manifest(run)["warnings"] == said
    assert len(said) == 1
    assert "less likely than at the start" in said[0]


def test_a_run_that_raises_the_chosen_answers_says_nothing_of_falling(toy):
    heard = Heard()
    run = toy.run("dpo", loss="rpo", epochs=4, nll_weight=5.0, progress=heard, seed=11)
    assert read_manifest(run)["warnings"] == []
    assert not [note for note in heard.notes if "both fall" in note]


# What a loss learns from.


def test_a_loss_says_what_of_the_data_it_does_not_use(toy, rich):
    heard = Heard()
    run = toy.run("dpo", data=str(rich), epochs=1, progress=heard)
    assert read_manifest(run)["unused"] == {"ties": 24, "thumbs": 48}
    assert "Not used, as loss dpo learns nothing from them: 24 ties, 48 thumbs." in heard.notes
    assert read_manifest(run)["data"]["groups"] == 12 + 12 * 5  # 12 pairs, and those of 12 rankings whose two first are tied


def test_ties_thumbs_strengths_and_rankings_reach_the_losses_that_learn_from_them(rich):
    found = load_snapshot(rich)
    rows = {data: preferences_of(found, data, seed=0) for data in ("pairs", "strengths", "ties", "answers", "rankings")}
    assert {data: len(of.rows) for data, of in rows.items()} == {
        "pairs": 72, "strengths": 12, "ties": 72 + 24, "answers": 48 + 24 + 12 * 4 - 12, "rankings": 12 + 12,
    }  # fmt: skip
    assert rows["strengths"].unused["pairs of unknown strength"] == 60
    assert {row.strength for row in rows["strengths"].rows} == {1.0, 2.0, 3.0}
    assert sum(row.ranks == (1, 1) for row in rows["ties"].rows) == 24
    assert {row.ranks for row in rows["rankings"].rows} == {(1, 1, 2, 3), (1, 2)}


def test_kto_learns_from_thumbs_and_from_both_sides_of_pairs_each_side_weighing_the_same(rich):
    rows = preferences_of(load_snapshot(rich), "answers", seed=0).rows
    assert {(row.answers[0][0], row.desirable) for row in rows} == {("a", True), ("b", False)}
    up, down = (sum(row.weight for row in rows if row.desirable == side) for side in (True, False))
    assert up == pytest.approx(down)
    by_prompt = {text: {row.messages for row in rows if row.answers[0] == text} for text in ("a a a", "a a", "b b b", "b b")}
    assert all(
        any(row.answers[1] == text and asked != row.messages for text, all_asked in by_prompt.items() for asked in all_asked)
        for row in rows
    )


def test_kto_of_thumbs_alone_trains_and_without_bad_ones_is_a_sentence(toy, tmp_path):
    def thumbs(name, *words):
        prompts = [Prompt(messages=(Message(role="user", content=f"{word} {n}?"),)) for n, word in enumerate(words)]
        answers = [Candidate(prompt_id=p.id, text="a a" if p.text.startswith("up") else "b b") for p in prompts]
        said = [Judgement(prompt_id=c.prompt_id, ranking=((c.id,),), acceptable=(c.id,) * (c.text == "a a")) for c in answers]
        with Store.create(tmp_path / f"{name}.db") as store, store.writer() as writer:
            writer.add(prompts, answers, said)
        return str(snapshot(tmp_path / f"{name}.db", toy.folder / f"snapshots_{name}", held_out=0.0))

    rows = read_metrics(toy.run("dpo", loss="kto", data=thumbs("both", *["up", "down"] * 6), epochs=3))
    assert rows[0]["loss/train"] == pytest.approx(0.5, abs=1e-4)
    assert rows[-1]["loss/train"] < 0.48
    with pytest.raises(DataError, match="every answer is good. kto needs both: collect thumbs up and down, or pairs"):
        toy.run("dpo", loss="kto", data=thumbs("good", *["up"] * 6))
    with pytest.raises(DataError, match="no example is left to learn from"):
        toy.run("dpo", data=thumbs("both", *["up", "down"] * 6))


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ("odpo", "no pair says how clear it is. Take loss=dpo, or ask raters for strengths as well."),
        ("plackett_luce", "no ranking has three answers or more. Take loss=dpo, which is the same for pairs."),
    ],
)
def test_data_without_what_the_loss_learns_from_is_a_sentence(toy, loss, sentence):
    with pytest.raises(DataError, match=sentence):
        toy.run("dpo", loss=loss)


def test_a_tie_teaches_that_the_two_are_alike_and_its_share_is_told(toy, rich):
    rows = read_metrics(toy.run("dpo", loss="rao_kupper", data=str(rich), batch_size=96, epochs=1))
    assert rows[0]["ties/train"] == pytest.approx(24 / 96)
    # At equal odds a win costs −log σ(−log 3) = log 4 and a tie, at an even chance, log 2.
    assert rows[0]["loss/train"] == pytest.approx((72 * math.log(4) + 24 * math.log(2)) / 96, abs=1e-4)


@pytest.mark.parametrize("loss", ["kto", "plackett_luce", "davidson"])
def test_how_many_tokens_are_computed_at_once_changes_nothing_for_rows_of_any_kind(toy, rich, loss):
    small, large = (
        read_metrics(toy.run("dpo", loss=loss, data=str(rich), lr=1e-4, epochs=1, token_budget=budget)) for budget in (64, 8192)
    )
    for ours, theirs in zip(small, large, strict=True):
        for name in ours.keys() - {"seconds", "accuracy/train", "logprobs/both_fall"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4, rel=1e-4), name


# A reference that follows.


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "all weights"])
def test_after_a_hard_update_the_policy_is_its_own_reference(toy, whole):
    rows = read_metrics(toy.run("dpo", whole=whole, epochs=2, reference_update={"every": 3, "mix": 1.0}))
    assert [row["reference/updates"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert rows[2]["loss/train"] < 0.68
    for step in (0, 3, 6):  # the first after an update is a first step again; what is logged is still the way from the start
        assert rows[step]["loss/train"] == pytest.approx(math.log(2), abs=1e-4)
        assert rows[step]["margin/train"] == pytest.approx(0, abs=1e-3)
    assert abs(rows[3]["logprobs/rejected"]) > 0.1


def test_a_soft_update_goes_part_of_the_way(toy):
    soft = read_metrics(toy.run("dpo", epochs=2, reference_update={"every": 3, "mix": 0.5}))
    still = read_metrics(toy.run("dpo", epochs=2))
    assert 1e-3 < soft[3]["margin/train"] < still[3]["margin/train"]


def test_a_reference_that_would_never_move_is_refused(toy):
    with pytest.raises(ConfigError, match=r'key "reference_update.every": the reference moves every 8 steps, and the run has 8'):
        toy.run("dpo", epochs=2, reference_update={"every": 8})


# Settings.


def config(*words: str) -> preference_config.DPOConfig:
    return load_config(preference_config.DPOConfig, None, ["data=d", "model=m", *words], stage="dpo")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["loss=simp"], 'key "loss" is "simp": unknown. Did you mean "simpo"? There are dpo, cdpo, robust,'),
        (["loss=sigmoid"], 'key "loss" is "sigmoid": unknown. Did you mean "dpo"?'),
        (["loss=exo_pair"], 'Did you mean "exo"?'),
        (["gamma=1"], 'key "gamma" means nothing to loss "dpo", which takes beta, label_smoothing, nll_weight. Leave it out, or take'),
        (["loss=simpo", "reference_update.every=4"], 'key "reference_update" means nothing to loss "simpo", which has no reference.'),
        (["loss=kto", "nll_weight=1"], 'key "nll_weight" means nothing to loss "kto", which takes beta.'),
        (["loss=simpo", "label_smoothing=0.1"], 'key "label_smoothing" means nothing to loss "simpo"'),
        (["loss=exo", "label_smoothing=0"], 'key "label_smoothing" is 0, where loss "exo" is infinite. Give a small share, such as 0.01.'),
        (["loss=ld_dpo", "alpha=2"], 'key "alpha" is 2.0: loss "ld_dpo" weighs the longer answer\'s tail by it. Give 0 to 1.'),
        (["beta=0"], 'key "beta" is 0: Input should be greater than 0.'),
    ],
)  # fmt: skip
def test_what_a_loss_does_not_take_is_refused_with_what_it_does(words, sentence):
    with pytest.raises(ConfigError) as refused:
        config(*words)
    assert sentence in str(refused.value)


def test_keys_that_are_not_set_are_the_losss_own():
    assert (config("loss=simpo").settings.beta, config("loss=simpo").settings.gamma) == (2.0, 1.0)
    assert config("loss=simpo", "beta=2.5").settings.beta == 2.5
    assert config().settings.beta == 0.1
    assert config("loss=orpo").settings.nll_weight == 1.0
    assert math.isnan(config().settings.gamma)
