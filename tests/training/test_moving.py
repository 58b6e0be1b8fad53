"""A reference that follows the policy: it is put in place and taken out without a trace, moves as far as told, and is saved."""

from __future__ import annotations

import io

import torch
from torch import nn

from preftune.training.moving import UPDATES, WEIGHTS, MovingReference


def line(slope: float) -> nn.Linear:
    made = nn.Linear(1, 1, bias=False)
    nn.init.constant_(made.weight, slope)
    return made


def slope(model: nn.Linear) -> float:
    return model(torch.ones(1, 1)).item()


def move(model: nn.Linear, to: float) -> None:
    with torch.no_grad():
        model.weight.fill_(to)


def test_it_is_the_start_until_it_moves_and_the_policy_is_back_afterwards():
    model, state = line(2.0), {}
    reference = MovingReference(model, state)
    weight = model.weight
    move(model, 5.0)
    with reference.in_place():
        assert slope(model) == 2.0
        assert not model(torch.ones(1, 1)).requires_grad
    assert slope(model) == 5.0
    assert model.weight is weight  # the optimiser's own
    assert (reference.updates, state[WEIGHTS]["weight"].item()) == (0, 2.0)


def test_the_policy_is_back_where_the_reference_raises():
    model = line(2.0)
    reference = MovingReference(model, {})
    move(model, 5.0)
    try:
        with reference.in_place():
            raise ValueError
    except ValueError:
        assert slope(model) == 5.0


def test_it_goes_as_far_as_the_mix_says():
    model, state = line(2.0), {}
    reference = MovingReference(model, state)
    move(model, 6.0)
    reference.follow(0.25)
    assert (state[WEIGHTS]["weight"].item(), state[UPDATES]) == (3.0, 1)
    reference.follow(1.0)
    assert (state[WEIGHTS]["weight"].item(), reference.updates) == (6.0, 2)
    move(model, 7.0)
    assert state[WEIGHTS]["weight"].item() == 6.0  # a copy and not the policy itself


def test_what_is_saved_is_the_same_reference_again():
    model, state = line(2.0), {}
    reference = MovingReference(model, state)
    move(model, 6.0)
    reference.follow(0.5)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = MovingReference(model, torch.load(file, weights_only=True))
    with again.in_place():
        assert slope(model) == 4.0
    assert again.updates == 1


def test_what_is_not_trained_has_no_second_copy():
    model = nn.Sequential(line(2.0), line(3.0))
    model[0].requires_grad_(False)
    state = {}
    MovingReference(model, state)
    assert list(state[WEIGHTS]) == ["1.weight"]
