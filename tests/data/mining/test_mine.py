"""Mining a repository that the test builds with git: what becomes a pair, and each filter by a commit that it must leave out."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from preftune.data.importing import import_preferences
from preftune.data.mining import MiningSettings, mine
from preftune.data.store import Store
from preftune.errors import ConfigError, DataError

BEFORE = '''def load(path):
    """Return the lines of a file.

    Nothing is closed twice.
    """
    file = open(path)
    lines = file.readlines()
    file.close()
    return lines
'''
AFTER = '''def load(path):
    """Return the lines of a file.

    Nothing is closed twice.
    """
    with open(path) as file:
        return file.readlines()
'''
OTHER = '''

def keep(items):
    """Return a copy."""
    result = []
    for item in items:
        result.append(item)
    return result
'''
REVIEW = "Use a with block (review of #12)\n\nReviewed-by: Bob Ray <bob@team.dev>"


def only_reason(report) -> str:
    """Return why the one changed function was left out, where no pair was made."""
    assert report.pairs == 0
    assert report.changes == 1
    [(reason, count)] = report.changes_left_out.items()
    assert count == 1
    return reason


def only_commit_reason(report, commit_reasons_before: int = 1) -> str:
    assert report.pairs == 0
    reasons = Counter(report.commits_left_out)
    reasons["changes no function of Python"] -= commit_reasons_before
    [(reason, count)] = (+reasons).items()
    assert count == 1
    return reason


def test_a_review_gives_a_pair_with_its_commit(repo, tmp_path):
    repo.commit("Add load", {"src/pkg/io.py": BEFORE + OTHER})
    sha = repo.commit(REVIEW, {"src/pkg/io.py": AFTER + OTHER})
    report = repo.mine(tmp_path / "store.db")
    assert (report.commits, report.commits_used, report.changes, report.pairs, report.demonstrations) == (2, 1, 1, 1, 2)
    assert report.commits_left_out == {"changes no function of Python": 1}
    with Store.open(tmp_path / "store.db") as store:
        [judgement] = store.judgements()
        candidates = {candidate.id: candidate for candidate in store.candidates()}
        prompts = {prompt.id: prompt for prompt in store.prompts()}
        shown = list(store.demonstrations())
    [[better], [worse]] = judgement.ranking
    assert candidates[better].text == f"```python\n{AFTER.strip()}\n```"
    assert candidates[worse].text == f"```python\n{BEFORE.strip()}\n```"
    assert candidates[better].source == f"git:{sha}:src/pkg/io.py:load:after"
    assert candidates[worse].source == f"git:{sha}:src/pkg/io.py:load:before"
    assert candidates[worse].sampling == {"commit": sha, "path": "src/pkg/io.py", "function": "load", "side": "before"}
    prompt = prompts[judgement.prompt_id]
    assert prompt.text == (
        "Write the Python function `load(path)` of the module `pkg.io`.\n\nReturn the lines of a file.\n\nKeep in mind: Use a with block"
    )
    assert (prompt.kind, judgement.rater, judgement.rationale) == ("mined:code", "git history", "Use a with block")
    assert (judgement.picked_by, judgement.created.timestamp()) == ("mined", repo.time)
    assert [demonstration.text for demonstration in shown] == [f"```python\n{code.strip()}\n```" for code in (AFTER, OTHER)]


def test_mining_twice_adds_nothing(repo, tmp_path):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.commit(REVIEW, {"io.py": AFTER})
    first, second = (repo.mine(tmp_path / "store.db").records for _ in range(2))
    assert first == {"prompts": 2, "candidates": 2, "judgements": 1, "demonstrations": 1}
    assert second == dict.fromkeys(first, 0)


def test_a_dry_run_says_the_same_and_writes_nothing(repo, tmp_path):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.commit(REVIEW, {"io.py": AFTER})
    before = sorted(path for path in repo.folder.rglob("*"))
    dry = mine(repo.folder, tmp_path / "store.db", out=tmp_path / "out.jsonl", dry_run=True)
    assert not list(tmp_path.glob("store.db*")) + list(tmp_path.glob("out*"))
    assert sorted(path for path in repo.folder.rglob("*")) == before
    assert dry.records == repo.mine(tmp_path / "store.db").records
    assert any(line.startswith("  would be new: 2 prompts, 2 candidates") for line in dry.lines())
    again = mine(repo.folder, tmp_path / "store.db", dry_run=True)
    assert set(again.records.values()) == {0}


def test_the_file_is_in_our_own_format(repo, tmp_path):
    repo.commit("Add load", {"io.py": BEFORE})
    sha = repo.commit(REVIEW, {"io.py": AFTER})
    assert repo.mine(out=tmp_path / "mined.jsonl").written == str(tmp_path / "mined.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"git:{sha}:io.py:load", f"git:{repo.git('rev-parse', 'HEAD~1')}:io.py:load"]
    report = import_preferences(tmp_path / "mined.jsonl", tmp_path / "store.db")
    assert (report.new, report.set_aside) == (2, {})


def test_a_method_and_an_asynchronous_function_are_asked_for_as_what_they_are(repo):
    text = "class Store:\n    def size(self, *, deep=False):\n{body}\n\nasync def fetch(url: str) -> bytes:\n{other}\n"
    old = "        items = list(self)\n        return len(items)"
    repo.commit("Add", {"s.py": text.format(body=old, other="    data = await get(url)\n    return data")})
    repo.commit(
        "Simplify counting of items",
        {"s.py": text.format(body="        # all\n        return len(self)", other="    # x\n    return await get(url)")},
    )
    examples = "\n".join(repo.mine().examples)
    assert (
        "Write the Python method `Store.size(self, *, deep=False)` of the module `s`. Keep in mind: Simplify counting of items" in examples
    )
    assert "Write the Python asynchronous function `fetch(url: str) -> bytes` of the module `s`." in examples


def test_type_hints_may_change_and_are_asked_for_only_where_both_have_them(repo):
    repo.commit("Add", {"a.py": "def add(a, b: int):\n    total = a + b\n    return total\n"})
    repo.commit("Style: say the types", {"a.py": "def add(a: int, b: int) -> int:\n    total = a + b\n    return total\n"})
    assert "`add(a, b: int)`" in repo.mine().examples[0]


def test_a_function_that_is_moved_and_renamed_is_followed(repo, tmp_path):
    more = "".join(f"    step_{n} = items[{n}]\n" for n in range(12))
    left = "    if not items:\n        return []\n    return old_name(items[1:])\n"
    old = f'def old_name(items):\n    """Return what is left."""\n{more}{left}'
    new = f'def new_name(items):\n    """Return what is left."""\n{more}    return new_name(items[1:]) if items else []\n'
    first = repo.commit("Add", {"a.py": old + OTHER})
    repo.commit("Clean up: move it and shorten", {"a.py": OTHER.strip() + "\n", "b.py": new})
    report = repo.mine(tmp_path / "store.db")
    assert report.pairs == 1
    with Store.open(tmp_path / "store.db") as store:
        candidates = {c.sampling["side"]: c for c in store.candidates()}
        authors = {d.author for d in store.demonstrations()}
    assert candidates["before"].sampling["renamed_from"] == "old_name"
    assert "old_name" not in candidates["before"].text
    assert "return new_name(items[1:])" in candidates["before"].text
    assert authors == {f"git:{first}:b.py:new_name", f"git:{first}:a.py:keep"}  # added by the first commit, wherever it stands now


def test_a_renamed_file_is_followed(repo):
    repo.commit("Add", {"a.py": BEFORE + OTHER})
    repo.git("mv", "a.py", "b.py")
    repo.commit("Rename the file and tidy", {"b.py": AFTER + OTHER})
    report = repo.mine()
    assert (report.pairs, report.demonstrations) == (1, 2)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (AFTER.replace("load(path)", "load(path, mode)"), "parameters, defaults or decorators changed"),
        (AFTER.replace("load(path)", "load(path='x')"), "parameters, defaults or decorators changed"),
        (AFTER.replace("def", "@cache\ndef", 1), "parameters, defaults or decorators changed"),
        (BEFORE.replace("open(path)", "open( path )  # read"), "only layout or comments changed (--keep-format keeps it apart)"),
        (AFTER.replace("        return", "        x = 1\n" * 90 + "        return"), "too large"),
        ('def load(path):\n    """Return the lines of a file."""\n    ...\n', "too small"),
        (AFTER.replace("file.readlines()", "'AKIAQWERTYUIOPASDFGH'"), "a key, a password or personal data seems to be in it"),
        (AFTER.replace("file.readlines()", "'ask ann.lee@team.dev'"), "a key, a password or personal data seems to be in it"),
    ],
)
def test_what_a_change_may_not_be(repo, after, reason):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.commit(REVIEW, {"io.py": after})
    assert only_reason(repo.mine()) == reason


def test_a_secret_before_is_as_bad_as_one_after_and_shows_up_nowhere(repo, tmp_path):
    secret = "AKIAQWERTYUIOPASDFGH"
    repo.commit("Add load", {"io.py": BEFORE.replace("file.readlines()", f"'{secret}'"), "other.py": BEFORE.replace("load", f"x_{secret}")})
    repo.commit(REVIEW, {"io.py": AFTER, "key.py": f"KEY = '{secret}'\n" + OTHER})
    repo.commit(f"Clean up {secret} in keep", {"key.py": f"KEY = '{secret}'\n" + OTHER.replace("result", "copy")})
    report = repo.mine(tmp_path / "store.db", tmp_path / "out.jsonl", all_commits=True)
    assert report.changes_left_out == {"a key, a password or personal data seems to be in it": 2}
    assert report.functions_left_out["a key, a password or personal data seems to be in it"] == 1
    assert report.demonstrations == 2
    told = "\n".join(report.lines()) + json.dumps(report.as_dict()) + (tmp_path / "out.jsonl").read_text()
    assert secret not in told
    assert secret.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))


@pytest.mark.parametrize(
    ("path", "head", "reason"),
    [
        ("vendor/lib/io.py", "", "in a folder of others' code"),
        ("src/third_party/io.py", "", "in a folder of others' code"),
        ("app/migrations/0001_first.py", "", "generated, by its path"),
        ("proto/thing_pb2.py", "", "generated, by its path"),
        ("io.py", "# -*- coding: utf-8 -*-\n# Generated by the protocol buffer compiler.  DO NOT EDIT!\n", "generated, by its header"),
        ("io.py", '"""Words."""\n# @generated\n', "generated, by its header"),
        ("tests/io.py", "", "in a test file"),
        ("pkg/test_io.py", "", "in a test file"),
        ("conftest.py", "", "in a test file"),
        ("made/io.py", "", "marked as generated or vendored by .gitattributes"),
        ("lent/deep/io.py", "", "marked as generated or vendored by .gitattributes"),
    ],
)
def test_what_a_file_may_not_be(repo, path, head, reason):
    marks = "made/** linguist-generated\nlent/** linguist-vendored=true\nmade/own.py -linguist-generated\n"
    repo.commit("Add load", {".gitattributes": marks, path: head + BEFORE})
    repo.commit(REVIEW, {path: head + AFTER})
    report = repo.mine()
    assert only_reason(report) == reason
    assert report.demonstrations == 0


def test_attributes_may_take_a_file_in_again(repo):
    repo.commit("Add load", {".gitattributes": "made/** linguist-generated\nmade/own.py -linguist-generated\n", "made/own.py": BEFORE})
    repo.commit(REVIEW, {"made/own.py": AFTER})
    assert repo.mine().pairs == 1


def test_a_test_that_names_the_function_must_not_change_with_it(repo):
    test = "from io import load\n\ndef test_load():\n    assert load('x') == {}\n"
    repo.commit("Add load", {"io.py": BEFORE, "tests/test_io.py": test.format("[]")})
    repo.commit(REVIEW, {"io.py": AFTER, "tests/test_io.py": test.format("['a']")})
    assert Counter(repo.mine().changes_left_out)["a test that names it changed in the same commit"] == 1
    repo.commit("Tidy keep", {"io.py": AFTER + OTHER, "tests/test_io.py": test.format("['b']")})
    repo.commit("Tidy keep up", {"io.py": AFTER + OTHER.replace("result", "copy"), "tests/test_io.py": test.format("['c']")})
    assert repo.mine().pairs == 1  # that test does not name it


@pytest.mark.parametrize(
    ("message", "author", "reason"),
    [
        ("Read lines faster", "Ann Lee <ann@team.dev>", "speaks of no review, fix-up or style (--all-commits takes it)"),
        (REVIEW, "dependabot[bot] <49699333+dependabot[bot]@users.noreply.github.com>", "written by a program"),
        (REVIEW, "pre-commit-ci <bot@noreply.example>", "written by a program"),
        ('Revert "Tidy"\n\nThis reverts commit 0123456789abcdef.', "Ann Lee <ann@team.dev>", "takes back another"),
        (REVIEW, "Cem Out <cem@out.dev>", "its author opted out"),
        (REVIEW, "Dan Out <DAN@out.dev>", "its author opted out"),
        (REVIEW + "\nCo-authored-by: Cem Out <cem@out.dev>", "Ann Lee <ann@team.dev>", "its author opted out"),
        (REVIEW, "Eve Far <eve@far.dev>", "its author opted out"),
        (REVIEW, "Fay Near <fay@near.dev>", "its author opted out"),
    ],
)
def test_what_a_commit_may_not_be(repo, message, author, reason):
    hashed = hashlib.sha256(b"dan@out.dev").hexdigest()
    repo.commit("Add load", {"io.py": BEFORE, ".preftune-optout": f"# who does not want it\ncem@out.dev  # since May\n{hashed}\n"})
    repo.commit(message, {"io.py": AFTER}, author=author)
    assert only_commit_reason(repo.mine(exclude_authors=("Eve Far", "@near.dev"))) == reason


def test_the_code_of_one_who_opted_out_is_neither_before_nor_shown(repo):
    repo.commit("Add load", {"io.py": BEFORE, ".preftune-optout": "cem@out.dev\n"}, author="Cem Out <cem@out.dev>")
    repo.commit("Add keep", {"keep.py": OTHER})
    repo.commit(REVIEW, {"io.py": AFTER})
    report = repo.mine()
    assert only_reason(report) == "its author opted out"
    assert report.functions_left_out == {"its author opted out": 1}
    assert report.demonstrations == 1


def test_an_opt_out_file_beside_the_repository_counts_and_a_misspelt_line_is_refused(repo, tmp_path):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.commit(REVIEW, {"io.py": AFTER})
    (tmp_path / "out.txt").write_text("ann@team.dev\n")
    assert repo.mine(opt_out=tmp_path / "out.txt").pairs == 0
    (tmp_path / "out.txt").write_text("Ann Lee\n")
    with pytest.raises(DataError, match=r"out\.txt line 1: the line is neither an e-mail address"):
        repo.mine(opt_out=tmp_path / "out.txt")
    with pytest.raises(DataError, match="there is no such file"):
        repo.mine(opt_out=tmp_path / "none.txt")


def test_a_commit_that_is_taken_back_later_is_no_lesson(repo):
    repo.commit("Add load", {"io.py": BEFORE})
    sha = repo.commit(REVIEW, {"io.py": AFTER})
    repo.commit(f'Revert "Use a with block"\n\nThis reverts commit {sha}.', {"io.py": BEFORE})
    assert repo.mine().commits_left_out == {"changes no function of Python": 1, "taken back later": 1, "takes back another": 1}


def test_what_is_changed_back_without_a_word_is_no_lesson(repo):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.commit(REVIEW, {"io.py": AFTER})
    repo.commit("Better so", {"io.py": BEFORE})
    assert only_reason(repo.mine()) == "changed back at another time"


def test_merges_are_left_out_and_what_they_bring_is_seen_once(repo):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.git("checkout", "--quiet", "-b", "side")
    repo.commit(REVIEW, {"io.py": AFTER})
    repo.git("checkout", "--quiet", "main")
    repo.commit("Add keep", {"keep.py": OTHER})
    repo.git("merge", "--quiet", "--no-ff", "-m", "Merge the review", "side")
    report = repo.mine()
    assert (report.pairs, report.commits_left_out["a merge"]) == (1, 1)


def test_the_same_change_in_two_places_is_one_pair(repo):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.git("checkout", "--quiet", "-b", "side")
    repo.commit(REVIEW, {"io.py": AFTER})
    repo.git("checkout", "--quiet", "main")
    repo.commit(REVIEW, {"io.py": AFTER, "x.py": "x = 1\n"})
    repo.git("merge", "--quiet", "-m", "Merge", "side")
    report = repo.mine()
    assert (report.pairs, report.changes, report.changes_left_out) == (1, 2, {"the same as an earlier one": 1})


def test_layout_is_kept_apart_where_that_is_asked_for_and_a_docstring_is_a_kind_of_its_own(repo):
    repo.commit("Add", {"io.py": BEFORE, "keep.py": OTHER})
    repo.commit("Style: layout", {"io.py": BEFORE.replace("open(path)", "open( path )"), "keep.py": OTHER})
    repo.commit("Review: say what kind of copy", {"keep.py": OTHER.replace("Return a copy.", "Return a shallow copy of the items.")})
    assert repo.mine().kinds == {"mined:docstring": 1}
    report = repo.mine(keep_format=True)
    assert report.kinds == {"mined:docstring": 1, "mined:format": 1}
    shallow = next(example for example in report.examples if "keep.py" in example)
    assert "Keep in mind: Say what kind of copy" in shallow
    assert "Return a" not in shallow.splitlines()[1]  # the prompt does not give the answer away


def test_where_nothing_says_what_it_should_do_there_is_no_pair(repo):
    bare = "def f(x):\n    y = x + 1\n    return y\n"
    repo.commit("Add", {"a.py": bare})
    repo.commit("Address review comments", {"a.py": bare.replace("y", "z")})
    assert only_reason(repo.mine()) == "neither a docstring nor the message says what it should do"


def test_a_string_that_reaches_to_the_margin_and_a_name_defined_twice_are_left(repo):
    odd = "class A:\n    def text(self):\n        value = '''\nhere'''\n        return value{}\n"
    twice = "def f(x):\n    return x{0}\n\n\ndef f(y):\n    return y{0}\n"
    repo.commit("Add", {"odd.py": odd.format(""), "twice.py": twice.format("")})
    repo.commit("Review: add a space", {"odd.py": odd.format(" + ' '"), "twice.py": twice.format(" + 1")})
    assert only_reason(repo.mine()) == "its text does not stand alone"


def test_broken_old_and_binary_python_files_do_no_harm(repo):
    repo.commit("Add", {"old.py": "print 'x'\n", "io.py": BEFORE, "deep.py": "x = " + "(" * 500 + ")" * 500})
    (repo.folder / "latin.py").write_bytes(b"# caf\xe9\nx = 1\n")
    (repo.folder / "nul.py").write_bytes(b"x = 1\0\n")
    (repo.folder / "long.py").write_text("x = 1\n" * 400_000)
    (repo.folder / "link.py").symlink_to("/etc/passwd")
    repo.commit("Review of the reading", {"io.py": AFTER, "old.py": "print('x')\n"})
    assert repo.mine().pairs == 1


def test_a_part_of_the_history_can_be_read(repo):
    repo.commit("Add load", {"io.py": BEFORE})
    repo.time += 100 * 86400
    repo.commit(REVIEW, {"io.py": AFTER})
    report = repo.mine(since="2024-01-31")
    assert (report.commits, report.pairs, report.demonstrations) == (1, 1, 0)
    assert report.functions_left_out == {"added before the part of the history that was read": 1}
    assert repo.mine(revision="HEAD~1").commits == 1
    with pytest.raises(DataError, match="git rev-parse failed"):
        repo.mine(revision="--output=x")


def test_the_counts_add_up_and_every_reason_is_told(repo, tmp_path):
    repo.commit("Add load", {"io.py": BEFORE + OTHER, "README": "x"})
    repo.commit(REVIEW, {"io.py": AFTER + OTHER.replace("(items)", "(items, n=1)")})
    repo.commit("Tell more", {"README": "y"})
    report = repo.mine(tmp_path / "s.db")
    assert report.commits == report.commits_used + sum(report.commits_left_out.values())
    assert report.changes == report.pairs + sum(report.changes_left_out.values())
    text = "\n".join(report.lines())
    assert all(reason in text for reason in (*report.commits_left_out, *report.changes_left_out))
    assert "-    file = open(path)" in text
    assert "+    with open(path) as file:" in text


def test_a_bare_repository_and_a_folder_inside_one_can_be_mined(repo, tmp_path):
    repo.commit("Add load", {"src/io.py": BEFORE})
    repo.commit(REVIEW, {"src/io.py": AFTER})
    subprocess.run(["git", "clone", "--quiet", "--bare", str(repo.folder), str(tmp_path / "bare")], check=True)
    assert mine(tmp_path / "bare", dry_run=True).pairs == 1
    assert mine(repo.folder / "src", dry_run=True).pairs == 1


def test_what_is_no_repository_is_refused(repo, tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        mine(tmp_path / "none", dry_run=True)
    with pytest.raises(DataError, match="the repository has no commit yet"):
        repo.mine()
    with pytest.raises(DataError, match="there is no place for what is found"):
        mine(repo.folder)
    (tmp_path / "plain").mkdir()
    with pytest.raises(DataError, match="git rev-parse failed"):
        mine(tmp_path / "plain", dry_run=True, settings=MiningSettings())


PASSING = "import importlib.util, sys\nsys.dont_write_bytecode = True\nfrom io_ import load\nassert load('data.txt') == ['a']\n"


@pytest.mark.skipif(shutil.which("python3") is None, reason="there is no python3 on the path")
def test_with_a_command_the_tests_are_really_run_before_and_after(repo, tmp_path):
    base = {"io_.py": BEFORE + OTHER, "data.txt": "a", "check.py": PASSING}
    repo.commit("Add load", base)
    repo.commit(REVIEW, {"io_.py": AFTER + OTHER})
    repo.commit("Tidy keep a bit", {"io_.py": "raise SystemExit(1)\n" + AFTER + OTHER.replace("result", "copy")})
    repo.commit("Clean up keep, wait long", {"io_.py": "import time\ntime.sleep(600)\n" + AFTER + OTHER.replace("result", "kept")})
    report = repo.mine(run_tests="python3 check.py", test_seconds=5)
    assert report.pairs == 1
    assert report.changes_left_out == {"its tests passed before and failed after": 1, "its tests failed before and timed out after": 1}
    assert repo.git("status", "--porcelain") == ""
    assert not (repo.folder / ".git" / "worktrees").exists()
    with pytest.raises(ConfigError, match='"no-such-program" cannot be started'):
        repo.mine(run_tests="no-such-program")


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh")
def test_the_tests_see_no_secrets_of_the_environment_and_leave_nothing_running(repo, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    repo.commit(
        "Add load", {"io_.py": BEFORE, "run.sh": f"env > {tmp_path}/seen\n(sleep 300; touch {tmp_path}/late) &\necho $! > {tmp_path}/pid\n"}
    )
    repo.commit(REVIEW, {"io_.py": AFTER})
    assert repo.mine(run_tests="sh run.sh").pairs == 1
    assert "s3cret" not in (tmp_path / "seen").read_text()
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_this_projects_own_history_gives_pairs_that_are_what_they_say(repository):
    if not (repository / ".git").exists():
        pytest.skip("this is no checkout of the project's history")
    report = mine(repository, dry_run=True, settings=MiningSettings(all_commits=True))
    assert report.commits == report.commits_used + sum(report.commits_left_out.values())
    assert report.changes == report.pairs + sum(report.changes_left_out.values())
    assert report.pairs >= 50 or report.commits < 50  # a shallow clone has few
    assert report.demonstrations >= 100
    head = report.examples[0].splitlines()[0]
    _, sha, path, function = head.split(":")
    show = ["git", "-C", str(repository), "-c", "safe.directory=*", "show"]
    text = subprocess.run([*show, f"{sha}:{path}"], check=True, capture_output=True, text=True).stdout
    assert f"def {function.rpartition('.')[2]}(" in text
