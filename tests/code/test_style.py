"""Each convention: followed, broken, not touched, and the cases in which a simple program would judge wrongly."""

import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.code.style import CONVENTIONS, StyleReport, extract_code, judge_style

FOLLOWED, BROKEN, NOT_TOUCHED = True, False, None

CASES: dict[str, list[tuple[bool | None, str]]] = {
    "type-hints": [
        (FOLLOWED, "def f(x: int, *rest: int, key: str = '', **more: str) -> None: ..."),
        (FOLLOWED, "class A:\n    def f(self, x: int) -> int: ...\n    @classmethod\n    def g(cls) -> int: ..."),
        (FOLLOWED, "class A:\n    def __init__(self, x: int): ..."),
        (FOLLOWED, "class A:\n    @staticmethod\n    def f(x: int) -> int: ..."),
        (FOLLOWED, "def outer(f: int) -> int:\n    def inner(x):\n        return x\n    return inner(f)"),
        (FOLLOWED, "async def f(x: int, /, y: int) -> int: ..."),
        (BROKEN, "def f(x): ..."),
        (BROKEN, "def f(x: int): ..."),
        (BROKEN, "def f(x) -> int: ..."),
        (BROKEN, "def f(*rest) -> int: ..."),
        (BROKEN, "def f(*, key) -> int: ..."),
        (BROKEN, "class A:\n    def __init__(self, x): ..."),
        (BROKEN, "class A:\n    @staticmethod\n    def f(x) -> int: ..."),
        (BROKEN, "if True:\n    def f(x): ..."),
        (NOT_TOUCHED, "x = 1"),
        (NOT_TOUCHED, "def _f(x): ..."),
        (NOT_TOUCHED, "class A:\n    def __len__(self): ..."),
        (NOT_TOUCHED, "class _A:\n    def f(self, x): ..."),
        (NOT_TOUCHED, "class A:\n    def __init__(self):\n        self.x = 1"),
    ],
    "docstring": [
        (FOLLOWED, 'def f():\n    """Return the sum."""'),
        (FOLLOWED, 'def f():\n    """Process it."""'),
        (FOLLOWED, 'def f():\n    r"""Match \\d."""'),
        (FOLLOWED, 'class A:\n    """Hold a point."""\n    def _f(self): ...'),
        (FOLLOWED, 'class A:\n    """Hold a point."""\n    def __init__(self): ...'),
        (BROKEN, "def f(): ..."),
        (BROKEN, 'def f():\n    """Returns the sum."""'),
        (BROKEN, 'def f():\n    """This returns the sum."""'),
        (BROKEN, 'def f():\n    """return the sum."""'),
        (BROKEN, 'def f():\n    """Return the sum"""'),
        (BROKEN, 'def f():\n    "Return the sum."'),
        (BROKEN, "def f():\n    '''Return the sum.'''"),
        (BROKEN, 'def f():\n    """\n    Return the sum.\n    """'),
        (BROKEN, 'def f():\n    """Return the sum.\n\n    Of all.\n    """'),
        (BROKEN, 'def f():\n    """ Return the sum. """'),
        (BROKEN, 'def f():\n    """"""'),
        (BROKEN, 'def f():\n    f"""Return the sum."""'),
        (BROKEN, 'class A:\n    """Hold a point."""\n    def f(self): ...'),
        (NOT_TOUCHED, '"""returns nothing"""\nx = 1'),
        (NOT_TOUCHED, "def _f(): ..."),
    ],
    "double-quotes": [
        (FOLLOWED, 'x = "a"'),
        (FOLLOWED, 'x = "a"\ny = \'say "hi"\''),
        (FOLLOWED, "x = f\"{d['a']}\""),
        (FOLLOWED, "x = f'{d[\"a\"]}'"),
        (FOLLOWED, "def f():\n    '''Doc.'''\n    return \"a\""),
        (FOLLOWED, 'x = """a\nb"""'),
        (BROKEN, "x = 'a'"),
        (BROKEN, "x = ''"),
        (BROKEN, "x = f'{y}'"),
        (BROKEN, "x = b'a'"),
        (BROKEN, "x = rb'\\d'"),
        (BROKEN, "x = '''a'''"),
        (BROKEN, "x = \"a\" 'b'"),
        (BROKEN, "def f():\n    x = 1\n    'not a docstring'"),
        (NOT_TOUCHED, "x = 1  # it's a comment"),
        (NOT_TOUCHED, "def f():\n    '''Doc.'''"),
        (NOT_TOUCHED, "class Ä: 'Döc.'"),
    ],
    "f-strings": [
        (FOLLOWED, 'x = f"{a} and {b:>{n}}"'),
        (FOLLOWED, 'x = "\\n".join(f"{k}={v}" for k, v in d)'),
        (FOLLOWED, 'out += f"{x}\\n"'),
        (FOLLOWED, 'x = f"{a}" f"{b}"'),
        (BROKEN, 'x = "%s" % a'),
        (BROKEN, 'x = "{}".format(a)'),
        (BROKEN, "x = template.format(a)"),
        (BROKEN, 'x = "{a}".format_map(d)'),
        (BROKEN, 'x = "hello " + name'),
        (BROKEN, 'x = name + "!"'),
        (BROKEN, 'x = a + ", " + b'),
        (BROKEN, "x = str(a) + b"),
        (BROKEN, "x = b + str(a)"),
        (BROKEN, 'x = f"{a}" + b'),
        (BROKEN, 'x += "!"'),
        (BROKEN, "x += str(a)"),
        (BROKEN, 'x = "-" * 10 + name'),
        (NOT_TOUCHED, "x = a + b"),
        (NOT_TOUCHED, "x = a % 2"),
        (NOT_TOUCHED, 'x = "a" + "b"'),
        (NOT_TOUCHED, 'x = ["a"] + names'),
        (NOT_TOUCHED, "x = str(a)"),
        (NOT_TOUCHED, 'x = b"%d" % n'),
        (NOT_TOUCHED, 'x = f"nothing in it"'),
        (NOT_TOUCHED, 'logger.info("%s", x)'),
        (NOT_TOUCHED, "def str(x): ...\ny = str(1) + z"),
    ],
    "pathlib": [
        (FOLLOWED, "from pathlib import Path\nx = Path(p).read_text()"),
        (FOLLOWED, "import pathlib\nx = pathlib.Path(p).suffix"),
        (FOLLOWED, "from pathlib import Path as P\nwith P(p).open() as f: ..."),
        (FOLLOWED, 'x = Path(p).glob("*.py")'),
        (BROKEN, "with open(p) as f: ..."),
        (BROKEN, "from pathlib import Path\nwith open(Path(p)) as f: ..."),
        (BROKEN, "import os\nx = os.path.join(a, b)"),
        (BROKEN, "import os.path\nx = os.path.exists(a)"),
        (BROKEN, "from os import path\nx = path.exists(a)"),
        (BROKEN, "from os.path import join"),
        (BROKEN, "import os as o\no.listdir('.')"),
        (BROKEN, "from os import makedirs"),
        (BROKEN, "import glob\nx = glob.glob('*')"),
        (BROKEN, "from glob import glob"),
        (BROKEN, "import io\nio.open(p)"),
        (NOT_TOUCHED, "import os\nx = os.environ"),
        (NOT_TOUCHED, "def open(p): ...\nopen(1)"),
        (NOT_TOUCHED, "import gzip\nx = gzip.open(p)"),
        (NOT_TOUCHED, "door.open()"),
        (NOT_TOUCHED, "path = graph.path\nx = path.join(a)"),
    ],
    "early-return": [
        (FOLLOWED, "def f():\n    if a:\n        return 1\n    return 2"),
        (FOLLOWED, "for x in y:\n    if x:\n        continue\n    g(x)"),
        (FOLLOWED, "def f():\n    if a:\n        raise E\n    if b:\n        return 1"),
        (FOLLOWED, "def f():\n    if a:\n        x = 1\n    else:\n        x = 2\n    if x:\n        return 1"),
        (BROKEN, "def f():\n    if a:\n        return 1\n    else:\n        return 2"),
        (BROKEN, "def f():\n    if a:\n        return 1\n    elif b:\n        return 2\n    return 3"),
        (BROKEN, "for x in y:\n    if x:\n        break\n    else:\n        g(x)"),
        (BROKEN, "def f():\n    if a:\n        raise E\n    else:\n        g()"),
        (BROKEN, "def f():\n    if a:\n        if b:\n            return 1\n        return 2\n    else:\n        return 3"),
        (BROKEN, "def f():\n    if a:\n        with b:\n            return 1\n    else:\n        return 3"),
        (
            BROKEN,
            "def f():\n    if a:\n        try:\n            return 1\n        except E:\n            raise\n    else:\n        return 3",
        ),
        (NOT_TOUCHED, "if a:\n    x = 1\nelse:\n    x = 2"),
        # The elif ends in return, but the branch above it goes on: its else is needed.
        (NOT_TOUCHED, "def f():\n    if a:\n        x = 1\n    elif b:\n        return 2\n    else:\n        x = 3\n    return x"),
        (NOT_TOUCHED, "def f():\n    if a:\n        for x in y:\n            return 1\n    else:\n        g()"),
        (NOT_TOUCHED, "def f():\n    return 1 if a else 2"),
        (NOT_TOUCHED, "for x in y:\n    g(x)\nelse:\n    h()"),
    ],
    "specific-except": [
        (FOLLOWED, "try: f()\nexcept ValueError: g()"),
        (FOLLOWED, "try: f()\nexcept (KeyError, IndexError) as e: g()"),
        (FOLLOWED, "try: f()\nexcept json.JSONDecodeError: g()"),
        (BROKEN, "try: f()\nexcept: g()"),
        (BROKEN, "try: f()\nexcept Exception: g()"),
        (BROKEN, "try: f()\nexcept Exception as e: g()"),
        (BROKEN, "try: f()\nexcept (ValueError, BaseException): g()"),
        (BROKEN, "try: f()\nexcept ValueError: g()\nexcept: h()"),
        (NOT_TOUCHED, "try: f()\nfinally: g()"),
        (NOT_TOUCHED, "raise Exception"),
    ],
    "dataclasses": [
        (FOLLOWED, "@dataclass\nclass A:\n    x: int"),
        (FOLLOWED, "@dataclass(frozen=True)\nclass A:\n    x: int"),
        (FOLLOWED, "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int"),
        (BROKEN, 'def f(a, b):\n    return {"name": a, "age": b}'),
        (BROKEN, 'def f(a):\n    return {"name": a, "age": 1} if a else None'),
        (BROKEN, 'def f(rows):\n    return [{"a": r[0], "b": r[1]} for r in rows]'),
        (BROKEN, 'def f(rows):\n    for r in rows:\n        yield {"a": r, "b": 1}'),
        (BROKEN, 'def f(rows, out):\n    for r in rows:\n        out.append({"a": r, "b": 1})'),
        (BROKEN, 'def f(a):\n    user = {"name": a, "age": 1}\n    return user'),
        (BROKEN, 'def f():\n    stats = {"ok": 0, "bad": 0}\n    stats["ok"] += 1\n    g(stats)'),
        (BROKEN, 'def f(a):\n    user = {}\n    user["name"] = a\n    user["age"] = 1\n    return user'),
        (BROKEN, "def f(a, b):\n    return dict(name=a, age=b)"),
        (BROKEN, "class A:\n    def __init__(self, x, y=0):\n        self.x = x\n        self.y = y"),
        (
            BROKEN,
            'class A:\n    def __init__(self, x: int) -> None:\n        """Make it."""\n        self.x: int = x\n        self.seen = []',
        ),
        (BROKEN, 'P = namedtuple("P", "x y")'),
        (BROKEN, "class P(NamedTuple):\n    x: int"),
        (NOT_TOUCHED, 'UNITS = {"s": 1, "m": 60}'),
        (NOT_TOUCHED, 'def f(u):\n    units = {"s": 1, "m": 60}\n    return units[u]'),
        (NOT_TOUCHED, 'def f(u):\n    return {"yes": True, "no": False}.get(u)'),
        (NOT_TOUCHED, 'def f(u, a, b):\n    return {"min": min(a, b), "max": max(a, b)}[u]'),
        (NOT_TOUCHED, 'def f(u, a, b):\n    table = {"min": min(a, b), "max": max(a, b)}\n    return table[u]'),
        (NOT_TOUCHED, 'def f(u):\n    return {"name": u}'),
        (NOT_TOUCHED, 'def f(k, v):\n    return {"a": 1, k: v}'),
        (NOT_TOUCHED, 'def f(old, v):\n    return {**old, "a": 1, "b": v}'),
        (NOT_TOUCHED, 'def f(a, b):\n    return {"+": a + b, "-": a - b}'),
        (NOT_TOUCHED, 'def f(a, b):\n    send(json={"name": a, "age": b})'),
        (NOT_TOUCHED, "def f(rows):\n    return {r.id: r for r in rows}"),
        (NOT_TOUCHED, "class A:\n    def __init__(self, x):\n        if not x:\n            raise ValueError\n        self.x = x"),
        (NOT_TOUCHED, "class A(Exception):\n    def __init__(self, x):\n        self.x = x"),
        (NOT_TOUCHED, "class A:\n    def __init__(self, path):\n        self.file = connect(path)"),
        (NOT_TOUCHED, "class A:\n    def __init__(self, x):\n        self._x = x"),
        (NOT_TOUCHED, "def f(pairs):\n    return dict(pairs)"),
    ],
    "logging": [
        (FOLLOWED, 'import logging\nlogging.warning("x")'),
        (FOLLOWED, 'logger.info("x")'),
        (FOLLOWED, 'self._log.error("x")'),
        (FOLLOWED, "import logging\nlogger = logging.getLogger(__name__)"),
        (BROKEN, 'print("x")'),
        (BROKEN, 'print("x", file=sys.stderr)'),
        (BROKEN, 'import logging\nlogging.info("x")\nprint("x")'),
        (NOT_TOUCHED, "x = math.log(2)"),
        (NOT_TOUCHED, "def print(x): ...\nprint(1)"),
        (NOT_TOUCHED, "doc.print()"),
    ],
    "comprehensions": [
        (FOLLOWED, "x = [a for a in b]"),
        (FOLLOWED, "x = sum(a for a in b)"),
        (FOLLOWED, "x = {a: 1 for a in b}"),
        (BROKEN, "out = []\nfor a in b:\n    out.append(a)"),
        (BROKEN, "out: list[int] = []\nfor a in b:\n    if a:\n        out.append(a)"),
        (BROKEN, "out = set()\nfor a in b:\n    out.add(a.x)"),
        (BROKEN, "out = {}\nfor k, v in b:\n    out[k] = v"),
        (BROKEN, "def f(b):\n    yes, no = [], []\n    for a in b:\n        if a:\n            yes.append(a)\n    return yes, no"),
        (BROKEN, "out = []\nfor row in b:\n    for a in row:\n        out.append(a)"),
        (BROKEN, "x = [a for a in b]\nout = []\nfor a in b:\n    out.append(a)"),
        (NOT_TOUCHED, "out = []\nfor a in b:\n    c = g(a)\n    out.append(c)"),
        (NOT_TOUCHED, "out = []\nfor a in b:\n    if a not in out:\n        out.append(a)"),
        (NOT_TOUCHED, "out = {}\nfor a in b:\n    out[a] = out.get(a, 0) + 1"),
        (NOT_TOUCHED, "out = [0, 1]\nfor a in b:\n    out.append(out[-1] + a)"),
        (NOT_TOUCHED, "out = []\nfor a in b:\n    if a:\n        out.append(a)\n    else:\n        break"),
        (NOT_TOUCHED, "def f(out, b):\n    for a in b:\n        out.append(a)"),
        (NOT_TOUCHED, "def f(b):\n    for a in b:\n        self.out.append(a)"),
        (NOT_TOUCHED, "flags = [True] * n\nfor k in range(4, n, 2):\n    flags[k] = False"),
        (NOT_TOUCHED, "groups = {}\nfor a in b:\n    groups.setdefault(a, []).append(a)"),
        (NOT_TOUCHED, "out = []\nwhile q:\n    out.append(q.pop())"),
        (NOT_TOUCHED, "async def f(b):\n    out = []\n    for a in b:\n        out.append(await a)"),
    ],
    "direct-tests": [
        (FOLLOWED, "if items: ..."),
        (FOLLOWED, "if not items: ..."),
        (FOLLOWED, "x = a is None"),
        (FOLLOWED, "while a and self.queue: ..."),
        (FOLLOWED, "x = [a for a in b if a]"),
        (FOLLOWED, "x = 1 if a is not None else 2"),
        (BROKEN, "if len(items) == 0: ..."),
        (BROKEN, "x = len(items) > 0"),
        (BROKEN, "x = 0 < len(items)"),
        (BROKEN, "x = 0 != len(items)"),
        (BROKEN, "x = len(items) >= 1"),
        (BROKEN, "x = len(items) < 1"),
        (BROKEN, "if len(items): ..."),
        (BROKEN, "if not len(items): ..."),
        (BROKEN, "if a == None: ..."),
        (BROKEN, "if None != a: ..."),
        (BROKEN, "if a == True: ..."),
        (BROKEN, "x = [a for a in b if a != False]"),
        (BROKEN, "if a is None and b == None: ..."),
        (NOT_TOUCHED, "if len(items) == 1: ..."),
        (NOT_TOUCHED, "if len(items) > 1: ..."),
        (NOT_TOUCHED, "if 1 > len(a) - 2: ..."),
        (NOT_TOUCHED, "if x == 0: ..."),
        (NOT_TOUCHED, "if x == 1: ..."),
        (NOT_TOUCHED, "if len(a) > len(b): ..."),
        (NOT_TOUCHED, "if x.startswith(y): ..."),
    ],
    "direct-iteration": [
        (FOLLOWED, "for a in b: ..."),
        (FOLLOWED, "for i, a in enumerate(b): ..."),
        (FOLLOWED, "x = [a for a in zip(b, c)]"),
        (BROKEN, "for i in range(len(b)): ..."),
        (BROKEN, "for i in range(0, len(b)): ..."),
        (BROKEN, "for i in range(0, len(b), 1): ..."),
        (BROKEN, "x = [b[i] for i in range(len(b))]"),
        (BROKEN, "for i in reversed(range(len(b))): ..."),
        (BROKEN, "places = range(len(b))\nfor i in places: ..."),
        (BROKEN, "for i in range(len(b) - 1):\n    g(b[i], b[i + 1])"),
        (BROKEN, "for i in range(1, len(b)):\n    g(b[i])"),
        (BROKEN, "for i in range(len(b) - 1, -1, -1):\n    g(b[i])"),
        (BROKEN, "i = 0\nwhile i < len(b):\n    g(b[i])\n    i += 1"),
        (BROKEN, "i, n = 0, len(b)\nwhile i < n:\n    g(b[i])\n    i = i + 1"),
        (BROKEN, "i = 0\nwhile i < len(b) and not found:\n    found = b[i] == x\n    i += 1"),
        (NOT_TOUCHED, "for i in range(10): ..."),
        (NOT_TOUCHED, "for i in range(0, len(b), n): ..."),
        (NOT_TOUCHED, "x = {b[i : i + n] for i in range(len(b) - n + 1)}"),
        (NOT_TOUCHED, "for i in range(len(b) - 1):\n    if b[i] > b[i + 1]:\n        b[i], b[i + 1] = b[i + 1], b[i]"),
        (NOT_TOUCHED, "for i in range(len(b) // 2):\n    g(b[i], b[-i])"),
        (NOT_TOUCHED, "while queue:\n    g(queue.pop())"),
        (NOT_TOUCHED, "while i < len(a) and j < len(b):\n    if a[i] < b[j]:\n        i += 1\n    else:\n        j += 1"),
        (NOT_TOUCHED, "while lo < hi:\n    mid = (lo + hi) // 2\n    if b[mid] < x:\n        lo = mid + 1\n    else:\n        hi = mid"),
        (NOT_TOUCHED, "i = 0\nwhile i < len(b):\n    g(b[i])\n    i += n"),
        (NOT_TOUCHED, "while len(row) < n:\n    row.append(row[-1])"),
    ],
}

