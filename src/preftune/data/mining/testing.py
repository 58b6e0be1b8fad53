"""Running a repository's tests before and after a commit, in two folders of their own with time limits.

This runs code of the repository with the rights of whoever calls it: the limits keep it from running for ever, they are no prison. It is
done only where the user gave the command.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from preftune.data.mining.asking import MinedPair
from preftune.data.mining.git import Repository, git_arguments, git_environment
from preftune.errors import ConfigError, PreftuneError
from preftune.progress import Progress

PASSED, FAILED, TIMED_OUT = "passed", "failed", "timed out"
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "SYSTEMROOT")  # no tokens, no keys


def pairs_by_outcome(
    repository: Repository, pairs: Sequence[MinedPair], command: str, seconds: float, progress: Progress
) -> tuple[list[MinedPair], dict[str, list[MinedPair]]]:
    """Return the pairs whose tests pass before and after their commit, and the others by what happened.

    command: split as a shell would, but run without one, in the root of a checkout. seconds: the longest time of one run.
    """
    words = shlex.split(command)
    if not words:
        raise ConfigError("the command that runs the tests is empty", "--run-tests", 'Give one, such as --run-tests "pytest -q".')
    if os.name != "posix":
        raise ConfigError("tests can be run on Linux and macOS alone", "--run-tests", "Leave it out.")
    passing: list[MinedPair] = []
    others: dict[str, list[MinedPair]] = {}
    outcomes: dict[str, str] = {}
    shas = list(dict.fromkeys(pair.commit.sha for pair in pairs))
    with _worktrees(repository) as (before, after), progress.stage("tests", total=len(shas), unit="commits") as task:
        for sha in shas:
            theirs = [pair for pair in pairs if pair.commit.sha == sha]
            parent = theirs[0].commit.parents[0]
            for folder, revision in ((before, parent), (after, sha)):
                if revision not in outcomes:  # the state after one commit is often that before another
                    _check_out(folder, revision)
                    outcomes[revision] = _outcome(folder, words, seconds)
            if outcomes[parent] == outcomes[sha] == PASSED:
                passing += theirs
            else:
                reason = f"its tests {outcomes[parent]} before and {outcomes[sha]} after"
                others.setdefault(reason, []).extend(theirs)
            task.advance()
    return passing, others


@contextmanager
def _worktrees(repository: Repository) -> Iterator[tuple[Path, Path]]:
    """Yield two worktrees, each of a new repository that borrows the objects; the repository itself is not written to."""
    with tempfile.TemporaryDirectory(prefix="preftune-tests-", ignore_cleanup_errors=True) as name:
        before, after = Path(name) / "before", Path(name) / "after"
        for place in (before, after):
            place.mkdir()
            _git(place, "init", "--quiet")
            borrowed = place / ".git" / "objects" / "info" / "alternates"
            borrowed.write_text(f"{repository.objects_folder()}\n", encoding="utf-8")
        yield before, after


def _check_out(folder: Path, revision: str) -> None:
    _git(folder, "checkout", "--quiet", "--force", "--detach", revision)
    _git(folder, "clean", "-ffdxq")


def _git(folder: Path, *arguments: str) -> None:
    done = subprocess.run([*git_arguments(folder), *arguments], capture_output=True, env=git_environment())
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[:300]
        raise PreftuneError(f"git {arguments[0]} failed ({said})", str(folder), "Leave --run-tests out, or look whether the disk is full.")


def _outcome(folder: Path, words: Sequence[str], seconds: float) -> str:
    """Return whether the tests passed in time; whatever they started is ended with them."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | {"HOME": str(folder.parent)}
    try:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f'"{words[0]}" cannot be started ({error.strerror})', "--run-tests", "Give a command that is there.") from error
    try:
        return PASSED if process.wait(timeout=seconds) == 0 else FAILED
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of it has ended
        return
    finally:
        process.wait()
