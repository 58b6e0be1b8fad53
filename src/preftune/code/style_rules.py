"""Eight of the house conventions: how code is written (hints, docstrings, quotes, texts) and which tools it uses.

Each is a function from a parsed source to True (followed), False (broken) or None (does not apply), and its docstring says exactly
what is looked at. Where a program cannot know (a name of unknown type) the verdict leans to "not broken": a wrong "broken" would
teach and measure something that nobody asked for. The other four are in `style_idioms.py`.
"""

from __future__ import annotations

import ast

from preftune.code.style_source import Function, Source, docstring_node, verdict


def type_hints(source: Source) -> bool | None:
    """Applies where there is a public function or method (or an `__init__` with parameters).

    Each parameter but the first of a method that is not static is annotated, *args and **kwargs too, and so is the return,
    but for `__init__`. Functions inside functions, names with a leading underscore and lambdas are not looked at.
    """
    applies = False
    for node, is_method in source.public:
        if isinstance(node, ast.ClassDef):
            continue
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        if is_method and not any(source.dotted(decorator) == "staticmethod" for decorator in node.decorator_list):
            positional = positional[1:]
        parameters = [*positional, *arguments.kwonlyargs, *(a for a in (arguments.vararg, arguments.kwarg) if a)]
        is_init = node.name == "__init__"
        if any(parameter.annotation is None for parameter in parameters) or (node.returns is None and not is_init):
            return False
        applies = applies or bool(parameters) or not is_init
    return True if applies else None


def docstring(source: Source) -> bool | None:
    """Applies where there is a public function, method or class.

    Each has a docstring in triple double quotes on one line that starts with a capital letter, ends with a period, and whose
    first word does not end in a single s ("Return", not "Returns" or "This"); words in capitals ("DNS") are let pass.
    """
    public = [node for node, _ in source.public if node.name != "__init__"]
    return all(_is_house_docstring(source, node) for node in public) if public else None


def _is_house_docstring(source: Source, node: ast.AST) -> bool:
    literal = docstring_node(node)
    if literal is None or literal.lineno != literal.end_lineno:
        return False
    text = str(literal.value)
    written = (ast.get_source_segment(source.code, literal) or "").lstrip("rRuU")
    if not (written.startswith('"""') and text[:1].isupper() and text.endswith(".")):
        return False
    word = text.split()[0].rstrip(".,:;")
    return not word.endswith("s") or word.endswith("ss")


def double_quotes(source: Source) -> bool | None:
    """Applies where there is a string, bytes or f-string literal other than a docstring.

    Each opens with double quotes, unless a double quote stands inside it.
    """
    lines = source.code.splitlines()
    docstrings = set()
    for node in source.nodes:
        literal = docstring_node(node) if isinstance(node, ast.Module | ast.ClassDef | Function) else None
        if literal is not None and literal.lineno <= len(lines):
            column = len(lines[literal.lineno - 1].encode()[: literal.col_offset].decode(errors="ignore"))
            docstrings.add((literal.lineno, column))
    literals = [(opening, text) for start, opening, text in source.string_tokens if start not in docstrings]
    return verdict(any(opening.endswith("'") and '"' not in text for opening, text in literals), bool(literals))


def f_strings(source: Source) -> bool | None:
    """Applies where values are put into text.

    Broken by `"…" % x`, by a call of `.format()` or `.format_map()`, by adding a text literal or `str(x)` to something that is
    not a text literal, and by `+=` of a plain text literal or `str(x)`. Followed by an f-string with a value in it.
    Two literals added, sums of names alone and the lazy arguments of logging calls are not looked at.
    """
    broken = False
    for node in source.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            broken |= _is_literal_text(node.left)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            literals = [_is_literal_text(side) for side in (node.left, node.right)]
            broken |= any(literals) and not all(literals)
            broken |= any(source.calls_builtin(side, "str") for side in (node.left, node.right))
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            plain = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            broken |= plain or source.calls_builtin(node.value, "str")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            broken |= node.func.attr in ("format", "format_map")
    return verdict(broken, any(isinstance(node, ast.FormattedValue) for node in source.nodes))


