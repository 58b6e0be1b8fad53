"""Reading a git repository by plain `git`, as data: nothing is checked out, no hook, filter or pager of it runs, nothing is fetched.

The user's and the system's git settings are left out, and what the repository's own settings could start is turned off, since a
repository that one only wants to read may come from anybody. Nothing is written into it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from preftune.errors import DataError, PreftuneError

MAX_BLOB_BYTES = 2**20  # a Python file that is longer was hardly written by hand
OFF = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "protocol.allow=never", "core.attributesFile=/dev/null",
    "diff.renameLimit=1000", "log.showSignature=false", "gc.auto=0",
    "safe.directory=*",  # for these calls alone: the user named this very folder, and nothing in it is run
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Who wrote or committed something."""

    name: str
    email: str


@dataclass(frozen=True)
class Commit:
    """One commit. message: as written, trailers included."""

    sha: str
    parents: tuple[str, ...]
    author: Person
    committer: Person
    time: datetime
    message: str


@dataclass(frozen=True)
class Change:
    """One Python file that a commit changed. status: A added, D deleted, M modified, R renamed (and perhaps changed)."""

    status: str
    old_path: str
    new_path: str
    old_blob: str
    new_blob: str


def git_arguments(folder: Path) -> list[str]:
    """Return the start of a git command that runs nothing of the repository."""
    settings = [word for setting in OFF for word in ("-c", setting)]
    return ["git", "--no-pager", "--no-replace-objects", "--no-optional-locks", *settings, "-C", str(folder)]


