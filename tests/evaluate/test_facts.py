from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import hashlib
import importlib.util
import inspect
import json
import math
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import ConfigError
from preftune.evaluate.facts import Fact, facts


@pytest.fixture(scope="module")
def many() -> list[Fact]:
    return facts(2000)


def code_in(fact: Fact) -> str:
    found = re.search(r"`(.+?)`", fact.question, re.DOTALL)
    assert found
    return found[1]


def right(fact: Fact) -> str:
    return fact.choices[fact.answer]


def test_there_are_two_thousand_distinct_facts_of_many_kinds(many: list[Fact]) -> None:
    kinds = Counter(fact.kind for fact in many)
    assert len({fact.id for fact in many}) == len({(fact.question, right(fact)) for fact in many}) == 2000
    assert len(kinds) >= 8
    assert max(kinds.values()) <= 0.2 * len(many)


@pytest.mark.parametrize("n", [40, 333, 3000])
def test_any_number_keeps_each_kind_to_a_fifth(n: int) -> None:
    found = facts(n, seed=5)
    assert len({fact.id for fact in found}) == n
    assert max(Counter(fact.kind for fact in found).values()) <= 0.2 * n


def test_the_interpreter_holds_the_right_choice_for_true_and_no_other(many: list[Fact]) -> None:
    for fact in many:
        assert 2 <= len(fact.choices) <= 4
        assert len(set(fact.choices)) == len(fact.choices)
        assert [fact.holds(choice) for choice in fact.choices] == [i == fact.answer for i in range(len(fact.choices))], fact


def other_route_value(fact: Fact) -> bool:
    scope: dict[str, Any] = {}
    exec("import math, json, re, itertools, functools, operator, statistics, string, textwrap", scope)
    exec("from pathlib import PurePosixPath as Path\nfrom collections import *\nfrom datetime import date", scope)
    value = eval(code_in(fact), scope)
    if isinstance(value, int | float | str | bytes | list | tuple | dict | set | None):
        return ast.literal_eval(right(fact)) == value and all(repr(value) != c for c in fact.choices if c != right(fact))
    return bool(repr(value) == right(fact))


def other_route_type(fact: Fact) -> bool:
    scope: dict[str, Any] = {}
    exec("import math, json, re\nfrom pathlib import PurePosixPath as Path\nfrom collections import *\nfrom datetime import date", scope)
    return bool(type(eval(code_in(fact), scope)).__qualname__ == right(fact))


def other_route_module(fact: Fact) -> bool:
    def imports(module: str) -> bool:
        with contextlib.suppress(ImportError):
            exec(f"from {module} import {code_in(fact)}", {})
            return True
        return False

    return [imports(module) for module in fact.choices] == [i == fact.answer for i in range(len(fact.choices))]


def other_route_exception(fact: Fact) -> bool:
    scope: dict[str, Any] = {}
    exec("import math, json, pathlib\nfrom collections import *\nfrom datetime import date", scope)
    known = {"JSONDecodeError": json.JSONDecodeError}
    expected = known.get(right(fact)) or getattr(builtins, right(fact))
    with pytest.raises(expected) as caught:
        exec(code_in(fact), scope)
    return caught.type is expected


def other_route_ancestor(fact: Fact) -> bool:
    name = code_in(fact)
    if "subclass of" in fact.question:
        return getattr(builtins, name) in inspect.getmro(getattr(builtins, right(fact)))[1:]
    homes: tuple[Any, ...] = (
        builtins,
        collections,
        *map(importlib.import_module, ("datetime", "enum", "pathlib", "json", "subprocess", "csv", "abc")),
    )
    found = next(getattr(home, name) for home in homes if hasattr(home, name))
    return bool(found.__bases__[0].__name__ == right(fact))


def other_route_word(fact: Fact) -> bool:
    def is_reserved(word: str) -> bool:
        try:
            compile(f"{word} = 1", "test", "exec")
        except SyntaxError:
            return True
        return False

    if "keyword" in fact.question:
        return [is_reserved(c) for c in fact.choices] == [i == fact.answer for i in range(len(fact.choices))]
    if "builtin" in fact.question:
        return [c in dir(builtins) for c in fact.choices] == [i == fact.answer for i in range(len(fact.choices))]
    return importlib.util.find_spec(right(fact)) is not None


