"""Neutral passages of prose and of code, on which a tuned model should still need as few bits per byte as before.

They were written for this project, so no model has learned them by heart from elsewhere. They stand in `passages/*.txt`, each
below a line `=== name`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

TextKind = Literal["prose", "code"]
KINDS: tuple[TextKind, ...] = ("prose", "code")


@dataclass(frozen=True)
class Text:
    """One passage; its id is its kind and name."""

    id: str
    kind: TextKind
    text: str


def texts(max_per_kind: int | None = None) -> list[Text]:
    """Return the passages, prose first; at most the first so many of each kind where a number is given."""
    return [text for kind in KINDS for text in _read(kind)[:max_per_kind]]


def _read(kind: TextKind) -> list[Text]:
    whole = (files("preftune.evaluate") / "passages" / f"{kind}.txt").read_text(encoding="utf-8")
    _, *parts = re.split(r"^=== (\S+)\n", whole, flags=re.MULTILINE)
    return [Text(f"{kind}:{name}", kind, body.rstrip("\n")) for name, body in zip(parts[::2], parts[1::2], strict=True)]
