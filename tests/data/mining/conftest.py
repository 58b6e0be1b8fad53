"""A git repository that a test builds commit by commit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.data.mining import MiningReport, MiningSettings, mine

ANN = "Ann Lee <ann@team.dev>"
BOB = "Bob Ray <bob@team.dev>"


class Repo:
    """A repository under construction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = 1_700_000_000
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str, author: str = ANN) -> str:
        name, _, email = author.partition(" <")
        who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in (("NAME", name), ("EMAIL", email[:-1]))}
        when = {"GIT_AUTHOR_DATE": f"{self.time} +0000", "GIT_COMMITTER_DATE": f"{self.time} +0000"}
        settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | who | when | settings).stdout.strip()

    def commit(self, message: str, files: dict[str, str | None], *, author: str = ANN) -> str:
        """Write files (None removes one), commit, and return the sha."""
        self.time += 60
        for path, text in files.items():
            file = self.folder / path
            if text is None:
                file.unlink()
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message, author=author)
        return self.git("rev-parse", "HEAD")

    def mine(self, store: Any = None, out: Path | None = None, **settings: Any) -> MiningReport:
        """Mine it; a dry run where there is no place for what is found."""
        return mine(self.folder, store, out=out, settings=MiningSettings(**settings), dry_run=store is None and out is None)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


@pytest.fixture
def make_repo(tmp_path: Path) -> Callable[[str], Repo]:
    return lambda name: Repo(tmp_path / name)
