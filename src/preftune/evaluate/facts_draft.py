"""A fact in the making, and the one way in which the interpreter decides it.

`Draft.source` is an expression over the name `choice`. It is evaluated once for each choice; a fact stands only if that
gives True for the right one and False for every other. So nothing about Python is taken as true because somebody typed it.
"""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import datetime
import functools
import importlib
import inspect
import io
import itertools
import json
import keyword
import math
import operator
import pathlib
import pkgutil
import re
import statistics
import string
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Draft:
    """A question with its right answer and a pool of wrong ones, from which a fact takes up to three."""

    kind: str
    question: str
    right: str
    wrong: tuple[str, ...]
    source: str


def target(path: str) -> Any:
    """Return what a dotted path names: a builtin (`str.upper`), or something in a standard module (`json.dumps`)."""
    return pkgutil.resolve_name(f"builtins.{path}" if hasattr(builtins, path.split(".")[0]) else path)


def summary(path: str) -> str:
    """Return the first sentence of a docstring, without its last full stop ("" where there is none)."""
    text = inspect.getdoc(target(path)) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].strip().removesuffix(".")


def raised_by(code: str) -> str:
    """Return the name of the exception that a statement raises, "" if none."""
    try:
        exec(code, dict(NAMESPACE))
    except Exception as error:  # any exception is the answer
        return type(error).__name__
    return ""


def after(statements: str, name: str) -> str:
    """Return the repr of a variable after some statements."""
    scope = dict(NAMESPACE)
    exec(statements, scope)
    return repr(scope[name])


def parameters(path: str) -> dict[str, Any]:
    """Return a callable's parameters with their defaults (`inspect.Parameter.empty`: none); {} where no signature is known."""
    try:
        return {p.name: p.default for p in inspect.signature(target(path)).parameters.values()}
    except ValueError:
        return {}


RETURNED: dict[str, Any] = {
    "__len__": 0,
    "__iter__": iter(()),
    "__str__": "",
    "__repr__": "",
    "__format__": "",
    "__hash__": 0,
    "__int__": 0,
    "__float__": 0.0,
}
RETURNED |= {
    "__bool__": True,
    "__bytes__": b"",
    "__complex__": 0j,
    "__dir__": [],
    "__setitem__": None,
    "__delitem__": None,
    "__contains__": True,
}
RETURNED |= {"__enter__": 0, "__exit__": None, "__next__": 0, "__call__": 0, "__getitem__": 0, "__setattr__": None, "__delattr__": None}
OPERATIONS = (
    "abs add and divmod eq floordiv ge gt iadd imul invert isub itruediv le lshift lt matmul mod mul ne neg or pos pow reversed round "
    "rshift sub truediv xor"
)
SPECIAL_METHODS = tuple(sorted({*RETURNED, *(f"__{name}__" for name in OPERATIONS.split())}))


def called_by(code: str) -> str:
    """Return the special method that a statement about an object `a` calls first, found by letting the object record it."""
    calls: list[str] = []

    def recorder(name: str) -> Callable[..., Any]:
        def method(self: object, *arguments: Any) -> Any:
            calls.append(name)
            return RETURNED.get(name, self)

        return method

    made = type("Recorder", (), {name: recorder(name) for name in SPECIAL_METHODS})
    a, b = made(), made()
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, {"a": a, "b": b})
    return calls[0]


NAMESPACE: dict[str, Any] = {
    **{m.__name__: m for m in (builtins, collections, datetime, functools, importlib, inspect, itertools, json, keyword)},
    **{m.__name__: m for m in (math, operator, pathlib, re, statistics, string, sys, textwrap)},
    **{"Path": pathlib.PurePosixPath, "Counter": collections.Counter, "deque": collections.deque, "date": datetime.date},
    **{f.__name__: f for f in (target, summary, raised_by, called_by, after, parameters)},
}


def decide(source: str, choice: str) -> bool:
    """Ask the interpreter whether a choice is right."""
    return bool(eval(source, dict(NAMESPACE), {"choice": choice}))


def of_value(kind: str, expressions: Iterable[str], *, asks: str = "In Python, what does `{}` evaluate to?") -> Iterator[Draft]:
    """Yield a draft for each expression: what does it evaluate to? Wrong answers are values near the right one."""
    for expression in expressions:
        value = eval(expression, dict(NAMESPACE))
        others = near(value) if isinstance(value, bool) else [*near(value), *operands(expression)]
        wrong = tuple(dict.fromkeys(repr(v) for v in others if repr(v) != repr(value)))
        yield Draft(kind, asks.format(expression), repr(value), wrong, f"repr({expression}) == choice")


def operands(code: str) -> list[Any]:
    """Return the literals that stand in some code: what one who does not know the function might repeat."""
    found: list[Any] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant | ast.List):
            with contextlib.suppress(ValueError):  # a list of something else than literals
                found.append(ast.literal_eval(node))
    return found


def near(value: Any) -> list[Any]:
    """Return plausible wrong values of the same type: off by one, reversed, in another case, one item short, …"""
    makers: dict[type, Callable[[Any], list[Any]]] = {
        bool: lambda v: [not v],
        int: lambda v: [v + 1, v - 1, v + 2, -v, v * 2, v * 10, v // 2, v + 10, v // 10],
        float: lambda v: [v + 1, v - 1, v + 0.5, v * 10, v / 10, v / 2, float(round(v)), round(v)],
        str: _near_text,
        bytes: lambda v: [v.decode("latin-1"), *(t.encode("latin-1") for t in _near_text(v.decode("latin-1"))), list(v)],
        type(None): lambda v: [0, False, "", []],
    }
    maker = makers.get(type(value), _near_sequence)
    return maker(value)


def _near_text(v: str) -> list[Any]:
    edits = [
        v.upper(),
        v.lower(),
        v.swapcase(),
        v.capitalize(),
        v[::-1],
        v[1:],
        v[:-1],
        v + v[-1:],
        v[:1] + v,
        v[1:] + v[:1],
        v * 2,
        v.strip(),
    ]
    return [e for e in edits if e]


def _near_sequence(v: Any) -> list[Any]:
    if isinstance(v, set | frozenset | dict):
        items = list(v.items()) if isinstance(v, dict) else sorted(v)
        return [type(v)(items[:-1]), type(v)(items[1:]), items, len(items)]
    kind, items = type(v), list(v)
    swapped = tuple(items) if kind is list else list(items)
    return [v[::-1], v[1:], v[:-1], v + v[-1:], v[:1] + v, v[1:] + v[:1], kind(_bump(i) for i in items), swapped, v[-1:], v[:1], kind([v])]


def _bump(item: Any) -> Any:
    return near(item)[0] if isinstance(item, int | float | str) else item
