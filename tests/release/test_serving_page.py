"""The chat page in a real browser: two answers side by side, which is better, a thumb, an edit; narrow, dark, without the server."""

from __future__ import annotations

import pytest
from tests.serving_site import listening
from tests.web_site import WAIT, chromium

from preftune.data.feedback import rows_since
from preftune.data.store import Store
from preftune.models.load import load_causal_lm, load_renderer
from preftune.release.serving.app import Service
from preftune.release.serving.arms import Arm, Split
from preftune.release.serving.desk import Desk

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tiny_folder, tmp_path_factory):
    folder = tiny_folder("llama")
    renderer = load_renderer(folder, "plain")
    arms = [Arm(load_causal_lm(folder).requires_grad_(False).eval(), renderer, name) for name in ("new", "old", "base")]
    with Store.create(tmp_path_factory.mktemp("page") / "s.db") as store:
        service = Service(arms, keys=["k"], split=Split(("new", "old"), 0.5), desk=Desk(store), base="base")
        with listening(service) as port:
            yield f"http://127.0.0.1:{port}", store


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser, site):
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    context.set_default_timeout(WAIT)
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    opened.goto(site[0])
    yield opened
    context.close()
    assert faults == []


def ask(page, text):
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def test_a_visitor_chats_judges_edits_and_compares(page, site):
    store = site[1]
    ask(page, "Sort a list.")
    page.get_by_label("It stays in this tab.").fill("k")  # the key, asked for once
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Good").click()
    page.get_by_role("button", name="Do not send").click()
    assert rows_since(store) == []
    page.get_by_role("button", name="Good").click()
    page.get_by_role("button", name="I agree, send it").click()
    page.get_by_text("Saved. Thank you.").wait_for()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("The answer as it should be").fill("<b>sorted(items)</b>\n```python\nx = 1\n```")
    page.get_by_role("button", name="Save the better answer").click()
    page.locator("pre code", has_text="x = 1").wait_for()
    assert page.locator(".answer b").count() == 0  # text stays text
    page.get_by_text("Two answers, side by side").click()
    ask(page, "And now?")
    page.get_by_role("button", name="The second is better").click()
    page.locator(".which .said", has_text="Saved").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    kinds = {row.kind: row for row in rows_since(store)}
    assert set(kinds) == {"thumb", "edit", "better"}
    assert len({row.rater for row in kinds.values()}) == 1  # one visitor
    assert sorted(kinds["better"].models) == ["base", "new"]
    assert tuple(kinds["thumb"].split) == ("new", "old")
    # What was edited is what the conversation went on from.
    asked = {prompt.id: prompt for prompt in store.prompts()}[kinds["better"].prompt_id]
    assert [m.role for m in asked.messages] == ["user", "assistant", "user"]
    assert asked.messages[1].content.startswith("<b>sorted")
    page.get_by_role("link", name="Results").click()
    page.get_by_text("One conversation counts once.").wait_for()
    assert page.locator("svg").count() == 2
