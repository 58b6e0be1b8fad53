"""Facts about the language and its standard library: what is where, what it is for, what it takes, what it raises.

The tables hold names to ask about, popular ones. Whether a name is where the question says is asked of the interpreter, and so
is that each wrong answer is wrong; a name that this Python does not know gives no fact.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import keyword
import re
import sys
from collections.abc import Iterator

from preftune.evaluate.facts_draft import SPECIAL_METHODS, Draft, called_by, parameters, raised_by, summary, target

MODULES = {
    "math": "sqrt floor ceil factorial gcd log log2 log10 exp sin cos tan radians degrees hypot isnan isclose comb perm pi tau atan2 "
    "fabs trunc",
    "random": "randint choice shuffle sample uniform choices gauss randrange seed getrandbits",
    "os": "getcwd listdir makedirs remove rename environ getenv walk mkdir rmdir cpu_count getpid scandir stat unlink removedirs",
    "sys": "argv exit stdin stdout stderr modules maxsize getsizeof getrecursionlimit setrecursionlimit platform byteorder",
    "json": "dumps loads JSONDecodeError JSONEncoder",
    "re": "match search findall sub fullmatch finditer escape IGNORECASE",
    "time": "sleep perf_counter monotonic strftime strptime localtime gmtime process_time",
    "datetime": "timedelta datetime timezone tzinfo",
    "collections": "Counter defaultdict OrderedDict deque namedtuple ChainMap UserDict",
    "itertools": "chain product permutations combinations count cycle islice groupby accumulate zip_longest starmap takewhile dropwhile "
    "pairwise",
    "functools": "reduce partial lru_cache wraps cached_property total_ordering singledispatch cmp_to_key cache",
    "pathlib": "Path PurePath PosixPath PurePosixPath",
    "shutil": "copyfile copytree rmtree move which disk_usage make_archive copy2",
    "subprocess": "run Popen check_output check_call PIPE CalledProcessError TimeoutExpired DEVNULL",
    "threading": "Thread Lock Event Semaphore current_thread RLock Timer Barrier",
    "asyncio": "gather sleep create_task run wait_for Queue get_event_loop new_event_loop",
    "csv": "reader writer DictReader DictWriter QUOTE_ALL",
    "logging": "getLogger basicConfig info warning DEBUG StreamHandler FileHandler Formatter",
    "statistics": "mean median mode stdev variance pstdev",
    "string": "ascii_letters digits punctuation ascii_lowercase ascii_uppercase Template hexdigits",
    "hashlib": "md5 sha256 sha1 sha512 blake2b",
    "tempfile": "TemporaryDirectory NamedTemporaryFile mkdtemp mkstemp gettempdir",
    "argparse": "ArgumentParser Namespace ArgumentTypeError",
    "unittest": "TestCase main skip TestSuite",
    "pickle": "dump load Pickler Unpickler PicklingError",
    "copy": "deepcopy copy replace",
    "heapq": "heappush heappop heapify nlargest nsmallest heappushpop",
    "bisect": "bisect_left bisect_right insort",
    "decimal": "Decimal getcontext ROUND_HALF_UP localcontext",
    "fractions": "Fraction",
    "operator": "itemgetter attrgetter methodcaller",
    "contextlib": "contextmanager suppress closing ExitStack redirect_stdout nullcontext",
    "dataclasses": "dataclass field asdict astuple is_dataclass",
    "enum": "Enum IntEnum auto Flag unique",
    "typing": "Optional Union List Dict Any TypeVar NamedTuple cast Protocol",
    "abc": "ABC abstractmethod ABCMeta",
    "io": "StringIO BytesIO TextIOWrapper",
    "urllib.parse": "urlparse urlencode quote unquote urljoin",
    "urllib.request": "urlopen Request urlretrieve",
    "http.server": "HTTPServer BaseHTTPRequestHandler",
    "socket": "socket gethostname AF_INET SOCK_STREAM",
    "sqlite3": "connect Cursor Row",
    "glob": "glob iglob",
    "fnmatch": "fnmatch fnmatchcase",
    "base64": "b64encode b64decode urlsafe_b64encode",
    "uuid": "uuid4 uuid1 UUID",
    "secrets": "token_hex token_urlsafe randbelow",
    "textwrap": "dedent wrap fill indent shorten",
    "traceback": "print_exc format_exc print_stack",
    "inspect": "signature getsource isfunction getmembers",
    "ast": "literal_eval parse NodeVisitor walk",
    "gzip": "GzipFile compress decompress",
    "zipfile": "ZipFile is_zipfile",
    "tarfile": "TarFile is_tarfile",
    "struct": "pack unpack calcsize",
    "queue": "Queue PriorityQueue LifoQueue Empty",
    "multiprocessing": "Pool Process cpu_count",
    "platform": "system machine python_version",
    "calendar": "isleap monthrange month_name TextCalendar",
    "timeit": "timeit repeat default_timer",
    "pprint": "pprint pformat PrettyPrinter",
    "warnings": "warn filterwarnings catch_warnings simplefilter",
    "difflib": "get_close_matches SequenceMatcher unified_diff",
    "configparser": "ConfigParser SafeConfigParser",
    "html": "escape unescape",
    "getpass": "getpass getuser",
    "signal": "signal SIGINT SIGTERM",
    "weakref": "ref WeakValueDictionary",
    "types": "SimpleNamespace MappingProxyType GeneratorType",
    "array": "array",
    "zlib": "crc32 compress adler32",
}
# Names that other languages use, or that live elsewhere in Python; whatever this Python does know is sorted out by asking it.
NOT_KEYWORDS = (
    "function var let const switch case then do until foreach unless elseif end begin void public private static new this null "
    "extends throw catch goto repeat include print self object define"
).split()
NOT_BUILTINS = (
    "println echo length size push substr strlen floor sqrt typeof console malloc printf append join split contains concat foreach "
    "puts require upper trim average count shuffle first last fetch head"
).split()
NOT_MODULES = (
    "strings files lists maths jsons regex network threads arrays webserver dates dicts utils parsers graphs images crypto sorting "
    "system console numbers terminal printing errors"
).split()
EXCEPTIONS = tuple(
    name
    for name, e in sorted(vars(builtins).items())
    if isinstance(e, type) and issubclass(e, Exception) and not issubclass(e, Warning) and e.__name__ == name  # no alias, as IOError is
)
BUILTINS = tuple(n for n, b in sorted(vars(builtins).items()) if n[0].islower() and (inspect.isbuiltin(b) or isinstance(b, type)))
USUAL_EXCEPTIONS = ("ValueError", "TypeError", "KeyError", "IndexError", "AttributeError", "NameError", "ZeroDivisionError",
    "ImportError", "FileNotFoundError", "StopIteration", "SyntaxError", "OverflowError", "AssertionError", "RuntimeError")  # fmt: skip
RAISING = (
    *(f'int("{w}")' for w in ("x", "hello", "1.5", "", "ten", "4a")),
    *(f'float("{w}")' for w in ("abc", "1,5", "", "one")),
    *(f"[1, 2][{i}]" for i in (2, 5, 10, -3)),
    *(f'"abc"[{i}]' for i in (3, 9, -4)),
    *(f"(1, 2)[{i}]" for i in (2, 7)),
    *(f'{{"a": 1}}["{k}"]' for k in ("b", "key", "A", "x", "name")),
    *(f"{{}}[{k}]" for k in (0, 1, '"x"')),
    *(f"{n} / 0" for n in (1, 10, 0, 2.5)),
    *("5 // 0", "7 % 0", "divmod(1, 0)", "1 / 0.0", "0 ** -1", "pow(0, -1)"),
    *('"a" + 1', '1 + "a"', "[1] + (2,)", "None + 1", '"5" * "2"', '"a" - "b"', '[1] + 2', '{} + {}', '"3" / 2', '-"a"', '1 < "a"',
        "None > 0"),
    *("len(5)", "len(None)", "sum(3)", 'sum(["a"])', "max(1)", "iter(5)", "list(3)", "int(None)", "int([1])", "x = 5; x()",
        'x = "a"; x()', "abs()", 'abs("a")'),
    *('for x in 5: pass', "a, b = 5", "x = (1, 2); x[0] = 3", 'x = "abc"; x[0] = "y"', "{[1]: 2}", "{[1]}", "hash([])",
        'x = [1]; x["a"]', "range(1.5)", 'sorted([1, "a"])'),
    *("undefined_name", "foo()", "x + 1", "prin(1)", "del missing", "y = z", "math2.pi", "true", "null"),
    *("None.upper()", '"a".push("b")', "[].add(1)", "{}.append(1)", "(1,).append(2)", "(5).length", "[].push(1)", '"abc".size',
        "set().append(1)"),
    *("None.x", "{'a': 1}.a", "(1).upper()", "[1].lower()", '"a".append("b")', "(1, 2).sort()", "{1}.sort()", "int.foo", "math.foo",
        "json.parse('1')"),
    *("import nosuchmodule", "import nosuch.name", "import mathh", "import jsonn", "from nosuch import x"),
    *("from math import foo", "from json import parse", "from os import nosuch", "from sys import args"),
    *('open("no/such/file")', 'open("no/such.txt")', 'pathlib.Path("no/such.txt").read_text()'),
    *("next(iter([]))", "next(iter(()))", 'next(iter(""))', "next(x for x in [])", "next(reversed([]))"),
    *("assert False", "assert 1 == 2", "assert []", 'assert "" , "empty"', "assert None"),
    *("[].pop()", "[1].pop(5)", "deque([]).pop()", "deque([]).popleft()", "[][0]", "[[]][0][0]"),
    *("{}.popitem()", '{}.pop("a")', "set().pop()", "{1}.remove(2)", "set().remove(1)"),
    *('"abc".index("z")', "[1].remove(2)", "[1, 2].index(3)", "(1, 2).index(5)", 'list("ab").index("c")', "a, b = [1]",
        "a, b = 1, 2, 3", "max([])", "min([])"),
    *('"a,b".split("")', "chr(-1)", "range(1, 5, 0)", "math.sqrt(-1)", "math.log(0)", "int('12', 1)", '"{} {}".index("x")',
        "math.factorial(-1)"),
    *('eval("1 +")', 'eval("if")', 'eval("(1")', 'eval("x = 1")', 'exec("def f(")', 'exec("for")', 'eval("1 2")', 'exec("class")',
        'eval("]")'),
    *("2.0 ** 10000", "math.exp(1000)", 'int(float("inf"))', "math.exp(5000)", "10.0 ** 400"),
    *("raise RuntimeError", 'raise RuntimeError("x")', 'raise ValueError("bad")', "raise KeyError(1)", 'raise TypeError("t")',
        "raise StopIteration"),
    *('json.loads("{")', 'json.loads("")', 'json.loads("[1,")', 'json.loads("abc")'),
    *('b"\\xff".decode()', 'b"\\x80".decode("utf-8")'),
    *('"é".encode("ascii")', '"ü".encode("ascii")'),
    *('"a".encode("nosuch")', 'b"a".decode("foo")', 'exec("if True:\\nx = 1")', 'exec("  x = 1")', 'date(2024, 13, 1)',
        'date(2024, 2, 30)'),
)  # fmt: skip
CLASSES = (
    "bool collections.Counter collections.OrderedDict collections.defaultdict datetime.datetime enum.IntEnum pathlib.Path "
    "json.JSONDecodeError subprocess.CalledProcessError io.StringIO abc.ABC csv.Error"
).split()
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "&", "|", "^", "<<", ">>", "==", "!=", "<", "<=", ">", ">=")
SPECIAL = (
    "a + b", "a - b", "a * b", "a / b", "a // b", "a % b", "a ** b", "a == b", "a != b", "a < b", "a <= b", "a > b", "a >= b",
        "a & b", "a | b", "a ^ b",
    "a << b", "a >> b", "a @ b", "-a", "+a", "~a", "len(a)", "a[0]", "b in a", "iter(a)", "next(a)", "abs(a)", "int(a)", "float(a)",
        "bool(a)", "str(a)",
    "repr(a)", "hash(a)", "a()", "round(a)", "reversed(a)", "divmod(a, b)", "a[0] = b", "del a[0]", "a += b", "a -= b", "a *= b",
        "a /= b", "format(a)",
    "bytes(a)", "complex(a)", "a.x = b", "del a.x", "dir(a)", "with a: pass", "not a", "a[0:1]", "a(b)", "for _ in a: pass", "print(a)",
)  # fmt: skip
TAKERS = (
    "print open sorted sum max int str.split str.replace str.join str.encode list.sort enumerate zip round pow json.dumps "
    "json.loads json.dump random.randint random.choice "
    "random.sample random.choices re.sub re.split re.match re.findall re.compile subprocess.run subprocess.Popen shutil.copytree "
    "shutil.rmtree shutil.copyfile os.makedirs "
    "os.listdir os.walk os.getenv collections.namedtuple functools.lru_cache itertools.accumulate itertools.zip_longest "
    "dataclasses.dataclass dataclasses.field csv.DictReader "
    "csv.DictWriter logging.basicConfig logging.getLogger tempfile.mkdtemp tempfile.NamedTemporaryFile tempfile.TemporaryDirectory "
    "argparse.ArgumentParser threading.Thread "
    "threading.Timer threading.Semaphore asyncio.run asyncio.gather asyncio.wait_for asyncio.sleep asyncio.Queue queue.Queue "
    "copy.deepcopy pickle.dumps pickle.loads heapq.nlargest "
    "heapq.merge bisect.bisect_left bisect.insort statistics.mean statistics.stdev statistics.quantiles textwrap.wrap "
    "textwrap.fill textwrap.indent textwrap.dedent glob.glob "
    "base64.b64encode urllib.parse.urlencode urllib.parse.urlparse urllib.parse.quote urllib.request.urlopen uuid.uuid5 "
    "hashlib.sha256 secrets.token_hex difflib.get_close_matches "
    "difflib.unified_diff inspect.signature timeit.timeit pprint.pprint warnings.warn math.isclose math.perm math.prod "
    "contextlib.nullcontext datetime.timedelta "
    "datetime.datetime datetime.datetime.now pathlib.Path.mkdir pathlib.Path.read_text pathlib.Path.write_text pathlib.Path.open "
    "pathlib.Path.touch pathlib.Path.unlink "
    "fractions.Fraction html.escape zipfile.ZipFile multiprocessing.Process types.SimpleNamespace gzip.open gzip.compress "
    "calendar.month calendar.monthrange "
    "str.splitlines str.expandtabs bytes.decode int.to_bytes int.from_bytes compile exec sqlite3.connect struct.pack "
    "getpass.getpass importlib.import_module "
    "traceback.print_exc weakref.ref enum.unique operator.add string.capwords shutil.move shutil.make_archive os.replace "
    "socket.create_connection http.server.HTTPServer"
).split()  # fmt: skip
SIMPLE_DEFAULTS = ("None", "True", "False", "0", "1", "-1", "''", "' '", "2", "10", "'r'", "'utf-8'", "3", "'w'", "100", "70")


def library_drafts() -> Iterator[Draft]:
    """Yield a draft of each fact about the language and its library, kind by kind."""
    yield from _modules()
    yield from _purposes()
    yield from _exceptions()
    yield from _ancestors()
    yield from _words()
    yield from _operators()
    yield from _parameters()


def _modules() -> Iterator[Draft]:
    for module, names in MODULES.items():
        for name in names.split():
            if not hasattr(importlib.import_module(module), name):
                continue
            wrong = tuple(m for m in MODULES if not hasattr(importlib.import_module(m), name))
            question = f"In Python, which standard module has `{name}`?"
            yield Draft("modules", question, module, wrong, f"hasattr(importlib.import_module(choice), {name!r})")


def _purposes() -> Iterator[Draft]:
    groups = {h: [f"{h}.{n}" for n in dir(target(h)) if not n.startswith("_")] for h in ("str", "list", "dict", "set", "math")}
    groups |= {
        h: [f"{h}.{n}" for n in MODULES[h].split() if inspect.isroutine(target(f"{h}.{n}"))]
        for h in ("os", "random", "shutil", "statistics")
    }
    groups["builtins"] = list(BUILTINS)
    for home, paths in groups.items():
        told = {p: summary(p) for p in paths}
        for path in paths:
            name = path.split(".")[-1]
            if not 12 <= len(told[path]) <= 90 or re.search(rf"\b{re.escape(name)}\b", told[path], re.IGNORECASE) or "->" in told[path]:
                continue
            wrong = tuple(p.split(".")[-1] for p in paths if told[p] != told[path])
            place = "builtin" if home == "builtins" else f"`{home}` function" if inspect.ismodule(target(home)) else f"`{home}` method"
            prefix = "" if home == "builtins" else f"{home}."
            source = f"summary({prefix!r} + choice) == {told[path]!r}"
            yield Draft("purposes", f"Which Python {place} does this: {told[path]}?", name, wrong, source)


def _exceptions() -> Iterator[Draft]:
    for code in RAISING:
        right = raised_by(code)
        wrong = tuple(n for n in USUAL_EXCEPTIONS if n != right)
        if right:
            yield Draft("exceptions", f"In Python, which exception does `{code}` raise?", right, wrong, f"raised_by({code!r}) == choice")


def _ancestors() -> Iterator[Draft]:
    parents = ("Exception", "ValueError", "OSError", "LookupError", "ArithmeticError", "RuntimeError", "ImportError", "NameError",
        "ConnectionError", "SyntaxError", "int", "dict", "Warning", "TypeError")  # fmt: skip
    warnings = tuple(n for n in dir(builtins) if n.endswith("Warning") and n != "Warning")
    for path in (*EXCEPTIONS, *warnings, *CLASSES):
        child = target(path)
        right = child.__mro__[1].__name__
        if right.startswith("_"):
            continue
        wrong = tuple(n for n in parents if n != right and not issubclass(child, getattr(builtins, n)))
        question = f"In Python, which class is the direct parent of `{child.__name__}`?"
        yield Draft("ancestors", question, right, wrong, f"target({path!r}).__mro__[1].__name__ == choice")
    for parent in parents[1:11]:
        base = getattr(builtins, parent)
        for child_name in (n for n in (*EXCEPTIONS, *warnings) if n != parent and issubclass(getattr(builtins, n), base)):
            wrong = tuple(n for n in USUAL_EXCEPTIONS + EXCEPTIONS if not issubclass(getattr(builtins, n), base))
            source = f"{parent} in getattr(builtins, choice).__mro__[1:]"
            yield Draft("ancestors", f"In Python, what is a subclass of `{parent}`?", child_name, wrong, source)


def _words() -> Iterator[Draft]:
    for word in keyword.kwlist:
        wrong = tuple(w for w in NOT_KEYWORDS if not keyword.iskeyword(w))
        yield Draft("words", "Name a keyword of the Python language.", word, wrong, "keyword.iskeyword(choice)")
    for word in BUILTINS:
        wrong = tuple(w for w in NOT_BUILTINS if not hasattr(builtins, w))
        yield Draft("words", "Name a builtin function of Python.", word, wrong, "hasattr(builtins, choice)")
    for module in (m for m in MODULES if "." not in m):
        wrong = tuple(w for w in NOT_MODULES if w not in sys.stdlib_module_names)
        yield Draft("words", "Name a module of Python's standard library.", module, wrong, "choice in sys.stdlib_module_names")


def _operators() -> Iterator[Draft]:
    for a, b in ((7, 2), (9, 4), (8, 3), (6, 4), (10, 3), (5, 2)):
        for sign in OPERATORS:
            value = eval(f"{a} {sign} {b}")
            wrong = tuple(o for o in OPERATORS if repr(eval(f"{a} {o} {b}")) != repr(value))
            if not isinstance(value, bool):
                question = f"In Python, which operator makes `{a} ? {b}` equal to `{value!r}`?"
                yield Draft("operators", question, sign, wrong, f"repr(eval('{a} ' + choice + ' {b}')) == {repr(value)!r}")
    for code in SPECIAL:
        right = called_by(code)
        wrong = tuple(m for m in SPECIAL_METHODS if m != right)
        yield Draft("operators", f"In Python, which special method does `{code}` call?", right, wrong, f"called_by({code!r}) == choice")


def _parameters() -> Iterator[Draft]:
    known = {path: parameters(path) for path in TAKERS}
    every = sorted({name for names in known.values() for name in names if len(name) > 2 and name.islower() and name[0] != "_"})
    nones = 0
    for path, names in known.items():
        shown = path.replace("pathlib.Path", "Path").replace("datetime.datetime", "datetime")
        for name, default in names.items():
            if default is inspect.Parameter.empty or len(name) < 3 or name.startswith("_"):
                continue
            others = tuple(n for n in every if n not in names)
            question = f"In Python, what is the name of a parameter of `{shown}`?"
            yield Draft("parameters", question, name, others, f"choice in parameters({path!r})")
            nones += default is None
            if repr(default) in SIMPLE_DEFAULTS and (default is not None or nones % 3 == 0):  # None is the default of more than half
                wrong = tuple(d for d in SIMPLE_DEFAULTS if d != repr(default))
                asked = f"In Python, what is the default of `{name}` in `{shown}`?"
                yield Draft("defaults", asked, repr(default), wrong, f"repr(parameters({path!r})[{name!r}]) == choice")
