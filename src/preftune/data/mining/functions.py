"""The functions of a Python file as text and as syntax: their names, how they are called, and whether two differ in more than layout."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from textwrap import dedent

Node = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A function of a module or class. name: with its classes, "Store.add". text: its source, moved to the left margin."""

    name: str
    text: str

    @cached_property
    def tree(self) -> Node | None:
        """Its syntax tree; None where the text does not stand alone, as with a string that reaches to the left margin."""
        module = parse(self.text)
        found = module.body[0] if module and len(module.body) == 1 else None
        return found if isinstance(found, Node) else None

    @property
    def node(self) -> Node:
        """Its syntax tree, of a function that has one."""
        assert self.tree is not None
        return self.tree

    @property
    def last_name(self) -> str:
        """Its name without the classes."""
        return self.name.rpartition(".")[2]

    @property
    def is_method(self) -> bool:
        """Whether it belongs to a class."""
        return "." in self.name

    @property
    def num_lines(self) -> int:
        """Lines of its source."""
        return self.text.count("\n") + 1

    @cached_property
    def docstring(self) -> str:
        """Its docstring without indentation; empty where it has none."""
        return ast.get_docstring(self.node) or ""

    @cached_property
    def called_as(self) -> str:
        """What a caller relies on: parameters with their kinds and defaults, async, decorators; annotations are left out."""
        arguments = _without_annotations(self.node.args)
        decorators = [ast.dump(decorator) for decorator in self.node.decorator_list]
        return f"{type(self.node).__name__} {ast.dump(arguments)} {decorators}"

    @cached_property
    def does(self) -> str:
        """Its syntax without name and docstring: equal where two functions differ in layout, comments and docstring alone."""
        node = self.node
        body = node.body[1:] if self.docstring else node.body
        returns = ast.dump(node.returns) if node.returns else ""
        return f"{self.called_as} {ast.dump(node.args)} {returns} {[ast.dump(statement) for statement in body]}"


@lru_cache(maxsize=512)  # a file's text after one commit is its text before the next
def functions_of(text: str) -> dict[str, Function] | None:
    """Return the functions of modules and classes in a file by name; None where it is not valid Python of this version.

    A name that is defined twice (overloads, the parts of a property) is left out.
    """
    tree = parse(text)
    if tree is None:
        return None
    lines = re.split("\r\n|\r|\n", text)  # what ends a line for Python's parser, and nothing else
    found: list[tuple[str, Node]] = []
    _collect(tree, "", found)
    counts = Counter(name for name, _ in found)
    result = {}
    for name, node in found:
        if counts[name] == 1:
            first = min((decorator.lineno for decorator in node.decorator_list), default=node.lineno)
            result[name] = Function(name, dedent("\n".join(lines[first - 1 : node.end_lineno])).strip("\n"))
    return result


def parse(text: str) -> ast.Module | None:
    """Return a text's syntax tree, or None where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes; the code is not ours to mend
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _collect(parent: ast.AST, inside: str, found: list[tuple[str, Node]]) -> None:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Node):
            found.append((f"{inside}{node.name}", node))
        elif isinstance(node, ast.ClassDef):
            _collect(node, f"{inside}{node.name}.", found)
        elif isinstance(node, ast.If | ast.Try):
            _collect(node, inside, found)


def _without_annotations(arguments: ast.arguments, keep: frozenset[str] = frozenset()) -> ast.arguments:
    def bare(argument: ast.arg | None) -> ast.arg | None:
        if argument is None:
            return None
        return ast.arg(argument.arg, argument.annotation if argument.arg in keep else None)

    def bare_all(part: list[ast.arg]) -> list[ast.arg]:
        return [found for argument in part if (found := bare(argument))]

    return ast.arguments(
        posonlyargs=bare_all(arguments.posonlyargs),
        args=bare_all(arguments.args),
        vararg=bare(arguments.vararg),
        kwonlyargs=bare_all(arguments.kwonlyargs),
        kw_defaults=arguments.kw_defaults,
        kwarg=bare(arguments.kwarg),
        defaults=arguments.defaults,
    )


def signature(after: Function, before: Function | None = None) -> str:
    """Return "name(a: int, *, b=2) -> str" as it is to be asked for: with those annotations that both versions have alike."""
    returns = after.node.returns
    arguments = after.node.args
    if before is not None:
        old, new = _annotations(before.node), _annotations(after.node)
        same = frozenset(name for name, annotation in new.items() if old.get(name) == annotation)
        arguments = _without_annotations(arguments, same)
        returns = returns if "return" in same else None
    shown = f"{after.name}({ast.unparse(arguments)})"
    return f"{shown} -> {ast.unparse(returns)}" if returns else shown


def _annotations(node: Node) -> dict[str, str]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
    found = {argument.arg: ast.dump(argument.annotation) for argument in every if argument.annotation}
    return found | ({"return": ast.dump(node.returns)} if node.returns else {})


def renamed(function: Function, name: str) -> Function:
    """Return a function under another (full) name; where it speaks of itself by name, it is renamed there, too."""
    old, new = function.last_name, name.rpartition(".")[2]
    if old == new:
        return Function(name, function.text)
    places = [
        token.start
        for token in tokenize.generate_tokens(io.StringIO(function.text).readline)
        if token.type == tokenize.NAME and token.string == old
    ]
    lines = function.text.split("\n")
    for row, column in reversed(places):
        line = lines[row - 1]
        lines[row - 1] = f"{line[:column]}{new}{line[column + len(old) :]}"
    return Function(name, "\n".join(lines))
