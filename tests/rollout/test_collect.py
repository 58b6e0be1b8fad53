"""Candidates for people to rank: different ones, from where they are said to be, none lost and none asked for twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.remote_server import Seen, choices, send, serving

from preftune.data import remote
from preftune.data.remote import RemoteError
from preftune.data.store import Store
from preftune.errors import ConfigError, DataError, ModelError
from preftune.records import Candidate, Message, Prompt
from preftune.rollout.collect import sample_candidates
from preftune.rollout.sources import SampleSettings

WORDS = "lantern copper meadow violin harbour pepper glacier saddle walnut marble thunder basket".split()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(messages=(Message(role="user", content=f"{WORDS[n]}?"),)) for n in range(count)]


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "store.db") as opened:
        opened.add(prompts=prompts(3))
        yield opened


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "BACK_OFF_SECONDS", 0.0)


def different(handler, request: Seen) -> None:
    """Another answer to each seed and prompt."""
    send(handler, choices(f"{request.body['messages'][-1]['content']} {request.body['seed']} at {request.body['temperature']}"))


def sampled(store: Store) -> dict[str, list[Candidate]]:
    return {prompt.text: list(store.candidates(prompt.id)) for prompt in store.prompts()}


def test_each_prompt_gets_k_candidates_with_the_settings_that_made_them(store):
    with serving(different) as server:
        report = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=4, temperatures=(0.5, 1.0), greedy=True, seed=3))
    assert (report.prompts, report.new, report.complete, report.failed) == (3, 12, 0, 0)
    assert report.sources == {"tiny": 12}
    for candidates in sampled(store).values():
        by_place = {c.sampling["place"]: c for c in candidates}
        assert [by_place[place].sampling["temperature"] for place in range(4)] == [0.0, 0.5, 1.0, 0.5]
        assert {c.source for c in candidates} == {"tiny"}
        assert all(c.sampling["finished"] and c.sampling["seed"] == 3 and c.sampling["max_new_tokens"] == 512 for c in candidates)
        assert all(f"at {c.sampling['temperature']}" in c.text for c in candidates)


def test_several_endpoints_take_turns(store):
    with serving(different) as a, serving(different) as b:
        sources = [a.endpoint(name="a", model="first"), b.endpoint(name="b", model="second")]
        sample_candidates(store, sources, SampleSettings(candidates=4, temperatures=(0.5, 1.0)))
    for candidates in sampled(store).values():
        found = {c.sampling["place"]: (c.source, c.sampling["temperature"]) for c in candidates}
        assert found == {0: ("first", 0.5), 1: ("second", 0.5), 2: ("first", 1.0), 3: ("second", 1.0)}


def test_the_same_settings_twice_ask_nothing_and_add_nothing(store):
    with serving(different) as server:
        sample_candidates(store, [server.endpoint()], SampleSettings())
        asked = len(server.seen)
        report = sample_candidates(store, [server.endpoint()], SampleSettings())
        assert len(server.seen) == asked
    assert (report.new, report.complete, report.prompts) == (0, 3, 3)


def test_more_candidates_ask_for_the_difference_alone_and_new_prompts_for_themselves_alone(store):
    with serving(different) as server:
        sample_candidates(store, [server.endpoint()], SampleSettings(candidates=2))
        sample_candidates(store, [server.endpoint()], SampleSettings(candidates=5))
        assert len(server.seen) == 15
        store.add(prompts=prompts(4))
        sample_candidates(store, [server.endpoint()], SampleSettings(candidates=5))
        assert len(server.seen) == 20
    assert {len(found) for found in sampled(store).values()} == {5}


def test_other_settings_ask_anew(store):
    with serving(different) as server:
        sample_candidates(store, [server.endpoint()], SampleSettings(candidates=2))
        report = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=2, seed=1))
    assert report.new == 6


def test_a_run_that_was_broken_off_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr("preftune.rollout.collect.BATCH_PROMPTS", 2)
    stop_after = 11

    def breaks_off(handler, request):
        (different if len(server.seen) <= stop_after else lambda h, r: send(h, b"no such model", 404))(handler, request)

    with serving(breaks_off) as server, Store.create(tmp_path / "a.db") as store, Store.create(tmp_path / "b.db") as whole:
        for one in (store, whole):
            one.add(prompts=prompts(6))
        endpoint, settings = server.endpoint(concurrency=1), SampleSettings(candidates=3)
        with pytest.raises(RemoteError, match="404: no such model"):
            sample_candidates(store, [endpoint], settings)
        assert sum(map(len, sampled(store).values())) == 11  # also those of the batch that broke off
        server.answers[:] = [different]
        server.seen.clear()
        report = sample_candidates(store, [endpoint], settings)
        assert (report.new, len(server.seen)) == (7, 7)
        sample_candidates(whole, [endpoint], settings)
        assert {(c.id, json.dumps(c.sampling)) for c in store.candidates()} == {(c.id, json.dumps(c.sampling)) for c in whole.candidates()}


def test_answers_that_are_alike_are_replaced_a_rung_higher_up_to_a_limit(store):
    def alike_when_cold(handler, request):
        hot = request.body["temperature"] >= 1
        text = (
            f"quite another answer, number {request.body['seed']}"
            if hot
            else "The same  answer\neach time, whatever one asks for it, again."
        )
        send(handler, choices(text))

    settings = SampleSettings(candidates=3, temperatures=(0.1, 0.2, 1.0), tries=3)
    with serving(alike_when_cold) as server:
        report = sample_candidates(store, [server.endpoint()], settings)
    # Place 0 at 0.1 is new, place 1 at 0.2 is alike and comes again at 1.0, place 2 is at 1.0 from the start.
    assert (report.new, report.duplicates, report.places_left) == (9, 3, 0)
    for candidates in sampled(store).values():
        assert sorted((c.sampling["place"], c.sampling["try"], c.sampling["temperature"]) for c in candidates) == [
            (0, 0, 0.1),
            (1, 1, 1.0),
            (2, 0, 1.0),
        ]


def test_places_that_stay_alike_are_given_up_told_and_not_asked_for_again(store):
    with serving(lambda h, r: send(h, choices("The same answer."))) as server:
        report = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=3, tries=2))
        assert (report.new, report.duplicates, report.places_left) == (3, 12, 6)
        asked = len(server.seen)
        assert asked == 3 + 2 * 6
        more = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=4, tries=2))
        assert len(server.seen) == asked + 6  # the fourth place alone, twice for each of three prompts
    assert "6 places stay free" in "\n".join(report.lines(512))
    assert more.new == 0


def test_an_answer_alike_one_that_was_imported_is_a_duplicate_too(store):
    prompt = next(store.prompts())
    text = "A long answer that a person has written, of which the model's differs in one letter only, at its very end: x"
    store.add(candidates=[Candidate(prompt_id=prompt.id, text=text)])
    with serving(lambda h, r: send(h, choices(text[:-1] + "y"))) as server:
        report = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=1, tries=2), limit=1)
    assert (report.new, report.duplicates) == (0, 2)
    with serving(different) as server:
        again = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=1, tries=2), limit=1)
    assert again.new == 1  # another server is another setting


def test_empty_and_cut_answers_are_counted(store):
    def answer(handler, request):
        send(handler, choices(" \n" if request.body["temperature"] < 1 else f"cut {request.body['seed']}", finish_reason="length"))

    with serving(answer) as server:
        report = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=1, temperatures=(0.5, 1.0)))
    assert (report.empty, report.new, report.cut) == (3, 3, 3)
    assert "3 answers were cut at 512 tokens: raise --max-new-tokens" in "\n".join(report.lines(512))
    assert not any(c.sampling["finished"] for found in sampled(store).values() for c in found)


def test_a_prompt_that_a_server_refuses_is_counted_and_asked_for_again_next_time(store):
    refusing = [True]

    def answer(handler, request):
        refused = refusing[0] and request.body["messages"][-1]["content"] == "copper?"
        send(handler, b"filtered", 400) if refused else different(handler, request)

    with serving(answer) as server:
        report = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=2))
        assert (report.new, report.failed) == (4, 2)
        assert "400: filtered" in report.last_error
        refusing[0] = False
        assert sample_candidates(store, [server.endpoint()], SampleSettings(candidates=2)).new == 2


def test_a_server_that_answers_nothing_stops_the_run(store):
    with (
        serving(lambda h, r: send(h, b"overloaded", 503)) as server,
        pytest.raises(RemoteError, match="6 answers in a row failed") as raised,
    ):
        sample_candidates(store, [server.endpoint(concurrency=2)], SampleSettings(candidates=2))
    assert "503: overloaded" in str(raised.value)


def test_prompts_of_a_file_are_added_and_answered_and_no_others(store, tmp_path):
    rows = [{"prompt": "thunder?"}, {"prompt": "basket?", "chosen": "a", "rejected": "b"}, {"prompt": ""}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(different) as server:
        report = sample_candidates(store, [server.endpoint()], SampleSettings(candidates=2), prompts=file)
    assert (report.prompts, report.new, report.set_aside) == (2, 4, 1)
    assert Counter(request.body["messages"][-1]["content"] for request in server.seen) == {"thunder?": 2, "basket?": 2}


def test_nothing_to_ask_or_nobody_to_answer_is_a_sentence(tmp_path):
    with Store.create(tmp_path / "empty.db") as store:
        with pytest.raises(ConfigError, match="there is no model to ask"):
            sample_candidates(store, [])
        with serving(different) as server, pytest.raises(DataError, match="there is no prompt to answer"):
            sample_candidates(store, [server.endpoint()])
        store.add(prompts=prompts(1))
        with pytest.raises(ModelError, match="there is no such model"):
            sample_candidates(store, [Path("nowhere")])


def test_a_local_model_answers_differently_and_the_same_again_from_the_same_seed(store, tmp_path, tiny_model_folder):
    settings = SampleSettings(candidates=4, temperatures=(0.8, 1.2), greedy=True, max_new_tokens=8, seed=5)
    report = sample_candidates(store, [tiny_model_folder], settings)
    assert report.new + report.places_left == 12
    assert report.new >= 9
    with Store.create(tmp_path / "again.db") as again:
        again.add(prompts=prompts(3))
        sample_candidates(again, [tiny_model_folder], settings)
        assert [c.id for c in again.candidates()] == [c.id for c in store.candidates()]
    for candidates in sampled(store).values():
        assert len({c.text for c in candidates}) == len(candidates)
        assert {c.source for c in candidates} == {tiny_model_folder.name}
    greedy = [c for found in sampled(store).values() for c in found if c.sampling["temperature"] == 0]
    assert greedy
    assert all(c.sampling["place"] == 0 and c.sampling["try"] == 0 for c in greedy)


def test_a_local_model_goes_on_where_it_was_broken_off(store, tmp_path, tiny_model_folder, monkeypatch):
    settings = SampleSettings(candidates=2, temperatures=(1.0,), max_new_tokens=6)
    with Store.create(tmp_path / "whole.db") as whole:
        whole.add(prompts=prompts(3))
        sample_candidates(whole, [tiny_model_folder], settings)
        sample_candidates(store, [tiny_model_folder], settings, limit=1)
        report = sample_candidates(store, [tiny_model_folder], settings)
        assert report.complete == 1
        assert {c.id for c in store.candidates()} == {c.id for c in whole.candidates()}


def test_a_prompt_that_does_not_fit_the_model_is_counted_and_nothing_is_cut(store, tiny_model_folder):
    store.add(prompts=[Prompt(messages=(Message(role="user", content="word " * 600),))])
    report = sample_candidates(store, [tiny_model_folder], SampleSettings(candidates=1, max_new_tokens=4))
    assert (report.too_long, report.new) == (1, 3)
