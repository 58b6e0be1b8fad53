"""The page of the checks: whole, without network and script, and with a word for each plot."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET

from preftune.data.checks import check_pairs, check_store, write_page
from preftune.data.store import Store
from preftune.records import Candidate, Judgement, Message, Pair, Prompt


def some_pairs(count: int = 60) -> list[Pair]:
    rng = random.Random(0)
    words = "it runs over every line of the file and gives back what was found".split()

    def text() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(5, 40)))

    asked = [(Message(role="user", content=f"<b>{text()}</b> {n * 7}"),) for n in range(count)]
    return [Pair(messages=ask, chosen=("Sure! " if n % 2 else "") + text(), rejected=text()) for n, ask in enumerate(asked)]


def test_the_page_shows_every_line_and_problem_and_needs_nothing_else(tmp_path) -> None:
    report = check_pairs(some_pairs())
    page = write_page(report, tmp_path / "new" / "check.html").read_text(encoding="utf-8")
    text = re.sub(r"&#39;|&#34;", lambda found: "'\""[found[0] == "&#34;"], page)
    assert all(problem[1:] in text for problem in report.problems)
    assert all(line in text for line in report.lines() if not line.startswith("Problem: "))
    assert "<script" not in page
    assert re.findall(r'(?:href|src)="(?!#)', page) == []
    assert "default-src 'none'" in page
    assert "<b>it" not in page  # no text of the data is in it
    assert not list(tmp_path.glob("**/.*"))


def test_every_plot_is_valid_has_a_title_and_tells_its_numbers(tmp_path) -> None:
    page = write_page(check_pairs(some_pairs()), tmp_path / "check.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 4
    ids = [found for drawing in drawings for found in re.findall(r' id="([^"]+)"', drawing)]
    assert len(ids) == len(set(ids))
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.findtext("title")
        assert re.search(r": \d+", root.findtext("desc") or "")
        assert "#0a0a01" not in drawing


def test_the_same_report_gives_the_same_bytes(tmp_path) -> None:
    first, second = (write_page(check_pairs(some_pairs()), tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_an_empty_store_and_one_with_ties_alone_have_a_page_too(tmp_path) -> None:
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    candidates = [Candidate(prompt_id=prompt.id, text=text) for text in "ab"]
    with Store.create(tmp_path / "s.db") as store:
        empty = write_page(check_store(store), tmp_path / "empty.html").read_text(encoding="utf-8")
        store.add([prompt], candidates, [Judgement(prompt_id=prompt.id, ranking=(tuple(c.id for c in candidates),))])
        tied = write_page(check_store(store), tmp_path / "tied.html").read_text(encoding="utf-8")
    assert "There are no pairs, so there is nothing to learn" in empty
    assert "The one comparison is a tie or an even split" in tied
    assert "<svg" not in empty + tied
