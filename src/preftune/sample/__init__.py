"""The built-in sample `house-style`: 500 pairs to train on and 100 that are held out.

Each item is a short coding request and two answers that both pass its check and differ in style alone: the chosen one follows the
house conventions of `guidelines.md`, the rejected one breaks at least two. The two JSON Lines files are in our own format, so
`import_preferences(train_path(), store)` takes one as it is.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

# The held-out split has requests of these kinds too, of which none is trained on.
NEW_KINDS = ("matrices", "graphs", "iterators", "encoding")

Split = Literal["train", "held_out"]


class SampleItem(BaseModel):
    """One item: a request, a better and a worse answer (each in a fence), and the Python asserts that both pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: str
    prompt: str
    chosen: str
    rejected: str
    check: str


def train_path() -> Path:
    """Return the file of the 500 pairs to train on."""
    return _file("house_style_train.jsonl")


def held_out_path() -> Path:
    """Return the file of the 100 held-out pairs."""
    return _file("house_style_held_out.jsonl")


def items(split: Split) -> list[SampleItem]:
    """Return the items of a split, in the order of its file."""
    path = train_path() if split == "train" else held_out_path()
    return [SampleItem.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def guidelines() -> str:
    """Return the page that says to raters, in Markdown, what the house conventions are."""
    return _file("guidelines.md").read_text(encoding="utf-8")


def _file(name: str) -> Path:
    return Path(str(resources.files("preftune.sample").joinpath(name)))
