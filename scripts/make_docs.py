"""Print the reference pages in docs/reference from the code: commands, config keys, record fields, formats, metrics, Python.

python scripts/make_docs.py            writes them
python scripts/make_docs.py --check    says which are stale, and fails if any is
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- Printed from the code by `make docs`; change it there. -->\n"


def commands() -> str:
    """Return the page of all commands: what `--help` says."""
    from preftune.cli import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("preftune", [], resilient_parsing=True, terminal_width=100)
    parts = ["# Commands\n", NOTE, _help(group, context)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = command.make_context(name, [], parent=context, resilient_parsing=True, terminal_width=100)
        parts += [f"## preftune {name}\n", _help(command, inner)]
    return "\n".join(parts)


def _help(command: Any, context: Any) -> str:
    return f"```\n{command.get_help(context).rstrip()}\n```\n"


def config() -> str:
    """Return the page of every stage's config keys."""
    from preftune.stages.kinds import Stage, stage_functions

    parts = ["# Config keys\n", NOTE, "Set them in a YAML file or as `key=value`; `preftune config STAGE` prints a file to start from.\n"]
    groups: dict[str, type[BaseModel]] = {}
    for stage in Stage:
        model = stage_functions(stage).config
        parts += [f"## {stage.value}\n", *_table(model)]
        groups |= _groups(model)
    for name, group in groups.items():
        parts += [f"## The keys of `{name}`\n", f"Write `{name}: {{…}}`, or `{name}.key=value` on the command line.\n", *_table(group)]
    return "\n".join(parts)


def records() -> str:
    """Return the page of the records and their fields."""
    from preftune import records as module

    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, module.Record) and c is not module.Record]
    parts = ["# Records\n", NOTE]
    for record in sorted(classes, key=lambda c: inspect.getsourcelines(c)[1]):
        parts += [f"## {record.__name__}\n", f"{inspect.getdoc(record)}\n", *_table(record, meaning=False)]
    return "\n".join(parts)


def metrics() -> str:
    """Return the page of all metrics: what runs write to metrics.jsonl, what evaluations and reward runs tell."""
    from preftune.evaluate.measures import EVALUATED, HELD_OUT
    from preftune.training.metrics import METRICS

    parts = ["# Metrics\n", NOTE]
    for title, where, found in (
        ("Of a run, step by step", "One JSON object a step in `runs/<id>/metrics.jsonl`.", dict(sorted(METRICS.items()))),
        ("Of an evaluation", "In `reports/<id>/evaluation.json`. An estimate is `{value, low, high, n}`; the interval is 95 %.", EVALUATED),
        ("Of a reward model, held out", "Under `held_out` in the `manifest.json` of a run of `preftune train reward`.", HELD_OUT),
    ):
        rows = [f"| `{name}` | {meaning} |" for name, meaning in found.items()]
        parts += [f"## {title}\n", f"{where}\n", "| name | meaning |", "|---|---|", *rows, ""]
    return "\n".join(parts)


def python() -> str:
    """Return the page of the public names of `import preftune`: signatures and docstrings."""
    import preftune

    parts = [
        "# Python\n",
        NOTE,
        "Each command is also a function. `import preftune` loads no torch; a name loads what it needs when it is asked for.\n",
    ]
    found = {name: getattr(preftune, name) for name in preftune.__all__ if name != "__version__"}
    for title, wanted in (
        ("Functions", lambda value: inspect.isfunction(value)),
        ("Settings", lambda value: inspect.isclass(value) and issubclass(value, BaseModel) and not _is_record(value)),
        ("Records", _is_record),
        ("Errors", lambda value: inspect.isclass(value) and issubclass(value, Exception)),
        ("Other classes", lambda value: inspect.isclass(value) and not issubclass(value, BaseModel | Exception)),
    ):
        parts.append(f"## {title}\n")
        for name in sorted(name for name, value in found.items() if wanted(value)):
            parts += [f"### {name}\n", _call(name, found[name]), _indented_as_code((inspect.getdoc(found[name]) or "").splitlines())]
    return "\n".join(parts)


def _is_record(value: Any) -> bool:
    from preftune.records import Record

    return inspect.isclass(value) and issubclass(value, Record)


