"""From YAML and key=value to a checked config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from preftune.config import Config, describe, load_config, parse_overrides
from preftune.errors import ConfigError


class Adapter(Config):
    """What a stage's adapter looks like."""

    rank: int = 16


class Part(Config):
    """One of several."""

    weight: float = 1.0


class Sectioned(Config):
    """A config with a section and a list of them."""

    lr: float = 1.0
    adapter: Adapter | None = None
    parts: tuple[Part, ...] = ()


class Example(Config):
    """A stage's config in small."""

    model: str = Field(description="The model folder.")
    lr: float = Field(1e-5, gt=0, description="Learning rate.")
    epochs: int = Field(1, ge=1, description="Passes over the data.")
    adapter: Adapter | None = Field(None, description="LoRA, or null for all weights.")
    minibatches: int = Field(1, description="Minibatches a step.")
    prompts_per_step: int = Field(64, description="Prompts a step.")

    @model_validator(mode="after")
    def _divides(self) -> Example:
        if self.prompts_per_step % self.minibatches:
            raise ValueError(f"minibatches={self.minibatches} does not divide prompts_per_step={self.prompts_per_step}")
        return self


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Example, write(tmp_path / "x.yaml", text), overrides, stage="ppo")
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_a_file_and_the_command_line_make_a_config_and_the_command_line_wins(tmp_path):
    config = load_config(Example, write(tmp_path / "x.yaml", "model: base\nlr: 1e-4\nepochs: 3\n"), ["lr=2e-5", "adapter.rank=8"])
    assert (config.model, config.lr, config.epochs, config.adapter) == ("base", 2e-5, 3, Adapter(rank=8))


def test_a_config_needs_no_file():
    assert load_config(Example, None, ["model=base"]).model == "base"


def test_a_default_of_the_project_gives_way_to_the_file_and_the_command_line(tmp_path):
    path = write(tmp_path / "x.yaml", "model: from-file\n")
    project = {"model": "from-project", "policy": "not a key here", "adapter": None}
    assert load_config(Example, None, defaults=project).model == "from-project"
    assert load_config(Example, path, defaults=project).model == "from-file"
    assert load_config(Example, path, ["model=typed"], defaults=project).model == "typed"


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_config(Example, write(tmp_path / "x.yaml", "\n"), ["model=base"]).lr == 1e-5


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("learning_rate", "lr"), ("epoch", "epochs"), ("mini_batches", "minibatches"), ("num_train_epochs", "epochs"), ("lora", "adapter")],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(tmp_path, wrong, right):
    message = refused(tmp_path, f"model: base\n{wrong}: 2\n")
    assert message == f'x.yaml: key "{wrong}" is unknown. Did you mean "{right}"? All keys: preftune config ppo'


def test_an_unknown_key_that_is_near_nothing_gets_no_guess(tmp_path):
    assert refused(tmp_path, "model: base\nzzz: 2\n") == 'x.yaml: key "zzz" is unknown. All keys: preftune config ppo'


def test_an_unknown_key_in_a_group_is_named_with_its_path(tmp_path):
    assert 'key "adapter.rnk" is unknown. Did you mean "rank"?' in refused(tmp_path, "model: base\nadapter: {rnk: 2}\n")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("rank", "adapter.rank"),
        ("rnk", "adapter.rank"),
        ("weight", "parts.0.weight"),
        ("adapter.lr", "lr"),
        ("adapter.weight", "parts.0.weight"),
    ],
)
def test_a_key_of_another_section_is_answered_with_its_place(key, place):
    with pytest.raises(ConfigError) as caught:
        load_config(Sectioned, overrides=[f"{key}=2"])
    assert f'key "{key}" is unknown. Did you mean "{place}"?' in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    assert 'key "model" is needed and missing.' in refused(tmp_path, "lr: 1e-4\n")


def test_a_value_out_of_bounds_is_shown(tmp_path):
    message = refused(tmp_path, "model: base\nlr: -1\n")
    assert 'key "lr" is -1' in message
    assert "greater than 0" in message


def test_two_keys_at_odds_are_refused_in_the_validators_words(tmp_path):
    assert "minibatches=3 does not divide prompts_per_step=64." in refused(tmp_path, "model: base\nminibatches: 3\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [("model: [", "not YAML"), ("- a\n- b\n", "key: value lines"), ("just text", "key: value lines"), ("a: b: c", "not YAML")],
)
def test_a_file_that_is_no_config_is_refused_with_a_sentence(tmp_path, text, words):
    assert words in refused(tmp_path, text)


def test_a_file_in_another_encoding_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "x.yaml").write_bytes("model: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(Example, tmp_path / "x.yaml")


def test_a_missing_file_is_refused_and_the_command_that_prints_one_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such file\. preftune config dpo prints one"):
        load_config(Example, tmp_path / "none.yaml", stage="dpo")


@pytest.mark.parametrize("item", ["lr", "=3", ""])
def test_an_override_without_a_key_or_a_value_is_refused(item):
    with pytest.raises(ConfigError, match="is not key=value"):
        parse_overrides([item])


def test_an_override_cannot_be_a_value_and_a_group():
    with pytest.raises(ConfigError, match='"adapter" has a value and keys below it'):
        parse_overrides(["adapter=null", "adapter.rank=3"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5", 5),
        ("null", None),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("runs/3f9c", "runs/3f9c"),
        ("nan", "nan"),
        ("a=b", "a=b"),
        ("", None),
    ],
)
def test_an_override_is_read_as_yaml_with_numbers_as_people_write_them(text, value):
    assert parse_overrides([f"key={text}"]) == {"key": value}


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_any_learning_rate_that_python_prints_is_read_back(value):
    assert load_config(Example, None, ["model=m", f"lr={value!r}"]).lr == value


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_config(Example, None, ["model=m"]).lr = 1.0


def test_the_described_config_is_yaml_that_says_what_the_defaults_say(tmp_path):
    text = describe(Example)
    assert "# Learning rate.\nlr: 1e-05\n" in text
    assert "# The model folder. (needed)\nmodel:\n" in text
    values = {k: v for k, v in yaml.safe_load(text).items() if k != "model"}
    path = write(tmp_path / "x.yaml", text.replace("model:", "model: m"))
    assert load_config(Example, path) == Example(model="m")
    assert values["prompts_per_step"] == json.loads(Example(model="m").model_dump_json())["prompts_per_step"]


class Policy(Config):
    """A stage that draws."""

    model: str = Field(description="The model folder.")
    temperature: float = Field(1.0, gt=0, description="Of the draws.")


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_p", "repetition_penalty"])
def test_what_narrows_the_draws_is_refused_with_the_reason_where_a_policy_learns_from_them(key):
    with pytest.raises(ConfigError, match=f'key "{key}" is refused: a policy has to learn from draws of the very probabilities'):
        load_config(Policy, overrides=["model=base", f"{key}=0.9"], stage="ppo")
    with pytest.raises(ConfigError, match=f'key "{key}" is unknown'):
        load_config(Example, overrides=["model=base", f"{key}=0.9"], stage="sft")
