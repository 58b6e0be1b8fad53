"""The owner's numbers: every one on a page is compared with one computed by hand, on a team small enough for that."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from sqlalchemy import update
from tests.web_team import PASSWORD, Team, answers_to, make_team, question

from preftune.data import tables
from preftune.data.store import Store
from preftune.records import Judgement, Message, Prompt
from preftune.web import assign, audit, auth, items
from preftune.web.answers import Answer
from preftune.web.app import create_app
from preftune.web.kept import Kept
from preftune.web.settings import LabelSettings, record_protocol


@pytest.fixture
def team(tmp_path: Path, empty_store: bytes) -> Iterator[Team]:
    (tmp_path / "store.db").write_bytes(empty_store)
    made = make_team(tmp_path, "Ann", "Bob", "Cem", overlap=2)
    yield made
    made.store.close()


def words(team: Team, path: str) -> str:
    """Return the words of an owner's page in one line, a space between cells, without charts."""
    browser = team.browser("Olga")
    page = browser.get(path)
    assert browser.status == 200, page.words
    return " ".join(html.unescape(re.sub(r"<svg.*?</svg>|<[^>]*>", " ", page.source, flags=re.DOTALL)).split())


def pairs(team: Team, count: int, kind: str = "") -> list[tuple[Prompt, str, str]]:
    """Add prompts with two answers each; return them with the ids of the first and the second in canonical order."""
    found = []
    for n in range(count):
        prompt = Prompt(messages=(Message(role="user", content=f"{kind} question {n}"),), kind=kind)
        candidates = answers_to(prompt, ["one", "two"])
        team.store.add([prompt], candidates)
        first, second = sorted(c.id for c in candidates)
        found.append((prompt, first, second))
    return found


def word(rater: str, item: tuple[Prompt, str, str], verdict: int, *, shown: int = 0, **fields: Any) -> Judgement:
    """verdict: 1 the first in canonical order is better, −1 the second, 0 level. shown: 1 the first was shown first, −1 second."""
    prompt, first, second = item
    order = ((first,), (second,)) if verdict > 0 else ((second,), (first,)) if verdict < 0 else ((first, second),)
    presentation = () if not shown else (first, second) if shown > 0 else (second, first)
    return Judgement(prompt_id=prompt.id, ranking=order, rater=rater, presentation=presentation, **fields)


def forty(team: Team) -> list[tuple[Prompt, str, str]]:
    """Forty pairs on which Ann and Bob agree in thirty: 10 of 20 on naming, 20 of 20 on errors; each says either side 20 times."""
    ann, bob = (team.people[name].pseudonym for name in ("Ann", "Bob"))
    made = pairs(team, 20, "naming") + pairs(team, 20, "errors")
    said = []
    for n, item in enumerate(made):
        verdict = 1 if n % 2 else -1
        differs = n < 10  # five with Ann for the first, five with her for the second
        said += [word(ann, item, verdict), word(bob, item, -verdict if differs else verdict)]
    team.store.add(judgements=said)
    return made


# Agreement


def test_agreement_is_that_of_two_raters_counted_by_hand(team: Team):
    forty(team)
    text = words(team, "/owner/agreement")
    assert "80 judgements by 2 raters on 40 twos of answers, 40 of them by two raters or more" in text
    # Wilson at 30 of 40: centre (0.75 + 3.8415/80) / (1 + 3.8415/40) = 0.7281, half 0.1300.
    assert "Two raters agree, ties left out 75.0 % 59.8 to 85.8 40 " in text
    # Krippendorff: observed disagreement 10/40; by chance 1 − 2 · 40 · 39 / (80 · 79) = 0.5063; 1 − 0.25 / 0.5063 = 0.506.
    assert re.search(r"Krippendorff's α 0\.51 -?\d\.\d\d to \d\.\d\d 40", text)
    # Gwet: chance 2 · 0.5 · 0.5 = 0.5; (0.75 − 0.5) / 0.5.
    assert re.search(r"Gwet's AC1 0\.50 ", text)
    assert re.search(r"naming 50\.0 % 29\.9 to 70\.1 20", text)  # Wilson at 10 of 20
    assert re.search(r"errors 100\.0 %", text)
    # e = (1 − √(2 · 0.75 − 1)) / 2 = 0.146, so 85.4 % can be reached.
    assert "a perfect reward model would reach 85.4 %" in text
    for name in ("Ann", "Bob"):
        assert re.search(rf"{team.people[name].pseudonym} {name} 75\.0 % 59\.8 to 85\.8 40", text)


