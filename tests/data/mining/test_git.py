"""A repository is read as data: nothing of it runs, whatever its settings and attributes say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from preftune.data.mining.git import Change, Repository, commit_from, git_environment
from preftune.errors import DataError


def test_nothing_that_a_repositorys_settings_name_is_run(repo, tmp_path):
    mark = tmp_path / "was-run"
    trap = repo.folder / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    trap.chmod(0o755)
    repo.commit("Add", {"a.py": "def f(x):\n    y = x\n    return y\n", ".gitattributes": "*.py filter=evil diff=evil\n"})
    repo.commit("Review: call it z in f", {"a.py": "def f(x):\n    z = x\n    return z  # same\n"})
    for hook in ("post-checkout", "pre-commit", "post-index-change", "reference-transaction", "post-merge"):
        path = repo.folder / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(trap.read_text())
        path.chmod(0o755)
    for key in ("core.fsmonitor", "core.pager", "diff.external", "diff.evil.command", "diff.evil.textconv", "filter.evil.smudge",
                "filter.evil.clean", "filter.evil.process", "core.sshCommand", "gpg.program", "core.askPass", "core.editor"):  # fmt: skip
        repo.git("config", key, str(trap))
    mark.unlink(missing_ok=True)
    report = repo.mine(all_commits=True)
    assert report.pairs == 1
    assert not mark.exists()


def test_the_users_own_git_settings_do_not_change_what_is_read(repo, tmp_path, monkeypatch):
    repo.commit("Add", {"a.py": "x = 1\n"})
    (tmp_path / "gitconfig").write_text("[diff]\n\trenames = false\n\tnoprefix = true\n[log]\n\tshowSignature = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    with Repository(repo.folder) as opened:
        assert len(opened.commits("HEAD")) == 1
    assert git_environment()["GIT_CONFIG_GLOBAL"] == os.devnull
    assert "GIT_DIR" not in git_environment()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_repository_of_another_user_can_be_read(repo):
    repo.commit("Add", {"a.py": "x = 1\n"})
    for path in (repo.folder, *repo.folder.rglob("*")):
        os.chown(path, 12345, 12345)
    with Repository(repo.folder) as opened:
        assert opened.commits(opened.commit_of("HEAD"))[0].message == "Add\n"


def test_changes_tell_paths_with_odd_names_and_renames(repo):
    first = repo.commit("Add", {"a b.py": "x = 1\n" * 9, "ü\tn.py": "y = 1\n", "no.txt": "x"})
    repo.git("mv", "--", "a b.py", "-c.py")
    second = repo.commit("Rename", {"ü\tn.py": None})
    with Repository(repo.folder) as opened:
        found = {sha: {(c.status, c.old_path, c.new_path) for c in changes} for sha, changes in opened.changes([first, second])}
        assert found == {
            first: {("A", "a b.py", "a b.py"), ("A", "ü\tn.py", "ü\tn.py")},
            second: {("R", "a b.py", "-c.py"), ("D", "ü\tn.py", "ü\tn.py")},
        }
        assert [path for path, _ in opened.files(second)] == ["-c.py"]
        assert opened.file(second, "-c.py") == "x = 1\n" * 9
        assert opened.file(second, "none.py") is None


def test_a_blob_that_is_long_binary_or_not_there_has_no_text(repo):
    (repo.folder / "b.py").write_bytes(b"\xff\xfe")
    repo.commit("Add", {"long.py": "x" * (2**20 + 1), "ok.py": "x = 1\n", "empty.py": ""})
    with Repository(repo.folder) as opened:
        texts = {path: opened.blob(blob) for path, blob in opened.files("HEAD")}
        assert texts == {"b.py": None, "empty.py": "", "long.py": None, "ok.py": "x = 1\n"}
        assert opened.blob("0" * 40) is None
        with pytest.raises(DataError, match="object f{40} is missing"):
            opened.blob("f" * 40)


def test_a_commit_is_read_from_its_raw_form():
    raw = (
        b"tree 1\nparent 2\nparent 3\nauthor Ann <ANN@x.dev> 1700000000 +0100\ncommitter <> 1700000001 +0000\n"
        b"encoding ISO-8859-1\ngpgsig -----BEGIN-----\n author no one <x> 1 +0000\n\nCaf\xe9\n\nmore\n"
    )
    commit = commit_from("s", raw)
    assert (commit.parents, commit.author.email, commit.committer.name, commit.message) == (("2", "3"), "ann@x.dev", "", "Café\n\nmore\n")
    assert commit.time.isoformat() == "2023-11-14T22:13:21+00:00"
    assert commit_from("s", b"tree 1\nauthor x\n\n").author.name == "x"


def test_a_submodule_and_a_link_are_no_files(repo):
    (repo.folder / "l.py").symlink_to("x.py")
    sha = repo.commit("Add", {"x.py": "x = 1\n"})
    with Repository(repo.folder) as opened:
        [(_, changes)] = opened.changes([sha])
        assert [change.new_path for change in changes] == ["x.py"]
        assert isinstance(changes[0], Change)
        assert [path for path, _ in opened.files(sha)] == ["x.py"]
    assert Path(repo.folder / "l.py").is_symlink()
