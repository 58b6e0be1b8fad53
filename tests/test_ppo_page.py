"""docs/ppo.md cannot outlive the code: each function, test and key that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from preftune.stages.ppo_config import PPOConfig
from preftune.training.health import Trouble

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
LISTED = PAGE.split("## What is not here")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LISTED.splitlines() if line.startswith("| ")]


def named(path: Path) -> set[str]:
    """Every function, class, method and constant that a file defines; a method as Class.name."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_every_function_and_test_that_the_page_names_is_there():
    gone = []
    for _, code, _, test, _ in (row for row in ROWS if row[0] != "detail"):
        for cell, below in ((code, ROOT / "src" / "preftune"), (test, ROOT / "tests")):
            match = re.fullmatch(r"`(.+\.py)::([\w.]+)`", cell)
            assert match, f"{cell} is no `file::name`"
            path = below / match[1]
            if not path.exists() or match[2] not in named(path):
                gone.append(cell)
    assert not gone


def test_every_key_that_the_page_names_is_one_and_every_key_of_ppos_own_is_named():
    keys = set(PPOConfig.model_fields)
    for group in ("critic", "scoring"):
        keys |= {f"{group}.{name}" for name in PPOConfig.model_fields[group].annotation.model_fields}
    switches = {name for *_, switch in ROWS for name in re.findall(r"`([\w.]+)`", switch)}
    assert switches <= keys
    own = {key for key in PPOConfig.__annotations__ if key != "critic"} | {key for key in keys if "." in key}
    assert own <= switches


def test_every_trouble_is_on_the_page():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(Trouble.__args__)


def test_each_of_the_37_and_of_the_n_plus_details_is_accounted_for():
    def numbers(letter: str) -> set[int]:
        found: set[int] = set()
        for text in re.findall(rf"(?<!\w){letter}:? ((?:\d+(?:–\d+)?(?:, )?)+)", PAGE.replace("(37:", "( 37:")):
            for part in text.strip(", ").split(", "):
                first, _, last = part.partition("–")
                found |= set(range(int(first), int(last or first) + 1))
        return found

    assert numbers("37:") == set(range(1, 38))
    assert numbers(r"N\+") == set(range(1, 27))
