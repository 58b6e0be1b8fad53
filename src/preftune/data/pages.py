"""Writing a page of ours as one HTML file: whole or not at all, with every text of others escaped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from preftune.manifest import disk_errors


def write_html(path: Path, template: str, *packages: str, **context: Any) -> Path:
    """Render a template of the first package that has it to a file, and return its path. packages: where templates may lie."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package) for package in packages])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template(template).render(context)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair may come from a model
        temporary.replace(path)
    return path
