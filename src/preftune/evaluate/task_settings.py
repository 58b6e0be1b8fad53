"""Which retention tasks a team adds to the built-in ones: what `retention:` in preftune.yaml and `--retention` may say. No torch.

    retention:
      - {kind: choices, file: our_rules.jsonl, margin: 0.03}
      - {kind: functions, file: HumanEval.jsonl.gz, margin: 0.05}
      - {kind: lm-eval, task: tasks/our_task.yaml, metric: acc}

On the command line the same reads `--retention choices=our_rules.jsonl,margin=0.03`. The margin is part of what names an evaluation,
so it stands before anything is measured, and another margin makes another evaluation beside the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from preftune.config import Config, check_config, parse_overrides
from preftune.errors import ConfigError, DataError
from preftune.manifest import hash_file, hash_folder

BUILT_IN = ("facts", "prose", "code", "functions")  # names that are taken
WHERE = "retention"
HINT = "See docs/retention.md."
SUBJECT_KEY = {"facts": "limit", "choices": "file", "functions": "file", "lm-eval": "task"}  # what stands behind `KIND=`
_ALWAYS = {"kind", "margin", "limit"}
_OWN = {*_ALWAYS, "name", "gated"}
KEYS = {
    "facts": _ALWAYS,
    "choices": {*_OWN, "file", "metric"},
    "functions": {*_OWN, "file", "chat", "samples", "k", "temperature", "max_new_tokens"},
    "lm-eval": {*_OWN, "task", "metric", "chat", "few_shot"},
}


class TaskSettings(Config):
    """One retention task: what is asked, how it is scored, and how much of it may be lost."""

    kind: Literal["facts", "choices", "functions", "lm-eval"] = Field(description="What is asked: see docs/retention.md.")
    name: str = Field("", description="What the task is called in tables; by default the file's or the task's name.")
    file: Path | None = Field(None, description="choices: a JSONL file; functions: a file of HumanEval or MBPP (.jsonl, .jsonl.gz).")
    task: str | None = Field(None, description="lm-eval: the name of one of its tasks, or a YAML file of your own.")
    metric: str = Field(
        "acc", description="choices: acc or acc_norm (by length); lm-eval: any metric that scores each item, with :FILTER where needed."
    )
    margin: float = Field(0.03, gt=0, lt=1, description="How much may be lost, as a share of the items, for the task to count as kept.")
    gated: bool = Field(True, description="false: reported with its interval, and no part of the verdict.")
    limit: int | None = Field(None, ge=1, description="The first so many items alone; facts: how many are asked.")
    chat: bool = Field(False, description="functions, lm-eval: ask in the model's chat template instead of as plain text to go on with.")
    few_shot: int | None = Field(None, ge=0, description="lm-eval: examples before each item; by default as the task says.")
    samples: int = Field(1, ge=1, description="functions: answers drawn for each.")
    k: int = Field(1, ge=1, description="functions: score pass@k, the chance that one of k answers passes.")
    temperature: float = Field(0.0, ge=0, description="functions: 0 takes the likeliest token each time.")
    max_new_tokens: int = Field(512, ge=1, description="functions: the longest answer, tokens.")

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind") == "choices" and value not in ("acc", "acc_norm"):
            raise ValueError("choices are scored by acc or acc_norm")
        return value

    @model_validator(mode="after")
    def _hangs_together(self) -> TaskSettings:
        if other := sorted(self.model_fields_set - KEYS[self.kind]):
            raise ValueError(f"{other[0]} is no key of a task of kind {self.kind}; it has {', '.join(sorted(KEYS[self.kind]))}")
        key = SUBJECT_KEY[self.kind]
        if getattr(self, key) is None:
            raise ValueError(f"a task of kind {self.kind} needs {key}")
        if self.k > self.samples:
            raise ValueError(f"pass@{self.k} needs {self.k} samples, and there are {self.samples}")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are all alike; set temperature, such as 0.2 for pass@1 or 0.8 for more")
        if self.kind != "facts" and self.title in BUILT_IN:
            raise ValueError(f'the name "{self.title}" is that of a built-in task; set name')
        return self

    @property
    def title(self) -> str:
        """What the task is called."""
        if self.name or self.kind == "facts":
            return self.name or self.kind
        if self.file is not None:
            return self.file.name.removesuffix(".gz").removesuffix(".jsonl")
        return Path(str(self.task)).stem if str(self.task).endswith((".yaml", ".yml")) else str(self.task)

    def to_manifest(self) -> dict[str, Any]:
        """Return what names the task: its settings, and the hash of its file."""
        told = {**self.model_dump(mode="json", exclude_defaults=True), "kind": self.kind, "margin": self.margin}
        path = self.file or Path(str(self.task))
        if self.file is not None and not path.is_file():
            raise DataError("there is no such file", str(path), f"It is named by the retention task {self.title}.")
        if path.exists():
            told["sha256"] = hash_folder(path) if path.is_dir() else hash_file(path)
        return told


def parse_task(text: str) -> TaskSettings:
    """Return the task that `KIND=WHAT,key=value,…` says. Raises ConfigError with a sentence."""
    first, *rest = text.split(",")
    kind, _, what = first.partition("=")
    if kind not in SUBJECT_KEY or not what:
        known = ", ".join(f"{kind}={key.upper()}" for kind, key in SUBJECT_KEY.items())
        raise ConfigError(f'"{text}" is no retention task', f"--{WHERE}", f"Use one of: {known}; with ,margin=0.03 and the like behind it.")
    return check_config(TaskSettings, {"kind": kind, **parse_overrides([f"{SUBJECT_KEY[kind]}={what}", *rest])}, where=text, hint=HINT)


def check_names(tasks: Sequence[TaskSettings]) -> Sequence[TaskSettings]:
    """Return the tasks. Raises ConfigError where two have one name."""
    names = [task.title for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'two tasks are called "{name}"', WHERE, "Give one of them another name: …,name=other.")
    return tasks