TABLE = [
    pytest.param(name, verdict, code, id=f"{name}-{str(verdict).lower()}-{i}")
    for name, rows in CASES.items()
    for i, (verdict, code) in enumerate(rows)
]


@pytest.mark.parametrize(("name", "verdict", "code"), TABLE)
def test_verdict(name: str, verdict: bool | None, code: str) -> None:
    assert judge_style(code, fenced=False).verdicts[name] is verdict


def test_each_convention_has_a_rule_and_all_three_verdicts() -> None:
    assert list(CASES) == list(CONVENTIONS)
    assert len(CONVENTIONS) == 12
    assert all({verdict for verdict, _ in rows} == {True, False, None} for rows in CASES.values())


# The whole report

GOOD = textwrap.dedent(
    '''\
    from pathlib import Path


    def titles(path: str) -> list[str]:
        """Return the titles in a file."""
        lines = Path(path).read_text().splitlines()
        return [f"{line.title()}" for line in lines if line]
    '''
)


def test_good_code_follows_all_that_applies() -> None:
    report = judge_style(GOOD)
    assert report.broken == []
    assert report.followed == [
        *("type-hints", "docstring", "double-quotes", "f-strings", "pathlib"),
        *("comprehensions", "direct-tests", "direct-iteration"),
    ]
    assert report.adherence == 1.0
    assert report.verdicts["logging"] is None


