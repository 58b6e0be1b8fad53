"""One adapter at several strengths: run folders that every other command takes, a choice, a page; and held-out preference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from preftune.cli import main
from preftune.data.batches import Group
from preftune.data.snapshot import load_snapshot
from preftune.errors import ConfigError, DataError
from preftune.evaluate import run as evaluation
from preftune.evaluate.preference import measure_preference, read_preference
from preftune.evaluate.run import Size
from preftune.manifest import read_manifest
from preftune.models.load import load_causal_lm
from preftune.release.export import release
from preftune.tuning.strengths import read_scale, scale, scaled_run

TINY = Size(prompts=4, max_new_tokens=16, facts=12, texts=2, functions=1)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(evaluation, "SIZES", {"small": TINY})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_causal_lm(path, dtype=torch.float32).state_dict()


def test_a_scaled_run_is_a_run_of_the_same_kind_that_points_to_where_it_came_from(toy):
    run = toy.run("dpo")
    half = scaled_run(run, 0.5)
    manifest = read_manifest(half)
    assert half.parent == run.parent
    assert manifest["kind"] == "dpo"
    assert (manifest["config"]["run"], manifest["config"]["strength"]) == (f"runs/{run.name}", 0.5)
    assert manifest["inputs"]["run"] == read_manifest(run)["id"]
    assert manifest["inputs"]["model"] == read_manifest(run)["inputs"]["model"]
    assert scaled_run(run, 0.5) == half
    assert scaled_run(run, 1) == run


def test_its_weights_lie_half_way_between_the_base_and_the_run(toy):
    run = toy.run("dpo")
    before, after, half = weights(toy.base), weights(run), weights(scaled_run(run, 0.5))
    for name, value in half.items():
        torch.testing.assert_close(value, (before[name] + after[name]) / 2, rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in weights(scaled_run(run, 0.0)).items())


def test_a_run_without_an_adapter_and_one_that_is_scaled_already_are_refused(toy):
    with pytest.raises(ConfigError, match="this run has no adapter"):
        scaled_run(toy.run("sft", whole=True), 0.5)
    run = toy.run("dpo")
    with pytest.raises(ConfigError, match=f"this run is runs/{run.name} at strength 0.5. Scale runs/{run.name}"):
        scaled_run(scaled_run(run, 0.5), 0.5)


def test_preference_is_that_of_the_implicit_reward_on_the_held_out_pairs(toy):
    run = toy.run("dpo")
    told = read_preference(measure_preference(run, toy.data, reference=toy.base, out=toy.folder / "reports"))
    held_out = load_snapshot(toy.data).held_out
    assert sorted(row["pair"] for row in told["rows"]) == list(range(len(held_out)))
    assert told["accuracy"]["value"] > 0.9  # the planted preference was learned
    assert told["accuracy"]["n"] == len(held_out)
    # The margin of one pair, token by token from plain logits.
    from preftune.evaluate.subject import Subject

    row = told["rows"][0]
    pair = held_out[row["pair"]]
    expected = 0.0
    for sign, text in ((1, pair.chosen), (-1, pair.rejected)):
        for path, factor in ((run, 1), (toy.base, -1)):
            subject = Subject(path)
            group = Group(tuple(subject.renderer.prompt_ids(pair.messages)), (tuple(subject.renderer.completion_ids(text)),), 0)
            ids = torch.tensor([[*group.prompt, *group.completions[0]]])
            with torch.no_grad():
                logprobs = subject.model(ids).logits[0].log_softmax(-1)
            start = len(group.prompt)
            expected += sign * factor * sum(float(logprobs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
    assert row["margin"] == pytest.approx(expected, abs=1e-3)
    assert row["right"] == float(expected > 0)


def test_a_reference_prefers_neither_and_its_scaled_run_at_0_neither(toy):
    out = toy.folder / "reports"
    itself = read_preference(measure_preference(toy.base, toy.data, reference=toy.base, out=out))
    assert itself["accuracy"] is None
    off = read_preference(measure_preference(scaled_run(toy.run("dpo"), 0.0), toy.data, reference=toy.base, out=out))
    assert off["accuracy"]["value"] == 0.5
    assert off["margin"]["value"] == 0


def test_fewer_pairs_are_the_same_for_every_model_and_none_is_a_sentence(toy, make_snapshot, tmp_path):
    out = toy.folder / "reports"
    few = [
        [row["pair"] for row in read_preference(measure_preference(model, toy.data, reference=toy.base, pairs=3, out=out))["rows"]]
        for model in (toy.base, toy.run("dpo"), toy.run("sft"))
    ]
    assert len(few[0]) == 3
    assert few[0] == few[1] == few[2]
    data = make_snapshot(tmp_path, [{"prompt": "Hi.", "chosen": "a", "rejected": "b"}], held_out=0.0)
    with pytest.raises(DataError, match="the snapshot holds 0 pairs out, which show no preference"):
        measure_preference(toy.base, data, reference=toy.base, out=out)


def test_the_sweep_measures_every_strength_and_chooses_an_allowed_one(toy):
    run = toy.run("dpo")
    folder = scale(run, toy.data, base=toy.base, strengths=[1.5, 0.5, 1.0], by="preference", out=toy.folder / "reports")
    told = read_scale(folder)
    assert [p["strength"] for p in told["points"]] == [0.5, 1.0, 1.5]
    assert told["points"][1]["run"] == f"runs/{run.name}"
    assert all((toy.folder / p[key] / "manifest.json").exists() for p in told["points"] for key in ("run", "evaluation", "preference"))
    kls = [p["kl"]["value"] for p in told["points"]]
    assert kls[0] < kls[2]
    chosen = next(p for p in told["points"] if p["run"] == told["chosen"])
    assert chosen["retention"]["overall"] != "lost"
    assert chosen["gain"]["value"] == pytest.approx(chosen["accuracy"]["value"] - 0.5)
    page = (folder / "scale.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert f"Strength {chosen['strength']:g} is chosen" in page
    assert "<script" not in page
    assert read_manifest(folder)["inputs"]["run"] == read_manifest(run)["id"]


def test_the_command_prints_the_table_and_its_choice_can_be_released(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy.folder)
    run = toy.run("dpo")
    with pytest.raises(SystemExit) as leaving:
        main(["scale", str(run), "--by", "preference", "--strengths", "0.5,1"])
    out, err = capsys.readouterr()
    assert leaving.value.code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["strength", "held-out"]
    assert [line.split()[0] for line in lines[1:3]] == ["0.5", "1"]
    assert "is chosen: held-out preference won" in lines[3]
    chosen = Path(lines[-1].rpartition("preftune release ")[2])
    with pytest.raises(SystemExit) as leaving:
        main(["release", str(chosen), "--override", "This is a test."])
    out, err = capsys.readouterr()
    assert leaving.value.code == 0, err
    assert out.startswith("releases/")


def test_a_scaled_run_is_released_with_its_strength_on_the_card(toy, tmp_path):
    half = scaled_run(toy.run("dpo"), 0.5)
    measured = evaluation.evaluate(half, toy.data, base=toy.base, out=toy.folder / "reports", size="small")
    folder = release(half, measured, toy.folder / "releases", override="This is a test.")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "strength: 0.5" in card
    assert toy.run("dpo").name in card


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strengths": []}, "Give different ones of 0 or more"),
        ({"strengths": [0.5, 0.5]}, "the strengths are 0.5, 0.5"),
        ({"strengths": [-1.0]}, "the strengths are -1.0"),
        ({"by": "luck"}, '"luck" is nothing that can be won. Use one of: style, score, preference'),
        ({"by": "score"}, "no reward model is given"),
    ],
)
def test_what_cannot_be_swept_is_a_sentence_before_anything_is_written(toy, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        scale(toy.run("dpo"), toy.data, base=toy.base, out=toy.folder / "nothing", **options)
    assert not (toy.folder / "nothing").exists()


def test_a_list_of_strengths_that_is_none_leaves_with_2(toy, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["scale", str(toy.run("dpo")), "--strengths", "half"])
    assert leaving.value.code == 2
    assert '"half" is no list of numbers' in capsys.readouterr().err


def test_json_holds_the_choice(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy.folder)
    with pytest.raises(SystemExit):
        main(["scale", str(toy.run("dpo")), "--by", "preference", "--strengths", "0.5,1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["chosen"] in {p["run"] for p in told["points"]}