def git_environment() -> dict[str, str]:
    """Return the environment for git: no settings but ours, no questions, no network."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return plain | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }


class Repository:
    """A repository that is read; use it in a `with`. Raises DataError where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._readers: dict[str, subprocess.Popen[bytes]] = {}
        if not self.folder.is_dir():
            raise DataError("there is no such folder", str(folder), "Give the folder of a git repository.")
        self.run("rev-parse", "--git-dir")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for reader in self._readers.values():
            if reader.stdin:
                reader.stdin.close()
            if reader.stdout:
                reader.stdout.close()
            reader.wait()
        self._readers.clear()

    def run(self, *arguments: str, given: bytes = b"", environment: dict[str, str] | None = None) -> bytes:
        """Return what a git command prints. Raises DataError with git's own words where it fails."""
        try:
            done = subprocess.run(
                [*git_arguments(self.folder), *arguments], input=given, capture_output=True, env=git_environment() | (environment or {})
            )
        except FileNotFoundError as error:
            raise PreftuneError("git is not installed", "preftune mine", "Install git, then run the command again.") from error
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[:300]
            raise DataError(f"git {arguments[0]} failed ({said})", str(self.folder), "Give the folder of a git repository.")
        return done.stdout

    def commit_of(self, revision: str) -> str:
        """Return the full name of the commit that a revision (a branch, tag or sha) names."""
        if not self.run("rev-list", "--all", "--max-count=1"):
            raise DataError("the repository has no commit yet", str(self.folder), "Give one with a history.")
        return self.run("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()

    def commits(self, tip: str, since: str | None = None) -> list[Commit]:
        """Return the commits from the oldest to the tip. since: a date as git knows them; older ones are left out."""
        limits = [f"--since={since}"] if since else []
        listed = self.run("rev-list", "--topo-order", "--reverse", *limits, tip, "--").decode().split()
        return [commit_from(sha, self._object(sha)) for sha in listed]

    def changes(self, shas: Sequence[str]) -> Iterator[tuple[str, list[Change]]]:
        """Yield (sha, changed Python files) of each commit that changed any, in the order given; merges have none."""
        arguments = ("diff-tree", "--stdin", "--root", "-r", "-M", "-z", "--raw", "--no-abbrev", "--no-ext-diff", "--no-textconv")
        printed = self.run(*arguments, "--", "*.py", given="".join(f"{sha}\n" for sha in shas).encode())
        fields = iter(printed.decode(errors="surrogateescape").split("\0"))
        sha, found = "", list[Change]()
        for field in fields:
            if not field.startswith(":"):
                if found:
                    yield sha, found
                sha, found = field, []
                continue
            old_mode, new_mode, old_blob, new_blob, status = field[1:].split()
            old_path = next(fields)
            new_path = next(fields) if status[0] in "RC" else old_path
            if old_mode.startswith("12") or new_mode.startswith(("12", "16")):  # a link to elsewhere, a submodule
                continue
            found.append(Change(status[0], old_path, new_path, old_blob, new_blob))

    def blob(self, sha: str) -> str | None:
        """Return a file's text; None where it is too long or not UTF-8."""
        if set(sha) == {"0"} or int(self._ask("--batch-check", sha)[0].split()[2]) > MAX_BLOB_BYTES:
            return None
        try:
            return self._object(sha).decode()
        except UnicodeDecodeError:
            return None

    def files(self, tip: str) -> list[tuple[str, str]]:
        """Return (path, blob) of every regular Python file of a commit."""
        listed = self.run("ls-tree", "-r", "-z", tip).decode(errors="surrogateescape").split("\0")
        parts = [line.partition("\t") for line in listed if line]
        return [(path, head.split()[2]) for head, _, path in parts if path.endswith(".py") and head.startswith("100")]

    def file(self, tip: str, path: str) -> str | None:
        """Return the text of one file of a commit, or None where it has none."""
        found = self.run("ls-tree", "-z", tip, "--", path).decode(errors="surrogateescape").split("\0")[0]
        return self.blob(found.split()[2]) if found.startswith("100") else None

    def marked(self, tip: str, paths: Iterable[str], attributes: Sequence[str]) -> set[str]:
        """Return those paths that .gitattributes of a commit gives any of these attributes."""
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}  # so that the commit's own files count, and not those on disk
            self.run("read-tree", tip, environment=index)
            given = "".join(f"{path}\0" for path in paths).encode(errors="surrogateescape")
            printed = self.run("check-attr", "--cached", "--stdin", "-z", *attributes, given=given, environment=index)
        fields = printed.decode(errors="surrogateescape").split("\0")
        rows = zip(fields[::3], fields[2::3], strict=False)
        return {path for path, value in rows if value not in ("unspecified", "unset", "false")}

    def objects_folder(self) -> Path:
        """Return where the repository keeps its objects."""
        return (self.folder / self.run("rev-parse", "--git-path", "objects").decode().strip()).resolve()

    def _object(self, sha: str) -> bytes:
        return self._ask("--batch", sha)[1]

    def _ask(self, how: str, sha: str) -> tuple[str, bytes]:
        # One process answers all questions; starting one for each would take most of the time.
        if how not in self._readers:
            command = [*git_arguments(self.folder), "cat-file", how]
            self._readers[how] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=git_environment())
        reader = self._readers[how]
        assert reader.stdin
        assert reader.stdout
        reader.stdin.write(f"{sha}\n".encode())
        reader.stdin.flush()
        head = reader.stdout.readline().decode()
        if head.endswith(" missing\n"):
            raise DataError(f"object {sha} is missing", str(self.folder), "A partial clone lacks files: clone the repository whole.")
        return head, _exactly(reader.stdout, int(head.split()[2]) + 1)[:-1] if how == "--batch" else b""


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise PreftuneError("git ended before its answer did", "git cat-file", "Look whether the repository is whole: git fsck.")
    return data


_PERSON = re.compile(r"(.*?) ?<([^>]*)> (-?\d+)")


def commit_from(sha: str, raw: bytes) -> Commit:
    """Return a commit from git's own form: headers, an empty line, the message."""
    head, _, body = raw.partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.decode(errors="replace").split("\n"):
        if not line.startswith(" "):  # the lines of a signature go on with a space
            key, _, value = line.partition(" ")
            fields.setdefault(key, []).append(value)
    author, _ = _person(fields.get("author", [""])[0])
    committer, seconds = _person(fields.get("committer", [""])[0])
    try:
        message = body.decode(fields.get("encoding", ["utf-8"])[0], errors="replace")
    except LookupError:
        message = body.decode(errors="replace")
    time = datetime.fromtimestamp(min(max(seconds, 0), 2**32), UTC)
    return Commit(sha, tuple(fields.get("parent", ())), author, committer, time, message)


def _person(text: str) -> tuple[Person, int]:
    match = _PERSON.match(text)
    return (Person(match[1], match[2].lower()), int(match[3])) if match else (Person(text, ""), 0)
