"""Pairs and demonstrations from a team's own git history: what a review or a fix-up changed in a function is a preference.

    report = mine(Path("our-repository"), "store.db")
    print("\\n".join(report.lines()))

A function of a Python file that such a commit changed, without changing how it is called and without changing a test that names it,
gives a pair: before = rejected, after = chosen. What is asked is made from signature, docstring and message. Functions with a docstring
that still stand at the tip are demonstrations. What is left out, and why, is counted.

`git` reads the repository as data, `functions` and `messages` understand a file and a message, `history` follows each function,
`filters` and `selecting` decide, `asking` makes the records, `testing` runs tests where that is asked for.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

from preftune.data.mining.asking import MinedDemonstration, MinedPair, answer_of
from preftune.data.mining.filters import ATTRIBUTES, OPT_OUT_FILE, OptOut, read_opt_out
from preftune.data.mining.git import Repository
from preftune.data.mining.history import History, edits
from preftune.data.mining.report import MiningReport, examples_of, kinds_of
from preftune.data.mining.selecting import Selection, demonstrations, reverted_commits
from preftune.data.mining.settings import MiningSettings
from preftune.data.mining.testing import pairs_by_outcome
from preftune.data.store import KINDS, Store
from preftune.errors import DataError
from preftune.manifest import disk_errors
from preftune.progress import Progress, Silent
from preftune.records import Prompt

__all__ = ["MiningReport", "MiningSettings", "mine"]


def mine(
    folder: Path,
    store: Store | Path | str | None = None,
    *,
    out: Path | None = None,
    settings: MiningSettings = MiningSettings(),  # noqa: B008 - it is frozen
    dry_run: bool = False,
    progress: Progress = Silent(),  # noqa: B008 - it holds nothing
) -> MiningReport:
    """Mine a git repository and return what was found.

    store: an open one, or the path or URL of one, made where it is not there; mining the same history twice adds nothing. out: a file to
    write in our own format, in place of a store or besides. dry_run: nothing is written. The repository is only read, and nothing of it is
    run unless settings.run_tests is given, which runs its code.
    Raises DataError where there is no repository, or a revision or opt-out file cannot be read.
    """
    if store is None and out is None and not dry_run:
        raise DataError("there is no place for what is found", "mine", "Give a store or a file, or ask for a dry run.")
    folder = Path(folder)
    with Repository(folder) as repository:
        tip = repository.commit_of(settings.revision)
        selection, shown, report = _look(repository, tip, settings, progress)
        if settings.run_tests is not None and selection.pairs:
            _, failing = pairs_by_outcome(repository, selection.pairs, settings.run_tests, settings.test_seconds, progress)
            for reason, pairs in failing.items():
                selection.leave_out(reason, pairs)
    report.dry_run = dry_run
    report.commits_used, report.commits_left_out = selection.commits_used, dict(selection.commits_left_out)
    report.changes, report.changes_left_out = selection.changes, dict(selection.changes_left_out)
    report.pairs, report.kinds = len(selection.pairs), kinds_of(selection.pairs)
    report.demonstrations = len(shown)
    report.examples = examples_of(selection.pairs)
    if store is not None:
        report.records = _count_new(store, selection.pairs, shown) if dry_run else _keep(store, selection.pairs, shown, report)
    if out is not None and not dry_run:
        report.written = str(_write(Path(out), selection.pairs, shown))
    return report


def _look(
    repository: Repository, tip: str, settings: MiningSettings, progress: Progress
) -> tuple[Selection, list[MinedDemonstration], MiningReport]:
    commits = repository.commits(tip, settings.since)
    report = MiningReport(str(repository.folder), tip, dry_run=False, commits=len(commits))
    opt_out = _opt_out(repository, tip, settings)
    files = repository.files(tip)
    changes = dict(repository.changes([commit.sha for commit in commits]))
    paths = {path for path, _ in files} | {change.new_path for found in changes.values() for change in found}
    marked = repository.marked(tip, sorted(paths), ATTRIBUTES)
    people = frozenset(person.name for commit in commits for person in (commit.author, commit.committer))
    history = History()
    selection = Selection(settings, opt_out, marked, people, reverted_commits(commits))
    for commit, found in edits(repository, commits, changes, opt_out, history, progress):
        selection.take(commit, found)
    selection.finish()
    merges = sum(len(commit.parents) > 1 for commit in commits)
    selection.commits_left_out["a merge"] += merges
    selection.commits_left_out["changes no Python file"] += len(commits) - len(changes) - merges
    selection.commits_left_out = +selection.commits_left_out  # those that occur
    left_out: Counter[str] = Counter()
    texts = ((path, text) for path, blob in files if (text := repository.blob(blob)) is not None)
    shown = demonstrations(texts, history, settings, selection.marked, left_out)
    report.functions_left_out = dict(left_out)
    return selection, shown, report


def _opt_out(repository: Repository, tip: str, settings: MiningSettings) -> OptOut:
    texts = []
    if (text := repository.file(tip, OPT_OUT_FILE)) is not None:
        texts.append((OPT_OUT_FILE, text))
    for path in (repository.folder / OPT_OUT_FILE, settings.opt_out):  # one that is not committed counts, too
        if path is not None and path.is_file():
            texts.append((str(path), path.read_text(encoding="utf-8")))
    if settings.opt_out is not None and not settings.opt_out.is_file():
        raise DataError("there is no such file", str(settings.opt_out), "Give the file with the addresses of those who opted out.")
    return read_opt_out(texts, settings.exclude_authors)


def _keep(store: Store | Path | str, pairs: list[MinedPair], shown: list[MinedDemonstration], report: MiningReport) -> dict[str, int]:
    source = f"git:{Path(report.repository).resolve().name}"
    with nullcontext(store) if isinstance(store, Store) else Store.create(store) as opened, opened.writer() as writer:
        report.store_made = None if opened is store else opened.made
        records = [pair.records() for pair in pairs]
        new = writer.add(
            _prompts(pairs, shown),
            [candidate for candidates, _ in records for candidate in candidates],
            [judgement for _, judgement in records],
            [demonstration.record() for demonstration in shown],
        )
        rows = len(new["judgements"]) + len(new["demonstrations"])
        left_out = sum(report.changes_left_out.values())
        digest = sha256(report.tip.encode()).hexdigest()
        writer.record_import(source, digest, "git history", rows_read=report.changes + len(shown), rows_new=rows, rows_set_aside=left_out)
    return {kind: len(ids) for kind, ids in new.items()}


def _prompts(pairs: list[MinedPair], shown: list[MinedDemonstration]) -> list[Prompt]:
    return [*(pair.prompt for pair in pairs), *(item.prompt for item in shown)]


def _count_new(store: Store | Path | str, pairs: list[MinedPair], shown: list[MinedDemonstration]) -> dict[str, int]:
    ids: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for pair in pairs:
        candidates, judgement = pair.records()
        ids["candidates"] |= {candidate.id for candidate in candidates}
        ids["judgements"].add(judgement.id)
    ids["demonstrations"] = {item.record().id for item in shown}
    ids["prompts"] = {prompt.id for prompt in _prompts(pairs, shown)}
    if not isinstance(store, Store) and "://" not in str(store) and not Path(store).exists():
        return {kind: len(found) for kind, found in ids.items()}
    with nullcontext(store) if isinstance(store, Store) else Store.open(store) as opened:
        return {kind: len(found - opened.known(kind, found)) for kind, found in ids.items()}


def _write(path: Path, pairs: list[MinedPair], shown: list[MinedDemonstration]) -> Path:
    """Write everything as rows of our own format, whole or not at all; `id` names the commit."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for pair in pairs:
                candidates, judgement = pair.records()
                row = {"id": pair.where, "prompt": pair.prompt.text, "chosen": candidates[0].text, "rejected": candidates[1].text}
                file.write(json.dumps({**row, "kind": pair.kind, "rater": judgement.rater}, ensure_ascii=False) + "\n")
            for item in shown:
                row = {"id": item.where, "prompt": item.prompt.text, "completion": answer_of(item.function)}
                file.write(json.dumps({**row, "kind": item.prompt.kind}, ensure_ascii=False) + "\n")
        temporary.replace(path)
    return path
