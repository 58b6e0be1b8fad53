"""What leaves by the owner's export: the formats, what is told to be left out, the spreadsheet, and that our own reads back the same."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.web_team import Team, make_team

from preftune.data.importing import import_preferences
from preftune.data.store import Store
from preftune.records import CHECKS, Candidate, Demonstration, Judgement, Message, Prompt, standing
from preftune.web import audit
from preftune.web.spreadsheet import COLUMNS, guarded

FORMATS = ("own", "trl", "openai", "llamafactory", "argilla", "csv")


@pytest.fixture
def team(tmp_path: Path, empty_store: bytes) -> Iterator[Team]:
    """Two prompts with all that can be said of answers; a gold one and one asked again, one that was changed, one that was taken back."""
    (tmp_path / "store.db").write_bytes(empty_store)
    made = make_team(tmp_path, "Ann")
    ask = Prompt(
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="=1+1 | größer, 'mehr'\n")), kind="sums"
    )
    other = Prompt(messages=(Message(role="user", content="Sort a list."),))
    answers = [Candidate(prompt_id=ask.id, text=text, source="m", sampling={"seed": 1}) for text in ("zwei", "drei", "vier ✓")]
    more = [Candidate(prompt_id=other.id, text=text) for text in ("sorted(x)", "x.sort()")]
    made.store.add([ask, other], [*answers, *more])
    a, b, c = (candidate.id for candidate in answers)
    d, e = (candidate.id for candidate in more)

    def say(prompt: Prompt, *tiers: tuple[str, ...], rater: str = "r_one", **fields: Any) -> Judgement:
        return Judgement(prompt_id=prompt.id, ranking=tiers, rater=rater, **fields)

    first = say(other, (d,), (e,), strength=2, presentation=(e, d), active_seconds=12.5, rationale="@SUM(A1)")
    changed = say(other, (e,), (d,), supersedes=first.id)
    taken = say(other, (d,), (e,), rater="r_two")
    back = Judgement(prompt_id=other.id, rater="r_two", supersedes=taken.id)
    word = {"acceptable": (c,), "rewrite": "zwei!", "rewrite_of": a, "aspects": {"clear": {a: 2, c: 5}}, "picked_by": "settled"}
    everything = say(ask, (c,), (a, b), rater="settled:r_own", **word)
    gold = say(ask, (a,), (b,), rater="r_one", picked_by="gold")
    again = say(ask, (b,), (c,), rater="r_three", picked_by="retest")
    bad = say(ask, (a,), (b,), rater="r_three", acceptable=(), picked_by="random", picked_probability=0.25)
    made.store.add(judgements=[first, changed, taken, back, everything, gold, again, bad])
    made.store.add(demonstrations=[Demonstration(prompt_id=other.id, text="sorted(x)", author="r_one")])
    yield made
    made.store.close()


def fetched(team: Team, format: str) -> tuple[bytes, dict[str, str]]:
    browser = team.browser("Olga")
    browser.get("/owner/export")
    response = browser.client.post(
        "/owner/export", data={"csrf": browser.csrf, "format": format}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert response.status_code == 200
    return response.content, dict(response.headers)


def test_our_own_export_read_into_another_store_gives_the_same_records(team: Team, tmp_path: Path):
    content, headers = fetched(team, "own")
    path = tmp_path / "exported.jsonl"
    path.write_bytes(content)
    with Store.create(tmp_path / "other.db") as other:
        import_preferences(path, other)
        assert set(other.prompts()) == set(team.store.prompts())
        assert {c.id: (c.text, c.source, c.sampling) for c in other.candidates()} == {
            c.id: (c.text, c.source, c.sampling) for c in team.store.candidates()
        }
        kept = {j.id: j for j in team.store.judgements() if j.picked_by not in CHECKS}
        assert {j.id: j for j in other.judgements()} == kept
        assert {j.id for j in standing(other.judgements())} == {j.id for j in standing(kept.values())}
        assert list(other.demonstrations()) == list(team.store.demonstrations())
        before = other.counts()
        import_preferences(path, other)
        assert other.counts() == before
    assert headers["content-type"].startswith("application/x-ndjson")
    assert re.fullmatch(r'attachment; filename="preferences-own-\d{4}-\d\d-\d\d\.jsonl"', headers["content-disposition"])


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_sent_whole_noted_and_without_names_or_gold(team: Team, format: str):
    content, headers = fetched(team, format)
    assert len(content) == int(headers["content-length"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    entry = audit.entries(team.store)[-1]
    assert (entry.action, entry.object) == ("export", format)
    assert entry.actor == team.people["Olga"].pseudonym
    assert entry.detail["sha256"] == hashlib.sha256(content).hexdigest()
    text = content.decode("utf-8-sig")
    assert '"gold"' not in text
    assert "retest" not in text
    assert "Olga" not in text
    rows = list(csv.reader(io.StringIO(text)))[1:] if format == "csv" else json.loads(text) if format == "argilla" else text.splitlines()
    assert len(rows) == entry.detail["rows"] > 0
    assert fetched(team, format)[0] == content  # the same store, the same bytes


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_format_leaves_out_is_told_before(team: Team, format: str):
    browser = team.browser("Olga")
    page = browser.get(f"/owner/export?format={format}")
    text = " ".join(page.words.split())
    assert "2 judgements that check a rater (gold items, items asked again) kept back" in text
    if format == "csv":
        assert "3 rows omitted that were taken back or changed, or do so" in text  # the first, the taken one, and what took it back
        assert "3 rows from 6 judgements" in text
    if format in ("trl", "openai", "llamafactory"):
        assert "1 rating by aspect omitted" in text
    before = audit.last_number(team.store)
    browser.get(f"/owner/export?format={format}")
    assert audit.last_number(team.store) == before  # looking takes nothing out


def test_an_empty_store_has_nothing_to_export_and_says_so(tmp_path: Path):
    team = make_team(tmp_path, "Ann")
    browser = team.browser("Olga")
    browser.get("/owner/export")
    browser.send("/owner/export", format="trl")
    assert browser.status == 409
    assert "there is nothing to export" in browser.page.words
    assert [e.action for e in audit.entries(team.store)].count("export") == 0
    team.store.close()


def test_the_spreadsheet_has_a_row_for_each_judgement_that_stands(team: Team):
    text = fetched(team, "csv")[0].decode("utf-8-sig")
    head, *rows = list(csv.reader(io.StringIO(text, newline="")))
    assert tuple(head) == COLUMNS
    found = [dict(zip(head, row, strict=True)) for row in rows]
    kept = [j for j in standing(team.judgements()) if j.picked_by not in CHECKS and j.ranking]
    assert [row["judgement_id"] for row in found] == [j.id for j in kept]
    assert [row["rater"] for row in found] == ["r_one", "settled:r_own", "r_three"]
    assert found[1]["prompt"] == "'=1+1 | größer, 'mehr'\n"
    assert found[1]["rewrite"] == "zwei!"
    assert found[2]["acceptable"] == "none"
    assert found[2]["picked_probability"] == "0.25"
    (tied,) = [row for row in found if " = " in row["ranking"]]
    assert tied["ranking"].split(" > ")[0] == kept[1].ranking[0][0]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1", '=HYPERLINK("http://x")', "-2+3+cmd|' /C calc'!A0"]
)
def test_a_text_that_a_spreadsheet_takes_for_a_formula_is_made_harmless(text: str):
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["1+1", "", "a=b", "'=1", -1.5, None, 3])
def test_other_cells_stay_as_they_are(cell: Any):
    assert guarded(cell) == cell
