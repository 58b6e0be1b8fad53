"""Print the reference pages in docs/reference from the code: commands, config keys, record fields, formats, metrics.

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
    from preftune._cli_inputs import Stage, stage_functions

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
    """Return the page of all metrics that runs write to metrics.jsonl."""
    from preftune.training.metrics import METRICS

    rows = [f"| `{name}` | {meaning} |" for name, meaning in sorted(METRICS.items())]
    return "\n".join(
        ["# Metrics\n", NOTE, "One JSON object a step in `runs/<id>/metrics.jsonl`.\n", "| name | meaning |", "|---|---|", *rows, ""]
    )


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


PAGES: dict[str, Callable[[], str]] = {"commands": commands, "config": config, "records": records, "formats": formats, "metrics": metrics}


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
