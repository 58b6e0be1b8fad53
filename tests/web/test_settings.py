"""What the project file says of labelling, and what raters were told from when on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from preftune.data.store import Store
from preftune.errors import ConfigError
from preftune.project import Project, init_project, label_settings
from preftune.web.settings import LabelSettings, load_label_settings, protocols, record_protocol


def write(folder: Path, text: str) -> Path:
    path = folder / "preftune.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["", "store: other.db\n", "label:\n", "label:\n  # overlap: 2\n", "label: {}\n"])
def test_a_file_that_says_nothing_means_the_defaults(tmp_path: Path, text: str) -> None:
    settings = load_label_settings(write(tmp_path, text))
    assert settings == LabelSettings(guidelines=tmp_path / "guidelines.md")
    assert label_settings(tmp_path) == settings


def test_a_folder_without_a_project_file_means_the_defaults(tmp_path: Path) -> None:
    assert label_settings(tmp_path) == LabelSettings(guidelines=tmp_path / "guidelines.md")


def test_what_the_file_says_is_taken(tmp_path: Path) -> None:
    settings = load_label_settings(
        write(
            tmp_path,
            """
label:
  task: best_worst
  overlap: 2
  aspects:
    correct: Does it do what was asked?
    tone: "Is it polite?"
  guidelines: docs/how.md
  endpoints:
    - {name: ours, url: "http://127.0.0.1:8000/v1", model: house, api_key_env: HOUSE_KEY}
""",
        )
    )
    assert (settings.task, settings.overlap, settings.guidelines) == ("best_worst", 2, tmp_path / "docs/how.md")
    assert list(settings.aspects) == ["correct", "tone"]
    assert [(e.name, e.model, e.api_key_env) for e in settings.endpoints] == [("ours", "house", "HOUSE_KEY")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("label: {overlapp: 2}", 'under "label": key "overlapp" is unknown. Did you mean "overlap"?'),
        ("label: {overlap: 0}", 'key "overlap" is 0'),
        ("label: {overlap: ten}", 'key "overlap" is "ten"'),
        ("label: {gold_share: 0.4, retest_share: 0.4}", "gold_share and retest_share are 0.8 together; use at most 0.5"),
        ("label: {task: pairs}", 'key "task" is "pairs"'),
        ("label: [1, 2]", "label is [1, 2]"),
        ("label: {aspects: {'': what}}", 'key "aspects'),
        ("label: {endpoints: [{name: a, url: 'file:///etc/passwd', model: m}]}", 'key "endpoints.0.url" is "file:///etc/passwd"'),
        (
            "label: {endpoints: [{name: a, url: 'http://x', model: m}, {name: a, url: 'http://y', model: m}]}",
            'two endpoints are called "a"; give each a name of its own',
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_key_and_its_value(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_label_settings(path)
    assert sentence in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_new_project_shows_each_key_with_its_meaning(tmp_path: Path) -> None:
    init_project(tmp_path)
    text = (tmp_path / "preftune.yaml").read_text()
    assert "  overlap: 1  # How many raters judge each item.\n" in text
    assert set(yaml.safe_load(text)["label"]) == set(LabelSettings.model_fields)
    assert Project.model_validate(yaml.safe_load(text)) == Project()
    assert "How we judge" in label_settings(tmp_path).guidelines_text()


def test_guidelines_that_are_no_text_are_refused_and_none_are_none(tmp_path: Path) -> None:
    assert LabelSettings(guidelines=tmp_path / "none.md").guidelines_text() == ""
    (tmp_path / "g.md").write_bytes(b"\xff\xfe\x00")
    for wrong in (tmp_path / "g.md", tmp_path):
        with pytest.raises(ConfigError, match="the guidelines cannot be read"):
            LabelSettings(guidelines=wrong).guidelines_text()


def test_what_raters_were_told_is_kept_with_the_time_and_only_when_it_changes(store: Store, tmp_path: Path) -> None:
    guide = tmp_path / "g.md"
    guide.write_text("Be fair.")
    settings = LabelSettings(guidelines=guide)
    first = record_protocol(store, settings)
    assert record_protocol(store, settings.model_copy(update={"overlap": 3, "lease_minutes": 5})) == first  # raters see none of that
    guide.write_text("Be fair, and quick.")
    second = record_protocol(store, settings)
    third = record_protocol(store, settings.model_copy(update={"ask_rewrite": False}))
    guide.write_text("Be fair.")
    assert record_protocol(store, settings) == first  # the old words hold again, from now on
    kept = protocols(store)
    assert [row["id"] for row in kept] == [first, second, third, first]
    assert len({first, second, third}) == 3
    assert [row["guidelines"] for row in kept[:2]] == ["Be fair.", "Be fair, and quick."]
    assert [row["created"] for row in kept] == sorted(row["created"] for row in kept)