def _is_literal_text(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _is_literal_text(node.left) or _is_literal_text(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_literal_text(node.left) and _is_literal_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


_OS_NAMES = "listdir remove unlink mkdir makedirs rmdir removedirs rename renames replace getcwd stat chmod readlink symlink"
_OS_FILES = frozenset(f"os.{name}" for name in _OS_NAMES.split())
_PATHS = frozenset(("Path", "pathlib.Path", "pathlib.PurePath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.PosixPath"))


def uses_pathlib(source: Source) -> bool | None:
    """Applies where files or paths are handled.

    Broken by the builtin `open()` (also `io.open`, `codecs.open`), anything of `os.path`, the functions of `os` that a Path method
    replaces, and the `glob` module. Followed by a use of `Path` or another class of pathlib.
    """
    broken = touched = False
    for name in source.imports.values():
        broken |= name == "glob" or name.startswith(("glob.", "os.path")) or name in _OS_FILES
    for node in source.nodes:
        if isinstance(node, ast.Attribute):
            name = source.dotted(node)
            broken |= name == "os.path" or name.startswith("os.path.") or name in _OS_FILES
        elif isinstance(node, ast.Call):
            broken |= source.calls_builtin(node, "open") or source.dotted(node.func) in ("io.open", "codecs.open")
        if isinstance(node, ast.Attribute | ast.Name):
            touched |= source.dotted(node) in _PATHS
    return verdict(broken, touched)


def early_return(source: Source) -> bool | None:
    """Applies where the first branch of some `if` always ends in return, raise, continue or break.

    Broken where such a branch has an else or elif after it. An elif counts only while all branches above it end so too:
    otherwise its else cannot simply be taken away.
    """
    broken = touched = False
    for node in source.nodes:
        if isinstance(node, ast.If) and ends(node.body) and not _is_elif_after_open_branch(source, node):
            touched = True
            broken |= bool(node.orelse)
    return verdict(broken, touched)


def _is_elif_after_open_branch(source: Source, node: ast.If) -> bool:
    parent = source.parents[node]
    while isinstance(parent, ast.If) and parent.orelse == [node]:
        if not ends(parent.body):
            return True
        node, parent = parent, source.parents[parent]
    return False


def ends(body: list[ast.stmt]) -> bool:
    """Return whether control never runs out of the end of these statements."""
    return any(_ends_one(statement) for statement in body)


def _ends_one(node: ast.stmt) -> bool:
    if isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break):
        return True
    if isinstance(node, ast.If):
        return ends(node.body) and ends(node.orelse)
    if isinstance(node, ast.With | ast.AsyncWith):
        return ends(node.body)
    if isinstance(node, ast.Try):
        whole = (ends(node.body) or ends(node.orelse)) and all(ends(handler.body) for handler in node.handlers)
        return whole or ends(node.finalbody)
    return False


def specific_except(source: Source) -> bool | None:
    """Applies where there is an `except`. Broken by a bare one and by Exception or BaseException, alone or in a tuple."""
    handlers = [node for node in source.nodes if isinstance(node, ast.ExceptHandler)]
    broken = False
    for handler in handlers:
        names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        broken |= any(n is None or source.dotted(n).removeprefix("builtins.") in ("Exception", "BaseException") for n in names)
    return verdict(broken, bool(handlers))


def uses_logging(source: Source) -> bool | None:
    """Applies where something is printed or logged.

    Broken by any call of `print()`. Followed by a use of the `logging` module or by a call such as `logger.info()` on a name
    that ends in "log" or "logger".
    """
    broken = any(source.calls_builtin(node, "print") for node in source.nodes)
    return verdict(broken, any(_is_log_call(source, node) for node in source.nodes))


_LEVELS = frozenset(("debug", "info", "warning", "error", "exception", "critical", "log"))


def _is_log_call(source: Source, node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    receiver = node.func.value
    name = receiver.attr if isinstance(receiver, ast.Attribute) else receiver.id if isinstance(receiver, ast.Name) else ""
    is_logger = name.lower().endswith(("log", "logger")) and node.func.attr in _LEVELS
    return is_logger or source.dotted(node.func).startswith("logging.")
