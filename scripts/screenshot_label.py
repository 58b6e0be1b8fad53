"""Take the pictures of docs/label.md: the ranking app with an item of each task, in the Chromium of this machine, driven by Playwright.

python scripts/screenshot_label.py docs
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import uvicorn

from preftune.data.store import Store
from preftune.records import Candidate, Message, Prompt
from preftune.web import assign, auth
from preftune.web.app import create_app
from preftune.web.settings import LabelSettings

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ASK = "Write a function `most_common(words)` that returns the word that occurs most often in a list."
ANSWERS = (
    '''```python
from collections import Counter


def most_common(words: list[str]) -> str:
    """Return the word that occurs most often."""
    return Counter(words).most_common(1)[0][0]
```
Of words that occur equally often the first one wins.''',
    """```python
def most_common(words):
    counts = {}
    for word in words:
        if word in counts:
            counts[word] += 1
        else:
            counts[word] = 1
    return max(counts, key=counts.get)
```
It counts each word once and takes the largest.""",
    """```python
def most_common(words):
    return max(set(words), key=words.count)
```
Short, but it counts the list once for **each** word.""",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Take the pictures of docs/label.md.")
    parser.add_argument("folder", type=Path, help="where label-*.png go")
    parser.add_argument("--dark", action="store_true", help="as a person with a dark screen sees it")
    parser.add_argument("--width", type=int, default=1120, help="of the page, in pixels")
    options = parser.parse_args()
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        print(f"There is no browser here (looked for {', '.join(NAMES)}). Install Chromium.", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store.db") as store:
        settings = LabelSettings(guidelines=Path(folder) / "guidelines.md", gold_share=0, retest_share=0, overlap_share=0)
        auth.add_person(store, "ann", "a few plain words", "owner")
        token = auth.log_in(store, "ann", "a few plain words", address="127.0.0.1")
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(create_app(store, settings), log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
                look: dict[str, Any] = {"viewport": {"width": options.width, "height": 700}, "base_url": url}
                context = browser.new_context(color_scheme="dark" if options.dark else "light", **look)
                context.add_cookies([{"name": "preftune", "value": token, "url": url}])
                page = context.new_page()
                for name, arrange in (("pair", _pair), ("rank", _rank)):
                    arrange(page, store, settings)
                    target = options.folder / f"label-{name}.png"
                    page.screenshot(path=target)
                    print(target)
                browser.close()
        finally:
            server.should_exit = True
            thread.join()
            listener.close()
    return 0


def _add(store: Store, settings: LabelSettings, ask: str, texts: tuple[str, ...]) -> None:
    prompt = Prompt(messages=(Message(role="user", content=ask),))
    store.add([prompt], [Candidate(prompt_id=prompt.id, text=text) for text in texts])
    assign.fill_items(store, settings)


def _pair(page: Any, store: Store, settings: LabelSettings) -> None:
    _add(store, settings, ASK, ANSWERS[:2])
    page.goto("/")
    page.locator("[autofocus]:focus").wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url("**/a/*")
    page.keyboard.press("2")


def _rank(page: Any, store: Store, settings: LabelSettings) -> None:
    _add(store, settings, f"{ASK} Keep it short.", ANSWERS)
    page.keyboard.press("Control+Enter")
    page.locator("#board").wait_for()
    for key in ("Shift+B", "1", "Shift+C", "2", "Shift+A", "2"):
        page.keyboard.press(key)


if __name__ == "__main__":
    sys.exit(main())
