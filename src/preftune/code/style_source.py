"""Python source as the style rules look at it: syntax tree, parents, scopes, imports and string literals, each found once."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


_MAX_DEPTH = 150  # levels of the tree: far more than people nest, far less than Python's recursion limit


def parse(code: str) -> ast.Module | None:
    """Return the syntax tree, or None where the text is not Python or nested beyond reason (`a + a + a + …` without end)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a plain string is style, not an error
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    level: list[ast.AST] = [tree]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return None if level else tree


class Source:
    """Python code with what several rules look up: nodes, parents, scopes and where names were imported from."""

    def __init__(self, code: str) -> None:
        tree = parse(code)
        if tree is None:
            raise ValueError("this is not Python")
        self.code, self.tree = code, tree
        self.nodes = list(ast.walk(tree))
        self.parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def of(self, *types: type[ast.AST]) -> Iterator[ast.AST]:
        """Yield the nodes of these types."""
        return (node for node in self.nodes if isinstance(node, types))

    @cached_property
    def imports(self) -> dict[str, str]:
        """Local name → dotted name that it was imported from: `import os as o` gives o → os."""
        names = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                names.update({a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names})
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
        return names

    def dotted(self, node: ast.AST) -> str:
        """Return the imported dotted name of `a.b.c`, or "" for anything else; a name not imported stands for itself."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        return ".".join([self.imports.get(node.id, node.id), *reversed(parts)])

    def scope(self, node: ast.AST) -> Function | ast.Module:
        """Return the function, or else the module, that a node stands in."""
        while not isinstance(node, Function | ast.Module):
            node = self.parents[node]
        return node

    @cached_property
    def defined(self) -> set[str]:
        """Names that the code itself defines as functions or classes (they hide builtins)."""
        return {node.name for node in self.nodes if isinstance(node, Function | ast.ClassDef)}

    def calls_builtin(self, node: ast.AST, name: str) -> bool:
        """Return whether a node calls the builtin of this name."""
        called = self.dotted(node.func) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        return called == name and name not in self.defined

    @cached_property
    def public(self) -> list[tuple[Function | ast.ClassDef, bool]]:
        """Public functions and classes of the module and of public classes, each with "is it a method"; closures are private."""
        found: list[tuple[Function | ast.ClassDef, bool]] = []
        stack: list[tuple[ast.AST, bool]] = [(self.tree, False)]
        while stack:
            node, in_class = stack.pop()
            for child in ast.iter_child_nodes(node):
                if isinstance(child, Function | ast.ClassDef):
                    if not child.name.startswith("_"):
                        found.append((child, in_class))
                        if isinstance(child, ast.ClassDef):
                            stack.append((child, True))
                    elif child.name == "__init__" and in_class:
                        found.append((child, True))
                elif isinstance(child, ast.stmt | ast.ExceptHandler):
                    stack.append((child, in_class))
        return found

    @cached_property
    def string_tokens(self) -> list[tuple[tuple[int, int], str, str]]:
        """(start, opening quotes with prefix, whole text) of each string literal; an f-string is one with all inside it."""
        found: list[tuple[tuple[int, int], str, str]] = []
        middle = tuple(getattr(tokenize, name, -1) for name in ("FSTRING_START", "FSTRING_END"))
        depth, start, opening, parts = 0, (0, 0), "", list[str]()
        try:
            for token in tokenize.generate_tokens(io.StringIO(self.code).readline):
                if token.type == middle[0]:  # Python 3.12 and later cut f-strings into tokens
                    if depth == 0:
                        start, opening, parts = token.start, token.string, []
                    depth += 1
                if depth:
                    parts.append(token.string)
                elif token.type == tokenize.STRING:
                    prefix = token.string[: len(token.string) - len(token.string.lstrip("rRbBuUfF"))]
                    body = token.string[len(prefix) :]
                    found.append((token.start, prefix + (body[:3] if body[:3] in ('"""', "'''") else body[:1]), token.string))
                if token.type == middle[1]:
                    depth -= 1
                    if depth == 0:
                        found.append((start, opening, "".join(parts)))
        except (tokenize.TokenError, SyntaxError):  # what the parser lets pass and the tokenizer does not, such as stray form feeds
            return found
        return found


Rule = Callable[[Source], bool | None]


def verdict(broken: bool, touched: bool) -> bool | None:
    """Return False where broken, True where only touched, None where neither."""
    return False if broken else True if touched else None


def docstring_node(node: ast.AST) -> ast.Constant | None:
    """Return the docstring literal of a module, class or function, or None."""
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        return body[0].value if isinstance(body[0].value.value, str) else None
    return None
