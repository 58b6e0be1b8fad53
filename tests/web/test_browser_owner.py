"""The owner's pages in a real browser: what axe finds in light, dark and narrow, nothing cut off, nothing that the policy blocks.

PREFTUNE_SCREENSHOTS=FOLDER keeps pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.web_site import Visitor, chromium, served
from tests.web_team import Team, make_team, question

from preftune.records import Judgement, standing
from preftune.web import items
from preftune.web.settings import record_protocol

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CODE = ["```python\ndef last(xs):\n    return xs[-1] if xs else None\n```\nShort.", "Use `xs[-1]`.", "I, Claude, would sort it first."]
VIEWS = {"light": 1400, "dark": 1400, "narrow": 360}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Team, str, dict[str, str]]]:
    """A team with something on every page, and the pages' paths by name."""
    team = make_team(tmp_path_factory.mktemp("owner"), "Ann", "Bob", overlap=2)
    record_protocol(team.store, team.settings)
    raters = [team.people[name].pseudonym for name in ("Ann", "Bob")]
    said, first = [], ""
    for n in range(32):
        prompt = question(f"Write a function `last{n}(xs)` that returns the last element of a list, or nothing.")
        ids = sorted(candidate.id for candidate in team.add(prompt, CODE[: 2 + n % 2]))
        first = first or prompt.id
        for rater in raters:
            order = ids[::-1] if rater == raters[0] and n % 4 == 0 else ids
            about = {"presentation": tuple(ids), "active_seconds": 1.0 + 9 * (n % 5), "rationale": "It handles the empty list."}
            said.append(Judgement(prompt_id=prompt.id, ranking=tuple((c,) for c in order), rater=rater, **about))
        if n < 3:
            items.add_gold(team.store, team.people["Olga"], prompt.id, ids, [ids[:1], ids[1:]], note="fails on []")
            said.append(Judgement(prompt_id=prompt.id, ranking=(tuple(ids[:1]), tuple(ids[1:])), rater=raters[0], picked_by="gold"))
        said.append(Judgement(prompt_id=prompt.id, ranking=((ids[0],), (ids[1],)), rater="judge:big"))
    team.store.add(judgements=said)
    names = ("agreement", "disagreements", "position", "time", "gold", "items", "people", "export", "audit", "settings")
    paths = {"progress": "/owner", **{name: f"/owner/{name}" for name in names}, "side by side": f"/owner/prompts/{first}"}
    paths |= {"export told": "/owner/export?format=csv", "delete": f"/owner/people/{team.people['Bob'].id}/delete"}
    with served(team) as url:
        yield team, url, paths
    team.store.close()


@pytest.mark.parametrize("view", VIEWS)
def test_the_owners_pages_are_accessible_and_nothing_is_cut_off(browser, site, view):
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed (the extra dev has it)").Axe()
    team, url, paths = site
    size, scheme = {"width": VIEWS[view], "height": 900}, "dark" if view == "dark" else "light"
    # axe is put into the page, which the policy would rightly forbid.
    visitor = Visitor(browser, team, url, "Olga", bypass_csp=True, color_scheme=scheme, viewport=size)
    page = visitor.open("/owner")
    for name, path in paths.items():
        page.goto(path)
        if folder := os.environ.get("PREFTUNE_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / f"owner-{name.replace(' ', '-')}-{view}.png"), full_page=True)
        found = axe.run(page)["violations"]
        assert [(name, v["id"], [node["html"][:120] for node in v["nodes"]][:3]) for v in found] == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= VIEWS[view], name
    assert visitor.trouble == []
    visitor.context.close()


def test_a_disagreement_is_settled_and_a_person_invited_with_the_policy_in_force(browser, site):
    team, url, paths = site
    visitor = Visitor(browser, team, url, "Olga")
    page = visitor.open("/owner")
    for path in paths.values():  # styles and charts need nothing that the policy forbids
        page.goto(path)
    page.goto("/owner/disagreements")
    page.locator("td a").first.click()
    page.get_by_role("group", name="A").get_by_label("place").select_option("1")
    page.get_by_role("group", name="B").get_by_label("place").select_option("2")
    page.get_by_label("Why?").fill("B fails on the empty list.")
    page.get_by_role("button", name="Settle").click()
    page.get_by_text("Settled: A > B").wait_for()
    (word,) = [j for j in standing(team.judgements()) if j.rater.startswith("settled:")]
    assert word.rationale == "B fails on the empty list."
    page.get_by_role("link", name="People").click()
    page.get_by_role("button", name="Make a link").click()
    assert page.locator("#link").input_value().startswith(f"{url}/invite/")
    page.goto("/owner/export")
    with page.expect_download() as download:
        page.get_by_role("row", name="Spreadsheet").get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.startswith("preferences-csv-")
    assert visitor.trouble == []
    visitor.context.close()
