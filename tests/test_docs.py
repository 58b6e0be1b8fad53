"""What the docs say is what the code does."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer

from preftune.cli import app
from preftune.data.exporting import EXPORTS
from preftune.data.importing import import_preferences
from preftune.stages.kinds import Stage
from preftune.training.metrics import METRICS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")) if "node_modules" not in path.parts)
HOW_TOS = sorted(REPOSITORY.glob("docs/*.md"))


def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", REPOSITORY / "scripts" / "make_docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["commands", "config", "records", "formats", "metrics", "python"])
def test_a_reference_page_is_what_the_code_says_now(page):
    written = (REPOSITORY / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert written == make_docs().PAGES[page](), "stale: run make docs"


def test_every_metric_that_the_code_logs_is_defined_and_every_defined_one_is_logged():
    text = "".join(
        path.read_text(encoding="utf-8")
        for room in ("losses", "stages", "training", "rollout")
        for path in sorted((REPOSITORY / "src/preftune" / room).rglob("*.py"))
        if path.name != "metrics.py"
    )
    assert set(re.findall(r'"([a-z]+/[a-z_0-9]+)"', text)) <= METRICS.keys()
    assert {name for name in METRICS if f'"{name}"' not in text} == set()


def commands_in(text: str) -> list[list[str]]:
    """Return the words of each `preftune …` command in code blocks and code spans."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`(preftune [^`\n]+)`", text)
    lines = [line for block in blocks for line in block.splitlines()] + spans
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.startswith("preftune ")]


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in HOW_TOS)])
def test_every_preftune_line_names_a_real_command_with_options_that_it_has(page):
    group = typer.main.get_command(app)
    context = group.make_context("preftune", [], resilient_parsing=True)
    found = commands_in((REPOSITORY / page).read_text(encoding="utf-8"))
    assert found or page not in ("README.md", "CHANGELOG.md")
    for _, name, *words in found:
        if name.startswith("-"):
            continue
        command = group.get_command(context, name)
        assert command, f"{page}: there is no command preftune {name}"
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, f"{page}: preftune {name}"
        if name == "export" and "--format" in words:
            assert words[words.index("--format") + 1] in EXPORTS, f"{page}: preftune export {words}"
        if name in ("train", "config") and words:  # a page may speak of the bare command
            assert set(words[0].split("|")) <= {stage.value for stage in Stage} | {"STAGE"}, f"{page}: preftune {name} {words[0]}"


def test_the_readme_opens_with_what_it_is_for_and_the_two_commands():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert text.index("make install\nmake demo") < text.index("docs/report.png") < text.index("\n## ")


def test_the_row_of_preferences_in_the_readme_can_be_imported(tmp_path):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    row = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)[0]
    (tmp_path / "preferences.jsonl").write_text(row + "\n", encoding="utf-8")
    assert json.loads(row)["chosen"]
    assert import_preferences(tmp_path / "preferences.jsonl", tmp_path / "store.db").new == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_inside_the_project_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_in_the_docs_exists():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for words in re.findall(r"`make ((?:[a-z-]+ ?)+)`", page.read_text(encoding="utf-8")):
            assert set(words.split()) <= targets, page.name


def test_every_decision_says_what_pressed_what_was_chosen_and_how_one_would_notice():
    for path in (REPOSITORY / "docs" / "decisions").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, path.name
        assert re.match(r"\d{4}-[a-z0-9-]+\.md", path.name)
        for part in ("**What pressed.**", "**What we chose.**", "**What else there was.**", "**How we would notice"):
            assert part in text, f"{path.name} lacks {part}"