def test_a_program_is_held_against_people_and_does_not_count_among_them(team: Team):
    made = forty(team)
    # On the 20 prompts on errors Ann and Bob agree; the judge agrees with both in 18. On others the two may be split, so it says nothing.
    team.store.add(judgements=[word("judge:big", item, (1 if n % 2 else -1) * (-1 if n < 2 else 1)) for n, item in enumerate(made[20:])])
    text = words(team, "/owner/agreement")
    assert re.search(r"judge:big 20 90\.0 % 69\.9 to 97\.2 20", text)  # Wilson at 18 of 20
    assert "80 judgements by 2 raters" in text
    assert re.search(r"ties left out 75\.0 %", text)


def test_under_thirty_pairs_no_coefficient_is_shown_and_the_reason_is(team: Team):
    ann, bob = (team.people[name].pseudonym for name in ("Ann", "Bob"))
    made = pairs(team, 29)
    team.store.add(judgements=[word(rater, item, 1) for item in made for rater in (ann, bob)])
    text = words(team, "/owner/agreement")
    assert "Krippendorff's α" not in text.split("Each rater")[0].split("Coefficients")[0]
    assert "29 twos of answers were judged by two raters or more, and under 30 say nothing" in text
    assert "too few to act on" in text


def test_gold_and_settled_words_do_not_count_as_agreement(team: Team):
    ann, bob = (team.people[name].pseudonym for name in ("Ann", "Bob"))
    one, two = pairs(team, 2)
    team.store.add(
        judgements=[
            word(ann, one, 1),
            word("settled:" + bob, one, 1),
            word(ann, two, 1, picked_by="gold"),
            word(bob, two, 1, picked_by="gold"),
        ]
    )
    assert "No two raters have preferred one of the same answers yet" in words(team, "/owner/agreement")


def test_pages_of_an_empty_store_say_what_is_missing(team: Team):
    assert "There is nothing to judge yet" in words(team, "/owner")
    assert "No two raters" in words(team, "/owner/agreement")
    assert "a bias by place cannot be seen" in words(team, "/owner/position")
    assert "No judgement has a time" in words(team, "/owner/time")
    assert "There is no gold item" in words(team, "/owner/gold")
    assert "No two raters have said different things" in words(team, "/owner/disagreements")


def test_figures_are_measured_anew_when_a_judgement_comes(team: Team):
    (item,) = pairs(team, 1)
    team.store.add(judgements=[word("r_a", item, 1), word("r_b", item, 1)])
    assert "100.0 %" in words(team, "/owner/agreement")
    team.store.add(judgements=[word("r_c", item, -1)])
    assert "33.3 %" in words(team, "/owner/agreement")  # one of the three pairs of raters agrees


def test_figures_of_a_large_store_are_kept_for_a_while_and_those_of_a_small_one_never():
    begun = datetime(2026, 3, 1, 12, tzinfo=UTC)
    small, large = Kept((1,), begun, 0.4, "figures"), Kept((1,), begun, 10.0, "figures")
    later = [begun + timedelta(seconds=seconds) for seconds in (1, 199, 201)]
    assert [small.is_good((2,), now) for now in later] == [False, False, False]
    assert [large.is_good((2,), now) for now in later] == [True, True, False]  # 20 times 10 seconds
    assert [kept.is_good((1,), later[2]) for kept in (small, large)] == [True, True]


# Place and time


