"""What the official client of OpenAI's API gets from the server, and feedback from the answer to the store."""

from __future__ import annotations

import math

import httpx2
import openai
import pytest
import torch
from tests.serving_site import listening

from preftune.data.store import Store
from preftune.models.load import load_causal_lm, load_renderer
from preftune.records import Message
from preftune.release.serving.app import Service
from preftune.release.serving.arms import Arm, Split
from preftune.release.serving.desk import Desk
from preftune.release.serving.given import GivenAnswers
from preftune.release.serving.text import Reader

ASKED = [{"role": "user", "content": "Sort a list."}]
KEY = "right"


@pytest.fixture(scope="module")
def site(tiny_folder, tmp_path_factory):
    folder = tiny_folder("llama")
    model, renderer = load_causal_lm(folder).requires_grad_(False).eval(), load_renderer(folder, "plain")
    with Store.create(tmp_path_factory.mktemp("serve") / "s.db") as store:
        arms = [Arm(model, renderer, name) for name in ("new", "old", "base")]
        service = Service(arms, keys=[KEY], split=Split(("new", "old"), 0.5), desk=Desk(store, keep_days=30), base="base")
        with listening(service) as port:
            yield f"http://127.0.0.1:{port}", service, model, renderer


@pytest.fixture
def client(site):
    with openai.OpenAI(base_url=f"{site[0]}/v1", api_key=KEY, max_retries=0) as found:
        yield found


