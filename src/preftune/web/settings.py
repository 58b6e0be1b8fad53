"""What the project file says of labelling: the key `label` of preftune.yaml.

Nothing here is changed while the server runs. What raters were told and asked is kept with the time from which on it held
(`record_protocol`), so that judgements from before and after a change can be told apart.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from sqlalchemy import select

from preftune.config import Config, check_config, read_yaml
from preftune.data import tables
from preftune.data.endpoints import Endpoint
from preftune.data.store import Store
from preftune.errors import ConfigError
from preftune.records import content_id

Task = Literal["pair", "rank", "best_worst"]
AspectName = Annotated[str, StringConstraints(pattern=r"^[^\s].{0,39}$", strip_whitespace=True)]
MAX_ASPECTS = 12
GUIDELINES_BYTES = 1_000_000
HINT = "All keys are in the preftune.yaml that preftune init writes."
ASKED = ("task", "aspects", "ask_acceptable", "ask_rewrite", "ask_rationale")  # what a rater sees of the settings


class LabelSettings(Config):
    """What preftune.yaml may say under `label`."""

    task: Literal["auto", "pair", "rank", "best_worst"] = Field(
        "auto", description='What is asked of each item: "pair", "rank" or "best_worst"; "auto" = pair for 2 answers, rank for 3 and more.'
    )
    overlap: int = Field(1, ge=1, le=9, description="How many raters judge each item.")
    overlap_share: float = Field(0.15, ge=0, le=1, description="Share of the items that overlap_extra raters judge, to measure agreement.")
    overlap_extra: int = Field(3, ge=1, le=9, description="How many raters judge each item of that share.")
    gold_share: float = Field(0.05, ge=0, le=0.5, description="Share of a rater's tasks that are gold items, where there are any.")
    retest_share: float = Field(0.05, ge=0, le=0.5, description="Share of a rater's tasks that they have judged before.")
    lease_minutes: int = Field(30, ge=1, le=1440, description="How long an item is kept for the rater who has opened it.")
    aspects: dict[AspectName, str] = Field(
        default_factory=dict, max_length=MAX_ASPECTS, description="What else to rate from 1 to 5: a name and the question."
    )
    ask_acceptable: bool = Field(True, description="Ask which answers are good enough, so that all can be bad.")
    ask_rewrite: bool = Field(True, description="Offer to rewrite the best answer.")
    ask_rationale: bool = Field(True, description="Offer a field for the reason.")
    guidelines: Path = Field(Path("guidelines.md"), description="The page for raters, in Markdown; from the project's folder.")
    endpoints: tuple[Endpoint, ...] = Field(
        (), description="Models for live comparison, each with name, url, model, api_key_env; allow_private for one on this machine."
    )
    identity_words: tuple[str, ...] = Field(
        ("ChatGPT", "OpenAI", "Claude", "Anthropic", "Gemini", "Llama", "Qwen", "Mistral", "DeepSeek"),
        description="Words by which an answer may tell who wrote it; the owner is warned of them.",
    )

    @model_validator(mode="after")
    def _checks_leave_room(self) -> LabelSettings:
        if self.gold_share + self.retest_share > 0.5:
            raise ValueError(f"gold_share and retest_share are {self.gold_share + self.retest_share:g} together; use at most 0.5")
        return self

    @field_validator("endpoints")
    @classmethod
    def _one_of_a_name(cls, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        names = [endpoint.name for endpoint in endpoints]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two endpoints are called "{name}"; give each a name of its own')
        return endpoints

    def task_for(self, num_candidates: int) -> Task:
        """Return what is asked of an item with so many answers; two can only be a pair."""
        if num_candidates == 2 or self.task == "pair":
            return "pair"
        return "best_worst" if self.task == "best_worst" else "rank"

    def guidelines_text(self) -> str:
        """Return the guidelines, or nothing where there is no such file. Raises ConfigError where it cannot be read as text."""
        try:
            with self.guidelines.open("rb") as file:
                return file.read(GUIDELINES_BYTES).decode("utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(
                f"the guidelines cannot be read ({said})", str(self.guidelines), "Set label.guidelines in preftune.yaml."
            ) from error


def load_label_settings(path: Path) -> LabelSettings:
    """Return what a project file says under `label`, its guidelines found from the file's folder; defaults where it says nothing.

    Raises ConfigError with the file, the key, and the nearest right key where one is unknown.
    """
    values = read_yaml(path, stage="project").get("label") or {}
    where = f'{path}, under "label"'
    if not isinstance(values, dict):
        raise ConfigError(f"label is {json.dumps(values, default=str)}", where, "Write key: value lines below it, or leave it out.")
    return settled_in(path.parent, check_config(LabelSettings, values, where=where, hint=HINT))


def settled_in(folder: Path, settings: LabelSettings) -> LabelSettings:
    """Return the settings with the guidelines' path taken from a folder."""
    return settings.model_copy(update={"guidelines": folder / settings.guidelines})


def protocol_of(settings: LabelSettings) -> tuple[str, dict[str, Any], str]:
    """Return what raters are told and asked: its hash, the settings that they see, and the guidelines' text."""
    asked = settings.model_dump(mode="json", include=set(ASKED))
    text = settings.guidelines_text()
    return content_id("protocol", asked, text), asked, text


def record_protocol(store: Store, settings: LabelSettings) -> str:
    """Note what raters are told and asked from now on, unless it is what held already; return its hash."""
    name, asked, text = protocol_of(settings)
    table = tables.protocols
    with store.writer() as writer:
        last = writer.connection.execute(select(table.c.id).order_by(table.c.number.desc()).limit(1)).scalar()
        if last != name:
            row = {"id": name, "settings": asked, "guidelines": text, "created": datetime.now(UTC)}
            writer.connection.execute(table.insert(), [row])
    return name


def protocols(store: Store) -> list[dict[str, Any]]:
    """Return what raters were told and asked, oldest first: number, id, settings, guidelines, created (it held from then on)."""
    with store.reading() as connection:
        return [dict(row._mapping) for row in connection.execute(select(tables.protocols).order_by(tables.protocols.c.number))]
