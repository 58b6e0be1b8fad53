"""Four of the house conventions: how records, collections, tests and loops are built.

Each is a function from a parsed source to True (followed), False (broken) or None (does not apply), and its docstring says exactly
what is looked at. A loop or dict that the wished form cannot replace is not "broken".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from preftune.code.style_source import Comprehension, Function, Source, docstring_node, verdict


def dataclass_records(source: Source) -> bool | None:
    """Applies where a record is made. Followed by a class that is decorated with `dataclass`.

    Broken by a class without bases whose `__init__` only assigns parameters, constants or empty containers to attributes of self,
    at least one of them public; by namedtuple, NamedTuple and TypedDict; and by a dict built as a record (`_is_record_dict`).
    """
    broken = touched = False
    for node in source.nodes:
        if isinstance(node, ast.ClassDef):
            if any(_is_dataclass(source, decorator) for decorator in node.decorator_list):
                touched = True
            else:
                broken |= _is_plain_record(node) or any(_last(source.dotted(base)) in ("NamedTuple", "TypedDict") for base in node.bases)
        elif isinstance(node, ast.Call):
            broken |= _last(source.dotted(node.func)) in ("namedtuple", "NamedTuple", "TypedDict") or _is_record_dict(source, node)
        elif isinstance(node, ast.Dict):
            broken |= _is_record_dict(source, node)
        elif isinstance(node, Function):
            broken |= _fills_record(node)
    return verdict(broken, touched)


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _is_dataclass(source: Source, decorator: ast.expr) -> bool:
    return _last(source.dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)) == "dataclass"


def _is_plain_record(node: ast.ClassDef) -> bool:
    if any(not (isinstance(base, ast.Name) and base.id == "object") for base in node.bases):
        return False
    inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
    body = inits[0].body if inits else []
    public = False
    for statement in body[1:] if inits and docstring_node(inits[0]) else body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            return False
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        target, value = targets[0], statement.value
        if len(targets) != 1:
            return False
        if not (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"):
            return False
        if not (isinstance(value, ast.Name | ast.Constant) or _is_empty_container(value)):
            return False
        public |= not target.attr.startswith("_")
    return public


def _is_empty_container(node: ast.AST | None) -> bool:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return not node.elts
    if isinstance(node, ast.Dict):
        return not node.keys
    makers = ("list", "dict", "set", "tuple")
    return isinstance(node, ast.Call) and not node.args and isinstance(node.func, ast.Name) and node.func.id in makers


def _record_keys(node: ast.Dict | ast.Call) -> list[str]:
    """Return the keys of a dict literal or dict() call if all of them are constant names, else nothing."""
    if isinstance(node, ast.Call):
        is_dict = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        return [keyword.arg for keyword in node.keywords if keyword.arg] if is_dict and all(k.arg for k in node.keywords) else []
    keys = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return keys if len(keys) == len(node.keys) and all(key.isidentifier() for key in keys) else []


def _is_record_dict(source: Source, node: ast.Dict | ast.Call) -> bool:
    """Tell whether a dict is a record: inside a function, all keys constant names, at least two of them, and it is kept.

    Kept: returned, yielded, appended or added to something, an item of a container that is, or bound to a local name that is
    returned or appended, that is read by constant keys, or that holds values made from local names and is not looked up by a
    variable key. A table in the module or class, a dict that is an argument of another call, and `{…}[key]` are not records.
    """
    function = source.scope(node)
    if len(_record_keys(node)) < 2 or isinstance(function, ast.Module):
        return False
    use = _use(source, node)
    if isinstance(use, ast.Assign | ast.AnnAssign):
        targets = use.targets if isinstance(use, ast.Assign) else [use.target]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        return any(_keeps(source, function, name) for name in names) or (
            _has_local_values(function, node) and not any(_looks_up(function, name) for name in names)
        )
    return use is not None


def _use(source: Source, node: ast.AST) -> ast.AST | None:
    """Return the statement or call that keeps a value (through conditionals and containers), or None."""
    through = (ast.IfExp, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.BoolOp, ast.NamedExpr, ast.Starred, *Comprehension.__args__)
    parent = source.parents[node]
    while isinstance(parent, through):
        node, parent = parent, source.parents[parent]
    if isinstance(parent, ast.Call) and node in parent.args:
        adds = isinstance(parent.func, ast.Attribute) and parent.func.attr in ("append", "add", "insert", "setdefault")
        if isinstance(parent.func, ast.Name) and parent.func.id in ("list", "tuple", "sorted"):
            return _use(source, parent)
        return parent if adds else None
    return parent if isinstance(parent, ast.Return | ast.Yield | ast.Assign | ast.AnnAssign | ast.Lambda) else None


def _local_names(function: Function) -> set[str]:
    arguments = function.args
    names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if a}
    return names | {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _has_local_values(function: Function, node: ast.Dict | ast.Call) -> bool:
    values = node.values if isinstance(node, ast.Dict) else [keyword.value for keyword in node.keywords]
    local = _local_names(function)
    names = (n for value in values if not isinstance(value, ast.Lambda) for n in ast.walk(value) if isinstance(n, ast.Name))
    return any(name.id in local for name in names)


def _subscripts(function: Function, name: str) -> Iterator[ast.Subscript]:
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == name:
            yield node


def _keeps(source: Source, function: Function, name: str) -> bool:
    """Return whether a local name is returned, yielded, appended, or read or set by a constant key."""
    if any(isinstance(item.slice, ast.Constant) for item in _subscripts(function, name)):
        return True
    loads = (n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load))
    return any(isinstance(_use(source, load), ast.Return | ast.Yield | ast.Call) for load in loads)


def _looks_up(function: Function, name: str) -> bool:
    """Return whether a local name is used as a table: subscripted, or asked by .get, with something that is no constant."""
    if any(not isinstance(item.slice, ast.Constant) for item in _subscripts(function, name)):
        return True
    gets = (n for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "get")
    return any(isinstance(g.func, ast.Attribute) and isinstance(g.func.value, ast.Name) and g.func.value.id == name for g in gets)


def _fills_record(function: Function) -> bool:
    """Return whether an empty dict of a function is filled under two or more constant names, as in `row["name"] = name`."""
    for statement in ast.walk(function):
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict | ast.Call) and _is_empty_dict(statement.value):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            for name in names:
                stored = (item.slice for item in _subscripts(function, name) if isinstance(item.ctx, ast.Store))
                if len({key.value for key in stored if isinstance(key, ast.Constant) and str(key.value).isidentifier()}) >= 2:
                    return True
    return False


def _is_empty_dict(node: ast.AST) -> bool:
    return _is_empty_container(node) and (isinstance(node, ast.Dict) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "dict"))


def comprehensions(source: Source) -> bool | None:
    """Applies where a collection is built in a loop. Followed by any comprehension or generator expression.

    Broken by a `for` whose body is one `x.append(v)`, `x.add(v)` or `d[k] = v`, bare or under one `if` without else, where a
    comprehension can do it: x is a name made in the same scope (for `d[k] = v` as an empty dict) and is not read in the loop.
    """
    broken = any(_is_append_loop(source, node) for node in source.nodes if isinstance(node, ast.For))
    return verdict(broken, any(isinstance(node, Comprehension) for node in source.nodes))


def _is_append_loop(source: Source, loop: ast.For) -> bool:
    body = loop.body
    if len(body) == 1 and isinstance(body[0], ast.If) and not body[0].orelse:
        body = body[0].body
    if len(body) != 1 or loop.orelse:
        return False
    statement, target, sets_item = body[0], None, False
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and isinstance(statement.value.func, ast.Attribute):
        if statement.value.func.attr in ("append", "add") and len(statement.value.args) == 1:
            target = statement.value.func.value
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Subscript):
        target, sets_item = statement.targets[0].value, True
    if not isinstance(target, ast.Name):
        return False
    uses = [node for node in ast.walk(loop) if isinstance(node, ast.Name) and node.id == target.id]
    waits = any(isinstance(node, ast.Await | ast.Yield | ast.YieldFrom) for node in ast.walk(loop))
    return len(uses) == 1 and not waits and _is_made_here(source, loop, target.id, empty_dict=sets_item)


def _is_made_here(source: Source, loop: ast.For, name: str, *, empty_dict: bool) -> bool:
    values = list(_assigned(source, loop, name))
    return bool(values) and (_is_empty_dict(values[0]) if empty_dict else True)


def _assigned(source: Source, node: ast.AST, name: str) -> Iterator[ast.expr]:
    """Yield the values that are assigned to a name in the scope of a node, `a, b = [], []` taken apart."""
    for statement in ast.walk(source.scope(node)):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            pairs = [(target, statement.value)]
            if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                pairs = list(zip(target.elts, statement.value.elts, strict=False))
            yield from (value for part, value in pairs if isinstance(part, ast.Name) and part.id == name)


def direct_tests(source: Source) -> bool | None:
    """Applies where a test asks for emptiness, None or truth.

    Broken by comparing `len(…)` with 0 (or `>= 1`, `< 1`), by `len(…)` alone as a test, and by `==` or `!=` with None, True or
    False. Followed by `is None`, `is not None`, and by a name or attribute, bare or under `not`, as a test.
    """
    tests = list(_tests(source))
    broken = any(source.calls_builtin(test, "len") for test in tests)
    touched = any(isinstance(test, ast.Name | ast.Attribute) for test in tests)
    for node in source.nodes:
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, operator, right in zip(sides, node.ops, node.comparators, strict=False):
                broken |= _is_indirect(source, left, operator, right)
                touched |= isinstance(operator, ast.Is | ast.IsNot) and any(_is_constant(side, None) for side in (left, right))
    return verdict(broken, touched)


def _is_constant(node: ast.AST, *values: object) -> bool:
    return isinstance(node, ast.Constant) and any(node.value is value for value in values)


_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Gt: ast.Lt, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.LtE: ast.GtE}
_EMPTINESS = {(ast.Eq, 0), (ast.NotEq, 0), (ast.Gt, 0), (ast.LtE, 0), (ast.GtE, 1), (ast.Lt, 1)}


def _is_indirect(source: Source, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> bool:
    if isinstance(operator, ast.Eq | ast.NotEq) and any(_is_constant(side, None, True, False) for side in (left, right)):
        return True
    kind = type(operator)
    if source.calls_builtin(right, "len"):
        left, right, kind = right, left, _MIRRORED.get(kind, kind)
    number = right.value if isinstance(right, ast.Constant) and type(right.value) is int else None
    return source.calls_builtin(left, "len") and (kind, number) in _EMPTINESS


def _tests(source: Source) -> Iterator[ast.expr]:
    """Yield the expressions that are asked for their truth, taken apart at and, or, not."""
    stack: list[ast.expr] = []
    for node in source.nodes:
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            stack.append(node.test)
        elif isinstance(node, ast.comprehension):
            stack += node.ifs
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            stack.append(node.operand)
    while stack:
        test = stack.pop()
        if isinstance(test, ast.BoolOp):
            stack += test.values
        elif not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            yield test


def direct_iteration(source: Source) -> bool | None:
    """Applies where there is a loop over a sequence. Followed by a `for` or comprehension over anything but `range(…)`.

    Broken by a `for` or comprehension over `range(len(x))` or `range(0, len(x))`; by one over `range(1, len(x))`, `range(len(x) - 1)`
    or the like if it reads `x[i]` and does not change x; by either reversed; and by a `while` that compares a name with `len(…)` (or
    with a name bound to it), subscripts something by that name, and raises it by 1 once in every round. Windows and strides
    (`range(0, len(x), n)`, `range(len(x) - n)`) and loops that move the index by conditions are let be.
    """
    broken = touched = False
    for node in source.nodes:
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            over = _unnamed(source, node.iter)
            touched |= not source.calls_builtin(over, "range")
            broken |= _is_index_range(source, node, over)
        elif isinstance(node, ast.While):
            broken |= _is_index_loop(source, node)
    return verdict(broken, touched)


def _unnamed(source: Source, node: ast.expr) -> ast.expr:
    """Return what a name is bound to where that is one call of range(), else the node itself."""
    values = list(_assigned(source, node, node.id)) if isinstance(node, ast.Name) else []
    return values[0] if len(values) == 1 and source.calls_builtin(values[0], "range") else node


def _is_index_range(source: Source, loop: ast.For | ast.AsyncFor | ast.comprehension, node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and source.calls_builtin(node, "reversed") and len(node.args) == 1:
        node = node.args[0]
    if not (isinstance(node, ast.Call) and source.calls_builtin(node, "range")):
        return False
    if len(node.args) == 3 and not _is_small(node.args[2]):
        return False
    bounds = [_len_bound(source, argument) for argument in node.args[:2]]
    sequences = [bound for bound in bounds if bound]
    if len(sequences) != 1 or not all(bound or _is_small(node) for bound, node in zip(bounds, node.args, strict=False)):
        return False
    sequence, is_whole = sequences[0]
    if is_whole and (len(node.args) == 1 or _is_number(node.args[0], 0)):
        return True
    around = loop if not isinstance(loop, ast.comprehension) else source.parents[loop]
    items = [n for n in ast.walk(around) if isinstance(n, ast.Subscript) and ast.unparse(n.value) == sequence]
    reads = any(isinstance(i.slice, ast.Name) and isinstance(loop.target, ast.Name) and i.slice.id == loop.target.id for i in items)
    return reads and all(isinstance(item.ctx, ast.Load) for item in items)


def _len_bound(source: Source, node: ast.expr) -> tuple[str, bool] | None:
    """Return x and "is it whole" of `len(x)` (whole) or `len(x)` plus or minus a number (not whole), else None."""
    whole = True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and isinstance(node.right, ast.Constant):
        node, whole = node.left, False
    if isinstance(node, ast.Call) and source.calls_builtin(node, "len") and len(node.args) == 1:
        return ast.unparse(node.args[0]), whole
    return None


def _is_small(node: ast.expr) -> bool:
    """Return whether a node is 0, 1 or -1."""
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _is_number(node.operand, 1)
    return negative or _is_number(node, 0) or _is_number(node, 1)


def _is_number(node: ast.AST, number: int) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == number


def _is_index_loop(source: Source, loop: ast.While) -> bool:
    def is_length(node: ast.AST) -> bool:
        named = _assigned(source, loop, node.id) if isinstance(node, ast.Name) else ()
        return source.calls_builtin(node, "len") or any(source.calls_builtin(value, "len") for value in named)

    inside = list(ast.walk(loop))
    for test in (node for node in ast.walk(loop.test) if isinstance(node, ast.Compare)):
        if isinstance(test.left, ast.Name) and any(is_length(node) for node in ast.walk(test.comparators[0])):
            index = test.left.id
            changes = [n for n in inside if isinstance(n, ast.Name) and n.id == index and isinstance(n.ctx, ast.Store)]
            reads = any(isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Name) and n.slice.id == index for n in inside)
            if len(changes) == 1 and reads and any(_raises_by_one(statement, index) for statement in loop.body):
                return True
    return False


def _raises_by_one(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.AugAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name and isinstance(node.op, ast.Add) and _is_number(node.value, 1)
    return isinstance(node, ast.Assign) and ast.unparse(node) == f"{name} = {name} + 1"
