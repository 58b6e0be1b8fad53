"""A project folder: the store, the raters' guidelines, and the few settings that all commands share."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from preftune.config import Config, describe, load_config
from preftune.data.store import Store
from preftune.evaluate.task_settings import TaskSettings
from preftune.manifest import disk_errors
from preftune.web.settings import LabelSettings, load_label_settings, settled_in

PROJECT_FILE = "preftune.yaml"
GUIDELINES_FILE = "guidelines.md"


class Project(Config):
    """What preftune.yaml may say; a command's own options win."""

    store: str = Field("store.db", description="The store of judgements: a SQLite file, or a postgresql:// address.")
    model: str | None = Field(None, description="The model to start from: a Hugging Face folder or a GGUF file.")
    label: LabelSettings = Field(default_factory=LabelSettings, description="How answers are ranked in the web app (preftune label).")

    retention: tuple[TaskSettings, ...] = Field((), description="What preftune evaluate asks beside its own tasks: docs/retention.md.")

    @field_validator("retention", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any) -> Any:
        return () if value is None else value

    @field_validator("label", mode="before")
    @classmethod
    def _nothing_is_the_defaults(cls, value: Any) -> Any:
        return {} if value is None else value  # a file may say `label:` and put everything below it in comments


def init_project(directory: Path) -> list[Path]:
    """Make a project folder and return what was made; a file that is there already is left as it is."""
    made = []
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        guidelines = resources.files("preftune").joinpath("templates", GUIDELINES_FILE).read_text(encoding="utf-8")
        for name, text in ((PROJECT_FILE, describe(Project)), (GUIDELINES_FILE, guidelines)):
            path = directory / name
            if not path.exists():
                path.write_text(text, encoding="utf-8")
                made.append(path)
    store = read_project(directory).store
    if "://" not in store and not (directory / store).exists():
        made.append(directory / store)
    Store.create(store if "://" in store else directory / store).close()
    return made


def read_project(directory: Path = Path()) -> Project:
    """Return the settings of the project in `directory`, or the defaults where it has no preftune.yaml."""
    path = directory / PROJECT_FILE
    return load_config(Project, path, stage="project") if path.exists() else Project()


def label_settings(directory: Path = Path()) -> LabelSettings:
    """Return what the project in `directory` says of labelling, or the defaults; the guidelines' path is taken from there."""
    path = directory / PROJECT_FILE
    return load_label_settings(path) if path.exists() else settled_in(directory, LabelSettings())
