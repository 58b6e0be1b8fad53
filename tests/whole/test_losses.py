"""`preftune train dpo loss=…`: every loss starts where it should, learns what was planted, and refuses keys that mean nothing to it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from preftune.config import load_config
from preftune.data.batches import collate, encode
from preftune.data.snapshot import load_snapshot
from preftune.errors import ConfigError, PreftuneError
from preftune.losses.reduce import sequence_sum
from preftune.manifest import read_manifest
from preftune.models.load import batch_logprobs, load_causal_lm, load_renderer
from preftune.stages import preference
from preftune.stages.common import pair_items
from preftune.stages.preference_losses import LOSSES, LossName
from preftune.training.loop import read_metrics
from preftune.training.metrics import METRICS

EVERY = sorted(LOSSES)
# Where each starts with its own keys, worked out by hand: log-ratios 0 in the formula of its paper.
STARTS = {
    **dict.fromkeys(("dpo", "cdpo", "robust", "dpop", "ln_dpo", "ld_dpo", "aot"), math.log(2)),
    "ipo": 0.25, "ipo_sum": 25.0, "hinge": 1.0, "bco": 2 * math.log(2), "apo_zero": 1.0, "apo_down": 1.0,
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


@pytest.mark.parametrize("loss", EVERY)
def test_every_loss_starts_where_it_should_and_learns_the_planted_preference(toy, loss):
    run = toy.run("dpo", loss=loss, seed=5)
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
    monkeypatch.setattr(preference, "reference_logprobs", None)
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
    monkeypatch.setattr(preference, "LOSSES", {**LOSSES, "ipo": broken})
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


# Settings.


def config(*words: str) -> preference.DPOConfig:
    return load_config(preference.DPOConfig, None, ["data=d", "model=m", *words], stage="dpo")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["loss=simp"], 'key "loss" is "simp": unknown. Did you mean "simpo"? There are dpo, cdpo, robust,'),
        (["loss=sigmoid"], 'key "loss" is "sigmoid": unknown. Did you mean "dpo"?'),
        (["loss=exo_pair"], 'Did you mean "exo"?'),
        (["gamma=1"], 'key "gamma" means nothing to loss "dpo", which takes beta, label_smoothing, nll_weight. Leave it out, or take'),
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
