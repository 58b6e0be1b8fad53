"""The server through a real socket: what clients get, and what it survives."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from starlette.requests import Request
from tests.serving_site import listening

from preftune.models.load import load_causal_lm, load_renderer
from preftune.records import Message
from preftune.release.serving.app import Service
from preftune.release.serving.arms import Arm
from preftune.release.serving.asked import AskedFeedback
from preftune.release.serving.problems import Problem, read
from preftune.release.serving.text import settled
from preftune.rollout.generate import generate

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def served(tiny_folder):
    folder = tiny_folder("llama")
    model, renderer = load_causal_lm(folder).requires_grad_(False).eval(), load_renderer(folder, "plain")
    service = Service([Arm(model, renderer, "tiny")], keys=["right"])
    with listening(service) as port:
        yield port, service, model, renderer


def post(served, path, body, key="right"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with closing(http.client.HTTPConnection("127.0.0.1", served[0], timeout=60)) as connection:
        connection.request("POST", path, body, {"Authorization": f"Bearer {key}"})
        with connection.getresponse() as response:
            return response.status, response.read().decode()


def chat(text="Hi", **settings):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "seed": 3, **settings}


def events(text):
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_greedy_answer_is_the_generators(served):
    status, body = post(served, CHAT, chat(temperature=0, logprobs=True))
    _, _, model, renderer = served
    prompt = renderer.prompt_ids([Message(role="user", content="Hi")])
    sample = generate(model, [prompt], samples_per_prompt=1, max_new_tokens=8, temperature=0, seed=0,
                      stop_ids=renderer.stop_ids, pad_id=renderer.pad_id)[0]  # fmt: skip
    answer = json.loads(body)
    choice = answer["choices"][0]
    assert (status, choice["message"]["content"]) == (200, renderer.decode(sample.ids))
    assert choice["finish_reason"] == ("stop" if sample.finished else "length")
    assert [t["logprob"] for t in choice["logprobs"]["content"]] == pytest.approx(list(sample.logprobs), abs=1e-4)
    assert answer["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": len(sample.ids),
                               "total_tokens": len(prompt) + len(sample.ids)}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stream_brings_the_same_text_as_one_answer(served, path):
    asked = chat(n=2) if path == CHAT else {"prompt": "Once", "max_tokens": 8, "seed": 3, "n": 2}
    whole = json.loads(post(served, path, asked)[1])
    parts = events(post(served, path, {**asked, "stream": True, "stream_options": {"include_usage": True}})[1])
    assert parts.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [c for part in parts for c in part["choices"] if c["index"] == choice["index"]]
        text = "".join(c["delta"]["content"] if path == CHAT else c["text"] for c in own)
        assert text == (choice["message"]["content"] if path == CHAT else choice["text"])
        assert [c["finish_reason"] for c in own][-1] == choice["finish_reason"]


def test_requests_at_once_are_not_mixed_up(served):
    bodies = [chat(f"Question {i}", seed=i) for i in range(8)]
    alone = [json.loads(post(served, CHAT, body)[1])["choices"] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = [json.loads(text)["choices"] for _, text in pool.map(lambda body: post(served, CHAT, body), bodies)]
    assert together == alone
    assert len({choices[0]["message"]["content"] for choices in alone}) > 1


def test_a_client_that_leaves_gives_its_place_up(served):
    connection = http.client.HTTPConnection("127.0.0.1", served[0], timeout=60)
    connection.request("POST", CHAT, json.dumps(chat(stream=True, max_tokens=100_000)), {"Authorization": "Bearer right"})
    with connection.getresponse() as response:
        response.read(10)
    connection.close()
    end = time.monotonic() + 30
    while served[1].arms["tiny"].worker._tickets and time.monotonic() < end:
        time.sleep(0.02)
    assert not served[1].arms["tiny"].worker._tickets
    assert post(served, CHAT, chat())[0] == 200


@pytest.mark.parametrize(
    ("status", "body", "key", "said"),
    [
        (401, chat(), "wrong", "key is wrong"),
        (400, b'{"messages": [', "right", "Invalid JSON"),
        (400, chat(top_logprobs=3), "right", "top_logprobs goes with logprobs: true."),
        (400, chat(logprobs=True, top_logprobs=21), "right", "top_logprobs"),
        (400, chat(colour="red"), "right", "colour: this server knows no such setting, and ignoring it"),
        (400, {"model": "auto"}, "right", "messages: it is needed and missing."),
        (400, chat("word " * 100_000), "right", "500,000 characters"),
        (400, chat("word " * 600), "right", "context ends at"),
        (413, b" " * 10_000_001, "right", "10,000,000 bytes"),
    ],
    ids=["wrong key", "malformed", "no logprobs", "too many", "unknown", "missing", "very long prompt", "long prompt", "long body"],
)
def test_what_cannot_be_served_is_refused_in_words(served, status, body, key, said):
    got, text = post(served, CHAT, body, key)
    assert got == status
    assert said in json.loads(text)["error"]["message"]


def test_text_that_may_become_a_stop_text_is_held_back():
    assert settled("one EN", ["END"]) == ("one ", False)
    assert settled("one END two", ["END", "two"]) == ("one ", True)
    assert settled("half \ufffd", []) == ("half ", False)
    assert settled("plain", []) == ("plain", False)


@pytest.mark.parametrize(
    ("consent", "wrong"), [({}, "it is needed and missing."), ({"consent": {"id": "a"}}, "Input should be a valid string.")]
)
def test_feedback_without_consent_is_told_where_to_get_it(consent, wrong):
    async def receive():
        return {"type": "http.request", "body": json.dumps({"answers": [{"id": "chatcmpl-1"}], "thumb": "up", **consent}).encode()}

    with pytest.raises(Problem) as refused:
        asyncio.run(read(Request({"type": "http"}, receive), AskedFeedback))
    assert str(refused.value) == f"consent: {wrong} Get the text from GET /v1/feedback, show it, and send its consent.id."
