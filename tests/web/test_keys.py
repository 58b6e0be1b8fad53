"""One table of keys: no key twice, each with a handler, each handler with a key, the hints and the sheet as the table says."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from preftune.web import keys

STATIC = Path(keys.__file__).parent / "static"
PAGES = ("everywhere", "pair", "rank", "best_worst")
SCRIPT = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in ("app.js", "judge.js", "rank.js"))


@pytest.mark.parametrize("page", PAGES)
def test_no_key_does_two_things_on_a_page(page):
    counts = Counter(name for key in keys.keys_on(page) for name in key.keys)
    assert [name for name, count in counts.items() if count > 1] == []


def handlers() -> set[str]:
    """Return the names under which the scripts put functions into `actions`."""
    tables = re.findall(r"(?:actions = |Object\.assign\(actions, )\{(.*?)\n\}", SCRIPT, re.DOTALL)
    named = {name for table in tables for name in re.findall(r"^  (\w+):", table, re.MULTILINE)}
    views = re.search(r"for \(const view of \[(.*?)\]\)", SCRIPT)
    return named | set(re.findall(r'"(\w+)"', views.group(1) if views else ""))


def test_every_action_of_the_table_has_a_handler_and_every_handler_has_a_key():
    assert {key.action for key in keys.KEYS} == handlers()


def test_single_letters_never_submit_or_delete():
    # Only what can be undone at once may lie under one finger: sending needs a modifier, skipping asks for the reason first.
    assert [key.keys for key in keys.KEYS if key.action == "submit"] == [("Ctrl+Enter",)]
    assert not {"Backspace", "Enter", " "} & {name for key in keys.KEYS for name in key.keys}


def test_what_holds_inside_fields_cannot_be_typed_there():
    assert {name for key in keys.KEYS if key.in_fields for name in key.keys} == {"Escape", "Ctrl+Enter"}


def test_the_sheet_has_every_key_of_the_table():
    said = [says for _, rows in keys.sheet() for _, says in rows]
    assert sorted(said) == sorted(key.says for key in keys.KEYS)


def test_keys_are_shown_as_caps_and_a_run_by_its_ends():
    assert keys.shown(("1", "2", "3", "4")) == "<kbd>1</kbd> … <kbd>4</kbd>"
    assert keys.shown(("Ctrl+Enter",)) == "<kbd>Ctrl</kbd>+<kbd>Enter</kbd>"
    assert keys.shown(("+",)) == "<kbd>+</kbd>"
    assert keys.shown(("0", "Delete")) == "<kbd>0</kbd> <kbd>Del</kbd>"


def test_a_hint_is_the_key_of_the_same_page():
    assert keys.hint("best", "best_worst") == '<span class="hint"><kbd>+</kbd></span>'
    with pytest.raises(KeyError, match="no key does 'fly'"):
        keys.hint("fly")


def test_the_script_gets_the_keys_of_its_page_alone():
    assert keys.script_table("pair")["4"] == {"action": "choose", "inFields": False}
    assert keys.script_table("rank")["4"]["action"] == "place"
    assert "4" not in keys.script_table("everywhere")
    assert keys.script_table("everywhere")["?"]["action"] == "help"


def test_every_hint_in_the_pages_names_an_action_of_the_table():
    found = set()
    for path in (Path(keys.__file__).parent / "pages").rglob("*.html"):
        found |= set(re.findall(r'hint\("(\w+)"(?:, "(\w+)")?\)', path.read_text(encoding="utf-8")))
    assert found
    for action, page in found:
        assert keys.hint(action, *([page] if page else []))
