"""A search over settings: each trial an ordinary run, the better settings win, and an interrupted search goes on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from preftune.cli import main
from preftune.config import load_config
from preftune.data.snapshot import load_snapshot
from preftune.data.snapshot_share import share_of
from preftune.errors import ConfigError, DataError, PreftuneError
from preftune.evaluate import run as evaluation
from preftune.evaluate.run import Size
from preftune.manifest import read_manifest
from preftune.stages import preference, preference_config
from preftune.tuning import search
from preftune.tuning.search import Grid, read_tune, tune_dpo

TINY = Size(prompts=4, max_new_tokens=12, facts=12, texts=2, functions=1)
GRID = Grid(beta=(0.1,), lr=(1e-9, 1e-2), epochs=(1, 2))  # with 1e-9 nothing is learned


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(evaluation, "SIZES", {"small": TINY})
    monkeypatch.setattr(search, "LEAST_STEPS", 1)


def searched(toy, **options) -> Path:
    config = toy.config("dpo", batch_size=4)
    options = {"base": toy.base, "grid": GRID, "out": toy.out, "reports": toy.folder / "reports", **options}
    return tune_dpo(config, **options)


def test_a_share_of_a_snapshot_lies_within_a_larger_one_and_keeps_all_else(toy):
    whole = load_snapshot(toy.data)
    small, large = (load_snapshot(share_of(toy.data, share, seed=0)) for share in (0.25, 0.5))
    assert len(small.train) == round(0.25 * len(whole.train))
    assert len(large.train) == round(0.5 * len(whole.train))
    assert [p for p in large.train if p in small.train] == small.train
    assert [p for p in whole.train if p in large.train] == large.train
    assert small.held_out == whole.held_out
    assert small.held_out_prompts == whole.held_out_prompts
    assert small.manifest["counts"]["train"]["pairs"] == len(small.train)
    assert small.manifest["inputs"]["snapshot"] == whole.manifest["id"]
    assert share_of(toy.data, 1, seed=0) == toy.data
    with pytest.raises(DataError, match=r"the share is 1\.5"):
        share_of(toy.data, 1.5, seed=0)


def test_what_learns_goes_on_and_is_chosen_and_its_config_is_its_run(toy):
    folder = searched(toy)
    told = read_tune(folder)
    assert [(rung["trials"], round(rung["share"], 3)) for rung in told["ladder"]] == [(4, 0.333), (2, 1.0)]
    assert len(told["trials"]) == 4
    last = [trial for trial in told["trials"] if len(trial["rungs"]) == 2]
    assert [trial["settings"]["lr"] for trial in last] == [1e-2, 1e-2]
    assert all(trial["retention"] in ("kept", "lost", "not proved") and trial["kl"]["value"] >= 0 for trial in last)
    assert told["settings"] in [trial["settings"] for trial in last]
    for trial in told["trials"]:
        for rung in trial["rungs"]:
            assert read_manifest(toy.folder / rung["run"])["kind"] == "dpo"
    config = load_config(preference_config.DPOConfig, folder / "config.yaml")
    assert toy.folder / told["run"] == preference.run(config, toy.out)  # found, not trained again
    assert not (folder / "plan.json").exists()


def test_an_interrupted_search_goes_on_and_trains_nothing_twice(toy, monkeypatch, tmp_path):
    there = toy.copy(tmp_path / "project")
    trained: list[str] = []
    original = preference.run

    def counted(config, out, *, progress=None):
        trained.append(config.model_dump_json())
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(config, out, progress=progress)

    monkeypatch.setattr(search.preference, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        searched(there)
    assert not list((there.folder / "reports").glob("*/tune.json"))
    before = {path.parent.name: path.stat().st_mtime_ns for path in there.out.glob("*/manifest.json")}
    first = read_tune(searched(there))
    assert {path.parent.name: path.stat().st_mtime_ns for path in there.out.glob("*/manifest.json")}.items() >= before.items()
    second = read_tune(searched(toy))
    unlike = ("seconds",)
    assert {k: v for k, v in first.items() if k not in unlike} == {k: v for k, v in second.items() if k not in unlike}


def test_a_trial_whose_loss_runs_away_is_out_and_other_errors_are_raised(toy, monkeypatch, tmp_path):
    there = toy.copy(tmp_path / "project")
    original = preference.run

    def broken(config, out, *, progress=None):
        if config.lr == 1e-2 and config.epochs == 2:
            raise PreftuneError("the loss is nan on rows 1", "DPO step 3", "Lower lr.")
        return original(config, out, progress=progress)

    monkeypatch.setattr(search.preference, "run", broken)
    told = read_tune(searched(there))
    failed = [trial for trial in told["trials"] if trial["failed"]]
    assert [trial["settings"]["epochs"] for trial in failed] == [2]
    assert "the loss is nan" in failed[0]["failed"]
    assert told["settings"] == {"beta": 0.1, "lr": 1e-2, "epochs": 1}

    def no_data(config, out, *, progress=None):
        raise DataError("there is no data", "here", "Bring some.")

    monkeypatch.setattr(search.preference, "run", no_data)
    with pytest.raises(DataError, match="there is no data"):
        searched(there, held_out_pairs=3)


def test_a_budget_in_minutes_pays_for_fewer_trials(toy):
    told = read_tune(searched(toy, minutes=1e-9))
    assert len(told["trials"]) == 1
    assert told["left_untried"] == 3


def test_the_order_of_the_trials_is_the_seeds_alone():
    grid = Grid()
    assert grid.settings(0) == grid.settings(0)
    assert grid.settings(0) != grid.settings(1)
    assert len({tuple(s.values()) for s in grid.settings(0)}) == math.prod(len(v) for v in (grid.beta, grid.lr, grid.epochs))


def test_nothing_to_try_and_a_value_out_of_bounds_are_refused_before_anything_is_written(toy):
    for options in ({"grid": Grid(lr=())}, {"trials": 0}):
        with pytest.raises(ConfigError, match=r"Give 1 or more of each"):
            searched(toy, reports=toy.folder / "nothing", **options)
    with pytest.raises(ConfigError, match="greater than 0"):
        searched(toy, reports=toy.folder / "nothing", grid=Grid(lr=(-1.0,)))
    assert not (toy.folder / "nothing").exists()


def test_the_command_prints_the_table_and_the_config(toy, capsys, monkeypatch):
    monkeypatch.chdir(toy.folder)
    words = ["adapter.rank=8", "batch_size=4", "--beta", "0.1", "--lr", "1e-9,1e-2", "--epochs", "1,2", "--trials", "4"]
    with pytest.raises(SystemExit) as leaving:
        main(["tune", "dpo", f"data={toy.data}", f"model={toy.base}", *words])
    out, err = capsys.readouterr()
    assert leaving.value.code == 0, err
    assert out.splitlines()[0].split()[:3] == ["beta", "lr", "epochs"]
    printed = yaml.safe_load(out[out.index("data:") : out.rindex("reports/")])
    assert (printed["beta"], printed["lr"]) == (0.1, 1e-2)
    assert "Next: preftune scale runs/" in out
