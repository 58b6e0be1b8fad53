"""The commands check and mine: what they print, write and leave with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import typer

from preftune._cli_check import app as check_app
from preftune._cli_mine import app as mine_app
from preftune._cli_output import run_app
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot

ROOT = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
ROOT.add_typer(check_app)
ROOT.add_typer(mine_app)
ROWS = [
    {"prompt": f"How do I sort the list number {n * 7} of {n}?", "chosen": f"sorted(items) # {n}", "rejected": f"items.sort({n})"}
    for n in range(40)
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store() -> Path:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    import_preferences(Path("rows.jsonl"), "store.db")
    return Path("store.db")


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = run_app(ROOT, list(words), debug=False)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("command", ["check", "mine"])
def test_the_help_has_an_example_and_fits_a_screen(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example: preftune {command}" in " ".join(out.split())
    assert len(out.splitlines()) <= 40


def test_check_tells_a_person_and_a_program_and_writes_a_page(capsys, store):
    code, out, err = run(capsys, "check")
    assert (code, out.splitlines()[0], out.splitlines()[-1]) == (0, "40 pairs on 40 prompts", "Next: preftune snapshot")
    assert "judgements: done, 40 judgements" in err
    code, out, _ = run(capsys, "check", "--json", "--html", "check.html")
    assert json.loads(out)["bias"]["by_looks"]["n"] == 40
    assert Path("check.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "NaN" not in out
    assert "Infinity" not in out


def test_check_finds_leaks_from_a_file_and_in_a_snapshot(capsys, store):
    Path("held.jsonl").write_text(json.dumps({"prompt": ROWS[3]["prompt"].upper()}) + "\n", encoding="utf-8")
    code, out, _ = run(capsys, "check", "--held-out", "held.jsonl")
    assert code == 0
    assert "Problem: 1 training prompt is nearly alike held-out ones" in out
    folder = snapshot(store, Path("snapshots"), held_out=0.3)
    code, out, _ = run(capsys, "check", "--snapshot", str(folder))
    assert code == 0
    assert "0 training prompts are nearly alike held-out ones" in out
    assert out.endswith(f"Next: preftune train dpo data={folder}\n")
    assert run(capsys, "check", "--snapshot", str(folder), "--store", "store.db")[0] == 2
    Path("held.jsonl").write_text('{"prompt": 3}\n', encoding="utf-8")
    code, _, err = run(capsys, "check", "--held-out", "held.jsonl")
    assert code == 2
    assert "held.jsonl line 1" in err


def test_check_without_a_store_or_tokenizer_says_so(capsys, tmp_path):
    assert run(capsys, "check")[0] == 2
    code, _, err = run(capsys, "check", "--tokenizer", "none", "--store", "none.db")
    assert code == 2
    assert "none" in err


@pytest.fixture
def repository() -> Path:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", "repo", "-c", "user.name=A", "-c", "user.email=a@b.dev", *words], check=True, capture_output=True)

    Path("repo").mkdir()
    git("init", "--quiet")
    for n, message in enumerate(("Add f", "Review: say what it is")):
        Path("repo/f.py").write_text(f'def f(x):\n    """Return x and {n}."""\n    y = x + {n}\n    return y\n', encoding="utf-8")
        git("add", ".")
        git("commit", "--quiet", "-m", message)
    return Path("repo")


def test_mine_fills_the_projects_store_and_can_be_tried_first(capsys, repository):
    code, out, _ = run(capsys, "mine", "repo", "--dry-run")
    assert code == 0
    assert "1 pair from 1 changed function (1 mined:code)" in out
    assert out.endswith("Nothing was stored (--dry-run).\n")
    assert not Path("store.db").exists()
    code, out, _ = run(capsys, "mine", "repo")
    assert (code, out.splitlines()[-1]) == (0, "Next: preftune check")
    assert f"  made a new store: {Path('store.db').resolve()}" in out.splitlines()
    assert "made a" not in run(capsys, "mine", "repo")[1]
    assert run(capsys, "check")[1].startswith("1 pair on 1 prompt\n1 demonstration\n")


def test_mine_writes_a_file_and_json(capsys, repository):
    code, out, _ = run(capsys, "mine", "repo", "--out", "mined.jsonl", "--json", "--all-commits")
    assert code == 0
    assert (json.loads(out)["pairs"], json.loads(out)["written"]) == (1, "mined.jsonl")
    assert not Path("store.db").exists()
    assert len(Path("mined.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_mine_says_what_it_is_about_to_run_and_refuses_wrong_use(capsys, repository):
    code, _, err = run(capsys, "mine", "repo", "--dry-run", "--run-tests", "true")
    assert code == 0
    assert "--run-tests runs code of repo, with your rights: true" in err
    assert run(capsys, "mine", "nowhere")[0] == 2
    assert run(capsys, "mine", "repo", "--exclude-author", "A", "--dry-run")[1].startswith("repo at ")
    assert run(capsys, "mine")[0] == 2
