"""Functions as text and syntax."""

from __future__ import annotations

import pytest

from preftune.data.mining.functions import Function, functions_of, renamed, signature
from preftune.data.mining.selecting import kind_of

FILE = '''
import os

@cache
def first(a, *, b=1):
    """One."""
    return a


class Box:
    x = 1

    def size(self) -> int:
        """Two.

            Deep.
        """
        def inner():
            return 1
        return inner()

    class Lid:
        async def lift(self): return 2

if os.name == "nt":
    def only_here():
        return 3
else:
    def elsewhere():
        return 4

@overload
def twice(x: int): ...
@overload
def twice(x: str): ...
def twice(x):
    return x
'''


def function(text: str, name: str = "f") -> Function:
    return Function(name, text)


def test_functions_are_found_with_their_classes_and_cut_out_to_the_margin() -> None:
    found = functions_of(FILE)
    assert found is not None
    assert list(found) == ["first", "Box.size", "Box.Lid.lift", "only_here", "elsewhere"]
    assert found["first"].text == '@cache\ndef first(a, *, b=1):\n    """One."""\n    return a'
    assert found["Box.size"].text.startswith('def size(self) -> int:\n    """Two.\n')
    assert (found["Box.size"].num_lines, found["Box.size"].docstring) == (8, "Two.\n\nDeep.")
    assert (found["Box.Lid.lift"].last_name, found["Box.Lid.lift"].is_method, found["first"].is_method) == ("lift", True, False)


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_other_ends_of_lines_and_form_feeds_do_not_shift_the_cut(ends: str) -> None:
    text = "x = 1\n\f\ndef f(a):\n    s = '\x0b'\n    return a\n"
    assert functions_of(text.replace("\n", ends)) == functions_of(text) == {"f": Function("f", "def f(a):\n    s = '\x0b'\n    return a")}


@pytest.mark.parametrize("text", ["def f(:", "print 'x'", "x = 1\0", "(" * 5000, "def f():\n\treturn 1\n        return 2\n"])
def test_what_is_no_python_of_today_gives_none(text: str) -> None:
    assert functions_of(text) is None


def test_old_escapes_give_no_warning() -> None:
    assert functions_of("def f():\n    return '\\d' is 'x'\n") is not None


def test_a_function_with_a_string_at_the_margin_does_not_stand_alone() -> None:
    found = functions_of("class A:\n    def f(self):\n        return '''\nx'''\n")
    assert found is not None
    assert found["A.f"].tree is None
    assert functions_of("def f():\n    return '''\nx'''\n")["f"].tree is not None  # type: ignore[index]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("def f(a, b=1): pass", "def f(a: int, b: int = 1) -> str: return 2", True),
        ("def f(a, b=1): pass", "def f(a, b=2): pass", False),
        ("def f(a, b): pass", "def f(b, a): pass", False),
        ("def f(a, b): pass", "def f(a, *, b): pass", False),
        ("def f(a): pass", "def f(a, /): pass", False),
        ("def f(a): pass", "async def f(a): pass", False),
        ("def f(a): pass", "@cache\ndef f(a): pass", False),
        ("def f(*a, **k): pass", "def f(*a: int, **k: str): pass", True),
        ("def f(a): pass", "def g(a): pass", True),
    ],
)
def test_what_a_caller_relies_on(a: str, b: str, same: bool) -> None:
    assert (function(a).called_as == function(b).called_as) is same


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("def f(a):\n    return a+1", "def f( a ):\n    # more\n    return (a + 1)", "mined:format"),
        ('def f(a):\n    """One."""\n    return a', 'def f(a):\n    """Two."""\n    return a', "mined:docstring"),
        ("def f(a):\n    return a", 'def f(a):\n    """Two."""\n    return a', "mined:docstring"),
        (
            'def f(a):\n    """One.\n\n    More.\n    """\n    return a',
            'def f(a):\n    """One.\n\n    More."""\n    return a',
            "mined:format",
        ),
        ("def f(a):\n    return 'x'", 'def f(a):\n    return "x"', "mined:format"),
        ("def f(a):\n    return a", "def f(a) -> int:\n    return a", "mined:code"),
        ("def f(a):\n    return a", "def f(a: int):\n    return a", "mined:code"),
        ("def f(a):\n    return a", "def f(a):\n    return a + 0", "mined:code"),
    ],
)
def test_layout_docstring_and_code_are_told_apart(before: str, after: str, kind: str) -> None:
    assert kind_of(function(before), function(after)) == kind


def test_the_signature_shows_annotations_that_both_versions_have() -> None:
    after = function("def f(a: int, *b: str, c: float = 1.0, **d) -> bool: ...", "Box.f")
    before = function("def f(a: int, *b: bytes, c=1.0, **d) -> bool: ...", "Box.f")
    assert signature(after) == "Box.f(a: int, *b: str, c: float=1.0, **d) -> bool"
    assert signature(after, before) == "Box.f(a: int, *b, c=1.0, **d) -> bool"
    assert signature(after, function("def f(a): ...")) == "Box.f(a, *b, c=1.0, **d)"


def test_a_renamed_function_speaks_of_itself_by_its_new_name_and_strings_stay() -> None:
    old = function("def walk(n):\n    # walk on\n    x.walked = 'walk'\n    return walk(n - 1) + walk(n)", "Tree.walk")
    assert renamed(old, "Tree.stroll").text == "def stroll(n):\n    # walk on\n    x.walked = 'walk'\n    return stroll(n - 1) + stroll(n)"
    assert renamed(old, "Other.walk").text == old.text
