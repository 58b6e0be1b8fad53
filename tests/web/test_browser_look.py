"""Every page in light, dark and narrow: what axe finds, sizes of targets, nothing cut off. PREFTUNE_SCREENSHOTS=FOLDER keeps pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.web_site import Visitor, chromium, served
from tests.web_team import NOWHERE, Team, make_team, question

from preftune.web import auth

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CODE_A = '''Use a dictionary that counts:

```python
def most_common(words: list[str]) -> str:
    """Return the word that occurs most often."""
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return max(counts, key=counts.__getitem__)
```

It looks at each word once. An empty list raises `ValueError`.'''
CODE_B = '''```python
from collections import Counter

def most_common(words: list[str]) -> str:
    """Return the word that occurs most often."""
    return Counter(words).most_common(1)[0][0]
```

- `Counter` does the counting.
- An empty list raises `IndexError`; see [the docs](https://docs.python.org/3/library/collections.html).'''
CODE_C = """```python
def most_common(words):
    return max(set(words), key=words.count)
```
Short, but it counts the list once for **each** word."""
VIEWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 860}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 860}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Team, str, dict[str, str]]]:
    """A team with an item of each kind in Rita's hands, and the paths of all pages by name."""
    aspects = {"correct": "Does it do what was asked?", "house style": "Does it follow our conventions?"}
    team = make_team(tmp_path_factory.mktemp("look"), "Rita", "Ravi", endpoints=[NOWHERE], aspects=aspects)
    team.settings.guidelines.write_text("# How we judge\n\n1. **Right** beats everything.\n2. `Ours`: house style.\n", encoding="utf-8")
    paths = {"home": "/", "error": "/nowhere", **{name: f"/{name}" for name in ("history", "guide", "keys", "live", "login")}}
    ask = "Write a function `most_common(words)` that returns the word that occurs most often."
    team.add(question(f"First: {ask}"), [CODE_A, CODE_B])
    paths["pair"] = take(team)
    team.add(question(ask), [CODE_A, CODE_B, CODE_C])
    paths["rank"] = take(team)
    team.add(question(f"Again: {ask}"), [f"{CODE_C}\n\nVariant {i}." for i in range(9)])
    paths["rank nine"] = take(team)
    held = team.settings.model_copy(update={"task": "best_worst"})
    team.settings, old = held, team.settings
    team.add(question(f"Once more: {ask}"), [CODE_A, CODE_B, CODE_C, "I do not know."])
    team.settings = old
    paths["best worst"] = take(team)
    team.add(question("And a long one?"), ["\n\n".join(f"Paragraph {i} of many words." for i in range(80)), CODE_A])
    paths["folded"] = take(team)
    paths |= {"diff": f"{paths['rank']}/diff?left=0&right=1", "read back": f"/?done={paths['pair'].removeprefix('/a/')}"}
    paths["invite"] = f"/invite/{auth.invite(team.store, team.people['Olga'], 'rater')}"
    with served(team) as url:
        yield team, url, paths
    team.store.close()


def take(team: Team) -> str:
    """Let Rita take the next item and say something of it, so that the next one comes; returns its path."""
    browser = team.at_item()
    path = browser.judging()
    said = {"choice": "2", "place-0": "2", "place-1": "1", "place-2": "2", "best": "1", "worst": "0", "rationale": "reads better"}
    browser.send(f"{path}/submit", **said)
    return path


NAMES = [
    "home", "history", "guide", "keys", "live", "error", "pair", "rank", "rank nine", "best worst", "folded", "diff", "read back", "login",
    "invite",
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_accessible_and_nothing_is_cut_off(browser, pages, name, view):
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed (the extra dev has it)").Axe()
    team, url, paths = pages
    # axe is put into the page, which the policy would rightly forbid.
    visitor = Visitor(browser, team, url, None if name in ("login", "invite") else "Rita", bypass_csp=True, **VIEWS[view])
    page = visitor.open(paths[name])
    keep_picture(page, f"{name.replace(' ', '-')}-{view}")
    if view == "light" and name in ("rank", "pair"):
        page.keyboard.press("Shift+A")
        page.locator("#answer-0.focus").wait_for()
    found = axe.run(page)["violations"]
    assert [(v["id"], [node["html"][:120] for node in v["nodes"]][:3]) for v in found] == []
    width = VIEWS[view]["viewport"]["width"]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert small_targets(page) == []
    visitor.context.close()


def keep_picture(page: Any, name: str) -> None:
    folder = os.environ.get("PREFTUNE_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=False)


def small_targets(page: Any) -> list[str]:
    """Return what can be pressed and is smaller than 24 by 24 pixels; links inside sentences may be (WCAG 2.5.8)."""
    return page.evaluate(  # type: ignore[no-any-return]
        """() => [...document.querySelectorAll('button, select, summary, label:has(input), nav a, .person a')]
        .filter((e) => e.checkVisibility()).map((e) => [e, e.getBoundingClientRect()])
        .filter(([e, box]) => box.width && (box.width < 24 || box.height < 24)).map(([e]) => e.outerHTML.slice(0, 100))"""
    )


def test_the_reasons_for_skipping_stand_on_a_narrow_screen(browser, pages):
    team, url, _ = pages
    team.add(question("Which of two?"), ["this", "that"])
    visitor = Visitor(browser, team, url, "Ravi", **VIEWS["narrow"])
    page = visitor.at_item()
    page.get_by_text("Skip").click()
    box = page.locator(".menu").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= VIEWS["narrow"]["viewport"]["width"]
    assert box["y"] >= 0
    visitor.context.close()


def test_the_focus_can_be_seen_on_everything_that_takes_it(browser, pages):
    team, url, paths = pages
    visitor = Visitor(browser, team, url, **VIEWS["light"])
    page = visitor.open(paths["pair"])
    unseen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        shown = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e);
            const next = e.nextElementSibling ? getComputedStyle(e.nextElementSibling) : s;
            return s.outlineStyle !== 'none' || next.outlineStyle !== 'none' || e === document.body ? '' : e.outerHTML.slice(0, 100) }"""
        )
        if shown:
            unseen.append(shown)
    assert unseen == []
    visitor.context.close()