def test_the_bias_by_place_is_counted_with_its_exact_interval(team: Team):
    ann, bob = (team.people[name].pseudonym for name in ("Ann", "Bob"))
    made = pairs(team, 40)
    said = [word(ann, item, 1, shown=1 if n < 30 else -1) for n, item in enumerate(made)]  # the first wins in 30 of 40
    said += [word(bob, item, 1, shown=1 if n < 20 else -1) for n, item in enumerate(made)]  # in 20 of 40
    said += [word("r_tie", item, 0, shown=1) for item in made]  # ties say nothing of place
    team.store.add(judgements=said)
    text = words(team, "/owner/position")
    for wins, total in ((50, 80), (30, 40), (20, 40)):
        low, high = stats.binomtest(wins, total).proportion_ci(method="exact")
        assert f"{100 * wins / total:.1f} % {100 * low:.1f} to {100 * high:.1f} {total}" in text
    assert f"{ann} leans to the first place" in text
    assert f"{bob} leans" not in text
    assert "The answer shown first wins in 62.5 %" in text


def test_a_retest_is_compared_with_the_first_word(team: Team):
    ann = team.people["Ann"].pseudonym
    made = pairs(team, 4)
    again = [word(ann, item, 1 if n else -1, shown=-1, picked_by="retest") for n, item in enumerate(made)]
    team.store.add(judgements=[word(ann, item, 1, shown=1) for item in made] + again)
    text = words(team, "/owner/position")
    assert re.search(r"Says the same, ties as a third word 75\.0 % 30\.1 to 95\.4 4", text)  # Wilson at 3 of 4
    assert re.search(r"shown the other way round, ties left out 75\.0 %", text)


def test_times_are_quartiles_and_fast_ones_are_listed_and_kept(team: Team):
    ann, bob = (team.people[name].pseudonym for name in ("Ann", "Bob"))
    made = pairs(team, 5)
    team.store.add(judgements=[word(ann, item, 1, active_seconds=s) for item, s in zip(made, (10, 20, 30, 40, 1), strict=True)])
    team.store.add(judgements=[word(bob, item, 1, active_seconds=100) for item in made[:2]])
    text = words(team, "/owner/time")
    # Ann: 1, 10, 20, 30, 40. Median 20, quartiles 10 and 30; a fifth of the median is 4, so 1 is very fast.
    assert re.search(rf"{ann} Ann 20 s 10 to 30 s 5 1", text)
    assert re.search(rf"{bob} Bob 100 s 100 to 100 s 2 0", text)
    assert re.search(r"all 30 s 15 to 70 s 7 1", text)  # 1 10 20 30 40 100 100
    assert re.search(rf"question 4 {ann} Ann 1\.0 s", text)
    assert len(team.judgements()) == 7


# Gold


def test_raters_against_gold_have_the_beta_posterior(team: Team):
    ann, bob, olga = (team.people[name] for name in ("Ann", "Bob", "Olga"))
    made = pairs(team, 6)
    for prompt, first, second in made:
        items.add_gold(team.store, olga, prompt.id, [first, second], [[first], [second]], note="a tie is wrong here")
    rows = [word(ann.pseudonym, item, 1 if n < 3 else 0 if n == 3 else -1, shown=1, picked_by="gold") for n, item in enumerate(made)]
    rows += [word(bob.pseudonym, item, 1, shown=-1, picked_by="gold") for item in made]
    team.store.add(judgements=rows)
    text = words(team, "/owner/gold")
    # Ann 3 of 6: P(Beta(4, 4) < 0.8) = P(at least 4 of 7 at 0.8) = 0.1147 + 0.2753 + 0.3670 + 0.2097 = 0.967, an alert.
    assert re.search(rf"{ann.pseudonym} Ann 50\.0 % 18\.8 to 81\.2 6 0\.97 talk to them", text)
    # Bob 6 of 6: P(Beta(7, 1) < 0.8) = 0.8^7 = 0.210.
    assert re.search(rf"{bob.pseudonym} Bob 100\.0 % 61\.0 to 100\.0 6 0\.21 nothing to do", text)
    assert re.search(r"question 0 A > B 100\.0 % 34\.2 to 100\.0 2 a tie is wrong here", text)
    assert re.search(r"question 3 A > B 50\.0 %", text)


# Progress


