"""Scripts in every text that a page shows, and the policy that would stop them all the same: see docs/reference/security.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.web_payloads import PAYLOADS
from tests.web_team import PASSWORD, SAME, Browser, Team, answers_to, make_team, question

from preftune.web import assign, auth, live
from preftune.web.app import CONTENT_SECURITY_POLICY


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = make_team(tmp_path, "Rita", "Ravi")
    yield made
    made.store.close()


class Dangers(HTMLParser):
    """Collects what could run, load or lead away in a page, other than what our own templates put there."""

    URLS = ("href", "src", "action", "formaction", "data", "srcdoc", "poster", "xlink:href", "background")
    OURS = re.compile(r"/(?!/)|#|\Z")  # a path of our own

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("iframe", "object", "embed", "base", "svg", "math", "img", "video", "audio", "style", "marquee", "template"):
            self.found.append(tag)
        if tag == "script" and not (values.get("src", "").startswith("/static/") and values.keys() == {"type", "src"}):
            self.found.append(f"script {values}")
        if tag == "link" and not values.get("href", "").startswith("/static/"):
            self.found.append(f"link {values}")
        if tag == "meta" and "http-equiv" in values:
            self.found.append(f"meta {values}")
        for name, value in values.items():
            if name.startswith("on") or name == "style" or (name in ("id", "name") and value in ("hit", "csrf2")):
                self.found.append(f"{tag} {name}={value}")
            if name in self.URLS and not self.OURS.match(value) and not re.match(r"(https?|mailto):", value):
                self.found.append(f"{tag} {name}={value}")

    handle_startendtag = handle_starttag


def dangers(page: str) -> list[str]:
    return Dangers(page).found


def test_the_search_for_dangers_finds_them():
    assert dangers("<img src=x onerror=a>")
    assert dangers("<script>a</script>")
    assert dangers("<a href=' javascript:a'>x</a>")
    assert dangers("<a href='//evil.example'>x</a>")
    assert dangers("<p style='x'>")
    assert not dangers('<a href="/history">x</a><a href="https://example.org">y</a>')


# Script in texts


def test_a_hundred_scripts_in_prompts_and_answers_stay_text(team):
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 100
    browser = team.browser("Rita")
    for number, payload in enumerate(PAYLOADS):
        prompt = question(f"{payload}\n\n{number}")
        team.store.add([prompt], answers_to(prompt, [f"{payload} first", f"{payload}\n\nsecond"]))
    assign.fill_items(team.store, team.settings)
    browser.get("/")
    browser.send("/next")
    for _ in PAYLOADS:
        assert browser.status == 200, browser.here
        assert dangers(browser.page.source) == []
        assert "13371337" not in browser.page.source  # no template in a text was worked out
        # What is answered is the next item.
        browser.send(browser.judging() + "/submit", choice="1", rationale=PAYLOADS[_number(browser)], rewrite="", rewrite_of="")
    page = browser.get("/history").source
    assert dangers(page) == []
    assert page.count("<tr><td") == 100


def _number(browser: Browser) -> int:
    """The number at the end of the prompt on this page."""
    return int(re.findall(r">(\d+)</p>", browser.page.source)[0])


@pytest.mark.parametrize("start", range(0, 100, 20))
def test_scripts_in_reason_and_rewrite_come_back_as_text(team, start):
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    path = browser.judging()
    for payload in PAYLOADS[start : start + 20]:
        browser.get(path)
        page = browser.send(f"{path}/submit", choice="1", rationale=payload, rewrite=f"{payload}.", rewrite_of="0")
        assert browser.status == 200
        assert dangers(page.source) == []
        page = browser.get(path)
        assert dangers(page.source) == []
        fields = page.forms[f"{path}/submit"].fields()
        assert (fields["rationale"], fields["rewrite"]) == (payload.strip(), f"{payload}.")


def test_scripts_in_the_guidelines_stay_text(team):
    browser = team.browser("Rita")
    for payload in PAYLOADS:
        team.settings.guidelines.write_text(payload, encoding="utf-8")
        assert dangers(browser.get("/guide").source) == []
        assert browser.status == 200


def test_scripts_in_names_stay_text(team):
    for number, payload in enumerate(PAYLOADS):
        name = f"{payload[:50]}{number}"
        try:
            auth.add_person(team.store, name, PASSWORD, "rater")
        except auth.AuthError:
            continue  # a name with a line break or a hidden character is no name
        kept = next(person.name for person in auth.people(team.store) if person.name.endswith(str(number)))
        browser = team.browser(kept)
        assert dangers(browser.get("/").source) == []
        assert kept in browser.page.words
        failed = team.browser()
        failed.get("/login")
        assert dangers(failed.send("/login", name=name, password="x").source) == []


def test_scripts_in_addresses_and_fields_are_not_echoed_as_html(team):
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    path = browser.judging()
    addresses = ["/?empty={}&done={}", "/a/{}", "/invite/{}", "/login?next={}", "/history?done={}", path + "?rewrite={}&done={}"]
    fields = browser.page.forms[f"{path}/submit"].fields()
    for number, payload in enumerate(PAYLOADS):
        address = addresses[number % len(addresses)].replace("{}", quote(payload, safe=""))
        assert dangers(browser.client.get(address, headers=SAME).text) == []
        assert dangers(browser.post(f"{path}/submit", fields | {"choice": payload, "good-0": payload}).source) == []


def test_a_template_in_an_answer_is_not_run(team):
    team.add(question("{{ 7 * 1910191 }}"), ["{{ ''.__class__ }}", "{% include 'login.html' %}"])
    page = team.at_item().page
    assert "13371337" not in page.source
    assert "{{ ''.__class__ }}" in page.words
    assert "{% include 'login.html' %}" in page.words


# The policy


def every_kind_of_response(team: Team) -> Iterator[object]:
    team.add(question("Q?"), ["one", "two"])
    browser = team.at_item()
    path = browser.judging()
    client = browser.client
    for address in ("/", path, "/history", "/guide", "/keys", "/nowhere", "/healthz", f"{path}/diff", f"{path}/text/0", browser.stylesheet):
        yield client.get(address, headers=SAME)
    yield client.get("/owner", headers=SAME)
    yield client.post("/next", data={}, headers=SAME)
    yield client.put(f"{path}/draft", json={"version": 9, "fields": {}}, headers={**SAME, "X-CSRF": browser.csrf})
    yield client.post("/next", content=b"x", headers={"Content-Length": str(10**9)})
    yield team.browser().client.get("/", follow_redirects=False)


def test_every_response_carries_the_policy_and_the_other_headers(team):
    for response in every_kind_of_response(team):
        headers = response.headers
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY, response.url
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cache-control"] == ("public, max-age=31536000, immutable" if "/static/" in str(response.url) else "no-store")


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere():
    rules = dict(rule.strip().split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == rules["form-action"] == "'self'"
    assert rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "*" not in CONTENT_SECURITY_POLICY


def test_our_own_pages_need_nothing_inline():
    for path in (Path(live.__file__).parent / "pages").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text), path.name
        assert "|safe" not in text, path.name


def test_our_script_never_makes_html_from_text():
    for path in (Path(live.__file__).parent / "static").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|setTimeout\(['\"]", text
        ), path.name


def test_a_bug_shows_nothing_of_itself(team, monkeypatch):
    monkeypatch.setattr("preftune.web.assign.history", lambda *_: 1 / 0)
    browser = team.browser("Rita")
    page = browser.get("/history")
    assert browser.status == 500
    assert "Something went wrong here" in page.words
    assert "division" not in page.source
    assert browser.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
