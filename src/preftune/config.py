"""From YAML and key=value to a checked config: unknown keys are refused with the nearest right one."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from preftune.errors import ConfigError


class Config(BaseModel):
    """Base of every stage's config: frozen, unknown keys refused, each field described where it is declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


C = TypeVar("C", bound=Config)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn `["lr=1e-5", "adapter.rank=16"]` into a nested dict; values are read as YAML."""
    result: dict[str, Any] = {}
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise ConfigError(f'"{item}" is not key=value', "the command line", "Write for example lr=1e-5.")
        node = result
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f'"{part}" has a value and keys below it', f'key "{key}"', "Set the one or the other.")
        node[last] = _scalar(yaml.safe_load(text))
    return result


_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _scalar(value: Any) -> Any:
    # YAML 1.1 reads 1e-5 as text (it wants 1.0e-5); people write 1e-5.
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def load_config(
    model: type[C],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    stage: str = "STAGE",
    defaults: Mapping[str, Any] | None = None,
) -> C:
    """Return the checked config of a stage from a YAML file and key=value overrides (which win).

    defaults: what the project says, for keys that neither the file nor the overrides set; keys that the stage lacks are left.
    Raises ConfigError, naming the file, the key, and the nearest right key where one is unknown.
    """
    where = str(path) if path else "the command line"
    values = read_yaml(path, stage=stage) if path else {}
    known = {key: value for key, value in (defaults or {}).items() if key in model.model_fields and value is not None}
    values = _merge({**known, **values}, parse_overrides(overrides))
    return check_config(model, values, where=where, stage=stage)


def read_yaml(path: Path, *, stage: str = "STAGE") -> dict[str, Any]:
    """Return what a YAML file of key: value lines says. Raises ConfigError where it is not there or something else."""
    where = str(path)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("there is no such file", where, f"preftune config {stage} prints one to start from.") from None
    except IsADirectoryError:
        what = "this is a folder where a config file or key=value is expected"
        raise ConfigError(what, where, f"Say what it is: data={where} or model={where}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"this is not YAML ({' '.join(str(error).split())})", where, "Mend the line named.") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError("the file must hold key: value lines", where, f"preftune config {stage} prints an example.")
    return {key: (_scalar(value) if isinstance(value, str) else value) for key, value in (loaded or {}).items()}


def check_config(model: type[C], values: dict[str, Any], *, where: str, stage: str = "STAGE", hint: str = "") -> C:
    """Return the config built from these values. hint: where all keys are to be seen. Raises ConfigError with a sentence a key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            " ".join(_sentence(model, e) for e in error.errors()), where, hint or f"All keys: preftune config {stage}"
        ) from error


def _sentence(model: type[BaseModel], error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *section, key = path.split(".")
        if key in NARROWING and "temperature" in _names(model):
            return f'key "{path}" is refused: {BIASED}.'
        near = _synonym(key, model) or difflib.get_close_matches(key, _names(model), n=1, cutoff=0.5)
        hint = f' Did you mean "{_place(near[0], section, model)}"?' if near else ""
        return f'key "{path}" is unknown.{hint}'
    if error["type"] == "missing":
        return f'key "{path}" is needed and missing.'
    message = error["msg"].removeprefix("Value error, ")
    return f'key "{path}" is {json.dumps(error["input"], default=str)}: {message}.' if path else f"{message}."


def _sections(model: type[BaseModel]) -> dict[str, list[str]]:
    """Return the names of a config's keys by the section they stand in: "" for its own, "rewards.0" for those of a list's entries."""
    sections = {"": list(model.model_fields)}
    for name, field in model.model_fields.items():
        is_list = getattr(field.annotation, "__origin__", None) in (tuple, list)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                sections[f"{name}.0" if is_list else name] = list(inner.model_fields)
    return sections


def _names(model: type[BaseModel]) -> list[str]:
    return [name for names in _sections(model).values() for name in names]


def _place(name: str, section: Sequence[str], model: type[BaseModel]) -> str:
    """Return how a key is to be written, seen from a section: its name alone, or with the section where it belongs."""
    own = ".".join("0" if part.isdigit() else part for part in section)
    places = [place for place, names in _sections(model).items() if name in names]
    return name if own in places or not places[0] else f"{places[0]}.{name}"


# What users of the peers type, and what we call it.
SYNONYMS = {"learning_rate": "lr", "num_train_epochs": "epochs", "num_epochs": "epochs", "batch": "batch_size", "lora": "adapter",
            "lora_r": "adapter", "model_name_or_path": "model", "max_grad_norm_clip": "max_grad_norm", "dataset": "data"}  # fmt: skip


# What the peers take and ours does not, where a policy learns from its own draws.
NARROWING = {"top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "min_new_tokens", "min_tokens"}
BIASED = (
    "a policy has to learn from draws of the very probabilities that are scored, and this draws from others, so that "
    "the ratio, the KL and the gradient would be wrong; temperature is the one setting of the draws, as it is in the scores too"
)


def _synonym(key: str, model: type[BaseModel]) -> list[str]:
    name = SYNONYMS.get(key)
    return [name] if name in _names(model) and name else []


def describe(model: type[Config]) -> str:
    """Return the stage's config as commented YAML: every key with its default and meaning."""
    lines = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        needed = field.is_required()
        lines.append(f"# {field.description or ''}{' (needed)' if needed else ''}".rstrip())
        if isinstance(default, BaseModel):
            lines.append(f"{name}:")
            for key, value in default.model_dump().items():
                said = type(default).model_fields[key].description
                lines.append(f"  {key}: {json.dumps(value, default=str)}{f'  # {said}' if said else ''}")
        else:
            lines.append(f"{name}: {'' if needed else json.dumps(default, default=str)}".rstrip())
    return "\n".join(lines) + "\n"
