"""Which edits become pairs and which functions become demonstrations, and for each of the others the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from preftune.data.mining.asking import CODE, DOCSTRING, FORMAT, NEW, MinedDemonstration, MinedPair, prompt_for
from preftune.data.mining.filters import OptOut, head_of, is_bot, why_not_file, why_not_size
from preftune.data.mining.functions import Function, functions_of, renamed
from preftune.data.mining.git import Commit
from preftune.data.mining.history import Edit, History
from preftune.data.mining.messages import cleaned, is_revert, is_review, reverted_by
from preftune.data.mining.settings import MiningSettings
from preftune.data.private import find_private

OPTED_OUT = "its author opted out"
PRIVATE = "a key, a password or personal data seems to be in it"
NO_DESCRIPTION = "neither a docstring nor the message says what it should do"
NOT_ALONE = "its text does not stand alone"
DUPLICATE = "the same as an earlier one"


@dataclass
class Selection:
    """The pairs so far. steps: every change of text that was seen, so that what was changed back is known."""

    settings: MiningSettings
    opt_out: OptOut
    marked: set[str]
    people: frozenset[str]
    reverted: frozenset[str]
    pairs: list[MinedPair] = field(default_factory=list)
    steps: set[tuple[int, int]] = field(default_factory=set)
    commits_left_out: Counter[str] = field(default_factory=Counter)
    changes_left_out: Counter[str] = field(default_factory=Counter)
    commits_used: int = 0
    changes: int = 0

    def take(self, commit: Commit, edits: Sequence[Edit]) -> None:
        """Take a commit's edits: each becomes a pair or is counted under a reason."""
        self.steps.update((hash(edit.before.text), hash(edit.after.text)) for edit in edits)
        reason = "changes no function of Python" if not edits else self._why_not_commit(commit)
        if reason:
            self.commits_left_out[reason] += 1
            return
        self.commits_used += 1
        for edit in edits:
            self.changes += 1
            found = self._pair(edit)
            if isinstance(found, MinedPair):
                self.pairs.append(found)
            else:
                self.changes_left_out[found] += 1

    def _why_not_commit(self, commit: Commit) -> str:
        if is_bot(commit):
            return "written by a program"
        if is_revert(commit.message):
            return "takes back another"
        if commit.sha in self.reverted:
            return "taken back later"
        if self.opt_out.covers_commit(commit):
            return OPTED_OUT
        if not self.settings.all_commits and not is_review(commit.message):
            return "speaks of no review, fix-up or style (--all-commits takes it)"
        return ""

    def _pair(self, edit: Edit) -> MinedPair | str:
        if edit.hidden:
            return OPTED_OUT
        if reason := why_not_file(edit.new[0], edit.file_head, self.marked):
            return reason
        if not edit.before.tree or not edit.after.tree:
            return NOT_ALONE
        before = renamed(edit.before, edit.after.name)
        if before.text == edit.after.text:
            return "only moved or renamed"
        if before.called_as != edit.after.called_as:
            return "parameters, defaults or decorators changed"
        kind = kind_of(before, edit.after)
        if kind == FORMAT and not self.settings.keep_format:
            return "only layout or comments changed (--keep-format keeps it apart)"
        if edit.is_tested:
            return "a test that names it changed in the same commit"
        for function in (before, edit.after):
            if reason := self._why_not_size(function):
                return reason
        note = cleaned(edit.commit.message, self.people)
        prompt = prompt_for(edit.after, edit.new[0], kind=kind, before=before, note=note)
        if prompt is None:
            return NO_DESCRIPTION
        if any(find_private(text) for text in (before.text, edit.after.text, prompt.text)):
            return PRIVATE
        old, new = (Function(function.name, function.text) for function in (before, edit.after))  # without their syntax trees
        return MinedPair(edit.commit, edit.new[0], old, new, edit.before.name, kind, prompt, note)

    def _why_not_size(self, function: Function) -> str:
        limits = self.settings
        return why_not_size(function, min_lines=limits.min_lines, max_lines=limits.max_lines, max_tokens=limits.max_tokens)

    def finish(self) -> None:
        """Leave out what was changed back at some time, and what comes twice; after the last commit."""
        kept: dict[tuple[str, str, str], MinedPair] = {}
        for pair in self.pairs:
            if (hash(pair.after.text), hash(pair.before.text)) in self.steps:
                self.changes_left_out["changed back at another time"] += 1
            elif (content := (pair.prompt.text, pair.before.text, pair.after.text)) in kept:
                self.changes_left_out[DUPLICATE] += 1
            else:
                kept[content] = pair
        self.pairs = list(kept.values())

    def leave_out(self, reason: str, pairs: Iterable[MinedPair]) -> None:
        """Leave out pairs that were taken before."""
        gone = {id(pair) for pair in pairs}
        self.pairs = [pair for pair in self.pairs if id(pair) not in gone]
        self.changes_left_out[reason] += len(gone)


def kind_of(before: Function, after: Function) -> str:
    """Return whether two versions differ in code, in the docstring alone, or in neither (layout and comments)."""
    if before.does != after.does:
        return CODE
    return FORMAT if before.docstring == after.docstring else DOCSTRING


def reverted_commits(commits: Iterable[Commit]) -> frozenset[str]:
    """Return the commits that a later message says it takes back."""
    commits = list(commits)
    starts = tuple(start for commit in commits for start in reverted_by(commit.message))
    return frozenset(commit.sha for commit in commits if starts and commit.sha.startswith(starts))


def demonstrations(
    files: Iterable[tuple[str, str]], history: History, settings: MiningSettings, marked: set[str], left_out: Counter[str]
) -> list[MinedDemonstration]:
    """Return the functions with a docstring as they stand at the tip, where it is known who added them; others are counted.

    files: (path, text) of the tip. Functions without a docstring are not counted: nothing says what they should do.
    """
    found: dict[tuple[str, str], MinedDemonstration] = {}
    for path, text in files:
        functions = functions_of(text) or {}
        if why_not_file(path, head_of(text), marked):
            continue
        for name, function in functions.items():
            if not function.tree or not function.docstring:
                continue
            prompt = prompt_for(function, path, kind=NEW)
            reason = _why_not_shown(function, history.added.get((path, name)), (path, name) in history.hidden, settings)
            if prompt is None or reason:
                left_out[reason or NO_DESCRIPTION] += 1
            elif (prompt.text, function.text) in found:
                left_out[DUPLICATE] += 1
            elif find_private(function.text) or find_private(prompt.text):
                left_out[PRIVATE] += 1
            else:
                sha = history.added[path, name].sha
                found[prompt.text, function.text] = MinedDemonstration(sha, path, function, prompt)
    return list(found.values())


def _why_not_shown(function: Function, added: Commit | None, hidden: bool, settings: MiningSettings) -> str:
    if added is None:
        return "added before the part of the history that was read"
    if hidden:
        return OPTED_OUT
    if is_bot(added):
        return "written by a program"
    return why_not_size(function, min_lines=settings.min_lines, max_lines=settings.max_lines, max_tokens=settings.max_tokens)
