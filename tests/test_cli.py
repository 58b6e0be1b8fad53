"""The command line: help, exit codes, errors as sentences, results that programs can read."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preftune import project
from preftune._cli_inputs import evaluation_of
from preftune.cli import main
from preftune.errors import ConfigError, DataError, PreftuneError, Refused, Stopped
from preftune.manifest import hash_folder, write_json
from preftune.stages.kinds import Stage, base_under, input_of, stage_functions

COMMANDS = (
    "demo init import mine sample pick label check advise snapshot export plan train evaluate compare probe tune scale report release "
    "serve feedback loop config"
).split()
GOOD = {"prompt": "Sort a list.", "chosen": "sorted(items)", "rejected": "items.sort()"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Run a command in this process and return (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    code = leaving.value.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


def rows(path: str, *records: dict | str) -> str:
    Path(path).write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


def fails_with(monkeypatch, error: BaseException) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr(project, "init_project", fail)


def test_the_help_lists_every_command_and_no_other(capsys):
    code, out, _ = run(capsys, "--help")
    listed = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert code == 0
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_fits_a_screen(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example: preftune {command}" in " ".join(out.split())
    assert len(out.splitlines()) <= 40


@pytest.mark.slow
def test_help_loads_little_since_what_a_command_needs_is_loaded_by_it():
    helped = "from preftune.cli import main\ntry:\n main(['--help'])\nexcept SystemExit:\n print(*set(sys.modules) - before)"
    code = "import sys\nbefore = set(sys.modules)\n" + helped
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = out.splitlines()[-1].split()
    assert not {"torch", "pydantic", "sqlalchemy", "yaml", "asyncio"} & set(loaded)
    assert len(loaded) < 180  # a third of a second or so; the time itself is the machine's


def test_no_command_shows_the_help(capsys):
    code, out, err = run(capsys)
    assert code == 2
    assert "Commands:" in out + err


def test_an_unknown_command_is_refused_with_the_nearest_right_one(capsys):
    code, _, err = run(capsys, "trian")
    assert code == 2
    assert "Did you mean 'train'?" in err


@pytest.mark.parametrize("words", [["init"], ["init", "a", "b"], ["train", "nothing"], ["demo", "--seed", "x"], ["check", "--no-such"]])
def test_wrong_use_leaves_with_2(capsys, words):
    assert run(capsys, *words)[0] == 2


def test_the_version_is_printed(capsys):
    assert run(capsys, "--version")[:2] == (0, "0.1.0\n")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (PreftuneError("it broke", "here", "Mend it."), 1, "Error: here: it broke. Mend it.\n"),
        (DataError("all is empty", "x.jsonl line 3"), 2, "Error: x.jsonl line 3: all is empty.\n"),
        (Refused("retention was not proved"), 1, "Error: retention was not proved.\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "Error: /x: permission denied. Nothing that was written before is lost.\n",
        ),
        (
            KeyError("oops"),
            1,
            "Error: This is a fault in preftune: KeyError: 'oops'. Run it again with --debug to see where, and report it.\n",
        ),
        (Stopped("stopped by SIGTERM after step 3 of 9, and saved", "SFT"), 0, "\nSFT: stopped by SIGTERM after step 3 of 9, and saved.\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted. Nothing is lost: run the same command again to go on.\n"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_with_its_exit_code(capsys, monkeypatch, error, code, sentence):
    fails_with(monkeypatch, error)
    assert run(capsys, "init", "x") == (code, "", sentence)


@pytest.mark.parametrize("words", [["--debug", "init", "x"], ["init", "x", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(capsys, monkeypatch, words):
    fails_with(monkeypatch, DataError("broken"))
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.endswith("Error: broken.\n")


def test_init_makes_a_project_and_leaves_what_is_there(capsys):
    assert run(capsys, "init", "p")[0] == 0
    assert sorted(path.name for path in Path("p").iterdir()) == ["guidelines.md", "preftune.yaml", "store.db"]
    Path("p/preftune.yaml").write_text("store: other.db\n")
    code, out, _ = run(capsys, "init", "p")
    assert (code, out.splitlines()[0]) == (0, "made p/other.db")
    assert Path("p/preftune.yaml").read_text() == "store: other.db\n"


def test_a_project_file_with_an_unknown_key_is_refused(capsys):
    Path("preftune.yaml").write_text("stor: other.db\n")
    code, _, err = run(capsys, "check")
    assert code == 2
    assert 'preftune.yaml: key "stor" is unknown. Did you mean "store"?' in err


def test_import_stores_good_rows_and_a_second_time_adds_nothing(capsys):
    file = rows("p.jsonl", GOOD)
    code, out, err = run(capsys, "import", file)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "Next: preftune check"
    assert f"  made a new store: {Path('store.db').resolve()}" in out.splitlines()
    assert "made a" not in run(capsys, "import", file)[1]
    told = json.loads(run(capsys, "import", file, "--json")[1])["imports"][0]
    assert (told["rows"], told["new"], told["already_there"]) == (1, 0, 1)


def test_import_sets_bad_rows_aside_keeps_the_good_ones_and_leaves_with_2(capsys):
    file = rows("p.jsonl", GOOD, '{"prompt": "cut', {**GOOD, "rejected": GOOD["chosen"]}, {**GOOD, "prompt": "Other.", "chosen": ""})
    code, out, err = run(capsys, "import", file, "--json")
    assert code == 2
    assert err == "3 of 4 rows were set aside; the others were read.\n"
    told = json.loads(out)["imports"][0]
    assert told["new"] == 1
    assert sum(told["set_aside"].values()) == 3
    aside = [json.loads(line) for line in Path(told["set_aside_file"]).read_text().splitlines()]
    assert [row["line"] for row in aside] == [2, 3, 4]


def test_a_dry_run_of_import_stores_nothing(capsys):
    code, out, _ = run(capsys, "import", rows("p.jsonl", GOOD), "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "Nothing was stored (--dry-run).")
    assert not Path("store.db").exists()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\x00\x00", b"not json at all\n"])
def test_a_file_that_is_no_data_is_refused_with_a_sentence(capsys, content):
    Path("x.jsonl").write_bytes(content)
    code, out, err = run(capsys, "import", "x.jsonl")
    assert (code, out) == (2, "")
    assert err.startswith("Error: x.jsonl")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "snapshot"])
def test_a_missing_store_is_refused_with_a_sentence(capsys, command):
    code, _, err = run(capsys, command)
    assert code == 2
    assert "store.db" in err


def test_check_tells_a_person_and_a_program(capsys):
    run(capsys, "import", rows("p.jsonl", *({**GOOD, "prompt": f"Task {i}: sort list {i * 7919}."} for i in range(12))))
    code, out, _ = run(capsys, "check")
    assert (code, out.splitlines()[-1]) == (0, "Next: preftune snapshot")
    assert json.loads(run(capsys, "check", "--json")[1])["pairs"] == 12


def test_snapshot_says_where_it_is_and_what_comes_next_and_finds_itself_again(capsys):
    run(capsys, "import", rows("p.jsonl", *({**GOOD, "prompt": f"Task {i}: sort list {i * 7919}."} for i in range(12))))
    first = json.loads(run(capsys, "snapshot", "--held-out", "0.25", "--json")[1])
    assert first["already_there"] is False
    assert first["next"] == f"preftune train dpo data={first['path']}"
    code, out, _ = run(capsys, "snapshot", "--held-out", "0.25")
    assert (code, out) == (0, f"already there: {first['path']}. Next: {first['next']}\n")


def project_with_a_snapshot(capsys) -> str:
    """Make a project here with 12 pairs, and return its snapshot."""
    pairs = ({**GOOD, "prompt": f"Task {i}: sort list {i * 7919}."} for i in range(12))
    run(capsys, "init", ".")
    run(capsys, "import", rows("p.jsonl", *pairs))
    return json.loads(run(capsys, "snapshot", "--held-out", "0.25", "--json")[1])["path"]


def test_config_prints_yaml_to_start_from_and_a_schema_for_editors(capsys):
    code, out, _ = run(capsys, "config", "dpo")
    assert code == 0
    assert '\nloss: "dpo"\n' in out
    schema = json.loads(run(capsys, "config", "dpo", "--json-schema")[1])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["lr"]["exclusiveMinimum"] == 0


@pytest.mark.parametrize("stage", list(Stage))
def test_a_stage_has_few_keys_and_each_is_described(stage):
    keys = stage_functions(stage).config.model_fields
    # What learns from its own samples has more to say of them; PPO's published details are switches too (docs/ppo.md).
    assert len(keys) <= {Stage.ppo: 37, Stage.grpo: 29}.get(stage, 26)  # async_checkpoints is one of each (decision 22)
    assert all(field.description for field in keys.values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dpo", "data=d", "model=m", "learning_rate=1"], 'the command line: key "learning_rate" is unknown. Did you mean "lr"?'),
        (
            ["ppo", "data=d", "model=m", "reward_model=r", "top_p=0.9"],
            'the command line: key "top_p" is refused: a policy has to learn from',
        ),
        (["dpo", "none.yaml"], "none.yaml: there is no such file."),
        (["dpo", "data=d", "model=m", "beta=0"], 'key "beta" is 0: Input should be greater than 0.'),
        (["dpo", "data=no-such", "model=m"], 'key "data": there is no "no-such".'),
        (["dpo", "data=d"], 'key "model" is needed and missing.'),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(capsys, words, sentence):
    code, out, err = run(capsys, "train", *words)
    assert (code, out) == (2, "")
    assert sentence in err


@pytest.mark.slow
def test_a_stage_is_planned_trained_found_again_and_not_resumed(capsys, tiny_model_folder):
    data = project_with_a_snapshot(capsys)
    Path("preftune.yaml").write_text(f"model: {tiny_model_folder}\n")
    Path("sft.yaml").write_text(f"data: {data}\nbatch_size: 4\n")
    words = ["train", "sft", "sft.yaml", "lr=1e-3"]

    code, out, err = run(capsys, *words, "--dry-run", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["config"]["lr"], told["config"]["batch_size"], told["config"]["model"]) == (1e-3, 4, str(tiny_model_folder))
    assert told["plan"]["steps"] >= 1
    code, out, err = run(capsys, *words, "--dry-run")
    assert (code, out.startswith("sft: ")) == (0, True)
    assert err == "Loading the model and timing a micro-batch of the data; this can take a minute.\n"
    assert not list(Path("runs").glob("*"))

    code, _, err = run(capsys, *words, "--resume")
    assert code == 2
    assert "runs: there is no unfinished sft run. Leave --resume out to start one." in err

    code, out, err = run(capsys, *words)
    trained = out.split()[0]
    assert code == 0
    assert (Path(trained) / "manifest.json").exists()
    assert out.endswith(f"Next: preftune train dpo model={trained} data={data}\n")
    assert "SFT: done" in err

    for again in (words, [*words, "--resume"]):
        code, out, _ = run(capsys, *again)
        assert (code, out.split(". Next")[0]) == (0, f"already there: {trained}")


@pytest.mark.slow
def test_an_unfinished_run_is_resumed(capsys, tiny_model_folder, monkeypatch):
    from preftune.training import loop

    data = project_with_a_snapshot(capsys)
    words = ["train", "sft", f"data={data}", f"model={tiny_model_folder}", "batch_size=2"]
    logged = loop.Loop.log

    def interrupted(self, step, metrics):
        logged(self, step, metrics)
        if step == 1:
            self.save(step + 1)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "log", interrupted)
    assert run(capsys, *words)[0] == 130
    monkeypatch.setattr(loop.Loop, "log", logged)
    code, _, err = run(capsys, *words, "lr=1e-3", "adapter.rank=4", "--resume")
    assert code == 2
    assert "the unfinished sft run was begun with other settings: adapter.rank is 16 there and 4 here; lr is 0.0002" in err
    code, _, err = run(capsys, *words, "--resume")
    assert code == 0
    assert "2 done before" in err


def test_the_base_of_a_run_is_the_model_before_any_tuning(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    for name, below in (("sft", "base"), ("dpo", "runs/sft")):
        run_folder = tmp_path / "runs" / name
        run_folder.mkdir(parents=True)
        inputs = {"model": hash_folder(tmp_path / below)}
        write_json(run_folder / "manifest.json", {"id": name, "inputs": inputs, "config": {"model": below, "data": "snapshots/x"}})
    assert base_under(tmp_path / "runs" / "dpo") == base
    assert input_of(tmp_path / "runs" / "dpo", "data", "--data") == tmp_path / "snapshots" / "x"
    with pytest.raises(ConfigError, match="Give --data"):
        input_of(base, "data", "--data")


def test_a_release_takes_the_newest_evaluation_of_its_run(tmp_path):
    write_json_in(tmp_path / "runs" / "r", {"id": "r"})
    with pytest.raises(ConfigError, match="Run preftune evaluate .*runs/r first"):
        evaluation_of(tmp_path / "runs" / "r", tmp_path / "reports")
    kinds = [("old", "evaluation", "r"), ("new", "evaluation", "r"), ("above", "evaluation", "s"), ("pairs", "preference", "r")]
    for at, (name, kind, run_id) in enumerate(kinds):
        folder = write_json_in(tmp_path / "reports" / name, {"id": name, "kind": kind, "inputs": {"model": run_id, "base": "r"}})
        os.utime(folder / "manifest.json", (at, at))
    assert evaluation_of(tmp_path / "runs" / "r", tmp_path / "reports").name == "new"


def write_json_in(folder: Path, manifest: dict) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest)
    return folder