def other_route_parameter(fact: Fact) -> bool:
    path = re.findall(r"`(.+?)`", fact.question)[-1]
    first = path.split(".")[0]
    places = {"Path": f"pathlib.{path}", "datetime": f"datetime.{path}"}
    full = f"builtins.{path}" if hasattr(builtins, first) else places.get(first, path)
    function = pkgutil.resolve_name(full)
    if not inspect.isfunction(function):  # written in C: there is one route alone
        return True
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)]
    if fact.kind == "parameters":
        return [c in names for c in fact.choices] == [i == fact.answer for i in range(len(fact.choices))]
    defaults = dict(zip(reversed(code.co_varnames[: code.co_argcount]), reversed(function.__defaults__ or ()), strict=False))
    defaults |= function.__kwdefaults__ or {}
    return repr(defaults[code_in(fact)]) == right(fact)


ROUTES: dict[str, Callable[[Fact], bool]] = {
    "types": other_route_type,
    "modules": other_route_module,
    "exceptions": other_route_exception,
    "ancestors": other_route_ancestor,
    "words": other_route_word,
    "parameters": other_route_parameter,
    "defaults": other_route_parameter,
}


def test_another_route_comes_to_the_same_answer(many: list[Fact]) -> None:
    checked = Counter[str]()
    for fact in many:
        route = ROUTES.get(fact.kind) or (other_route_value if "evaluate to" in fact.question else None)
        if route:
            assert route(fact), fact
            checked[fact.kind] += 1
    assert len(checked) >= 0.85 * len({fact.kind for fact in many})


def test_statements_leave_the_same_in_a_fresh_interpreter(many: list[Fact]) -> None:
    some = [fact for fact in many if fact.kind == "statements"]
    script = []
    for fact in some:
        statements, name = re.findall(r"`(.+?)`", fact.question, re.DOTALL)
        script.append(f"scope = {{}}; exec({statements!r}, scope); print(repr(scope[{name!r}]))")
    done = subprocess.run([sys.executable, "-I", "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [right(fact) for fact in some]


def test_facts_are_the_same_in_every_process_and_nothing_is_printed(many: list[Fact], repository: Path) -> None:
    script = "import hashlib; from preftune.evaluate.facts import facts; print(hashlib.sha256(repr(facts(2000)).encode()).hexdigest())"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(repository / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == hashlib.sha256(repr(many).encode()).hexdigest()
    assert done.stderr == ""


def test_an_id_does_not_depend_on_the_seed_but_the_choice_of_facts_does(many: list[Fact]) -> None:
    others = {fact.id: fact for fact in facts(2000, seed=1)}
    shared = [fact for fact in many if fact.id in others]
    assert 500 < len(shared) < 2000
    for fact in shared:
        assert right(others[fact.id]) == right(fact)
        assert sorted(others[fact.id].choices) == sorted(fact.choices)


def test_more_facts_hold_the_fewer_ones(many: list[Fact]) -> None:
    assert {fact.id for fact in facts(700)} < {fact.id for fact in many}


def test_taking_the_first_the_longest_or_the_shortest_choice_is_near_chance(many: list[Fact]) -> None:
    chance = sum(1 / len(fact.choices) for fact in many) / len(many)

    def accuracy(extreme: Callable[..., int]) -> float:
        total = 0.0
        for fact in many:
            lengths = [len(choice) for choice in fact.choices]
            total += (lengths[fact.answer] == extreme(lengths)) / lengths.count(extreme(lengths))
        return total / len(many)

    noise = 3 * math.sqrt(chance * (1 - chance) / len(many))  # three standard errors: 2.9 points
    assert accuracy(max) == pytest.approx(chance, abs=noise)
    assert accuracy(min) == pytest.approx(chance, abs=noise)
    for place in range(2):
        assert sum(fact.answer == place for fact in many) / len(many) == pytest.approx(chance, abs=noise)


def test_always_the_same_word_is_no_better_than_chance(many: list[Fact]) -> None:
    most_common = Counter(right(fact) for fact in many).most_common(1)[0][1]
    assert most_common < 0.05 * len(many)


def test_questions_and_choices_are_short(many: list[Fact]) -> None:
    assert sum(len(fact.question) for fact in many) / len(many) < 80
    assert max(len(fact.question) for fact in many) < 160
    assert sum(len(choice) for fact in many for choice in fact.choices) / sum(len(fact.choices) for fact in many) < 12


@pytest.mark.parametrize("n", [0, 1_000_000])
def test_more_facts_than_there_are_is_refused_with_the_number(n: int) -> None:
    with pytest.raises(ConfigError, match=r"Ask for 1 to [\d,]+ with Python 3\.\d+"):
        facts(n)
