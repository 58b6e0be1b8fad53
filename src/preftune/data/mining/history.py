"""Going through a history, oldest commit first: who added each function, and what each commit changed in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from preftune.data.mining.filters import OptOut, head_of, is_test, names_in
from preftune.data.mining.functions import Function, functions_of
from preftune.data.mining.git import Change, Commit, Repository
from preftune.progress import Progress

SAME_NAME_ALIKE = 0.5  # a function that is gone and one of its name elsewhere are one, if so much of their lines is the same
OTHER_NAME_ALIKE = 0.75
MOST_MOVES = 40_000  # comparisons a commit; a commit that moves more than 200 functions is followed by equal text alone

Key = tuple[str, str]  # path, function
Functions = dict[Key, Function]


@dataclass(frozen=True)
class Edit:
    """One function that a commit changed, moved or renamed.

    file_head: the first lines of its file after the commit. is_tested: a test file that names it changed, too. hidden: somebody who opted
    out wrote at it, before or now.
    """

    commit: Commit
    old: Key
    new: Key
    before: Function
    after: Function
    file_head: str
    is_tested: bool
    hidden: bool


@dataclass
class History:
    """What was learned on the way. added: the commit that added each function that there is. hidden: those that stay out."""

    added: dict[Key, Commit] = field(default_factory=dict)
    hidden: set[Key] = field(default_factory=set)


def edits(
    repository: Repository,
    commits: Sequence[Commit],
    changes: Mapping[str, Sequence[Change]],
    opt_out: OptOut,
    history: History,
    progress: Progress,
) -> Iterator[tuple[Commit, list[Edit]]]:
    """Yield each commit that changed Python files, with the functions that it changed; fills `history` on the way.

    changes: what each of these commits changed, by its sha.
    """
    with progress.stage("commits", total=len(commits), unit="commits") as task:
        for commit in commits:
            if commit.sha in changes:
                yield commit, _edits_of(repository, commit, changes[commit.sha], opt_out, history)
            task.advance()


def _edits_of(repository: Repository, commit: Commit, changes: Sequence[Change], opt_out: OptOut, history: History) -> list[Edit]:
    old: Functions = {}
    new: Functions = {}
    moved_files: dict[str, str] = {}
    heads: dict[str, str] = {}
    tested: set[str] = set()
    for change in changes:
        before, after = repository.blob(change.old_blob), repository.blob(change.new_blob)
        if is_test(change.new_path):
            tested |= names_in(before or "") | names_in(after or "")
        found_before, found_after = functions_of(before or ""), functions_of(after or "")
        if found_after is None:  # cannot be read now; what it was stays known
            continue
        old |= {(change.old_path, name): function for name, function in (found_before or {}).items()}
        new |= {(change.new_path, name): function for name, function in found_after.items()}
        moved_files[change.old_path] = change.new_path
        heads[change.new_path] = head_of(after or "")
    pairs = match(old, new, moved_files)
    is_hidden = opt_out.covers_commit(commit)
    found = []
    for before_key, after_key in pairs:
        changed = old[before_key].text != new[after_key].text
        if changed or before_key[1] != after_key[1]:
            hidden = before_key in history.hidden or is_hidden
            named = _test_name(new[after_key]) in tested
            functions = (old[before_key], new[after_key])
            found.append(Edit(commit, before_key, after_key, *functions, heads[after_key[0]], named, hidden))
    _follow(history, commit, pairs, old, new, is_hidden)
    return found


def _test_name(function: Function) -> str:
    # A test never names __init__; it names the class.
    parts = function.name.split(".")
    return parts[-2] if parts[-1].startswith("__") and len(parts) > 1 else parts[-1]


def _follow(history: History, commit: Commit, pairs: Sequence[tuple[Key, Key]], old: Functions, new: Functions, is_hidden: bool) -> None:
    came_from = {after: before for before, after in pairs}
    added = {key: history.added.pop(key, None) for key in old}
    hidden = {key for key in old if key in history.hidden}
    history.hidden -= hidden
    for key, function in new.items():
        before = came_from.get(key)
        origin = commit if before is None else added[before]
        if origin is not None:
            history.added[key] = origin
        wrote = is_hidden and (before is None or old[before].text != function.text)
        if wrote or (before is not None and before in hidden):
            history.hidden.add(key)


def match(old: Functions, new: Functions, moved_files: Mapping[str, str]) -> list[tuple[Key, Key]]:
    """Return which function before is which one after: by file and name, by equal text, by name elsewhere, by likeness."""
    pairs = []
    left_new = dict(new)
    left_old = {}
    for key, function in old.items():
        there = (moved_files[key[0]], key[1])
        if there in left_new:
            pairs.append((key, there))
            del left_new[there]
        else:
            left_old[key] = function
    by_text: dict[str, list[Key]] = {}
    for key, function in left_new.items():
        by_text.setdefault(function.text, []).append(key)
    for key, function in list(left_old.items()):
        if places := by_text.get(function.text):
            pairs.append((key, places[0]))
            del left_old[key], left_new[places.pop(0)]
    left_old = {key: function for key, function in left_old.items() if function.tree}
    left_new = {key: function for key, function in left_new.items() if function.tree}
    if len(left_old) * len(left_new) <= MOST_MOVES:
        alike = sorted(_alike(left_old, left_new), key=lambda found: (-found[0], found[1:]))
        for _, before, after in alike:
            if before in left_old and after in left_new:
                pairs.append((before, after))
                del left_old[before], left_new[after]
    return pairs


def _alike(old: Functions, new: Functions) -> Iterator[tuple[float, Key, Key]]:
    for before_key, before in old.items():
        lines = before.text.split("\n")
        for after_key, after in new.items():
            same_name = before.last_name == after.last_name
            if before.called_as != after.called_as:
                continue
            matcher = SequenceMatcher(None, lines, after.text.split("\n"), autojunk=False)
            least = SAME_NAME_ALIKE if same_name else OTHER_NAME_ALIKE
            if matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least and (ratio := matcher.ratio()) >= least:
                yield ratio + same_name, before_key, after_key
