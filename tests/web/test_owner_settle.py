"""Settling disagreements and making gold items: what an owner sees, says, and what becomes of it in the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import Browser, Team, make_team, question

from preftune.records import Judgement, Prompt, standing
from preftune.web import assign, audit, items


@pytest.fixture
def team(tmp_path: Path, empty_store: bytes) -> Iterator[Team]:
    (tmp_path / "store.db").write_bytes(empty_store)
    made = make_team(tmp_path, "Ann", "Bob")
    yield made
    made.store.close()


def disputed(team: Team, text: str = "Which animal?", tiers: tuple[str, ...] = ("ab c", "b a c")) -> tuple[Prompt, list[str]]:
    """Add a prompt with three answers on which raters differ; return it with the answers' ids in the order of their letters.

    tiers: what each rater says in letters, places apart by a space: by default Ann says A = B > C and Bob B > A > C.
    """
    prompt = question(text)
    ids = sorted(candidate.id for candidate in team.add(prompt, ["quokka", "numbat", "dugong"]))
    raters = [team.people["Ann"].pseudonym, team.people["Bob"].pseudonym, "r_more"]
    team.store.add(
        judgements=[
            Judgement(
                prompt_id=prompt.id,
                ranking=tuple(tuple(ids["abc".index(c)] for c in tier) for tier in said.split()),
                rater=rater,
                rationale=f"because {rater}",
            )
            for rater, said in zip(raters, tiers, strict=False)
        ]
    )
    return prompt, ids


def at(team: Team, prompt: Prompt) -> Browser:
    browser = team.browser("Olga")
    browser.get(f"/owner/prompts/{prompt.id}")
    return browser


def settled(team: Team) -> list[Judgement]:
    return [j for j in standing(team.judgements()) if j.rater.startswith("settled:") and j.ranking]


def test_disagreements_are_listed_worst_first_with_their_votes(team: Team):
    disputed(team, "one against a tie", ("ab c", "a b c"))
    disputed(team, "opposed", ("a b c", "b a c"))
    disputed(team, "of one mind", ("a b c", "a b c"))
    disputed(team, "two to one", ("a b c", "a b c", "b a c"))
    browser = team.browser("Olga")
    page = browser.get("/owner/disagreements")
    listed = [text for text in ("one against a tie", "opposed", "of one mind", "two to one") if text in page.words]
    assert sorted(listed, key=page.words.index) == ["opposed", "two to one", "one against a tie"]
    assert "Raters differ on 3 prompts, of which 3 are not settled" in page.words
    flat = re.sub(r"\s+", " ", page.words)
    assert "1 against 1" in flat
    assert "2 against 1" in flat
    assert "1 against 0, 1 level" in flat


def test_the_page_shows_all_answers_and_words_and_no_source(team: Team):
    prompt, _ = disputed(team)
    page = at(team, prompt).page
    for text in ("quokka", "numbat", "dugong", "A = B > C", "B > A > C", f"because {team.people['Ann'].pseudonym}"):
        assert text in page.words
    assert "secret-model" not in page.source
    assert "Ann" not in page.words  # who said it is told by the pseudonym alone
    fields = page.forms[f"/owner/prompts/{prompt.id}/settle"].fields()
    assert {name: value for name, value in fields.items() if name != "csrf"} == {
        "place_A": "",
        "place_B": "",
        "place_C": "",
        "rationale": "",
    }


def test_an_owners_word_decides_and_changes_no_row(team: Team):
    prompt, (a, b, c) = disputed(team)
    before = team.judgements()
    browser = at(team, prompt)
    page = browser.send(f"/owner/prompts/{prompt.id}/settle", place_A="2", place_B="3", good_A="1", rationale="B leaks memory")
    assert team.judgements()[: len(before)] == before
    (word,) = settled(team)
    assert (word.ranking, word.acceptable, word.rationale) == (((a,), (b,)), (a,), "B leaks memory")
    assert word.rater == f"settled:{team.people['Olga'].pseudonym}"
    assert (word.picked_by, word.supersedes) == ("settled", None)
    texts = {candidate.id: candidate.text for candidate in team.store.candidates()}
    pairs = {(p.chosen, p.rejected): p.weight for p in team.store.pairs()}
    # a over b as the owner says; over c as both raters say.
    assert pairs == {(texts[a], texts[b]): 1, (texts[a], texts[c]): 1, (texts[b], texts[c]): 1}
    assert "Settled: A > B" in page.words
    assert "secret-model-0" in page.words  # the sources are shown now
    assert "Which animal?" in browser.get("/owner/disagreements?show=settled").words
    assert "Which animal?" not in browser.get("/owner/disagreements").words
    assert [e.action for e in audit.entries(team.store)][-1] == "settle"


def test_what_leaves_the_contested_answers_out_settles_nothing(team: Team):
    prompt, _ = disputed(team)
    browser = at(team, prompt)
    browser.send(f"/owner/prompts/{prompt.id}/settle", place_A="1", place_C="2")
    assert "Which animal?" in browser.get("/owner/disagreements").words


def test_the_word_can_be_changed_taken_back_and_said_again(team: Team):
    prompt, (a, b, c) = disputed(team)
    browser = at(team, prompt)
    action = f"/owner/prompts/{prompt.id}/settle"
    said = {"place_A": "1", "place_B": "2", "place_C": "3"}
    browser.send(action, **said)
    browser.send(action, **said)  # a double click adds nothing
    assert len(settled(team)) == 1
    count = len(team.judgements())
    fields = browser.page.forms[action].fields()
    assert [fields[f"place_{letter}"] for letter in "ABC"] == ["1", "2", "3"]
    browser.send(action, place_A="3", place_B="1", place_C="1", all_bad="1")
    (changed,) = settled(team)
    assert (changed.ranking, changed.acceptable) == (((b, c), (a,)), ())
    assert "none is good enough" in browser.page.words
    browser.send(f"/owner/prompts/{prompt.id}/unsettle")
    assert settled(team) == []
    assert browser.page.forms[action].fields()["place_A"] == ""
    assert "secret-model" not in browser.page.source
    browser.post(f"/owner/prompts/{prompt.id}/unsettle", {"csrf": browser.csrf})  # nothing to take back: nothing is added
    browser.send(action, **said)
    (again,) = settled(team)
    assert again.ranking == ((a,), (b,), (c,))
    assert len(team.judgements()) == count + 3
    assert [e.action for e in audit.entries(team.store)][-4:] == ["settle", "settle", "take settling back", "settle"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "0 answers have a place; it takes 2 to 9"),
        ({"place_A": "1"}, "1 answer has a place"),
        ({"place_A": "1", "place_B": "99"}, "is not a number from 1 to 9"),
        ({"place_A": "1", "place_B": "2", "good_A": "1", "all_bad": "1"}, "and so is that none is"),
        ({"place_A": "1", "place_B": "2", "rationale": "x" * 20_001}, "the reason has 20,001 characters"),
    ],
)
def test_a_word_that_says_nothing_or_too_much_is_refused_and_stays_on_the_page(team: Team, fields: dict[str, str], sentence: str):
    prompt, _ = disputed(team)
    browser = at(team, prompt)
    browser.send(f"/owner/prompts/{prompt.id}/settle", **{"rationale": "typed words", **fields})
    assert browser.status == 422
    assert sentence in browser.page.words
    kept = browser.page.forms[f"/owner/prompts/{prompt.id}/settle"].fields()
    assert kept["rationale"] == fields.get("rationale", "typed words")
    assert settled(team) == []


def test_an_unknown_prompt_is_not_found(team: Team):
    browser = team.browser("Olga")
    browser.get("/owner/prompts/0000000000000000")
    assert browser.status == 404
    browser.post("/owner/prompts/0000000000000000/settle", {"csrf": browser.csrf, "place_A": "1", "place_B": "2"})
    assert browser.status == 404


def test_scripts_in_prompts_answers_and_reasons_stay_text(team: Team):
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'>"
    prompt = question(attack)
    ids = sorted(candidate.id for candidate in team.add(prompt, [f"{attack} one", f"{attack} two"]))
    rows = [Judgement(prompt_id=prompt.id, ranking=((a,), (b,)), rater=f"r{attack}{a}", rationale=attack) for a, b in (ids, ids[::-1])]
    team.store.add(judgements=rows)
    browser = at(team, prompt)
    browser.send(f"/owner/prompts/{prompt.id}/settle", place_A="1", place_B="2", rationale=attack)
    for path in (
        f"/owner/prompts/{prompt.id}",
        "/owner/disagreements?show=all",
        "/owner/agreement",
        "/owner/items",
        "/owner/audit",
        "/owner/time",
    ):
        page = browser.get(path)
        assert browser.status == 200
        assert [tag for tag, _ in page.elements if tag == "img"] == []
        assert [attributes for tag, attributes in page.elements if tag == "script" and "src" not in attributes] == []
        assert not any(name.startswith("on") or name == "style" for _, attributes in page.elements for name in attributes)


def test_a_settled_word_becomes_a_gold_item_that_raters_meet(team: Team, monkeypatch: pytest.MonkeyPatch):
    prompt, (a, b, c) = disputed(team)
    browser = at(team, prompt)
    assert "/owner/gold" not in browser.page.forms  # only once it is settled
    browser.post("/owner/gold", {"csrf": browser.csrf, "prompt": prompt.id})
    assert browser.status == 422
    browser.get(f"/owner/prompts/{prompt.id}")
    browser.send(f"/owner/prompts/{prompt.id}/settle", place_A="2", place_B="1", place_C="2")
    browser.send("/owner/gold", note="B is the only one that runs")
    assert browser.here == "/owner/gold"
    assert "B > A = C" in browser.page.words
    assert "B is the only one that runs" in browser.page.words
    with team.store.reading() as connection:
        (row,) = connection.execute(items.select(items.tables.items).where(items.tables.items.c.purpose == "gold")).all()
    assert row.expected == [[b], [a, c]]
    browser.get(f"/owner/prompts/{prompt.id}")
    browser.send("/owner/gold", note="again")
    assert browser.status == 409  # these candidates are a gold item already
    settings = team.settings.model_copy(update={"gold_share": 0.5})
    # Whoever draws the disputed item itself first is never asked its gold again: let the first draw fall on gold.
    monkeypatch.setattr("preftune.web.choosing.unit", lambda *_: 0.0)
    met = set()
    for n in range(3):
        team.add(question(f"Other question {n}"), ["left", "right"])
        task = assign.next_assignment(team.store, team.people["Ann"], settings)
        assert isinstance(task, assign.Assignment)
        met.add(task.purpose)
        assign.submit(team.store, team.people["Ann"], task.id, f"submission-{n:03}", assign.Answer(ranking=[[0], [1]], active_seconds=3))
    assert "gold" in met
    browser.get("/owner/gold")
    browser.send(f"/owner/gold/{row.id}/retire")
    assert "asked no more" in browser.page.words
    browser.post("/owner/gold/unknown/retire", {"csrf": browser.csrf})
    assert browser.status == 409
