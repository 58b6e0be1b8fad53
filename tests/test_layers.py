"""The house rules that a program can check: imports go down only, no torch where none is needed, one shift, one polarity."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "preftune"

# From the ground up; rooms on one step do not import each other.
STEPS = [
    {"records", "errors", "manifest", "config", "progress"},  # the ground counts as one room
    {"tensors"},
    {"data", "sample", "code"},
    {"losses", "web"},  # web reads the data room alone
    {"parallel"},  # models are loaded spread over the processes
    {"models"},
    {"training", "rollout"},
    {"stages"},
    {"evaluate"},
    {"release", "tuning"},
    {
        "cli",
        *(path.stem for path in SOURCE.glob("_cli_*.py")),
        "demo",
        "loop",
        "project",
        "__init__",
        "__main__",
    },  # the roof counts as one room
]
STEP_OF = {room: number for number, rooms in enumerate(STEPS) for room in rooms}
ONE_ROOM = (0, len(STEPS) - 1)


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, at the top level) of every import in a file, lazy and type-checking ones too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: write the import in full, without a leading dot"
            if node.module == "preftune":
                yield from ((f"preftune.{alias.name}", node.lineno, node in tree.body) for alias in node.names)
            elif node.module:
                # `from preftune.data import store` may mean the module preftune.data.store.
                yield node.module, node.lineno, node in tree.body
                yield from ((f"{node.module}.{alias.name}", node.lineno, node in tree.body) for alias in node.names)


def room_of(name: str) -> str:
    return name.removeprefix("preftune.").split(".")[0]


def test_every_room_has_its_step():
    rooms = {room_of(name_of(path)) for path in modules()}
    assert rooms <= STEP_OF.keys(), "give the new room a step here and in CONTRIBUTING.md"


def test_imports_go_down_only():
    wrong = []
    for path in modules():
        room = room_of(name_of(path))
        for imported, line, _ in imports(path):
            if not imported.startswith("preftune."):
                continue
            other = room_of(imported)
            if other == room or (STEP_OF[other] == STEP_OF[room] and STEP_OF[room] in ONE_ROOM):
                continue
            if STEP_OF.get(other, len(STEPS)) >= STEP_OF[room]:
                wrong.append(f"{path.relative_to(SOURCE)} line {line} imports {imported}")
    assert not wrong


def test_imports_inside_a_room_form_no_circle():
    names = {name_of(path) for path in modules()}
    below = {
        name_of(path): {
            imported.removeprefix("preftune.")
            for imported, _, at_top in imports(path)
            if at_top and imported.removeprefix("preftune.") in names - {name_of(path)}
        }
        for path in modules()
    }
    while leaves := [name for name, needed in below.items() if not needed]:
        for name in leaves:
            del below[name]
        for needed in below.values():
            needed.difference_update(leaves)
    assert not below, f"a circle among {sorted(below)}"


def test_losses_need_torch_and_nothing_of_ours_but_tensors_and_errors():
    for path in (SOURCE / "losses").glob("*.py"):
        ours = {room_of(name) for name, _, _ in imports(path) if name.startswith("preftune.")}
        assert ours <= {"losses", "tensors", "errors"}, path.name


def test_only_template_and_batches_of_the_data_room_need_torch_or_transformers():
    for path in (SOURCE / "data").rglob("*.py"):
        if path.name in ("template.py", "batches.py"):
            continue
        needed = {name for name, _, _ in imports(path)}
        heavy = {name for name in needed if name.split(".")[0] in ("torch", "transformers", "peft")}
        assert not heavy | needed & {"preftune.tensors", "preftune.data.template", "preftune.data.batches"}, path.name


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["preftune", "preftune.cli", "preftune.project", "preftune.data.store", "preftune.data.importing", "preftune.web.app"]
)
def test_importing_this_module_does_not_load_torch(module):
    code = f"import sys, {module}; print(sorted(m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        (r"padding_mask", "a mask is True where something counts and is named for what it keeps"),
        (r"(?<!0o666 & )~\s*\w*mask", "a mask is never turned round (a umask is)"),
        (r"\[:, 1:\]|\[:, :-1\]|prompt_len\w* - 1", "the shift is done in losses/logprobs.py alone"),
        (r"\b(logps|log_probs|per_token_logps|old_logprobs|num_generations|cliprange)\b", "one term each: see the glossary"),
        (r"\bexcept( Exception)?:\s*(#.*)?\n\s*pass\b", "an error is never swallowed"),
        (r"\b(TODO|FIXME|XXX)\b", "finish it, or file an issue"),
    ],
)
def test_what_the_house_rules_forbid_does_not_occur(pattern, rule):
    found = [
        f"{path.relative_to(SOURCE)}: {match.group()}"
        for path in modules()
        if path != SOURCE / "losses" / "logprobs.py"
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"))
    ]
    assert not found, rule


def test_every_library_that_is_imported_is_a_declared_dependency(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[>=\[ ]", line)[0].lower() for line in named}
    homes = packages_distributions()
    used = {name.split(".")[0] for path in modules() for name, _, _ in imports(path)} - sys.stdlib_module_names - {"preftune"}
    # A library of an extra that is not installed here is known by its name alone.
    plain = {name.replace("-", "") for name in declared}
    missing = {
        name
        for name in used
        if not declared & {home.lower() for home in homes.get(name, [])} and name.lower().replace("_", "") not in plain
    }
    assert not missing


def test_every_public_name_is_listed_once_and_has_a_home():
    import preftune

    assert set(preftune.__all__) == {*preftune._PUBLIC, "__version__"}
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    typed = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert preftune._PUBLIC.keys() <= typed
    for name in preftune._PUBLIC:
        assert getattr(preftune, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'demos'"):
        _ = preftune.demos


def test_the_version_is_that_of_the_project_file(repository):
    import preftune

    assert preftune.__version__ == tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
