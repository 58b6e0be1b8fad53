"""Mistakes that a stranger makes with the commands of the tutorial: each is a sentence with what, where and what to do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from preftune.cli import main
from preftune.data.feedback import by_kind
from preftune.data.store import Store

PORT = {"serve": ("--port", "0"), "evaluate": ()}  # port 0: any free one


@pytest.fixture
def project(toy, tmp_path, monkeypatch):
    made = toy.copy(tmp_path, toy.run("reward"), toy.run("dpo"))
    Store.create(tmp_path / "store.db").close()
    monkeypatch.chdir(tmp_path)
    return made


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the sentence that a command fails with."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_snapshot_without_data_before_it_is_told_apart_from_a_config_file(project, capsys):
    folder = os.path.relpath(project.data)
    told = said(capsys, "train", "dpo", folder)
    assert told.startswith(f"Error: {folder}: this is a folder where a config file or key=value is expected.")
    assert told.endswith(f" Say what it is: data={folder} or model={folder}.")


@pytest.mark.parametrize("words", [["release", "runs/none"], ["evaluate", "runs/none", "--data", "none"], ["report", "none"]])
def test_a_folder_that_is_not_there_is_said_to_be_not_there(project, capsys, words):
    assert "there is no such" in said(capsys, *words)


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(project, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = said(capsys, "serve", project.base, "--port", port)
    assert told == f"Error: 127.0.0.1:{port}: port {port} cannot be used (address already in use). Give another by --port."


def test_what_writes_no_answers_is_neither_served_nor_evaluated(project, capsys):
    reward = next(run for run in project.out.iterdir() if '"reward"' in (run / "manifest.json").read_text(encoding="utf-8"))
    for command in ("serve", "evaluate"):
        assert "a reward model, which scores answers and writes none" in said(capsys, command, reward, *PORT[command])
    assert "this folder is a snapshot and no model" in said(capsys, "serve", project.data, *PORT["serve"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=nowhere"], "Error: nowhere: there is no such model. Give model=PATH"),
        (["model=base", "--reward-model", "nowhere"], "Error: nowhere: this is no run of train reward."),
        (["model=base", "--reward-model", "base"], "Error: base: "),
    ],
)
def test_a_loop_that_could_not_end_is_not_said_to_be_ready(project, capsys, words, told):
    assert said(capsys, "loop", *words, "--dry-run").startswith(told)
    assert not Path("loops").exists()


def test_a_project_made_here_asks_for_no_change_of_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["init", "."])
    assert left.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == ". is ready. Next: preftune import FILE"


def test_words_of_users_are_counted_in_words():
    assert by_kind({"edit": 24, "thumb": 1, "better": 0}) == "24 edits, 1 thumb"
    assert by_kind({"better": 2}) == "2 comparisons of two"
    assert by_kind({}) == ""
