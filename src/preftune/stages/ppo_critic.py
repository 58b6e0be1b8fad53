"""The critic of PPO: a model of its own, an adapter on the policy's base, or a head on the policy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from preftune.models.adapter import add_adapter, trainable
from preftune.models.heads import load_reward_model, scalar_head, with_scalar_head
from preftune.models.load import device_of, find, load_causal_lm, load_tokenizer, unwrap
from preftune.models.one_base import critic_role, zero_head
from preftune.parallel.shard import whole
from preftune.stages.common import Room
from preftune.stages.ppo_config import PPOConfig


@dataclass(frozen=True)
class Critic:
    """module: what it trains. body: gives the hidden states; head: makes values of them. shared: weight of its loss in the policy's."""

    module: nn.Module
    body: nn.Module
    head: nn.Linear
    shared: float | None = None

    def weights(self) -> dict[str, Tensor]:
        """Return what it has learned, to be saved."""
        return {name.replace("/", "."): whole(p.detach()).contiguous() for name, p in trainable(self.module).items()}


def open_critic(config: PPOConfig, room: Room, *, one_base: bool) -> Critic:
    """Return the critic that a config asks for. one_base: the reward model lies on the policy's base.

    The body is the reward model's, but the head is zero: the reward's own head means something on the last token alone, and on the
    others it is wilder than the returns (explained variance −9 on the sample), so that its advantages are noise. Zero is the mean
    of the scores in their unit.
    """
    if config.critic.shared is not None:
        head = zero_head(unwrap(room.model).config.get_text_config().hidden_size, device_of(room.model))
        return Critic(head, room.model, head, config.critic.shared)
    if one_base:
        role = critic_role(room.model, seed=config.seed)
        return Critic(role, role, scalar_head(role))
    model = _apart(config, room)
    return Critic(model, model, scalar_head(model))


def _apart(config: PPOConfig, room: Room) -> nn.Module:
    device, reward_path = device_of(room.model), find(config.reward_model, room.project)
    if load_tokenizer(reward_path).get_vocab() == room.renderer.tokenizer.get_vocab():
        critic = load_reward_model(reward_path, device=device)
    else:  # it reads other tokens, and a critic must read the policy's
        critic = with_scalar_head(load_causal_lm(room.base, device=device), seed=config.seed)
    old = scalar_head(critic)
    name = next(n for n, m in critic.named_children() if m is old)
    setattr(critic, name, zero_head(old.in_features, device))
    wrapped: nn.Module = add_adapter(critic, config.adapter, seed=config.seed) if config.adapter else critic.requires_grad_(True)
    scalar_head(wrapped).requires_grad_(True)
    return wrapped
