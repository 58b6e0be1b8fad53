"""Rollouts by Ray, with real actors: the same samples as here, whoever dies, and never with stale weights."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch

from preftune.errors import PreftuneError
from preftune.models.adapter import Adapter, add_adapter
from preftune.models.load import load_causal_lm
from preftune.rollout.backends import RayRollout
from preftune.rollout.client import LocalClient, Sampling, Start, Weights, weights_of

ray = pytest.importorskip("ray")
from preftune.rollout import ray_actors  # noqa: E402  it imports ray
from preftune.rollout.ray_actors import RayClient, Worker, packed, unpacked  # noqa: E402

pytestmark = pytest.mark.slow

LORA = Adapter(rank=4)
SAMPLING = Sampling(2, 8, 1.0, frozenset({3}), 0)
PROMPTS = [(5, 6, 7), (8, 9), (4,), (10, 11, 12, 13), (5, 6), (7, 8, 9)]
KEYS = [str(i) for i in range(len(PROMPTS))]


class Deaf(Worker):
    """Says that it has taken new weights, and has not, but at the first and the third time."""

    def load(self, version, packed):
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked in (1, 3):
            super().load(version, packed)
        else:
            self.held = version, self.held[1]


class Hanging(Worker):
    """Draws nothing in its first process, and does not die either."""

    def generate(self, job, version, where, again):
        if not ray.get_runtime_context().was_current_actor_reconstructed:
            time.sleep(10_000)
        return super().generate(job, version, where, again)


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def start(tiny_folder) -> Start:
    return Start(tiny_folder("llama"), LORA)


@pytest.fixture(scope="module")
def policies(start):
    """Weights of two rounds, and what the generator here draws with each."""
    model = add_adapter(load_causal_lm(start.base, device=torch.device("cpu")), LORA, seed=0)
    found = []
    for version in (1, 2):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(version))
        local = LocalClient(model)
        local.push_weights(Weights(version, {}))
        found.append((weights_of(model, version), local.generate(PROMPTS, KEYS, SAMPLING, seed=9)))
    return found


def texts(samples):
    return [(s.prompt_index, s.sample_index, s.ids, s.finished, s.version) for s in samples]


@pytest.fixture(scope="module")
def notes():
    return []


@pytest.fixture(scope="module")
def pool(start, notes):
    client = RayClient(RayRollout(backend="ray", workers=2), start, notes.append)
    yield client
    client.close()


def test_actors_draw_what_the_trainers_own_process_does_with_each_rounds_weights(pool, policies):
    for weights, here in policies:
        pool.push_weights(weights)
        assert pool.version() == weights.version
        drawn = pool.generate(PROMPTS, KEYS, SAMPLING, seed=9)
        assert texts(drawn) == texts(here)
        for one, other in zip(drawn, here, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert texts(policies[0][1]) != [(*row[:4], 1) for row in texts(policies[1][1])]


def test_a_killed_actors_prompts_are_drawn_again_once_and_it_gets_the_weights_anew(pool, policies, notes):
    weights, here = policies[1]
    pool.push_weights(weights)
    victim = ray.get(pool.seats[0].actor.ready.remote())
    long = replace(SAMPLING, max_new_tokens=60, stop_ids=frozenset({-1}))
    undisturbed = pool.generate(PROMPTS, KEYS, long, seed=9)
    os.kill(victim, signal.SIGKILL)
    assert texts(pool.generate(PROMPTS, KEYS, long, seed=9)) == texts(undisturbed)
    deadline = time.monotonic() + 60
    while not all(seat.ready for seat in pool.seats) and time.monotonic() < deadline:
        assert texts(pool.generate(PROMPTS, KEYS, SAMPLING, seed=9)) == texts(here)
    assert pool.health() == {"rollout/workers": 2, "rollout/redrawn": pool.redrawn}
    assert pool.redrawn > 0
    assert "Rollout worker 0 is lost; its prompts are drawn again, and Ray starts it anew." in notes
    assert "Rollout worker 0 is back." in notes
    assert ray.get(pool.seats[0].actor.ready.remote()) != victim
    assert texts(pool.generate(PROMPTS, KEYS, SAMPLING, seed=9)) == texts(here)


def test_weights_that_did_not_arrive_are_noticed_and_sent_again_and_a_deaf_worker_is_given_up(start, policies, monkeypatch):
    said: list[str] = []
    client = RayClient(RayRollout(backend="ray", workers=1), start, said.append, Deaf)
    for weights, here in policies:
        client.push_weights(weights)
        assert texts(client.generate(PROMPTS, KEYS, SAMPLING, seed=9)) == texts(here)
    assert set(said) == {"Rollout worker 0 drew with other weights than those of round 2; it draws again."}
    monkeypatch.setattr(ray_actors, "MOST_FAILURES", 2)
    client.push_weights(policies[0][0])
    with pytest.raises(PreftuneError, match=r"^ray: no rollout worker is left of 1 .*does not take the weights"):
        client.generate(PROMPTS, KEYS, SAMPLING, seed=9)
    assert said[-1] == "Rollout worker 0 is given up after 2 failures in a row; 0 are left."
    client.close()


def test_a_worker_that_hangs_without_dying_is_ended_and_started_anew_and_given_up_where_it_always_hangs(start, policies, monkeypatch):
    said: list[str] = []
    client = RayClient(RayRollout(backend="ray", workers=1, timeout_seconds=2), start, said.append, Hanging)
    weights, here = policies[0]
    client.push_weights(weights)
    assert texts(client.generate(PROMPTS, KEYS, SAMPLING, seed=9)) == texts(here)
    assert client.redrawn == len(PROMPTS)
    assert said == [
        "Rollout worker 0 has answered nothing for 2 s (rollout.timeout_seconds) and is ended.",
        "Rollout worker 0 is lost; its prompts are drawn again, and Ray starts it anew.",
        "Rollout worker 0 is back.",
    ]
    os.kill(ray.get(client.seats[0].actor.ready.remote()), signal.SIGSTOP)  # as a machine that is gone, or a driver that waits for ever
    monkeypatch.setattr(ray_actors, "START_SECONDS", 5.0)
    with pytest.raises(PreftuneError, match=r"^ray: no rollout worker came back within 5 s \(the last one: it answered nothing for 2 s"):
        client.generate(PROMPTS, KEYS, SAMPLING, seed=9)
    client.close()


def test_a_cluster_without_the_resources_is_said_soon(start, monkeypatch):
    monkeypatch.setattr(ray_actors, "PLACED_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(PreftuneError, match=r"2 workers of 1 CPU and 1 GPU each find no room within 1 s; the cluster has 4 CPU .*0 GPU"):
        RayClient(RayRollout(backend="ray", gpus=1), start, lambda text: None)
    assert time.monotonic() - began < 10


def test_tensors_of_any_type_and_shape_survive_the_object_store():
    tensors = {"a": torch.arange(6.0).bfloat16().view(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 2).half()}
    found = unpacked(packed(tensors))
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())
