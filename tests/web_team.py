"""A small team on a fresh store, and a browser without script that reads a page's forms and sends them as a browser would."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.testclient import TestClient

from preftune.data.store import Store
from preftune.records import Candidate, Judgement, Message, Prompt
from preftune.web import assign, auth
from preftune.web.app import create_app
from preftune.web.settings import LabelSettings

PASSWORD = "a few plain words"
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)  # the real cost is test_auth's to look at
DOMAIN = "testserver.local"  # as a cookie jar calls the test client's host
SAME = {"Sec-Fetch-Site": "same-origin"}  # what a browser says of a page's own requests
NOWHERE = {"name": "here", "url": "http://127.0.0.1:9/v1", "model": "m", "allow_private": True}  # nothing listens there
PLAIN = {"gold_share": 0.0, "retest_share": 0.0, "overlap_share": 0.0}


def question(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


def answers_to(prompt: Prompt, texts: Iterable[str], source: str = "secret-model") -> list[Candidate]:
    return [Candidate(prompt_id=prompt.id, text=text, source=f"{source}-{i}") for i, text in enumerate(texts)]


@dataclass
class Control:
    """A field of a form: kind is an input's type, or "select", "textarea", "button"."""

    kind: str
    name: str
    value: str
    form: str
    checked: bool = False


@dataclass
class Form:
    """A form as a page holds it."""

    action: str
    method: str
    controls: list[Control] = field(default_factory=list)

    def fields(self) -> dict[str, str]:
        """What a browser would send if the form were sent as it is."""
        sent = {}
        for control in self.controls:
            if control.kind in ("submit", "button") or not control.name:
                continue
            if control.kind not in ("radio", "checkbox") or control.checked:
                sent[control.name] = control.value
        return sent


class Page(HTMLParser):
    """A page that was read: its forms by action, its text, its elements as (name, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.words = str(text), ""  # str: pieces of a Markup would be escaped once more
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._forms: dict[str, Form] = {}
        self._controls: list[Control] = []
        self._form, self._area, self._quiet = "", None, 0
        self._select: Control | None = None
        self.feed(self.source)
        self.close()
        for control in self._controls:
            if control.form in self._forms:
                self._forms[control.form].controls.append(control)

    @property
    def forms(self) -> dict[str, Form]:
        return {form.action: form for form in self._forms.values()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        owner = values.get("form", self._form)
        if tag == "form":
            self._form = values.get("id") or f"#{len(self._forms)}"
            self._forms[self._form] = Form(values.get("action", ""), values.get("method", "get"))
        elif tag == "input":
            kind, on = values.get("type", "text"), "checked" in values
            self._controls.append(Control(kind, values.get("name", ""), values.get("value", "on" if kind == "checkbox" else ""), owner, on))
        elif tag == "button":
            self._controls.append(Control("submit", values.get("name", ""), values.get("value", ""), owner))
        elif tag == "textarea":
            self._area = Control("textarea", values.get("name", ""), "", owner)
            self._controls.append(self._area)
        elif tag == "select":
            self._select = Control("select", values.get("name", ""), "", owner)
            self._controls.append(self._select)
        elif tag == "option" and self._select is not None and "selected" in values:
            self._select.value = values.get("value", "\0text")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = ""
        elif tag == "textarea" and self._area is not None:
            self._area.value = self._area.value.removeprefix("\n")  # as browsers do
            self._area = None
        elif tag == "select":
            self._select = None

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._area is not None:
            self._area.value += data
        if self._select is not None and self._select.value == "\0text":
            self._select.value = data


class Browser:
    """A browser of one person, without script. It keeps cookies, says where its forms come from, and follows redirections."""

    def __init__(self, app: FastAPI, base_url: str = "http://testserver") -> None:
        self.client = TestClient(app, base_url=base_url, raise_server_exceptions=False)
        self.here, self.status, self.page = "/", 0, Page("")
        self.headers: dict[str, str] = {}

    def _took(self, response: Any) -> Page:
        address = urlsplit(str(response.url))
        self.here = address.path + (f"?{address.query}" if address.query else "")
        self.status, self.headers = response.status_code, dict(response.headers)
        self.page = Page(response.text)
        return self.page

    def get(self, path: str) -> Page:
        return self._took(self.client.get(path, headers=SAME))

    def send(self, action: str, *, button: str | None = None, clear: Sequence[str] = (), **changes: str) -> Page:
        """Send the form of this page with that action, some of its fields changed. button: the formaction of the button pressed."""
        fields = {name: value for name, value in self.page.forms[action].fields().items() if name not in clear} | changes
        return self.post(button or action, fields)

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Page:
        sent = {**SAME, "Origin": "http://testserver", **headers}
        return self._took(self.client.post(path, data=fields, headers=sent))

    @property
    def csrf(self) -> str:
        return next(attributes["data-csrf"] for tag, attributes in self.page.elements if tag == "body")

    @property
    def stylesheet(self) -> str:
        """The path of the sheet that this page names."""
        return next(a["href"] for tag, a in self.page.elements if tag == "link" and a["href"].endswith("app.css"))

    def judging(self) -> str:
        """The path of the item on this page."""
        return next(action for action in self.page.forms if action.endswith("/submit")).removesuffix("/submit")


@dataclass
class Team:
    """A store with people, and the app on it."""

    store: Store
    settings: LabelSettings
    app: FastAPI
    people: dict[str, auth.Person]

    def browser(self, name: str | None = None) -> Browser:
        browser = Browser(self.app)
        if name is not None:
            token = auth.log_in(self.store, name, PASSWORD, address="127.0.0.1")
            browser.client.cookies.set("preftune", token, domain=DOMAIN)
        return browser

    def at_item(self, name: str = "Rita") -> Browser:
        """Return a browser that has taken the next item."""
        browser = self.browser(name)
        browser.get("/")
        browser.send("/next")
        return browser

    def judgements(self) -> list[Judgement]:
        return list(self.store.judgements())

    def add(self, prompt: Prompt, texts: Iterable[str]) -> list[Candidate]:
        """Add a prompt with its answers, and the item that asks for them to be judged."""
        candidates = answers_to(prompt, texts)
        self.store.add([prompt], candidates)
        assign.fill_items(self.store, self.settings)
        return candidates


def make_team(folder: Path, *names: str, **settings: Any) -> Team:
    """Make a store in a folder with an owner "Olga" and raters of these names (all with PASSWORD), and the app on it."""
    store = Store.create(folder / "store.db")
    people = {"Olga": auth.add_person(store, "Olga", PASSWORD, "owner")}
    people |= {name: auth.add_person(store, name, PASSWORD, "rater") for name in names or ("Rita",)}
    held = LabelSettings.model_validate({"guidelines": folder / "guidelines.md", **PLAIN, **settings})
    return Team(store, held, create_app(store, held), people)


def shown_order(page: Page, candidates: Sequence[Candidate]) -> list[int]:
    """Return which candidate stands at each place of a page: their texts must be single words that occur nowhere else."""
    return sorted(range(len(candidates)), key=lambda i: page.source.index(f">{html.escape(candidates[i].text)}<"))
