"""A grid of bugs, each put into the package on purpose, and who notices: tests of ours that must then fail, warnings that must then come.

For the tests: the bug takes the place of the function wherever it was imported, and the named test is called. It passes without the bug
(where it is collected itself), so a failure is the bug's. For the warnings: three rounds of PPO's sampling and first pass on a tiny
policy, whose rows go to `training/health.py`. `docs/studies.md` shows the grid.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from preftune.losses import advantages, kl, logprobs, policy, preference, reduce
from preftune.training.health import findings

TESTS = Path(__file__).resolve().parents[1]


def shifted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function with its last positional argument, the mask, one place too early."""
    return lambda *given, **named: function(*given[:-1], given[-1].roll(-1, -1), **named)


def swapped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function with its first two arguments exchanged."""
    return lambda first, second, *given, **named: function(second, first, *given, **named)


def whiten_over_padding(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, (values - values.mean()) / (values.var(correction=0) + 1e-8).sqrt(), 0.0)


def whiten_and_add_the_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, TRUE_WHITEN(values, mask) + values[mask].mean(), 0.0)


def value_after_the_end(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float) -> advantages.Estimate:
    """Padding's values are taken for those of states: what stands after the end is not 0."""
    found = TRUE_GAE(rewards, values, torch.ones_like(mask), gamma=gamma, gae_lambda=gae_lambda)
    return advantages.Estimate(torch.where(mask, found.advantages, 0.0), torch.where(mask, found.returns, 0.0))