@pytest.fixture
def say(site):
    with httpx2.Client(base_url=site[0], headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        consent = http.get("/v1/feedback").json()["consent"]["id"]

        def send(*answers, status=200, **word):
            names = [{"id": one.id} for one in answers]
            response = http.post("/v1/feedback", json={"answers": names, "consent": consent, **word})
            assert response.status_code == status, response.text
            return response.json()

        yield send


def ask(client, **settings):
    return client.chat.completions.create(**{"model": "new", "messages": ASKED, "max_tokens": 8, "seed": 3, **settings})


def test_top_logprobs_are_those_of_the_models_own_distribution(client, site):
    _, _, model, renderer = site
    reply = ask(client, temperature=0, logprobs=True, top_logprobs=3)
    first = reply.choices[0].logprobs.content[0]
    prompt = renderer.prompt_ids([Message(**ASKED[0])])
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(3)
    assert [one.logprob for one in first.top_logprobs] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert [one.token for one in first.top_logprobs] == [renderer.tokenizer.decode([t]) for t in expected.indices.tolist()]
    assert first.logprob == pytest.approx(first.top_logprobs[0].logprob, abs=1e-5)


def test_text_completions_give_logprobs_by_token_with_offsets(client):
    reply = client.completions.create(model="new", prompt="Once", max_tokens=6, seed=1, logprobs=2).choices[0]
    found = reply.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(found.top_logprobs)
    assert found.text_offset == [sum(map(len, found.tokens[:i])) for i in range(len(found.tokens))]
    assert all(math.exp(value) <= 1 for value in found.token_logprobs)


def test_n_choices_differ_and_a_seed_repeats_them(client):
    first, second = (ask(client, n=4, temperature=1.0) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens


def test_an_answer_ends_before_a_stop_text(client):
    whole = ask(client, temperature=0).choices[0].message.content
    stop = whole[2:4]
    cut = ask(client, temperature=0, stop=[stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_stream_has_its_usage_at_the_end_when_asked_for(client):
    whole = ask(client, temperature=0)
    parts = list(ask(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage
    assert all(part.usage is None for part in parts[:-1])


def test_errors_are_the_clients_own(client, site):
    with pytest.raises(openai.BadRequestError, match="context ends at"):
        ask(client, messages=[{"role": "user", "content": "word " * 600}])
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        client.embeddings.create(model="new", input="x")
    with openai.OpenAI(base_url=f"{site[0]}/v1", api_key="wrong", max_retries=0) as other, pytest.raises(openai.AuthenticationError):
        other.models.list()
    assert [model.id for model in client.models.list()] == ["new", "old", "base"]


def test_a_fault_within_a_stream_comes_as_an_error_and_the_next_request_is_served(client, site, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a secret of the inside")

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "add", fail)
        with pytest.raises(openai.APIError, match="Something went wrong in the server") as caught:
            list(ask(client, stream=True))
        assert "secret" not in str(caught.value)
        with pytest.raises(openai.InternalServerError, match="Something went wrong in the server"):
            ask(client)
    assert ask(client).choices


def test_feedback_lands_in_the_store_under_a_pseudonym_and_once(client, say, site):
    store = site[1].desk.store
    reply, other = ask(client, user="ann"), ask(client, model="base", seed=5)
    first = say(reply, thumb="up", user="ann")
    assert say(reply, thumb="up", user="ann") == {**first, "new": False}
    assert first["rater"].startswith("user-")
    assert "ann" not in first["rater"]
    say(reply, edit="sorted(items)", comment="shorter", user="ann")
    say(reply, other, better=1, user="bob")
    said = list(store.judgements())
    sources = {candidate.id: candidate.source for candidate in store.candidates()}
    assert [[sources[c] for c in tier] for tier in said[-1].ranking] == [["base"], ["new"]]
    assert len({judgement.rater for judgement in said}) == 2
    assert [(d.text, d.author) for d in store.demonstrations()] == [("sorted(items)", first["rater"])]
    assert [m.content for m in next(store.prompts()).messages] == ["Sort a list."]


def test_feedback_that_names_no_answer_or_no_consent_is_refused(client, say):
    reply = ask(client)
    assert "answer_not_found" in str(say(type("Gone", (), {"id": "chatcmpl-gone"}), status=404, thumb="up"))
    assert "one of thumb, edit and better" in str(say(reply, status=400, thumb="up", edit="x"))
    assert "speaks of two answers" in str(say(reply, status=400, better=0))
    assert "say the same" in str(say(reply, reply, status=400, better=0))
    assert "changes nothing" in str(say(reply, status=400, edit=reply.choices[0].message.content))
    assert "consent_required" in str(say(reply, status=400, thumb="up", consent="other"))


def test_a_page_of_another_site_cannot_speak_for_a_visitor(site):
    headers = {"Authorization": f"Bearer {KEY}", "Sec-Fetch-Site": "cross-site"}
    assert httpx2.post(f"{site[0]}/v1/feedback", json={}, headers=headers).status_code == 403


def test_users_are_divided_and_each_stays_with_one_model(client, say, site):
    models = {user: {ask(client, model="auto", user=user, max_tokens=2).model for _ in range(2)} for user in map(str, range(12))}
    assert all(len(seen) == 1 for seen in models.values())
    assert set.union(*models.values()) == {"new", "old"}
    split = Split(("new", "old"), 0.2)
    assert 150 < [split.name_for(str(user), "s") for user in range(1000)].count("old") < 250
    for user in models:
        say(ask(client, model="auto", user=user), thumb="up", user=user)
    found = httpx2.get(f"{site[0]}/v1/ab", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert found["split"]["a"]["users"] + found["split"]["b"]["users"] == 12
    assert found["side"]["verdict"]["losses"] == 1
    assert "cannot tell" in found["split"]["says"]


def test_the_oldest_answers_are_forgotten(client, site):
    reply = ask(client)
    kept = site[1].desk.given
    answer = kept.find(reply.id, 0)
    few = GivenAnswers(most=2)
    for index in range(3):
        few.add(type(answer)(**{**answer.__dict__, "index": index}))
    assert [few.find(reply.id, index) is not None for index in range(3)] == [False, True, True]
    small = GivenAnswers(most_characters=answer.characters)
    small.add(answer)
    assert small.find(reply.id, 0) == answer
    small.add(type(answer)(**{**answer.__dict__, "index": 1, "text": "x" * 10_000}))
    assert small.find(reply.id, 0) is None


def test_a_reader_gives_the_text_of_all_tokens_whatever_letters_they_cut(site):
    arm = site[1].arms["new"]
    tokenizer = arm.renderer.tokenizer
    text = "naïve café 😀👍🏽 日本語\n  def add(a, b):\n\treturn a + b  # ünïcödé"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)  # letters of several tokens are among them
    reader = Reader(arm.renderer.decode, arm.spoken, [])
    pieces = [reader.add(token, last=place == len(ids) - 1)[0] for place, token in enumerate(ids)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