def _call(name: str, value: Any) -> str:
    """Return how a name is called, one parameter a line; of settings and records where their keys are listed."""
    if inspect.isclass(value) and issubclass(value, BaseModel):
        page = "records" if _is_record(value) else "config"
        return (
            f"`preftune.{name}`; its fields: [{page}]({page}.md).\n"
            if _listed(value)
            else f"`preftune.{name}`. Its keys:\n\n" + "\n".join(_table(value))
        )
    signature = inspect.signature(value)
    given = [_parameter(parameter) for parameter in signature.parameters.values()]
    first_keyword = next((i for i, p in enumerate(signature.parameters.values()) if p.kind is inspect.Parameter.KEYWORD_ONLY), None)
    if first_keyword is not None:
        given.insert(first_keyword, "*")
    lines = "".join(f"    {_without_modules(one)},\n" for one in given)
    returned = "" if signature.return_annotation is inspect.Signature.empty else f" -> {signature.return_annotation}"
    return f"```python\n{name}(\n{lines}){returned}\n```\n" if given else f"```python\n{name}(){returned}\n```\n"


def _parameter(parameter: inspect.Parameter) -> str:
    """Return a parameter as it is written in the source: annotations are text there already."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    told, default = parameter.annotation, parameter.default
    annotation = "" if told is inspect.Parameter.empty else f": {told if isinstance(told, str) else inspect.formatannotation(told)}"
    return f"{stars}{parameter.name}{annotation}" + ("" if default is inspect.Parameter.empty else f" = {default!r}")


def _without_modules(text: str) -> str:
    return re.sub(r"<(?:\w+\.)*(\w+) object at 0x\w+>", r"\1()", re.sub(r"\bpreftune\.[a-z_.]+\.|\bPosix(?=Path)", "", text))


def _listed(model: type[BaseModel]) -> bool:
    """Say whether the keys of a class stand on a page of their own: a stage's config, or a record."""
    from preftune.stages.kinds import Stage, stage_functions

    return _is_record(model) or model in [stage_functions(stage).config for stage in Stage]


def formats() -> str:
    """Return the page of all formats that `preftune import` reads: what each file's first lines say."""
    from preftune.data.formats import FORMATS

    parts = ["# Formats\n", NOTE, "What each format is, which way its ranks and scores go, what is left out, and where that is written.\n"]
    for name, form in FORMATS.items():
        first, *rest = inspect.cleandoc(form.__doc__ or "").splitlines()
        parts += [f"## {name}\n", f"{first}\n", _indented_as_code(rest)]
    return "\n".join(parts)


def _indented_as_code(lines: list[str]) -> str:
    """Return a docstring's lines as Markdown: what is indented stands apart, as code, and so do direction, left out and source."""
    text: list[str] = []
    for line in lines:
        if text and line.startswith("    ") != text[-1].startswith("    "):
            text.append("")
        text.append(re.sub(r"^(Direction|Left out[^:]*|Source):", r"\n**\1:**", line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(text).strip("\n")) + "\n"


def _table(model: type[BaseModel], *, meaning: bool = True) -> list[str]:
    head = ["| key | type | default | meaning |", "|---|---|---|---|"] if meaning else ["| field | type | default |", "|---|---|---|"]
    rows = []
    for name, field in model.model_fields.items():
        cells = [f"`{name}`", f"`{_type(field)}`", _default(field)] + ([_bounds(field)] if meaning else [])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*head, *rows, ""]


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) and not getattr(annotation, "__args__", ()) else str(annotation)
    return re.sub(r"\b(typing|datetime|preftune\.[a-z._]+)\.", "", text).replace("NoneType", "None")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    if field.default_factory is not None and field.annotation is not None and "datetime" in str(field.annotation):
        return "now"
    value = field.get_default(call_default_factory=True)
    return f"`{json.dumps(value.model_dump() if isinstance(value, BaseModel) else value, default=str)}`"


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [f"{sign} {getattr(m, key)}" for m in field.metadata for key, sign in signs.items() if getattr(m, key, None) is not None]
    return (field.description or "") + (f" ({', '.join(found)})" if found else "")


def _groups(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the keys that hold keys themselves, with what these are."""
    return {
        name: inner
        for name, field in model.model_fields.items()
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ()))
        if isinstance(inner, type) and issubclass(inner, BaseModel)
    }


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "config": config,
    "records": records,
    "formats": formats,
    "metrics": metrics,
    "python": python,
}


def main(check: bool) -> int:
    stale = []
    for name, page in PAGES.items():
        path, text = REFERENCE / f"{name}.md", page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