def test_progress_counts_what_is_wanted_and_what_is_there(team: Team):
    for n in range(4):
        team.add(question(f"Which of these, {n}?"), ["left", "right"])
    ann, bob = team.people["Ann"], team.people["Bob"]
    for person, count, seconds in ((ann, 3, 30.0), (bob, 1, 50.0)):
        for _ in range(count):
            task = assign.next_assignment(team.store, person, team.settings)
            assert isinstance(task, assign.Assignment)
            assign.submit(team.store, person, task.id, f"submission-{task.id}"[:64], Answer(ranking=[[0], [1]], active_seconds=seconds))
    skipped = assign.next_assignment(team.store, bob, team.settings)
    assert isinstance(skipped, assign.Assignment)
    assign.skip(team.store, bob, skipped.id, "too long")
    assign.next_assignment(team.store, bob, team.settings)  # held now
    text = words(team, "/owner")
    # Two raters an item, started items first: Ann's three and Bob's one are four of eight.
    assert "4 of 8 judgements are there, 4 are to come." in text
    started = {task.item_id for person in (ann, bob) for task in assign.history(team.store, person) if task.state == "submitted"}
    full = 4 - len(started)
    assert re.search(
        rf"items fully judged {full} partly judged {len(started) - full} untouched {4 - len(started)} in somebody's hands now 1",
        text,
    )
    assert re.search(rf"{ann.pseudonym} Ann 3 3 0 30 s 30 to 30 s 0\.0", text)
    assert re.search(rf"{bob.pseudonym} Bob 1 1 1 50 s 50 to 50 s 0\.0", text)
    assert "too long: 1" in text
    assert "too early for a forecast" in text


def test_the_forecast_follows_the_times_of_the_judgements(team: Team):
    for n in range(10):
        team.add(question(f"Which of these, {n}?"), ["left", "right"])
    ann = team.people["Ann"]
    now = datetime.now(UTC)
    # 2, 4 and then 2 a day in the last three days: 8 of 20 done, 12 to come at 2.7 a day.
    ago = [80, 60, 60, 40, 40, 40, 40, 10]
    for hours in ago:
        task = assign.next_assignment(team.store, ann, team.settings)
        assert isinstance(task, assign.Assignment)
        assign.submit(team.store, ann, task.id, f"submission-{task.id}"[:64], Answer(ranking=[[0], [1]], active_seconds=1))
        with team.store.writer() as writer:
            table = tables.assignments
            writer.connection.execute(update(table).where(table.c.id == task.id).values(submitted=now - timedelta(hours=hours)))
    text = words(team, "/owner")
    # Whole days: 2, 4, 1, mean 7/3 = 2.3 and 12 / 2.33 = 5.1 days; the deviation is 1.53, so the interval reaches 0.
    assert "At the present pace, 2.3 judgements a day (0.0 to 6.1, over 3 days), that takes about 5 days" in text
    assert "no end can be named at worst" in text


def test_more_overlap_than_people_is_said(tmp_path: Path):
    team = make_team(tmp_path, "Ann", overlap=3)
    team.add(question("Which?"), ["left", "right"])
    assert "1 of these are wanted of more raters than can log in here" in words(team, "/owner")  # Olga and Ann are two
    team.store.close()


# Items, settings, audit


def test_items_are_listed_by_state_words_and_kind_and_changed(team: Team):
    for n, kind in enumerate(("naming", "errors", "naming")):
        prompt = Prompt(messages=(Message(role="user", content=f'Größe "{n}" 100% of_it'),), kind=kind)
        team.add(prompt, ["Claude wrote this" if n == 0 else "left", "right"])
    browser = team.browser("Olga")
    assert "3 found" in browser.get("/owner/items").words
    assert "2 found" in browser.get("/owner/items?kind=naming").words
    assert "3 found" in browser.get("/owner/items?text=größe").words
    assert "1 found" in browser.get("/owner/items?text=%221%22").words
    assert "3 found" in browser.get("/owner/items?text=100%25+of_").words
    assert "0 found" in browser.get("/owner/items?text=100x").words
    assert browser.get("/owner/items").words.count("an answer may name its author: Claude") == 1
    assert "0 found" in browser.get("/owner/items?state=judged").words
    browser.get("/owner/items?state=untouched")
    action = next(action for action in browser.page.forms if re.fullmatch("/owner/items/[0-9a-f]{16}", action))
    browser.send(action, priority="7", overlap="3")
    assert browser.here == "/owner/items?state=untouched&kind=&text=&page=1"
    changed = browser.page.forms[action].fields()
    assert (changed["priority"], changed["overlap"]) == ("7", "3")
    browser.send(action, priority="7", overlap="")
    assert browser.page.forms[action].fields()["overlap"] == ""
    for fields in ({"priority": "1e3"}, {"priority": "1001"}, {"priority": "-"}, {"overlap": "0"}, {"overlap": "10"}, {"priority": ""}):
        browser.get("/owner/items")
        browser.send(action, **fields)
        assert browser.status == 422
    assert [e.action for e in audit.entries(team.store, after=audit.last_number(team.store) - 3)] == [
        "set priority",
        "set overlap",
        "set overlap",
    ]


