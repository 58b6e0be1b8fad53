"""The app on a port of this machine, and a real browser of a person: for the tests that need both."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from tests.web_team import PASSWORD, Team

from preftune.web import auth

WAIT = 90_000  # milliseconds that anything in a browser may take on a machine that is busy with other things
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def served(team: Team) -> Iterator[str]:
    """Run the app of a team as long as the `with` lasts; yields its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(team.app, log_level="error", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the Chromium of this machine; the test is skipped where there is none, or no Playwright to drive it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev has it)")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"there is no browser here (looked for {', '.join(NAMES)})")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A person's browser at a team's app. Everything that goes wrong in it is collected in `trouble`."""

    def __init__(self, browser: Any, team: Team, url: str, name: str | None = "Rita", **options: Any) -> None:
        self.team, self.url, self.name = team, url, name
        self.trouble: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(base_url=url, **{"viewport": {"width": 1280, "height": 860}, **options})
        self.context.set_default_timeout(WAIT)
        self.log_in()

    def log_in(self) -> None:
        """Give this browser a session."""
        if self.name:
            token = auth.log_in(self.team.store, self.name, PASSWORD, address="127.0.0.1")
            self.context.add_cookies([{"name": "preftune", "value": token, "url": self.url, "httpOnly": True, "sameSite": "Lax"}])

    def open(self, path: str = "/") -> Any:
        """Open a page in a new tab."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("console", lambda message: self.trouble.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (self.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path)
        return page

    def at_item(self, ready: str = ".ready") -> Any:
        """Open the next item, by the keyboard alone. ready: what its form has when the script is there."""
        page = self.open("/")
        page.locator("[autofocus]:focus").wait_for()  # which comes with the first picture, on a busy machine after all is loaded
        page.keyboard.press("Enter")
        page.locator(f"#judge{ready}").wait_for()
        return page
