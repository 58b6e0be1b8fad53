"""What is left out of a history: by its author, by its path, by what a file or function is. Each rule gives its reason in words."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from preftune.data.mining.functions import Function
from preftune.data.mining.git import Commit
from preftune.errors import DataError

OPT_OUT_FILE = ".preftune-optout"
ATTRIBUTES = ("linguist-generated", "linguist-vendored")
CHARACTERS_A_TOKEN = 3.5  # of Python code in most tokenizers
HEADER_LINES = 15

_BOT = re.compile(
    r"\[bot\]|\bbot\b|dependabot|renovate|pre-commit-ci|github-actions|semantic-release|greenkeeper|pyup-|-bot@", re.IGNORECASE
)
_CO_AUTHOR = re.compile(r"^co-authored-by: *(.*?) *<([^>]*)>", re.IGNORECASE | re.MULTILINE)
_VENDORED = re.compile(
    r"(?:^|/)(?:_?vendor(?:ed|s)?|third[_-]?party|3rdparty|extern(?:al|als)?|node_modules|site-packages|\.?venv|dist-packages|_vendored_?\w*)/"
)
_GENERATED_PATH = re.compile(
    r"_pb2(?:_grpc)?\.py$|(?:^|/)(?:generated|autogen(?:erated)?|__generated__|migrations|alembic/versions)/|_generated\.py$|"
    r"(?:^|/)(?:_version|versioneer|parsetab|lextab|_build_info)\.py$"
)
_GENERATED_HEADER = re.compile(
    r"^\s*#.*(?:\bgenerated (?:by|from|automatically|file|code)\b|auto-?generated|\bdo not (?:edit|modify)\b|@generated)", re.IGNORECASE
)
_TEST_PATH = re.compile(r"(?:^|/)(?:tests?|testing|test_\w+)/|(?:^|/)(?:test_[^/]*|[^/]*_test|tests|conftest)\.py$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class OptOut:
    """Who does not want to be learned from: e-mail addresses, their sha256, and names or parts of addresses to leave out."""

    addresses: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    def covers(self, name: str, email: str) -> bool:
        """Return whether a person is left out."""
        email, name = email.strip().lower(), name.lower()
        if email in self.addresses or hashlib.sha256(email.encode()).hexdigest() in self.hashes:
            return True
        return any(pattern in (name, email) or ("@" in pattern and email.endswith(pattern)) for pattern in self.patterns)

    def covers_commit(self, commit: Commit) -> bool:
        """Return whether the author or a co-author of a commit is left out."""
        people = [(commit.author.name, commit.author.email), *_CO_AUTHOR.findall(commit.message)]
        return any(self.covers(name, email) for name, email in people)


def read_opt_out(texts: Iterable[tuple[str, str]], excluded: Sequence[str]) -> OptOut:
    """Return who is left out. texts: (where, text) of opt-out files: one e-mail address or sha256 of one a line, # starts a comment.

    excluded: names, addresses, or ends of addresses ("@example.com"). Raises DataError where a line is neither, since a person whose wish
    was misread would be learned from.
    """
    addresses, hashes = set(), set()
    for where, text in texts:
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.partition("#")[0].strip().lower()
            if _SHA256.fullmatch(entry):
                hashes.add(entry)
            elif "@" in entry and " " not in entry:
                addresses.add(entry.strip("<>"))
            elif entry:
                fix = "Write one e-mail address, or the sha256 of one in lower case, a line."
                raise DataError("the line is neither an e-mail address nor the sha256 of one", f"{where} line {number}", fix)
    return OptOut(frozenset(addresses), frozenset(hashes), tuple(pattern.strip().lower() for pattern in excluded if pattern.strip()))


def is_bot(commit: Commit) -> bool:
    """Return whether a program wrote the commit."""
    return bool(_BOT.search(commit.author.name) or _BOT.search(commit.author.email))


def is_test(path: str) -> bool:
    """Return whether a path is that of tests."""
    return bool(_TEST_PATH.search(path))


def head_of(text: str) -> str:
    """Return the first lines of a file, where a generator leaves its name."""
    return "\n".join(text.split("\n", HEADER_LINES)[:HEADER_LINES])


def why_not_file(path: str, head: str, marked: set[str]) -> str:
    """Return why nothing of a file is taken, or nothing where it may be. head: its first lines. marked: paths with one of ATTRIBUTES."""
    if is_test(path):
        return "in a test file"
    if path in marked:
        return "marked as generated or vendored by .gitattributes"
    if _VENDORED.search(path):
        return "in a folder of others' code"
    if _GENERATED_PATH.search(path):
        return "generated, by its path"
    if any(_GENERATED_HEADER.match(line) for line in head.split("\n")):
        return "generated, by its header"
    return ""


def why_not_size(function: Function, *, min_lines: int, max_lines: int, max_tokens: int) -> str:
    """Return why a function is too small or too large, or nothing."""
    if function.num_lines < min_lines or _is_stub(function):
        return "too small"
    if function.num_lines > max_lines or len(function.text) > max_tokens * CHARACTERS_A_TOKEN:
        return "too large"
    return ""


def _is_stub(function: Function) -> bool:
    # Nothing but a docstring, ... or pass: an interface, not an answer.
    body = function.node.body[1:] if function.docstring else function.node.body
    return all(isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)) for line in body)


def module_of(path: str) -> str:
    """Return the name by which a file is imported, as far as its path tells: "src/pkg/io.py" is "pkg.io"."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if parts and parts[0] in ("src", "lib"):
        parts = parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def names_in(text: str) -> frozenset[str]:
    """Return every identifier-like word of a text."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", text))
