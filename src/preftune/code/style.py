"""House style as a number: the 12 conventions of the built-in sample, each decided by a program on the syntax tree and tokens.

A verdict is True (followed), False (broken) or None (the code does not touch the matter). The rules themselves are in
`style_rules.py` and `style_idioms.py`; this file finds the code in an answer and puts the verdicts together.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass, field

from preftune.code import style_idioms as idioms
from preftune.code import style_rules as rules
from preftune.code.style_source import Rule, Source, parse

# In the order in which reports show them.
CONVENTIONS: dict[str, str] = {
    "type-hints": "Every public function and method annotates every parameter (but self and cls) and its return.",
    "docstring": 'Every public function, method and class has a one-line """docstring""" in the imperative mood that ends with a period.',
    "double-quotes": "String literals use double quotes.",
    "f-strings": "Values are put into text by f-strings: no % formatting, no .format(), no adding of texts.",
    "pathlib": "Files are handled through pathlib.Path: no builtin open(), no os.path, no file functions of os, no glob module.",
    "early-return": "There is no else or elif after a branch that always ends in return, raise, continue or break.",
    "specific-except": "except names specific exceptions: not bare, not Exception, not BaseException.",
    "dataclasses": "A record is a @dataclass: not a dict with constant keys, not a class whose __init__ just assigns.",
    "logging": "Diagnostics go through logging, not print().",
    "comprehensions": "A list, set or dict is built by a comprehension, not by a for loop that only appends, adds or sets.",
    "direct-tests": "Emptiness and None are tested directly: not len(x) == 0, == None, == True or == False.",
    "direct-iteration": "Loops go over the things themselves: no range(len(x)), no while with a hand-kept index.",
}

_RULES: dict[str, Rule] = {
    "type-hints": rules.type_hints,
    "docstring": rules.docstring,
    "double-quotes": rules.double_quotes,
    "f-strings": rules.f_strings,
    "pathlib": rules.uses_pathlib,
    "early-return": rules.early_return,
    "specific-except": rules.specific_except,
    "dataclasses": idioms.dataclass_records,
    "logging": rules.uses_logging,
    "comprehensions": idioms.comprehensions,
    "direct-tests": idioms.direct_tests,
    "direct-iteration": idioms.direct_iteration,
}

_FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*([^\s`]*)[^`]*$")


@dataclass(frozen=True)
class StyleReport:
    """What the conventions say about one answer; code is None where no Python was found."""

    code: str | None
    verdicts: dict[str, bool | None] = field(default_factory=dict)

    @property
    def followed(self) -> list[str]:
        """The conventions that apply and are followed."""
        return [name for name, verdict in self.verdicts.items() if verdict is True]

    @property
    def broken(self) -> list[str]:
        """The conventions that apply and are broken."""
        return [name for name, verdict in self.verdicts.items() if verdict is False]

    @property
    def adherence(self) -> float:
        """The share of the applicable conventions that are followed: 1 where none applies, 0 where there is no code."""
        if self.code is None:
            return 0.0
        followed, broken = len(self.followed), len(self.broken)
        return followed / (followed + broken) if followed + broken else 1.0


def judge_style(answer: str, *, fenced: bool = True) -> StyleReport:
    """Return the verdict of each convention on the code of an answer.

    answer: a model's answer, or code alone. fenced: False takes the whole text as code and looks for no fences.
    """
    code = extract_code(answer) if fenced else (answer if parse(answer) is not None else None)
    if code is None:
        return StyleReport(None, dict.fromkeys(CONVENTIONS))
    source = Source(code)
    return StyleReport(code, {name: rule(source) for name, rule in _RULES.items()})


def extract_code(answer: str) -> str | None:
    """Return the Python code of an answer, or None where there is none.

    The first fenced block that parses and does more than name things; else the whole text, if it parses and holds a
    definition, an import or an assignment. A block whose fence is never closed (a cut answer) counts up to its last whole
    top-level statement; a block of `>>>` lines counts without its prompts and outputs.
    """
    for block, closed in _fenced_blocks(answer):
        for code in _readings(block, closed):
            tree = parse(code)
            if tree is not None and any(not _is_naming(statement) for statement in tree.body):
                return code
    tree = parse(answer)
    return answer if tree is not None and any(isinstance(node, _CODE) for node in ast.walk(tree)) else None


_CODE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign)


def _is_naming(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Name | ast.Attribute | ast.Constant)


def _fenced_blocks(answer: str) -> list[tuple[str, bool]]:
    """Return (text, whether its fence is closed) of each fenced block that is Python by its tag or has no tag."""
    blocks: list[tuple[str, bool]] = []
    fence, is_python, lines = "", False, list[str]()
    for line in answer.splitlines():
        if not fence:
            opening = _FENCE.match(line)
            if opening:
                fence, tag, lines = opening[1], opening[2].lower(), []
                is_python = not tag or "py" in tag
        elif line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            if is_python:
                blocks.append(("\n".join(lines), True))
            fence = ""
        else:
            lines.append(line)
    if fence and is_python:
        blocks.append(("\n".join(lines), False))
    return blocks


def _readings(block: str, closed: bool) -> list[str]:
    """Return the ways to read one block as code, the plainest first."""
    text = textwrap.dedent(block)
    readings = [text]
    lines = text.splitlines()
    if any(line.startswith(">>>") for line in lines):
        readings.append("\n".join(line[4:] for line in lines if line.startswith((">>>", "..."))))
    if not closed:
        starts = [i for i, line in enumerate(lines) if line and line[0] not in " \t)]}#"]
        readings += ["\n".join(lines[:i]) for i in reversed(starts[1:])]
    return readings