def test_adherence_is_the_share_of_what_applies() -> None:
    report = judge_style("def shout(text):\n    loud = text.upper()\n    return loud + '!'")
    assert report.broken == ["type-hints", "docstring", "double-quotes", "f-strings"]
    assert report.adherence == 0.0
    half = judge_style('def f(x: int) -> str:\n    """Return it."""\n    print(x)\n    return str(x) + "a"')
    assert (half.followed, half.broken) == (["type-hints", "docstring", "double-quotes"], ["f-strings", "logging"])
    assert half.adherence == pytest.approx(0.6)


def test_no_code_is_no_adherence() -> None:
    report = judge_style("I cannot do that.")
    assert report == StyleReport(None, dict.fromkeys(CONVENTIONS))
    assert report.adherence == 0.0
    assert judge_style("x = 1").adherence == 1.0  # code that touches no convention breaks none


def test_unfenced_text_is_taken_as_it_is() -> None:
    assert judge_style("```python\nx = 1\n```", fenced=False).code is None
    assert judge_style("x", fenced=False).code == "x"


# The code of an answer


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("Here it is:\n\n```python\nx = 1\n```\n\nIt sets x. Don't forget!", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```Python3\nx = 1\n```", "x = 1"),
        ("~~~py\nx = 1\n~~~", "x = 1"),
        ("1. First:\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''"),
        ("```bash\npip\n```\n```python\nx = 1\n```", "x = 1"),
        ('```json\n{"a": 1}\n```\n```python\nx = 1\n```', "x = 1"),
        ("```\nsome words that are no code\n```\n```\nx = 1\n```", "x = 1"),
        ("```\nname\n```\n```\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\n```python\ny = 2\n```", "x = 1"),
        ("```python\r\nx = 1\r\n```", "x = 1"),
        # Cut short.
        ("```python\nx = 1", "x = 1"),
        ("```python\nx = 1\n\n\ndef f(a):\n    return a +", "x = 1\n\n"),
        ("```python\ndef f(a):\n    return (", None),
        ("```python\n", None),
        ("```", None),
        # As in the interpreter.
        ("```python\n>>> def f():\n...     return 1\n...\n>>> f()\n1\n```", "def f():\n    return 1\n\nf()"),
        # Without a fence.
        ("def f(): ...", "def f(): ..."),
        ("import os", "import os"),
        ("Sure", None),
        ("f(1)", None),
        ("Sure! Here:\ndef f(): ...", None),
        ("", None),
        ("x = 1\0", None),
        ("```python\nx = '\ud800'\n```", None),
    ],
)
def test_the_code_of_an_answer(answer: str, code: str | None) -> None:
    assert extract_code(answer) == code


