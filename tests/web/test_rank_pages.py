"""The raters' pages without any script: what a browser shows and sends, and what is in the store then."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.web_team import Browser, Team, make_team, question, shown_order

from preftune.records import Judgement, Message, Prompt, standing
from preftune.web import assign, render

WORDS = ["quokka", "numbat", "dugong", "bilby", "potoroo", "wallaby", "echidna", "kowari", "quoll"]
LETTERS = "ABCDEFGHI"


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    made = make_team(tmp_path, "Rita", "Ravi", aspects={"correct": "Does it do what was asked?", "clear": "Is it easy to read?"})
    yield made
    made.store.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[type[Team]]:
    made: list[Team] = []

    def build(**settings: object) -> Team:
        made.append(make_team(tmp_path, "Rita", "Ravi", **settings))
        return made[-1]

    yield build  # type: ignore[misc]
    for one in made:
        one.store.close()


def opened(team: Team, count: int, name: str = "Rita") -> tuple[Browser, list[str]]:
    """Return a browser at an item with so many answers, and their ids in the order shown."""
    candidates = team.add(question(f"Which of {count} animals?"), WORDS[:count])
    browser = team.browser(name)
    browser.get("/")
    page = browser.send("/next")
    order = shown_order(page, candidates)
    return browser, [candidates[i].id for i in order]


def last(team: Team) -> Judgement:
    return standing(team.judgements())[-1]


# From the page to the store


@pytest.mark.parametrize(
    ("choice", "better", "strength"),
    [(1, (0, 1), 3), (2, (0, 1), 2), (3, (0, 1), 1), (4, None, 0), (5, (1, 0), 1), (6, (1, 0), 2), (7, (1, 0), 3)],
)
def test_each_of_the_seven_choices_is_stored_as_it_is_meant(team, choice, better, strength):
    browser, ids = opened(team, 2)
    browser.send(browser.judging() + "/submit", choice=str(choice))
    judgement = last(team)
    assert judgement.ranking == (((ids[0], ids[1]),) if better is None else ((ids[better[0]],), (ids[better[1]],))) or (
        better is None and {*judgement.ranking[0]} == {*ids}
    )
    assert judgement.strength == strength
    assert judgement.presentation == tuple(ids)
    assert judgement.rater == team.people["Rita"].pseudonym


@pytest.mark.parametrize("seed", range(12))
def test_a_random_ranking_on_the_page_is_the_same_ranking_in_the_store(team, seed):
    chance = random.Random(seed)
    count = chance.randint(3, 9)
    browser, ids = opened(team, count)
    places = [chance.choice(["", *map(str, range(1, count + 1))]) for _ in range(count)]
    places[0], places[1] = "1", str(count)  # at least two are ranked
    page = browser.send(browser.judging() + "/submit", **{f"place-{i}": place for i, place in enumerate(places)})
    expected = [{ids[i] for i in range(count) if places[i] == str(place)} for place in range(1, count + 1)]
    assert [set(tier) for tier in last(team).ranking] == [tier for tier in expected if tier]
    said = " > ".join(
        " = ".join(LETTERS[i] for i in range(count) if places[i] == str(place)) for place in range(1, count + 1) if str(place) in places
    )
    assert f"Saved: {said}" in page.words


def test_best_and_worst_leave_the_others_untold_apart(make):
    team = make(task="best_worst")
    browser, ids = opened(team, 4)
    browser.send(browser.judging() + "/submit", best="2", worst="0")
    best, between, worst = last(team).ranking
    assert (best, set(between), worst) == ((ids[2],), {ids[1], ids[3]}, (ids[0],))


def test_what_was_not_ranked_is_not_in_the_ranking(team):
    browser, ids = opened(team, 4)
    page = browser.send(browser.judging() + "/submit", **{"place-3": "1", "place-1": "2"})
    assert last(team).ranking == ((ids[3],), (ids[1],))
    assert "D > B (A, C not compared)" in page.words


def test_all_can_be_bad_with_and_without_an_order(team):
    browser, ids = opened(team, 2)
    page = browser.send(browser.judging() + "/submit", all_bad="1")
    assert (last(team).ranking, last(team).acceptable) == ((), ())
    assert "none is good enough" in page.words
    browser, ids = opened(team, 3)
    browser.send(browser.judging() + "/submit", all_bad="1", **{"place-0": "1", "place-1": "2"})
    assert (last(team).ranking, last(team).acceptable) == (((ids[0],), (ids[1],)), ())


def test_good_enough_is_stored_only_where_it_is_said(team):
    browser, ids = opened(team, 2)
    browser.send(browser.judging() + "/submit", choice="1")
    assert last(team).acceptable is None
    browser, ids = opened(team, 3)
    browser.send(browser.judging() + "/submit", **{"place-0": "1", "place-1": "2", "good-1": "1"})
    assert last(team).acceptable == (ids[1],)


def test_a_rewrite_a_reason_and_aspects_arrive_as_they_were_written(team):
    browser, ids = opened(team, 2)
    path = browser.judging()
    assert browser.get(f"{path}?rewrite=1").forms[f"{path}/submit"].fields()["rewrite"] in WORDS
    text = "\n  def f():\n\treturn '<b>'  # ü\n"
    browser.send(
        f"{path}/submit", choice="7", rewrite=text.replace("\n", "\r\n"), rationale=" shorter ", **{"aspect-0-1": "5", "aspect-1-0": "2"}
    )
    said = last(team)
    assert (said.rewrite, said.rewrite_of, said.rationale) == (text, ids[1], "shorter")
    assert said.aspects == {"correct": {ids[1]: 5.0}, "clear": {ids[0]: 2.0}}


def test_without_a_script_no_time_is_recorded(team):
    browser, _ = opened(team, 2)
    browser.send(browser.judging() + "/submit", choice="1")
    assert last(team).active_seconds is None


@pytest.mark.parametrize("seconds", ["nan", "inf", "-3", "soon"])
def test_a_time_that_is_none_is_not_recorded(team, seconds):
    browser, _ = opened(team, 2)
    browser.send(browser.judging() + "/submit", choice="1", active_seconds=seconds)
    assert last(team).active_seconds is None


# Nothing that was not said


@pytest.mark.parametrize("count", [2, 3])
def test_nothing_is_chosen_beforehand(team, count):
    browser, _ = opened(team, count)
    fields = browser.page.forms[browser.judging() + "/submit"].fields()
    said = {name: value for name, value in fields.items() if value and name not in ("csrf", "submission_id", "draft_version")}
    assert said == {}


@pytest.mark.parametrize(
    ("count", "fields", "sentence"),
    [
        (2, {}, "You have not said which answer is better"),
        (3, {}, "You have not ranked two answers yet"),
        (3, {"place-1": "2"}, "You have ranked one answer alone"),
        (2, {"choice": "8"}, '"8" is nothing that "choice" can be'),
        (2, {"choice": "４"}, '"４" is nothing that "choice" can be'),
        (3, {"place-1": "4", "place-2": "1"}, '"4" is nothing that "place-1" can be'),
        (2, {"choice": "1", "good-0": "1", "all_bad": "1"}, "You marked A as good enough and said that none is"),
        (2, {"choice": "1", "rewrite": "better"}, "You rewrote an answer, but did not say which"),
        (2, {"rationale": "hm"}, "You have not said which answer is better"),
    ],
)
def test_a_form_that_says_nothing_or_too_much_is_shown_again_as_it_was_sent(team, count, fields, sentence):
    browser, _ = opened(team, count)
    path = browser.judging()
    page = browser.send(f"{path}/submit", **{"rationale": "my long text", **fields})
    assert browser.status == 422
    assert sentence in page.words
    shown = page.forms[f"{path}/submit"].fields()
    assert shown["rationale"] == fields.get("rationale", "my long text")
    assert {name: shown.get(name) for name in fields if name not in ("choice", "place-1")} == {
        name: value for name, value in fields.items() if name not in ("choice", "place-1")
    }
    assert team.judgements() == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"best": "1"}, "which answer is the worst"),
        ({"worst": "1"}, "which answer is the best"),
        ({"best": "1", "worst": "1"}, "B cannot be"),
    ],
)
def test_half_of_best_and_worst_is_not_taken(make, fields, sentence):
    browser, _ = opened(make(task="best_worst"), 3)
    page = browser.send(browser.judging() + "/submit", **fields)
    assert browser.status == 422
    assert sentence in page.words


# Back and forth


def test_a_judgement_can_be_taken_back_from_the_page_that_says_it(team):
    browser, _ = opened(team, 3)
    path = browser.judging()
    browser.send(f"{path}/submit", rationale="why", **{"place-2": "1", "place-0": "1", "place-1": "3"})
    page = browser.send("/undo")
    assert browser.here == f"{path}?undone=1"
    fields = page.forms[f"{path}/submit"].fields()
    # Places are read back without gaps: what counts is the order.
    assert [fields[f"place-{i}"] for i in range(3)] == ["1", "2", "1"]
    assert fields["rationale"] == "why"
    assert [j.ranking for j in standing(team.judgements()) if j.ranking] == []


def test_what_was_said_can_be_changed_later_and_the_change_supersedes(team):
    browser, ids = opened(team, 2)
    path = browser.judging()
    browser.send(f"{path}/submit", choice="1")
    page = browser.get(path)
    assert page.forms[f"{path}/submit"].fields()["choice"] == "1"
    assert "You have judged this one" in page.words
    assert f"{path}/skip" not in page.source
    page = browser.send(f"{path}/submit", choice="6")
    assert browser.here.startswith("/history?done=")
    assert "Saved: B is better" in page.words
    assert [(j.ranking, j.strength) for j in standing(team.judgements())] == [(((ids[1],), (ids[0],)), 2)]
    assert len(team.judgements()) == 2


def test_reopening_shows_the_same_answers_in_the_same_order(team):
    browser, _ = opened(team, 5)
    path = browser.judging()

    def order() -> list[str]:
        return [word for word in re.findall(r">(\w+)</p>", browser.page.source) if word in WORDS]

    first = order()
    assert sorted(first) == sorted(WORDS[:5])
    browser.send(f"{path}/submit", **{"place-0": "1", "place-1": "2"})
    browser.get(path)
    assert order() == first


def test_skipping_keeps_what_was_typed_and_can_be_undone(team):
    browser, _ = opened(team, 2)
    path = browser.judging()
    page = browser.send(f"{path}/submit", button=f"{path}/skip", reason=assign.SKIP_REASONS[0], rationale="half a thought", choice="2")
    assert f"Saved: skipped ({assign.SKIP_REASONS[0]})" in page.words
    page = browser.send("/undo")
    fields = page.forms[f"{path}/submit"].fields()
    assert (fields["rationale"], fields["choice"]) == ("half a thought", "2")
    assert team.judgements() == []


def test_skipping_for_no_reason_of_the_page_is_refused(team):
    browser, _ = opened(team, 2)
    path = browser.judging()
    browser.send(f"{path}/submit", button=f"{path}/skip", reason="because")
    assert browser.status == 422


def test_the_same_submission_twice_is_stored_once(team):
    browser, _ = opened(team, 2)
    path = browser.judging()
    fields = browser.page.forms[f"{path}/submit"].fields() | {"choice": "1"}
    for _ in range(3):
        browser.post(f"{path}/submit", fields)
        assert browser.status == 200
    assert len(team.judgements()) == 1


def test_a_submission_whose_answer_got_lost_leads_on_when_it_is_sent_again(team):
    browser, _ = opened(team, 2)
    path = browser.judging()
    fields = browser.page.forms[f"{path}/submit"].fields() | {"choice": "1"}
    team.add(question("And of these?"), WORDS[:2])
    led = []
    for _ in range(2):
        browser.post(f"{path}/submit", fields)
        led.append(browser.here)
    assert led[0].startswith("/a/")
    assert not led[0].startswith(path)
    assert led[1] == led[0]
    assert len(team.judgements()) == 1


def test_a_draft_is_kept_and_shown_again(team):
    browser, _ = opened(team, 3)
    path = browser.judging()
    headers = {"X-CSRF": browser.csrf, "Sec-Fetch-Site": "same-origin"}
    fields = {"place-1": "2", "rationale": "so\nfar", "active_seconds": "12.5"}
    sent = browser.client.put(f"{path}/draft", json={"version": 0, "fields": fields}, headers=headers)
    assert (sent.status_code, sent.json()) == (200, {"version": 1})
    shown = browser.get(path).forms[f"{path}/submit"].fields()
    assert {name: shown[name] for name in (*fields, "draft_version")} == {**fields, "draft_version": "1"}


def test_the_draft_of_another_window_is_not_written_over_and_both_are_there(team):
    browser, _ = opened(team, 2)
    path = browser.judging()
    headers = {"X-CSRF": browser.csrf, "Sec-Fetch-Site": "same-origin"}
    browser.client.put(f"{path}/draft", json={"version": 0, "fields": {"choice": "1"}}, headers=headers)
    sent = browser.client.put(f"{path}/draft", json={"version": 0, "fields": {"choice": "7"}}, headers=headers)
    assert sent.status_code == 409
    assert (sent.json()["version"], sent.json()["fields"]) == (1, {"choice": "1"})


@pytest.mark.parametrize("sent", [[], {"version": "0", "fields": {}}, {"version": 0}, {"version": 0, "fields": {"choice": 1}}, "x"])
def test_a_draft_of_another_shape_is_refused(team, sent):
    browser, _ = opened(team, 2)
    headers = {"X-CSRF": browser.csrf, "Sec-Fetch-Site": "same-origin"}
    assert browser.client.put(f"{browser.judging()}/draft", json=sent, headers=headers).status_code == 400


def test_the_script_gets_json_where_a_browser_is_sent_on(team):
    browser, _ = opened(team, 2)
    path = browser.judging()
    fields = browser.page.forms[f"{path}/submit"].fields()
    headers = {"X-CSRF": browser.csrf, "Sec-Fetch-Site": "same-origin", "Accept": "application/json"}
    refused = browser.client.post(f"{path}/submit", data=fields, headers=headers)
    assert (refused.status_code, refused.json()["error"][:12]) == (422, "You have not")
    taken = browser.client.post(f"{path}/submit", data=fields | {"choice": "1"}, headers=headers)
    assert taken.json() == {"next": f"/?empty=finished&done={path.removeprefix('/a/')}"}


# The way through


def test_the_queue_says_why_it_is_empty(team):
    browser = team.browser("Rita")
    browser.get("/")
    assert "There is nothing to judge yet" in browser.send("/next").words
    browser, _ = opened(team, 2)
    other = team.browser("Ravi")
    other.get("/")
    assert "in the hands of other raters" in other.send("/next").words
    browser.send(browser.judging() + "/submit", choice="1")
    assert "You have judged everything" in browser.page.words


def test_home_shows_how_far_one_is(team):
    team.add(question("another?"), WORDS[3:5])
    browser, _ = opened(team, 2)
    browser.send(browser.judging() + "/submit", choice="1", active_seconds="75")
    page = browser.get("/")
    assert "1 done, 1 to go" in page.words
    assert "1 min 15 s an item" in page.words


def test_history_lists_what_was_said_and_leads_back(team):
    browser, _ = opened(team, 3)
    path = browser.judging()
    browser.send(f"{path}/submit", **{"place-0": "2", "place-1": "1"})
    page = browser.get("/history")
    assert "B > A (C not compared)" in page.words
    assert ("a", path) in [(tag, attributes.get("href")) for tag, attributes in page.elements]


def test_the_guidelines_are_shown_as_they_are_now(team):
    browser = team.browser("Rita")
    assert "has written no guidelines" in browser.get("/guide").words
    team.settings.guidelines.write_text("# Ours\n\n- **Right** first.\n", encoding="utf-8")
    page = browser.get("/guide")
    assert '<h2 dir="auto">Ours</h2>' in page.source
    assert "<strong>Right</strong>" in page.source


def test_the_sheet_shows_the_keys_and_the_answers_can_be_compared(team):
    browser, _ = opened(team, 3)
    path = browser.judging()
    assert "submit and go on" in browser.get("/keys").words
    page = browser.get(f"{path}/diff?left=0&right=2")
    assert "1 of 1 lines differ." in page.words
    assert browser.get(f"{path}/diff?left=0&right=3").words
    assert browser.status == 404
    assert browser.client.get(f"{path}/text/1").text in WORDS[:3]
    assert browser.client.get(f"{path}/text/3").status_code == 404


def test_a_pair_shows_its_differences_on_the_page(team):
    team.add(question("code?"), ["same\nx = 1\n", "same\nx = 2\n"])
    browser = team.browser("Rita")
    browser.get("/")
    page = browser.send("/next")
    assert {"x = <mark>1</mark>", "x = <mark>2</mark>"} <= set(re.findall(r'<td class="(?:left|right)">(.*?)</td>', page.source))


def test_every_turn_of_a_conversation_is_shown_with_its_role(team):
    turns = (
        Message(role="system", content="Be short."),
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="**Why?**"),
    )
    team.add(Prompt(messages=turns), WORDS[:2])
    browser = team.browser("Rita")
    browser.get("/")
    page = browser.send("/next")
    assert re.findall(r'<p class="role">(\w+)</p>', page.source) == ["System", "Asked", "Answered", "Asked"]
    assert "<strong>Why?</strong>" in page.source


def test_long_answers_say_how_much_is_folded_away_and_short_ones_that_nothing_is(team):
    long = "\n".join(f"line {i}" for i in range(200))
    team.add(question("long?"), [long, "short"])
    browser = team.browser("Rita")
    browser.get("/")
    page = browser.send("/next")
    assert f"{200 - render.FOLD_LINES} of 200 lines are folded away." in page.words
    assert "The one line is shown." in page.words
    assert "line 199" in page.words


def test_an_answer_that_may_name_its_author_is_announced(team):
    team.add(question("who?"), ["As ChatGPT I cannot.", "llamas are animals"])
    browser = team.browser("Rita")
    browser.get("/")
    assert "An answer may say who wrote it (ChatGPT)." in browser.send("/next").words
