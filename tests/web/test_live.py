"""Two models side by side: the pace, the names, what a vote stores. The models are a real server on this machine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.remote_server import Answer, delta, serving, streams
from tests.web_team import NOWHERE, SAME, Browser, Team, make_team

from preftune.records import standing
from preftune.web import live
from preftune.web.live import CATCH_UP_SECONDS, paced


@pytest.fixture
def _quick_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK_SECONDS", 0.005)
    monkeypatch.setattr(live, "SLOWEST", 20_000.0)


def answering(text: str) -> Answer:
    """Answer with this text, some characters at a time."""
    return streams(*[delta(text[i : i + 7]) for i in range(0, len(text), 7)], b"data: [DONE]\n\n")


@pytest.fixture
def team(tmp_path: Path, _quick_streams: None) -> Iterator[Team]:
    with serving(answering("Right **answer** one."), answering("Other answer two, and longer.")) as server:
        listed = [server.endpoint(name=name).model_dump() for name in ("red-model", "blue-model")]
        made = make_team(tmp_path, "Rita", endpoints=listed)
        yield made
        made.store.close()


def asked(team: Team, text: str = "Which *way*?") -> tuple[Browser, str]:
    browser = team.browser("Rita")
    browser.get("/live")
    browser.send("/live", prompt=text)
    return browser, browser.here.removeprefix("/live?run=")


def test_both_answers_stream_to_their_end_and_names_are_shown_after_the_vote_alone(team):
    browser, run = asked(team)
    before = browser.page.source
    stream = browser.client.get(f"/live/stream?run={run}", headers=SAME)
    texts = ["", ""]
    *events, done = [event for event in stream.text.split("\n\n") if event]
    for event in events:
        piece = json.loads(event.removeprefix("data: "))
        texts[piece["side"]] += piece["text"]
    assert done == "event: done\ndata: {}"
    assert set(texts) == {"Right **answer** one.", "Other answer two, and longer."}
    formatted = browser.get(f"/live?run={run}").source
    assert "<strong>answer</strong>" in formatted
    for text in (before, stream.text, str(stream.headers), formatted):
        assert "red-model" not in text
        assert "blue-model" not in text
    page = browser.send("/live/vote", choice="2", all_bad="1", active_seconds="9")
    assert "Saved: A is better; none is good enough" in page.words
    endpoints = [endpoint.name for endpoint in team.app.state.live._runs[run].endpoints]
    assert f"A was {endpoints[0]}, B was {endpoints[1]}" in page.words
    (judgement,) = team.judgements()
    by_id = {candidate.id: candidate for candidate in team.store.candidates()}
    assert [by_id[c].text for c in judgement.presentation] == texts
    assert [by_id[c].source for c in judgement.presentation] == endpoints
    assert (judgement.ranking, judgement.strength, judgement.acceptable) == (tuple((c,) for c in judgement.presentation), 2, ())
    assert (judgement.picked_by, judgement.rater, judgement.active_seconds) == ("live", team.people["Rita"].pseudonym, 9.0)
    assert [prompt.text for prompt in team.store.prompts()] == ["Which *way*?"]


def test_a_browser_without_script_waits_for_both(team):
    browser, run = asked(team)
    assert f"/live?run={run}&wait=1" in [a.get("href") for _, a in browser.page.elements]
    page = browser.get(f"/live?run={run}&wait=1")
    assert "Other answer two, and longer." in page.words


def test_nothing_is_stored_before_the_vote_and_a_vote_can_be_taken_back(team):
    browser, run = asked(team)
    browser.get(f"/live?run={run}&wait=1")
    assert team.store.counts() == {"prompts": 0, "candidates": 0, "judgements": 0, "demonstrations": 0}
    browser.send("/live/vote", choice="4")
    browser.send("/live/undo")
    assert [judgement.ranking for judgement in standing(team.judgements()) if judgement.ranking] == []
    assert browser.status == 200


def test_a_vote_twice_is_stored_once(team):
    browser, run = asked(team)
    browser.get(f"/live?run={run}&wait=1")
    fields = browser.page.forms["/live/vote"].fields() | {"choice": "1"}
    browser.post("/live/vote", fields)
    browser.post("/live/vote", fields | {"choice": "7"})
    assert [judgement.strength for judgement in team.judgements()] == [3]


def test_a_vote_that_says_nothing_is_not_taken(team):
    browser, run = asked(team)
    browser.get(f"/live?run={run}&wait=1")
    assert "You have not said which answer is better" in browser.send("/live/vote").words
    assert browser.status == 422


def test_stopping_keeps_what_was_seen_and_no_more(team, monkeypatch):
    monkeypatch.setattr(live, "SLOWEST", 1.0)
    browser, run = asked(team)
    found = team.app.state.live._runs[run]
    while not all(found.done):
        time.sleep(0.01)
    found.seen = 6
    page = browser.send("/live/vote", button="/live/stop")
    assert sorted(found.texts) == ["Other ", "Right "]
    assert "Right" in page.words
    browser.send("/live/vote", choice="1")
    assert {candidate.sampling["stopped"] for candidate in team.store.candidates()} == {True}


def test_a_model_that_does_not_answer_is_said_to_be_silent_without_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("preftune.data.remote.ATTEMPTS", 1)
    team = make_team(tmp_path, "Rita", endpoints=[{**NOWHERE, "name": "red-model"}])
    browser, run = asked(team)
    page = browser.get(f"/live?run={run}&wait=1")
    assert page.words.count("No answer came from this model") == 2
    assert "red-model" not in page.source
    assert "One of the two answers is missing" in browser.send("/live/vote", choice="1").words
    team.store.close()


def test_without_models_there_is_no_such_page(tmp_path):
    team = make_team(tmp_path, "Rita")
    browser = team.browser("Rita")
    assert "/live" not in browser.get("/").source
    assert "No models are set up" in browser.get("/live").words
    assert browser.status == 404
    team.store.close()


def test_a_person_has_one_run_and_all_together_no_more_than_a_limit(team, monkeypatch):
    browser, first = asked(team)
    browser.get("/live")
    browser.send("/live", prompt="again")
    assert list(team.app.state.live._runs) == [browser.here.removeprefix("/live?run=")]
    monkeypatch.setattr(live, "MAX_RUNS", 0)
    browser.get("/live")
    assert "comparing models right now" in browser.send("/live", prompt="more").words
    assert first


# The pace

COUNTS = st.integers(0, 5000)


@given(COUNTS, st.tuples(COUNTS, COUNTS), st.tuples(st.booleans(), st.booleans()), st.floats(0, 1e4), st.floats(0.001, 1))
def test_no_more_is_seen_of_the_faster_answer_than_of_one_that_goes_on(seen, received, done, speed, elapsed):
    seen = min(seen, *received)
    now = paced(seen, received, done, speed, elapsed)
    assert seen <= now <= max(received)
    for count, ended in zip(received, done, strict=True):
        assert ended or now <= count


def test_the_rest_of_the_faster_answer_follows_at_the_pace_of_the_slower_one():
    # The slower one came at 100 characters a second and has ended with 300; the faster one has 700 more.
    seen, ticks = 300, 0
    while seen < 1000:
        seen = paced(seen, (300, 1000), (True, True), 100.0, 0.1)
        ticks += 1
    assert 6.5 < ticks * 0.1 < CATCH_UP_SECONDS


def test_a_slow_pace_is_no_torture():
    assert paced(0, (90, 90), (True, True), 0.1, 1.0) == 60


def test_a_stream_that_is_asked_for_again_begins_at_the_beginning():
    run = live.Run("r", "p", None, (None, None), (1, 2), texts=["abc", "de"], done=[True, True], seen=3)  # type: ignore[arg-type]

    async def gather() -> list[str]:
        return [event async for event in live.events(run)]

    assert asyncio.run(gather()) == asyncio.run(gather())