@pytest.mark.parametrize("levels", [140, 200, 900, 5000])
@pytest.mark.parametrize("link", [" + 'a'", " + f(1)", ".a", "(1)", " if a else b"])
def test_a_model_that_repeats_itself_without_end_does_no_harm(link: str, levels: int) -> None:
    chain = f"b{link * levels}"
    report = judge_style(f"x = {chain}\nfor i in range(len({chain}) - 1):\n    g(({chain})[i])")
    assert (report.code is None) == (levels > 140)


def test_deep_nesting_is_no_code_rather_than_a_crash() -> None:
    assert judge_style("x = " + "(" * 5000 + ")" * 5000).code is None
    assert judge_style("if x:\n    y = 1\n" + "elif x:\n    return 1\n" * 3000, fenced=False).code is None


def test_odd_escapes_do_not_warn() -> None:
    assert judge_style('x = "\\d"').code is not None


FRAGMENTS = st.sampled_from(
    [*(code for rows in CASES.values() for _, code in rows), "```python\n", "```\n", "\n", ">>> ", "    ", "Text.", "'", '"""', "(", "\\"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAGMENTS, max_size=6).map("\n".join) | st.text(max_size=200) | st.text(alphabet="`'\"\n\\ ({[:=fx#>.", max_size=60))
def test_no_text_whatsoever_raises(text: str) -> None:
    report = judge_style(text)
    assert 0.0 <= report.adherence <= 1.0
    assert list(report.verdicts) == list(CONVENTIONS)
