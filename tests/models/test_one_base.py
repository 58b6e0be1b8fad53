"""Policy, reward model and critic on one base: each computes what it would with a model of its own, and trains what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from preftune.data.batches import Group, collate
from preftune.errors import ModelError
from preftune.models.adapter import Adapter, adapter_off, add_adapter, merge_in_place, trainable
from preftune.models.heads import end_scores, scalar_head, token_values, with_scalar_head
from preftune.models.load import batch_logprobs, load_causal_lm, unwrap
from preftune.models.one_base import (
    HEAD,
    WEIGHTS,
    critic_role,
    leave_policy_alone,
    policy_role,
    reward_role,
    save_head,
)
from preftune.stages.common import save_adapter

CPU = torch.device("cpu")
# The prompts begin alike for long enough that their beginning is computed once, in a cache.
BEGIN = tuple(range(20, 32))
BATCH = collate([Group((*BEGIN, 3, 4), ((5, 6, 7), (8, 9)), 0), Group((*BEGIN, 2, 3), ((4, 5, 6), (7,)), 1)], 0)


def stir(model: nn.Module, seed: int, adapter: str = "default") -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"lora_B.{adapter}" in name:
                parameter.normal_(0, 0.1, generator=generator)


def logprobs(model: nn.Module) -> torch.Tensor:
    return batch_logprobs(model, BATCH)[0].detach()


@pytest.fixture(scope="module")
def base(tiny_folder) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="module", params=["lora", "rslora", "dora"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def reward(base, kind, tmp_path_factory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A saved reward adapter of another rank than the policy's, the scores that its model gives once merged, and its token values."""
    folder = tmp_path_factory.mktemp("reward") / "adapter"
    policy = add_adapter(load_causal_lm(base, device=CPU), Adapter(kind=kind, rank=2, alpha=4.0), seed=5)
    stir(policy, 1)
    model = with_scalar_head(unwrap(policy), seed=6)
    save_adapter(policy, folder, base="base")
    save_head(scalar_head(model), folder)
    merge_in_place(policy)
    with torch.no_grad():
        return folder, end_scores(model, BATCH), token_values(model, BATCH)


@pytest.fixture
def shared(base, kind) -> PeftModel:
    model = add_adapter(load_causal_lm(base, device=CPU), Adapter(kind=kind, rank=4, alpha=8.0), seed=0)
    stir(model, 2)
    return model


def test_each_role_computes_what_a_model_of_its_own_does(base, shared, reward):
    folder, scores, values = reward
    alone = logprobs(shared)
    judge = reward_role(shared, folder)
    critic = critic_role(shared, seed=0)
    torch.testing.assert_close(end_scores(judge, BATCH), scores, rtol=0, atol=1e-5)
    assert int(token_values(critic, BATCH).count_nonzero()) == 0  # a head of zeros
    critic.score.load_state_dict({"weight": judge.score.weight, "bias": torch.zeros(1)})
    torch.testing.assert_close(token_values(critic, BATCH).detach(), values, rtol=0, atol=1e-5)  # its body is the reward model's
    assert torch.equal(logprobs(shared), alone)
    with adapter_off(shared):
        assert torch.equal(logprobs(shared), logprobs(load_causal_lm(base, device=CPU)))


def test_the_critic_learns_and_nothing_else_moves(shared, reward):
    folder, scores, _ = reward
    before = logprobs(shared)
    judge, critic = reward_role(shared, folder), critic_role(shared, seed=0)
    own = trainable(critic)
    assert all("critic" in name.split("/") for name in own if not name.startswith("score."))
    assert {"score.weight", "score.bias"} <= own.keys()
    nn.init.ones_(critic.score.weight)
    for _ in range(2):  # the second factor is zero at first, and so is the first one's gradient
        with adapter_off(shared):  # which must leave what is trained as it was
            logprobs(shared)
        token_values(critic, BATCH).sum().backward()
        with torch.no_grad():
            for parameter in own.values():
                parameter.sub_(0.1 * parameter.grad)
    moved = [name for name, p in own.items() if p.grad is not None and float(p.grad.abs().sum()) > 0]
    assert len(moved) == len(own)
    others = [p for p in shared.parameters() if not any(p is q for q in own.values())]
    assert all(p.grad is None for p in others)
    assert torch.equal(logprobs(shared), before)
    torch.testing.assert_close(end_scores(judge, BATCH), scores, rtol=0, atol=1e-5)


def test_policy_and_critic_train_what_is_their_own(shared, reward):
    folder, _, _ = reward
    before = {id(p) for p in trainable(shared).values()}
    reward_role(shared, folder)
    critic = critic_role(shared, seed=0)
    policy = policy_role(shared)
    assert {id(p) for p in trainable(policy).values()} == before
    assert not {id(p) for p in trainable(critic).values()} & before
    batch_logprobs(shared, BATCH)[0].sum().backward()
    assert all(p.grad is None for p in trainable(critic).values())
    assert any(p.grad is not None for p in trainable(policy).values())


def test_what_is_left_is_saved_as_any_policy(shared, reward, tmp_path):
    folder, _, _ = reward
    save_adapter(shared, tmp_path / "before", base="base")
    reward_role(shared, folder)
    critic_role(shared, seed=0)
    leave_policy_alone(shared)
    save_adapter(shared, tmp_path / "after", base="base")
    names = sorted(p.name for p in (tmp_path / "before").iterdir())
    assert sorted(p.name for p in (tmp_path / "after").iterdir()) == names
    for name in names:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_a_reward_adapter_that_lacks_a_weight_is_refused(shared, reward, tmp_path):
    folder, _, _ = reward
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / WEIGHTS)
    del weights[sorted(weights)[0]]
    save_file(weights, tmp_path / WEIGHTS)
    assert (tmp_path / HEAD).exists()
    with pytest.raises(ModelError, match="adapter does not fit"):
        reward_role(shared, tmp_path)