def test_settings_show_each_version_with_what_was_judged_under_it(team: Team):
    record_protocol(team.store, team.settings)
    team.add(question("Which?"), ["left", "right"])
    ann = team.people["Ann"]
    task = assign.next_assignment(team.store, ann, team.settings)
    assert isinstance(task, assign.Assignment)
    assign.submit(team.store, ann, task.id, "submission-1", Answer(ranking=[[0], [1]], active_seconds=1))
    team.settings.guidelines.write_text("Prefer the <shorter> one.", encoding="utf-8")
    record_protocol(team.store, team.settings)
    text = words(team, "/owner/settings")
    assert re.search(r"Version 2 .*holds now : 0 rows of judgements.*Version 1 .*: 1 row of judgements", text)
    assert "Prefer the <shorter> one." in text
    assert "overlap" in text


def test_the_audit_trail_is_shown_newest_first_and_a_broken_chain_is_named(team: Team):
    browser = team.browser("Olga")
    for n in range(120):
        audit.record(team.store, team.people["Olga"].pseudonym, f"deed {n}", "thing")
    last = audit.last_number(team.store)
    page = browser.get("/owner/audit")
    assert f"The chain of {last:,} entries is whole" in page.words
    assert page.words.index("deed 119") < page.words.index("deed 118")
    assert "deed 1 " not in re.sub(r"\s+", " ", page.words)
    browser.get(f"/owner/audit?before={last - 99}")
    assert "deed 19" in browser.page.words
    with team.store.writer() as writer:
        writer.connection.execute(update(tables.audit).where(tables.audit.c.number == 9).values(action="nothing at all"))
    assert "The chain is broken: entry 9 was changed after it was written" in browser.get("/owner/audit").words


# Databases


def test_every_page_works_on_each_database(any_store: Store, tmp_path: Path):
    people = {"Olga": auth.add_person(any_store, "Olga", PASSWORD, "owner")}
    people |= {name: auth.add_person(any_store, name, PASSWORD, "rater") for name in ("Ann", "Bob")}
    settings = LabelSettings(guidelines=tmp_path / "guidelines.md", overlap=2, overlap_share=0, gold_share=0, retest_share=0)
    team = Team(any_store, settings, create_app(any_store, settings), people)
    prompt, first, second = forty(team)[0]
    assign.fill_items(any_store, settings)
    record_protocol(any_store, settings)
    items.add_gold(any_store, people["Olga"], prompt.id, [first, second], [[first], [second]])
    browser = team.browser("Olga")
    browser.get(f"/owner/prompts/{prompt.id}")
    browser.send(f"/owner/prompts/{prompt.id}/settle", place_A="1", place_B="2")
    assert "75.0 % 59.8 to 85.8 40" in words(team, "/owner/agreement")
    assert "0 of 80 judgements are there" in words(team, "/owner")
    assert "Raters differ on 10 prompts, of which 9 are not settled" in words(team, "/owner/disagreements")
    assert "20 found" in words(team, "/owner/items?kind=errors&text=errors%20QUESTION&state=untouched")
    assert "81 rows from 81 judgements" in words(team, "/owner/export?format=csv")
    for path in (
        "/owner/position",
        "/owner/time",
        "/owner/gold",
        "/owner/people",
        "/owner/audit",
        "/owner/settings",
        "/owner/export?format=own",
    ):
        words(team, path)
