"""The vLLM backend against a stand-in that follows the routes of `vllm serve`: what it draws, and every way in which a server is ill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tests.vllm_stand_in import StandIn, standing_in

from preftune.errors import ConfigError, PreftuneError
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.load import load_causal_lm
from preftune.rollout import vllm_server
from preftune.rollout.backends import VllmRollout
from preftune.rollout.client import Sampling, Start, draw_here, weights_of
from preftune.rollout.vllm import VllmClient

CPU = torch.device("cpu")
PROMPTS, KEYS = [(5, 6, 7), (8, 9), (40, 41, 42, 43)], ["a", "b", "c"]
SAMPLING = Sampling(2, 6, 0.8, frozenset(range(200, 240)), 0)
LORA = Adapter(rank=4)


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    monkeypatch.setattr(vllm_server, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def base(tiny_folder):
    return tiny_folder("llama")


@pytest.fixture
def policy(base):
    return add_adapter(load_causal_lm(base, device=CPU), LORA, seed=0)


def learn(policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)


@pytest.fixture
def opened(base, tmp_path):
    """Open a client on these servers; `said` is what it told the person who watches."""
    made = []

    def open_on(urls, *, adapter=LORA, **changes):
        settings = {"urls": tuple(urls), "weights": str(tmp_path / "shared"), "tolerance": 1e-4, "concurrency": 2, **changes}
        said: list[str] = []
        made.append(VllmClient(VllmRollout(**settings), Start(base, adapter), said.append))
        return made[-1], said

    yield open_on
    for client in made:
        client.close()


def drawn_by(client, *, seed=3):
    return client.generate(PROMPTS, KEYS, SAMPLING, seed=seed)


def insist_on_what_is_drawn_here(samples, policy, version, *, seed=3):
    """The stand-in draws by our generator with the seeds that come: ids equal what is drawn here; log-probs but for rounding."""
    here = draw_here(policy.eval(), PROMPTS, KEYS, SAMPLING, seed=seed)
    assert [replace(s, logprobs=(), version=0) for s in samples] == [replace(s, logprobs=()) for s in here]
    assert {s.version for s in samples} == {version}
    for there, ours in zip(samples, here, strict=True):
        assert there.logprobs == pytest.approx(ours.logprobs, abs=1e-5)


def test_the_samples_are_those_of_the_policy_round_after_round_and_old_weights_are_removed(base, policy, opened, tmp_path):
    with standing_in(StandIn(base), StandIn(base)) as urls:
        client, said = opened(urls)
        assert client.version() is None
        for version in range(3):
            client.push_weights(weights_of(policy, version))
            insist_on_what_is_drawn_here(drawn_by(client), policy, version)
            learn(policy)
        folders = [path.name for path in (tmp_path / "shared").glob("*/*")]
        assert folders == ["000002"]
        assert client.version() == 2
        assert client.health() == pytest.approx(
            {"rollout/servers": 2, "rollout/retried": 0, "rollout/brought_again": 0, "rollout/push_gap": 0, "rollout/push_seconds": 0},
            abs=60,
        )
        assert client.health()["rollout/push_gap"] < 1e-4
        assert said == []
        client.close()
        assert list((tmp_path / "shared").iterdir()) == []


def test_weights_that_all_learn_are_pushed_whole(base, opened):
    whole = load_causal_lm(base, device=CPU)
    learn(whole)
    with standing_in(StandIn(base)) as urls:
        client, _ = opened(urls, adapter=None)
        client.push_weights(weights_of(whole, 1))
        insist_on_what_is_drawn_here(drawn_by(client), whole, 1)


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ({"version": "0.21.0"}, r'it says that it is vLLM "0.21.0", and known are 0.32 and 0.33. Start one of these versions'),
        ({"version": "0.330.1"}, r'it says that it is vLLM "0.330.1"'),
        ({"developer": False}, r"it runs without the developer mode. Start it with VLLM_SERVER_DEV_MODE=1 vllm serve MODEL"),
        ({"quantization": "fp8"}, r"it serves a model that is quantised \(fp8\)"),
        ({"logprobs_mode": "raw_logits"}, r'its log-probs are "raw_logits". Start it with --logprobs-mode processed_logprobs'),
        ({"status": {"/version": (99, 503)}}, r"it does not answer \(status 503: .*ill.*\). Is it running\?"),
        ({"status": {"/version": (1, 404)}}, r"it has no such route. Is it a vLLM of version 0.32 or 0.33"),
    ],
)
def test_a_server_that_cannot_be_learned_from_is_refused_before_the_first_step(base, opened, tmp_path, ill, said):
    with standing_in(StandIn(base, **ill)) as urls:
        with pytest.raises(PreftuneError, match=said) as caught:
            opened(urls)
        assert urls[0] in str(caught.value)
    assert list((tmp_path / "shared").iterdir()) == []


def test_nobody_at_a_url_and_an_unwritable_folder_are_said(base, opened, tmp_path):
    with pytest.raises(PreftuneError, match=r"^http://127.0.0.1:9/version: it does not answer .* Is it running\?"):
        opened(["http://127.0.0.1:9"])
    (tmp_path / "file").write_text("")
    with pytest.raises(PreftuneError, match=r'key "rollout.weights": no weights can be written to .*file'):
        opened(["http://127.0.0.1:9"], weights=str(tmp_path / "file"))


def test_another_tokenizer_is_refused_with_the_token_that_differs(base, opened, tmp_path):
    found = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    found["model"]["merges"] = found["model"]["merges"][:-5]
    shutil.copytree(base, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")
    said = r'its tokenizer is another one: token \d+ of ".*" differs. Start it on the folder'
    with standing_in(StandIn(base, tokenizer_from=tmp_path / "other")) as urls, pytest.raises(ConfigError, match=said):
        opened(urls)


@pytest.mark.parametrize(
    ("sampling", "ill", "said"),
    [
        (
            replace(SAMPLING, max_new_tokens=30),
            {"max_model_len": 33},
            r"it reads 33 tokens, and .* may have 34. Start it with --max-model-len 34",
        ),
        (
            SAMPLING,
            {"logprobs_mode": "raw_logprobs"},
            r'leave the temperature out \("raw_logprobs"\), which is 0.8 here. .*processed_logprobs',
        ),
    ],
)
def test_a_server_that_cannot_draw_what_is_asked_is_refused(base, policy, opened, sampling, ill, said):
    with standing_in(StandIn(base, **ill)) as urls:
        client, _ = opened(urls)
        client.push_weights(weights_of(policy, 0))
        with pytest.raises(ConfigError, match=said):
            client.generate(PROMPTS, KEYS, sampling, seed=3)


def test_raw_log_probs_do_at_temperature_1(base, policy, opened):
    with standing_in(StandIn(base, logprobs_mode="raw_logprobs")) as urls:
        client, _ = opened(urls)
        client.push_weights(weights_of(policy, 0))
        assert len(client.generate(PROMPTS, KEYS, replace(SAMPLING, temperature=1.0), seed=3)) == 6


@pytest.mark.parametrize("ill", [{"status": {"/v1/completions": (2, 503)}}, {"died": 2}, {"slow_seconds": 0.02}])
def test_what_passes_is_asked_again_and_no_sample_is_lost_or_doubled(base, policy, opened, ill):
    server = StandIn(base)
    with standing_in(server) as urls:
        client, said = opened(urls)
        client.push_weights(weights_of(policy, 0))
        vars(server).update(ill)
        insist_on_what_is_drawn_here(drawn_by(client), policy, 0)
        assert said == []


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ({"died": 10**6}, r"it does not answer"),
        ({"slow_seconds": 0.5}, r"it does not answer \(timed out"),
        ({"choices": 2}, r"it sent 2 answers where 1 was asked for"),
        ({"odd": {"finish_reason": "abort"}}, r'for the reason "abort"'),
        ({"odd": {"logprobs": {"token_logprobs": ["nan"] * 6}}}, r"without a log-prob for each token"),
    ],
)
def test_a_server_that_stays_ill_is_left_out_and_the_others_draw_its_samples(base, policy, opened, ill, said, monkeypatch):
    monkeypatch.setattr(vllm_server, "TRIES", 2)
    sick, well = StandIn(base), StandIn(base)
    with standing_in(sick, well) as urls:
        client, notes = opened(urls, timeout_seconds=0.3 if "slow_seconds" in ill else 60)
        client.push_weights(weights_of(policy, 0))
        vars(sick).update(ill)
        insist_on_what_is_drawn_here(drawn_by(client), policy, 0)
        assert client.health()["rollout/servers"] in (1, 2)  # 2 where the other was done before it had failed three times
        for seed in (4, 5):
            insist_on_what_is_drawn_here(drawn_by(client, seed=seed), policy, 0, seed=seed)
        vars(well).update(ill)
        with pytest.raises(PreftuneError, match=r"rollout: no rollout server is left: \(1\) .*" + said):
            for seed in range(6, 12):
                drawn_by(client, seed=seed)
        assert any("left out until the next push" in note for note in notes)
        for server in (sick, well):
            vars(server).update(status={}, died=0, slow_seconds=0.0, choices=1, odd={})
        learn(policy)
        client.push_weights(weights_of(policy, 1))
        assert client.health()["rollout/servers"] == 2
        insist_on_what_is_drawn_here(drawn_by(client), policy, 1)


def test_a_push_that_is_dropped_once_is_made_again(base, policy, opened):
    server = StandIn(base)
    with standing_in(server) as urls:
        client, _ = opened(urls)
        client.push_weights(weights_of(policy, 0))
        learn(policy)
        server.dropped = 1
        client.push_weights(weights_of(policy, 1))
        insist_on_what_is_drawn_here(drawn_by(client), policy, 1)


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ({"dropped": 9}, r"it took a push, and has the same weights as before"),
        ({"half": True}, r"after the push of round 1 it gives a token another log-prob than the policy does: .* nats apart"),
        ({"shift": 0.01}, r"another log-prob than the policy does: 0.01 nats apart. Does it serve the model that the run starts from"),
        ({"wrong_label": "theirs"}, r'it calls its weights "theirs" after a push of "preftune-'),
        (
            {"status": {"/collective_rpc": (9, 500)}},
            r"it could not read the weights \(status 500: .*\). Does it see the folder .* under that very",
        ),
        ({"status": {"/weight_checker": (9, 404)}}, r"it has no such route"),
    ],
)
def test_weights_that_a_server_is_not_seen_to_have_are_never_drawn_with(base, policy, opened, ill, said):
    server = StandIn(base)
    with standing_in(server) as urls:
        client, notes = opened(urls)
        client.push_weights(weights_of(policy, 0))
        learn(policy)
        vars(server).update(ill)
        with pytest.raises(PreftuneError, match=said):
            client.push_weights(weights_of(policy, 1))
        with pytest.raises(PreftuneError, match="no rollout server is left"):
            drawn_by(client)
        assert server.paused is False
        assert server.drawn.total() == 0
        assert len(notes) == 1


def test_a_server_that_was_started_again_gets_the_weights_and_draws_anew(base, policy, opened):
    learn(policy)
    server = StandIn(base)
    with standing_in(server) as urls:
        client, said = opened(urls)
        client.push_weights(weights_of(policy, 0))
        server.restart_at = 3
        insist_on_what_is_drawn_here(drawn_by(client), policy, 0)
        assert said == [f"{urls[0]} no longer has the policy's weights: it gets them again, and draws 6 samples anew."]
        assert client.health()["rollout/brought_again"] == 1


def test_a_server_that_was_left_paused_by_a_killed_trainer_goes_on(base, policy, opened):
    server = StandIn(base)
    with standing_in(server) as urls:
        server.paused = True
        client, _ = opened(urls)
        client.push_weights(weights_of(policy, 0))
        assert len(drawn_by(client)) == 6