def unmasked_sum(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum()


TRUE_GAE, TRUE_WHITEN = advantages.gae, advantages.whiten
Notices = list[tuple[str, str]]
# bug: where the function lives, its name, what takes its place, and the tests (file, name) that notice.
GRID: dict[str, tuple[ModuleType, str, Callable[..., object], Notices]] = {
    "the score's mask is off by one": (
        advantages, "token_rewards", lambda a, b, s, m, **k: advantages.with_score(-k["kl_coef"] * kl.k1(a, b, m), s, m.roll(-1, 1)),
        [("losses/test_advantages", "test_the_score_lies_on_the_last_counted_token_and_padding_gets_none")],
    ),
    "the end token is dropped": (
        advantages, "last_token", lambda mask: mask & (mask.flip(1).long().cumsum(1).flip(1) == 2),
        [("losses/test_advantages", "test_rewards_by_hand"),
         ("losses/test_advantages", "test_the_score_lies_on_the_last_counted_token_and_padding_gets_none")],
    ),
    "whitening over padding": (
        advantages, "whiten", whiten_over_padding, [("losses/test_advantages", "test_whitening_by_hand_with_a_second_row_that_is_padded")],
    ),
    "whitening adds the mean back": (
        advantages, "whiten", whiten_and_add_the_mean, [("losses/test_advantages", "test_whitened_values_are_centred_with_spread_one")],
    ),
    "a value after the end": (
        advantages, "gae", value_after_the_end,
        [("properties/test_laws", "test_undiscounted_advantages_plus_values_are_the_rewards_to_go_whatever_the_values")],
    ),
    "the KL has the other sign": (kl, "k1", swapped(kl.k1), [("losses/test_kl", "test_both_estimators_by_hand")]),
    "the loss's mask is off by one": (
        policy, "clipped_surrogate", shifted(policy.clipped_surrogate),
        [("properties/test_laws", "test_where_nothing_has_moved_yet_the_surrogate_has_the_slope_of_policy_gradient")],
    ),
    "the clip lets the pull through": (
        policy, "clipped_surrogate", lambda new, old, adv, mask, clip_range: torch.where(mask, -adv * (new - old).exp(), 0.0),
        [("losses/test_policy", "test_the_surrogate_by_hand")],
    ),
    "nan under the mask counts": (
        reduce, "weighted_sum", unmasked_sum, [("losses/test_reduce", "test_what_weighs_nothing_counts_nothing_whatever_it_is")],
    ),
    "chosen and rejected are exchanged": (
        preference, "dpo", swapped(preference.dpo), [("losses/test_preference", "test_the_slope_of_the_hand_case")],
    ),
    "log-probs are not shifted": (
        logprobs, "logprobs_from_logits",
        lambda logits, ids, parent, mask, **k: TRUE_LOGPROBS(logits, ids, torch.arange(ids.shape[1]).expand_as(ids), mask, **k),
        [("losses/test_logprobs", "test_a_token_is_scored_by_the_logits_one_place_before_it")],
    ),
    "the temperature is left out": (
        logprobs, "logprobs_from_logits", lambda *given, temperature: TRUE_LOGPROBS(*given, temperature=1.0),
        [("losses/test_logprobs", "test_the_temperature_divides_the_logits")],
    ),
}  # fmt: skip
TRUE_LOGPROBS = logprobs.logprobs_from_logits
ARGUMENTS = {"test_what_weighs_nothing_counts_nothing_whatever_it_is": {"hole": float("nan")}}


def module_of(place: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"injected_{place.replace('/', '_')}", TESTS / f"{place}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


@pytest.mark.parametrize("bug", GRID)
def test_each_injected_bug_makes_the_tests_that_are_to_notice_it_fail(bug, monkeypatch):
    home, name, wrong, notices = GRID[bug]
    right = getattr(home, name)
    for place, test in notices:
        module = module_of(place)
        sys.modules[module.__name__] = module
        for holder in [m for m in [*sys.modules.values()] if m is not None and vars(m).get(name) is right]:
            monkeypatch.setattr(holder, name, wrong)
        run = getattr(module, test)
        with pytest.raises((AssertionError, ExceptionGroup)):  # hypothesis groups the failures of several examples
            run(**ARGUMENTS.get(test, {}))
        monkeypatch.undo()
        sys.modules.pop(module.__name__)


TOKENS, LENGTH, ANSWERS, END = 12, 10, 256, 0


def rows(bug: str | None) -> list[dict[str, float]]:
    """What three rounds log of a policy that is still the reference: 12 tokens, each drawn for itself, the end a fourth of the time."""
    draw = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(16, generator=draw), torch.randn(TOKENS, 16, generator=draw) / 3
    head[END] = (1.5 + (hidden * head).sum(1).logsumexp(0)) * hidden / (hidden**2).sum()
    logged = []
    for _ in range(3):
        logits = head @ hidden
        seen = logits.clone()
        if bug == "the end token is dropped":
            seen[END] = -torch.inf
        ids = torch.multinomial(seen.softmax(0), ANSWERS * LENGTH, replacement=True, generator=draw).view(ANSWERS, LENGTH)
        mask = ((ids == END).long().cumsum(1) - (ids == END).long()) == 0
        old = logits.log_softmax(0)[ids]
        new, ref = old, old
        if bug == "dropout is on":
            kept = (torch.rand(ANSWERS, LENGTH, 16, generator=draw) > 0.3) / 0.7
            new = ((kept * hidden) @ head.T).log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
        if bug == "the temperature is not the sampler's":
            old = new = (logits / 4).log_softmax(0)[ids]
        ratio = policy.policy_ratio(new, old, mask)
        logged.append({
            "kl/reference": float(kl.k1(old, ref, mask).sum(1).mean()),
            "policy/clip_fraction": float(policy.clip_fraction(ratio, mask, clip_range=0.2)),
            "length/finished": float((ids == END).any(1).float().mean()),
        })  # fmt: skip
    return logged


@pytest.mark.parametrize(
    ("bug", "warned"),
    [
        (None, []),
        ("dropout is on", ["clipped"]),
        ("the end token is dropped", ["unfinished"]),
        ("the temperature is not the sampler's", ["kl"]),
    ],
)
def test_the_health_warnings_name_the_injected_bugs_that_show_in_a_run_and_a_run_without_one_none(bug, warned):
    assert [found.name for found in findings(rows(bug))] == warned
