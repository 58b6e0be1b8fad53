"""One draw of a token: the softmax's frequencies, whatever the vocabulary's size, and never a token that cannot be."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from preftune.errors import ModelError
from preftune.manifest import content_seed
from preftune.rollout.draw import draw, uniforms

NEVER = -torch.inf


def one(logits: list[float], uniform: float, temperature: float = 1.0, top_p: float = 1.0) -> tuple[int, float]:
    numbers = torch.tensor([uniform], dtype=torch.float64)
    tokens, logprobs = draw(torch.tensor([logits]), numbers, torch.tensor([temperature]), torch.tensor([top_p]))
    return int(tokens), float(logprobs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_draws_have_the_frequencies_of_the_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    count = 2000
    numbers = torch.tensor([uniforms(content_seed(0, "prompt", k), 1)[0] for k in range(count)], dtype=torch.float64)
    tokens, logprobs = draw(logits.repeat(count, 1), numbers, torch.full((count,), temperature))
    expected = (logits.double() / temperature).softmax(0)
    observed = torch.bincount(tokens, minlength=6)
    # The seed is fixed, so this holds or it does not. 0.001: 2,000 true draws fall below it once in a thousand seeds.
    assert chisquare(observed.numpy(), (count * expected).numpy()).pvalue > 0.001
    # And the test can tell: against the frequencies of a temperature a little off, the same draws are all but impossible.
    assert chisquare(observed.numpy(), (count * (logits.double() / (1.3 * temperature)).softmax(0)).numpy()).pvalue < 1e-6
    torch.testing.assert_close(logprobs, expected[tokens].log(), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)  # a busy machine is no failure
@given(size=st.integers(1, 700), seed=st.integers(0, 1000), number=st.floats(0, 1, exclude_max=True))
def test_the_draw_is_the_first_token_whose_cumulative_probability_exceeds_the_number(size, seed, number):
    logits = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    token, logprob = one(logits.tolist(), number)
    probabilities = [math.exp(x) for x in logits.tolist()]
    total = math.fsum(probabilities)
    expected = next((t for t, reached in enumerate(accumulate(probabilities)) if reached / total > number), size - 1)
    # 1e-6: where the number lies so near to an edge, the arithmetic's last bits decide.
    assert token == expected or abs(math.fsum(probabilities[: max(token, expected)]) / total - number) < 1e-6
    assert logprob == pytest.approx(math.log(probabilities[token] / total), abs=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("gap", [1, 255, 256, 600])
def test_a_token_of_probability_zero_is_never_drawn_not_even_at_the_edges(uniform, gap):
    token, logprob = one([NEVER] * gap + [0.0] + [NEVER] * gap + [0.0] + [NEVER] * gap, uniform)
    assert token == (gap if uniform < 0.5 else 2 * gap + 1)
    assert logprob == pytest.approx(math.log(0.5))


def test_temperature_zero_takes_the_likeliest_and_says_its_log_prob_at_one():
    token, logprob = one([0.0, math.log(3.0), -1000.0], 0.999, temperature=0.0)
    assert (token, logprob) == (1, pytest.approx(math.log(0.75)))


def test_rows_of_one_batch_may_have_temperatures_of_their_own():
    logits = torch.tensor([[0.0, 1.0]]).repeat(3, 1)
    numbers = torch.full((3,), 0.2, dtype=torch.float64)
    tokens, logprobs = draw(logits, numbers, torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.1, 1.0, 1.0]))
    # At temperature 0.5 token 0 has 1/(1 + e²) = 0.119 of the probability, at 1 it has 1/(1 + e) = 0.269.
    assert tokens.tolist() == [1, 1, 0]
    assert logprobs.tolist() == pytest.approx([-math.log(1 + math.exp(-1)), -math.log(1 + math.exp(-2)), -math.log(1 + math.e)], abs=1e-6)


def test_top_p_draws_from_the_fewest_tokens_that_hold_so_much_and_leaves_the_log_probs_whole():
    logits = [math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]
    # The tokens 1 and 3 hold 0.75; shares 2/3 and 1/3, in the vocabulary's order.
    assert one(logits, 0.0, top_p=0.7) == (1, pytest.approx(math.log(0.5)))
    assert one(logits, 0.66, top_p=0.7)[0] == 1
    assert one(logits, 0.67, top_p=0.7) == (3, pytest.approx(math.log(0.25)))
    assert one(logits, 0.99, top_p=0.4)[0] == 1
    assert one(logits, 0.09, top_p=1.0)[0] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ModelError, match="the logits of the next token are no numbers"):
        one([0.0, bad, 1.0], 0.5)


def test_a_longer_list_of_numbers_begins_with_the_shorter_one():
    assert uniforms(7, 1000)[:3] == uniforms(7, 3)
    assert uniforms(8, 3) != uniforms(7, 3)
