"""Facts about values: what an expression of Python evaluates to, as the interpreter says when the facts are made.

The tables hold expressions only. Popular functions and short operands, so that a small model knows some of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

from preftune.evaluate.facts_draft import NAMESPACE, Draft, after, near, of_value, operands

WORDS = ("hello", "python", "world", "apple", "data", "banana", "test", "code", "Cat", "green", "Monday", "river")
SHORT = ("cat", "dog", "sun", "map", "key", "box")
LISTS = ("[1, 2, 3]", "[3, 1, 2]", "[5, 2, 8]", "[4, 4, 1]", "[10, 20, 30]", "[7, 0, 5]", "[2, 9]", "[6, 3, 6]", "[1, 1, 2]", "[8, 5]")

TEXT = (
    '"{w}".upper()',
    '"{w}".capitalize()',
    '"{w}".title()',
    '"{w}".lower()',
    '"{w}".swapcase()',
    '"{w}" + "s"',
    '"{w}" * 2',
    '"{w}".replace("a", "o")',
    '"{w}".replace("e", "")',
    '"  {w} ".strip()',
    '"{w}".rstrip("e")',
    '"{w}".removeprefix("py")',
    '"-".join(["{w}", "x"])',
    '"{w} box".split()',
    '"a,{w}".split(",")',
    '"{w}".partition("a")[0]',
    '"{w}".center(9, "*")',
    '"{w}".ljust(8, ".")',
)
POSITIONS = (
    '"{w}"[0]',
    '"{w}"[-1]',
    '"{w}"[1]',
    '"{w}"[:2]',
    '"{w}"[2:]',
    '"{w}"[1:3]',
    '"{w}"[-2:]',
    '"{w}"[:-1]',
    '"{w}"[::-1]',
    '"{w}"[::2]',
)
LIST_POSITIONS = ("{x}[0]", "{x}[-1]", "{x}[1]", "{x}[:2]", "{x}[1:]", "{x}[::-1]", "{x}[:1]", "{x}[-2:]")
COLLECT = (
    "len({x})",
    "sum({x})",
    "max({x})",
    "min({x})",
    "sorted({x})",
    "sorted({x}, reverse=True)",
    "list(reversed({x}))",
    "{x} + [9]",
    "[0] + {x}",
    "{x} * 2",
    "{x}.index({x}[1])",
    "{x}.count({x}[0])",
    "len(set({x}))",
    "tuple({x})",
    "list(enumerate({x}))[0]",
    "sum({x}) / len({x})",
    "any(n > 5 for n in {x})",
)
COMPREHEND = (
    "[n * 2 for n in {x}]",
    "[n + 1 for n in {x}]",
    "[n * n for n in {x}]",
    "[n for n in {x} if n > 2]",
    "[n for n in {x} if n % 2 == 0]",
    "[str(n) for n in {x}]",
    "sum(n for n in {x} if n > 1)",
    "list(map(abs, {x}))",
    "[-n for n in {x}]",
    "max(n * 2 for n in {x})",
    "len([n for n in {x} if n < 4])",
    "list(zip({x}, [0, 1]))[0]",
    "{{n: n * n for n in {x}}}[{x}[0]]",
    "list(filter(None, {x}))",
)
RANGES = (
    "list(range({a}))",
    "list(range(1, {a}))",
    "sum(range({a}))",
    "len(range({a}))",
    "len(range(2, {a}))",
    "list(range(0, {a}, 2))",
    "list(range({a}, 0, -1))",
    "max(range({a}))",
    "range({a})[-1]",
    "[i for i in range({a}) if i % 2]",
)
NUMBERS = (
    "{a} // {b}",
    "{a} % {b}",
    "{a} / {b}",
    "{a} ** {b}",
    "{a} - {b} * 2",
    "-{a} // {b}",
    "({a} + {b}) * 2",
    "{a} + {b} / 2",
    "max({a}, {b})",
    "abs({b} - {a})",
    "divmod({a}, {b})",
    "{a} & {b}",
    "{a} | {b}",
    "{a} ^ {b}",
    "{a} << {b}",
    "pow({a}, {b}, 5)",
)
PAIRS = ((7, 2), (10, 3), (9, 4), (8, 2), (5, 2), (12, 5), (6, 4), (4, 2), (11, 3))
ROUNDS = ("round({f})", "int({f})", "math.floor({f})", "math.ceil({f})", "abs(-{f})", "round({f}, 1)", "math.trunc(-{f})",
    "float(int({f}))", "math.floor(-{f})", "int(-{f})")  # fmt: skip
FLOATS = ("2.7", "3.14", "9.99", "4.2", "1.5", "0.75", "6.49", "12.8")
CONVERT = (
    *(f"int({t!r})" for t in ("12", "7", "-5", " 42 ", "007", "100")),
    *(f"float({t!r})" for t in ("1.5", "3", "-2.25", "1e3", "0.1")),
    *(f"str({v})" for v in (5, 3.0, True, None, [1, 2], (1,), 1.50, -8, 10**3)),
    *(f"int({t!r}, 2)" for t in ("101", "11", "1000", "111", "10", "1010")),
    *(f"int({t!r}, 16)" for t in ("ff", "a", "10", "1f", "2c")),
    *(f"bin({n})" for n in (2, 3, 4, 5, 8, 10, 7, 6)),
    *(f"hex({n})" for n in (10, 15, 16, 255, 32, 100)),
    *(f"oct({n})" for n in (8, 9, 64, 10)),
    *(f"ord({c!r})" for c in ("a", "A", "b", "0", "z", "Z", " ", "B", "c")),
    *(f"chr({n})" for n in (65, 97, 66, 48, 98, 90, 122, 67, 57)),
    *(f"list({t!r})" for t in ("ab", "abc", "hi", "no", "123")),
    *(f"tuple({v})" for v in ([1, 2], [3], "'ab'", [0, 0], [5, 6, 7])),
    *(f"len(str({n}))" for n in (5, 42, 100, 12345, -7, 1.5)),
    *(f"int({v})" for v in (True, False, 3.99, -2.5, 8.1)),
    *(f"float({n})" for n in (2, 10, -1, True, 7, 25)),
    *(f"str({n}) + str({m})" for n, m in ((1, 2), (3, 4), (10, 5), (7, 7), (2, 0))),
    *(f"bytes([{n}])" for n in (65, 97, 66)),
    *(f"{t!r}.encode()" for t in ("a", "hi", "ok", "abc", "cat")),
    *(f"b{t!r}.decode()" for t in ("a", "hi", "ok", "abc", "cat")),
)
FORMATS = (
    *(f'f"{{{v}:{s}}}"' for v, s in product(("3.14159", "2.5", "10.0", "1.005"), (".2f", ".1f", ".0f", ".3f"))),
    *(f'f"{{{v}:{s}}}"' for v, s in product((5, 42, 7, 255), ("03d", "05d", "b", "x", ">4", "+d", "<3", "04x"))),
    *(f'f"{{{v}:,}}"' for v in (1000, 1234567, 50000, 999, 10000)),
    *(f'f"{{{v}:{s}}}"' for v, s in product(("0.5", "0.25", "0.125", "1"), (".0%", ".1%"))),
    *(f'f"{{{a} + {b}}}"' for a, b in ((1, 2), (3, 4), (10, 5), (2, 2), (7, 1))),
    *(f"f\"{{'{w}'}}{s}\"" for w, s in product(SHORT, ("s", "!", "-1"))),
    *(f"f\"{{'{w}':{s}}}\"" for w, s in product(SHORT[:4], (">5", "<5", "^5", "*^7"))),
    *(f"f\"{{'{w}'!r}}\"" for w in SHORT),
    *(f'"%d items" % {n}' for n in (3, 10, 25)),
    *(f'"%s-%s" % ("{w}", {n})' for w, n in zip(SHORT, range(1, 7), strict=True)),
    *(f'"{{}} {{}}".format("{w}", {n})' for w, n in zip(SHORT, range(2, 8), strict=True)),
    *(f'"{{1}}{{0}}".format("{a}", "{b}")' for a, b in pairwise(SHORT)),
    *(f'"%.{d}f" % {v}' for d, v in product((1, 2, 3), ("2.718", "1.5"))),
)
TYPES = (
    "1", "1.0", '"1"', "[1]", "(1,)", "{1}", "{1: 2}", "True", "None", 'b"1"', "1 / 2", "1 // 2", "7 % 3", "2 ** 3", "1 + 1.0", '"a" + "b"',
    "[1] + [2]", "(1, 2)", "()", "{}", "[]", '""', "set()", "range(3)", "len([1])", "sum([1.5, 2])", "max(1, 2)", "sorted((2, 1))", "1 < 2",
    '"a" in "abc"', "not 1", "bool(0)", "int(2.5)", "float(3)", "str(5)", "list((1, 2))", "tuple([1])", "dict(a=1)", '"a b".split()',
    '"-".join(["a"])', '"abc".find("b")', '"a".encode()', 'b"a".decode()', "{1: 2}.keys()", "{1: 2}.get(1)", "{1: 2}.get(3)", "[1, 2][0]",
    "[1, 2][:1]", '"abc"[0]', '"abc"[1:]', "(1, 2)[1:]", "divmod(7, 2)", "round(2.5)", "round(2.567, 2)", "abs(-1.5)", "abs(-2)", "3 + 4j",
    "lambda: 1", "(n for n in [1])", "[n for n in [1]]", "{n for n in [1]}", "{n: 1 for n in [1]}", "enumerate([1])",
    "zip([1], [2])", "map(str, [1])", "type(1)", "type", "int", "object()", "[1, 2].sort()", "[1, 2].pop()", "[1].append(2)",
    "{1, 2} & {2}", "{1} | {2}", "frozenset([1])", "1 and 2", '"a" or 1', "None or 0", '[] and "x"', "0.1 + 0.2", "10 / 5", "4 ** 0.5",
    "-7 // 2", "math.sqrt(4)", "math.floor(2.5)", "math.pi", "math.factorial(3)", 'json.loads("[1]")', 'json.dumps([1])',
        'json.loads("1.5")',
    'json.loads("null")', "json.loads('{\"a\": 1}')", 'ord("a")', "chr(97)", "bin(5)", 'hash("a")', "id(1)", 'repr(1)', "any([1])",
        "all([])",
    "isinstance(1, int)", "callable(print)", "bytes(2)", "bytearray(2)", "reversed([1])", "iter([1])", "slice(1)", "Ellipsis",
        '"a,b".partition(",")',
    '"abc".count("a")', '"abc".isalpha()', '"a".upper()', '"abc".startswith("a")', "(5)", "(5,)", "1_000", "0x10", "1e3", "f\"{1}\"",
        "sum([])",
    "min([2.5, 1])", "pow(2, 3)", "pow(2, -1)", "5 .bit_length()", "(0.5).is_integer()", "{*[1, 2]}", "[*(1, 2)]", "str(None)",
        "list({1: 2})",
    'Counter("aab")', "deque([1])", "date(2024, 1, 1)", "re.compile('a')", "Path('a')", "date(2024, 1, 2) - date(2024, 1, 1)",
)  # fmt: skip
TYPE_NAMES = ("int", "float", "str", "list", "tuple", "dict", "set", "bool", "NoneType", "bytes", "range", "complex", "type",
    "function", "generator", "frozenset")  # fmt: skip
TRUTHS = (
    *(f"bool({v})" for v in ("0", "1", '""', '"0"', "[]", "[0]", "None", "{}", "0.0", "-1", "()", '"False"')),
    *(f"{a} {o} {b}" for a, b in ((3, 5), (2, 2), (7, 4)) for o in ("<", "<=", "==", "!=", ">=")),
    *(f'"{a}" in "{b}"' for a, b in (("a", "cat"), ("x", "dog"), ("at", "cat"), ("", "sun"), ("tac", "cat"), ("o", "dog"))),
    *(f"{n} in {x}" for n, x in product((2, 5), LISTS[:4])),
    *(f'"{w}".startswith("{w[:2]}")' for w in WORDS[:3]),
    *(f'"{w}".endswith("{w[:2]}")' for w in WORDS[:3]),
    *(f'"{t}".{m}()' for t, m in product(("abc", "123", "a1", "ABC"), ("isdigit", "isalpha", "isupper", "isalnum"))),
    *(f"isinstance({v}, {t})" for v, t in (("1", "int"), ("True", "int"), ("1.0", "int"), ('"a"', "str"), ("[]", "list"), ("()", "list"))),
    *(f"{f}({x})" for f, x in product(("any", "all"), ("[]", "[0, 1]", "[1, 2]", "[0, 0]"))),
    *(
        f"issubclass({a}, {b})"
        for a, b in (("bool", "int"), ("int", "float"), ("int", "object"), ("KeyError", "LookupError"), ("str", "list"))
    ),
    *(
        '"a" < "b"',
        '"B" < "a"',
        "[1, 2] < [1, 3]",
        "1 == 1.0",
        '"1" == 1',
        "True == 1",
        "0.1 + 0.2 == 0.3",
        "not []",
        "None == 0",
        "1 < 2 < 3",
    ),
    *(
        "{1, 2} == {2, 1}",
        "[1, 2] == [2, 1]",
        "(1, 2) == [1, 2]",
        "{1} <= {1, 2}",
        'callable("a")',
        "callable(len)",
        'hasattr([], "append")',
    ),
)
LOGIC = (
    *(f"{a} {o} {b}" for a, b in product(("0", "1", '""', '"a"', "None", "[]"), ("2", '"b"', "[3]")) for o in ("and", "or")),
    *(f'"{a}" if {n} > 3 else "{b}"' for (a, b), n in product((("yes", "no"), ("big", "small"), ("on", "off")), (2, 5))),
)
CALLS = (
    *(f'Path("{p}").{a}' for p, a in product(("a/b.txt", "docs/index.html", "src/main.py", "data/x.tar.gz"), ("name", "suffix", "stem"))),
    *(f'str(Path("{a}") / "{b}")' for a, b in (("a", "b"), ("src", "main.py"), ("docs", "x.md"), ("/tmp", "f"))),
    *(f'str(Path("{p}").parent)' for p in ("a/b.txt", "src/pkg/m.py", "/etc/hosts")),
    *(f'Path("a/b.txt").with_suffix("{s}").name' for s in (".md", ".py", "")),
    *(f"json.dumps({v})" for v in ("True", "None", "[1, 2]", '"a"', "(1, 2)", '{"a": 1}', "False", "1.0", "{1: 2}", "[]")),
    *(f"json.loads({v!r})" for v in ("true", "null", "[1, 2]", '"a"', "1.5", "false", "12", '{"a": 1}', "[]")),
    *(f"math.{f}" for f in ("sqrt(16)", "sqrt(9)", "sqrt(25)", "factorial(4)", "factorial(5)", "factorial(3)", "gcd(12, 18)",
        "gcd(8, 12)", "gcd(7, 3)")),
    *(f"math.{f}" for f in ("lcm(4, 6)", "lcm(2, 3)", "pow(2, 3)", "log2(8)", "log10(100)", "log10(1000)", "hypot(3, 4)",
        "comb(4, 2)", "comb(5, 2)")),
    *(f"math.{f}" for f in ("perm(3)", "isqrt(10)", "isqrt(17)", "cos(0)", "sin(0)", "exp(0)", "log(1)", "degrees(math.pi)",
        "prod([2, 3, 4])", "fsum([1, 2])")),
    *(f"round(math.{c}, {d})" for c, d in product(("pi", "e", "tau"), (1, 2, 3))),
    *(f"statistics.{f}({x})" for f, x in product(("mean", "median"), ("[1, 2, 3]", "[4, 8]", "[2, 9, 4]", "[1, 5]", "[3, 3, 9]"))),
    *(f"statistics.mode({x})" for x in ("[1, 1, 2]", "[3, 5, 5]", '["a", "b", "a"]')),
    *(f're.findall(r"\\d", "{t}")' for t in ("a1b2", "x9", "abc", "3-4")),
    *(f're.sub("{a}", "{b}", "{w}")' for a, b, w in (("a", "o", "cat"), ("l", "", "hello"), ("[aeiou]", "*", "sun"), ("o", "0", "dog"))),
    *(f're.split("{s}", "{t}")' for s, t in ((",", "a,b"), ("-", "x-y"), (" ", "a b"))),
    *(f"date(2024, {m}, {d}).isoformat()" for m, d in ((1, 5), (12, 31), (7, 4))),
    *(f"date(2024, {m}, {d}).{a}" for (m, d), a in product(((3, 9), (11, 2), (8, 20)), ("month", "day", "year"))),
    *(f"list(itertools.chain([{a}], [{b}]))" for a, b in ((1, 2), (3, 0), (7, 7))),
    *(f"list(itertools.accumulate({x}))" for x in LISTS[:4]),
    *(f"len(list(itertools.{f}))" for f in ('permutations("abc")', 'combinations("abc", 2)', 'product("ab", "cd")',
        'permutations("ab")', "repeat(1, 4)")),
    *(f"functools.reduce(operator.{f}, {x})" for f, x in product(("add", "mul"), LISTS[:5])),
    *(f"operator.{f}({a}, {b})" for f, (a, b) in product(("add", "sub", "mul", "mod", "floordiv", "truediv", "pow"), ((6, 3), (7, 2),
        (9, 4)))),
    *("string.digits[:3]", "string.ascii_lowercase[:3]", "string.ascii_uppercase[:3]", "string.ascii_letters[0]",
        "len(string.ascii_lowercase)"),
    *(f'textwrap.shorten("{t}", {n})' for t, n in (("hello world", 8), ("a b", 5))),
)  # fmt: skip
STATEMENTS = (
    ("x = {x}; x.append(4)", "x"),
    ("x = {x}; x.pop()", "x"),
    ("x = {x}; y = x.pop()", "y"),
    ("x = {x}; x.sort()", "x"),
    ("x = {x}; y = x.sort()", "y"),
    ("x = {x}; x.reverse()", "x"),
    ("x = {x}; x.insert(0, 9)", "x"),
    ("x = {x}; x[0] = 7", "x"),
    ("x = {x}; del x[0]", "x"),
    ("x = {x}; y = x; y.clear()", "x"),
    ("x = {x}; x.extend([0])", "x"),
    ("x = {x}; y = sorted(x)", "x"),
    ("x = {x}; y = x + [1]", "x"),
    ("x = {x}; x += [0]", "x"),
    ("x = {x}; y = x[:]; y[0] = 6", "x"),
    ("x = {x}; y = x; y[0] = 6", "x"),
    ("x, *y = {x}", "y"),
    ("x, *y = {x}", "x"),
)
LOOPS = (
    *((f"x = {a}; x += {b}", "x") for a, b in ((1, 2), (5, 3), (10, 1))),
    *((f"x = {a}; x *= {b}", "x") for a, b in ((2, 3), (5, 2), (4, 4))),
    *((f"x = {a}; x //= {b}", "x") for a, b in ((7, 2), (9, 3), (10, 4))),
    *((f"x, y = {a}, {b}; x, y = y, x", "x") for a, b in ((1, 2), (5, 8), (0, 3))),
    *((f"x = 0\\nfor i in range({n}): x += i", "x") for n in (3, 4, 5, 6)),
    *((f"x = 1\\nfor i in range({n}): x *= 2", "x") for n in (2, 3, 4, 5)),
    *((f"x = 0\\nwhile x < {n}: x += {m}", "x") for n, m in ((5, 2), (10, 3), (7, 7), (9, 4))),
    *((f'x = "{w}"; x += "s"', "x") for w in SHORT),
    *((f'x = "{w}"; y = x.upper()', "x") for w in SHORT[:4]),
    *((f'x = {{"a": {n}}}; x["a"] += 1', "x") for n in (1, 4, 9)),
    *((f'x = {{"a": {n}}}; y = x.pop("a")', "y") for n in (2, 6)),
    *((f"x = {{{a}}}; x.add({b})", "x") for a, b in ((1, 2), (3, 3), (4, 5))),
)


def value_drafts() -> Iterator[Draft]:
    """Yield a draft of each fact about a value, kind by kind."""
    lists = [t.format(x=x) for x, t in product(LISTS, (*COLLECT, *COMPREHEND))]
    yield from of_value("text methods", _defined(t.format(w=w) for w, t in product(WORDS, TEXT)))
    yield from of_value("positions", (t.format(w=w, x=w) for w, t in product(WORDS, POSITIONS)))
    yield from of_value("positions", (t.format(x=x) for x, t in product(LISTS, LIST_POSITIONS)))
    yield from of_value("lists", (e for e in lists if " for " not in e and "(map" not in e and "(filter" not in e))
    yield from of_value("comprehensions", (e for e in lists if " for " in e or "(map" in e or "(filter" in e))
    yield from of_value("ranges", (t.format(a=a) for a, t in product((3, 4, 5, 6, 2, 7, 8, 10), RANGES)))
    yield from of_value("arithmetic", (t.format(a=a, b=b) for (a, b), t in product(PAIRS, NUMBERS)))
    yield from of_value("rounding", (t.format(f=f) for f, t in product(FLOATS, ROUNDS)))
    yield from of_value("conversions", CONVERT)
    yield from of_value("formats", FORMATS)
    yield from of_value("truth", TRUTHS)
    yield from of_value("logic", LOGIC)
    yield from of_value("library calls", CALLS)
    yield from _types()
    yield from _statements()


def _defined(expressions: Iterator[str]) -> Iterator[str]:
    """Leave out what raises (`"hello".index("a")`) and what does nothing to its operand (nothing to be known there)."""
    for expression in expressions:
        try:
            value = eval(expression, dict(NAMESPACE))
        except ValueError:
            continue
        if not (isinstance(value, str) and value in operands(expression)[:1] and ".upper" not in expression):
            yield expression


def _types() -> Iterator[Draft]:
    for expression in TYPES:
        right = type(eval(expression, dict(NAMESPACE))).__name__
        wrong = tuple(name for name in TYPE_NAMES if name != right)
        question = f"In Python, what is the type of `{expression}`?"
        yield Draft("types", question, right, wrong, f"type({expression}).__name__ == choice")


def _statements() -> Iterator[Draft]:
    on_lists = [(t.format(x=x), name) for x, (t, name) in product(LISTS[:9], STATEMENTS)]
    for statements, name in (*on_lists, *((s.replace("\\n", "\n"), n) for s, n in LOOPS)):
        right = after(statements, name)
        value = eval(right)
        wrong = tuple(dict.fromkeys(repr(v) for v in (*near(value), *operands(statements), None) if repr(v) != right))
        question = f"After `{statements}` in Python, what is `{name}`?"
        yield Draft("statements", question, right, wrong, f"after({statements!r}, {name!r}) == choice")
