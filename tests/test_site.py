"""The documentation site: every page is in it, links and anchors lead somewhere, and nothing is fetched. Nothing is built here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.config import check_config
from preftune.stages.preference_config import DPOConfig

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MOVING = ("moving-from-axolotl.md", "moving-from-llama-factory.md")


def site() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")))


def named(nav: Any) -> Iterator[str]:
    match nav:
        case str():
            yield nav
        case list():
            for entry in nav:
                yield from named(entry)
        case dict():
            for entry in nav.values():
                yield from named(entry)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown and GitHub make them of plain words."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.lower(), flags=re.ASCII).strip()
        found.add(re.sub(r"[-\s]+", "-", words))
    return found


def test_every_page_is_in_the_navigation_once_and_every_entry_is_a_page():
    entries = list(named(site()["nav"]))
    assert sorted(entries) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_the_site_fetches_nothing_from_outside():
    settings = site()
    assert settings["theme"]["font"] is False
    assert "extra_css" not in settings
    assert "extra_javascript" not in settings
    assert settings["plugins"] == ["search"]  # "offline" takes a script from unpkg.com


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_link_with_an_anchor_leads_to_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        other = page.parent / target if target else page
        assert anchor in anchors(other), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("name", MOVING)
def test_the_example_of_a_migration_is_a_config_of_ours(name):
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)
    ours = yaml.safe_load(blocks[1])
    config = check_config(DPOConfig, {"data": "snapshots/ID", **ours}, where=name, stage="dpo")
    assert config.batch_size == _batch(yaml.safe_load(blocks[0]))


def _batch(theirs: dict[str, Any]) -> int:
    a_device = theirs.get("micro_batch_size") or theirs["per_device_train_batch_size"]
    return int(a_device * theirs["gradient_accumulation_steps"])


@pytest.mark.parametrize("name", MOVING)
def test_each_key_that_a_migration_names_is_one_of_ours(name):
    config = (DOCS / "reference" / "config.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `([a-z_]+)` \|", config, re.MULTILINE)) | {"rewards"}
    for row in re.findall(r"^\| (.+?) \| (.+?) \| .*\|$", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE):
        for key in re.findall(r"`([a-z_.]+)(?:: [a-z0-9_]+)?`", row[1]):
            for part in key.split("."):
                assert part in known, f"{name}: {row[1]}"
