"""Token log-probs: the one shift, the temperature, the entropy, and chunks that change neither a value nor a gradient."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.data.batches import Group, collate
from preftune.errors import ShapeError
from preftune.losses.logprobs import Head, logprobs_from_logits, predicting, token_logprobs
from preftune.losses.reduce import sequence_sum

# By hand: four rows of logits over three tokens, and the tokens 0, 1, 2, 1.
LOGITS = torch.tensor([[[1.0, 0, -1], [0, 2, 0], [0.5, 0.5, 1], [9, 9, 9]]], dtype=torch.float64)
WHOLE = Group((0,), ((1, 2, 1),), 0)
LATER = Group((0, 1), ((2, 1),), 0)
IDENTITY = Head(torch.eye(3, dtype=torch.float64))


def both_ways(group: Group, temperature: float = 1.0) -> list[torch.Tensor]:
    """The log-probs from whole logits, and from the same logits as hidden states of a head that changes nothing."""
    batch = collate([group], 0)
    places = (batch.ids, batch.parent, batch.completion_mask)
    chunked, _ = token_logprobs(LOGITS, IDENTITY, *places, temperature=temperature, block=2)
    return [logprobs_from_logits(LOGITS, *places, temperature=temperature), chunked]


def test_a_token_is_scored_by_the_logits_one_place_before_it():
    for values in both_ways(WHOLE):
        assert values.tolist()[0] == pytest.approx([0, -1.407606, -2.239545, -1.294377], abs=1e-6)
        assert float(values.sum()) == pytest.approx(-4.941528, abs=1e-6)


def test_prompt_tokens_are_not_counted_and_the_first_answer_token_is_scored_at_the_prompts_last():
    for values in both_ways(LATER):
        assert values.tolist()[0] == pytest.approx([0, 0, -2.239545, -1.294377], abs=1e-6)
        assert float(values.sum()) == pytest.approx(-3.533922, abs=1e-6)
        assert float(values.sum()) / 2 == pytest.approx(-1.766961, abs=1e-6)


def test_the_temperature_divides_the_logits():
    for values in both_ways(LATER, temperature=0.7):
        assert float(values.sum()) == pytest.approx(-4.362796, abs=1e-6)


def test_the_entropy_is_that_of_the_distribution_that_the_token_was_drawn_from():
    batch = collate([WHOLE], 0)
    _, entropy = token_logprobs(LOGITS, IDENTITY, batch.ids, batch.parent, batch.completion_mask, temperature=1.0, block=8)
    assert entropy[0, 0] == 0
    assert float(entropy[0, 1]) == pytest.approx(0.832396, abs=1e-6)
    _, hot = token_logprobs(LOGITS, IDENTITY, batch.ids, batch.parent, batch.completion_mask, temperature=1e6, block=8)
    assert hot[0, 1:].tolist() == pytest.approx([math.log(3)] * 3, abs=1e-6)


def random_case(*, bias: bool, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Hidden states of a batch with two answers on one prompt and one alone, and a head of 7 tokens."""
    generator = torch.Generator().manual_seed(seed)
    batch = collate([Group((1, 2), ((3, 4, 6), (5, 6)), 0), Group((2,), ((0, 6),), 1)], 0)
    hidden = torch.randn(*batch.ids.shape, 4, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64).to(dtype)
    offset = torch.randn(7, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    return batch, hidden, weight, offset


def slow_logprob(hidden, weight, bias, token, *, softcap, scale, temperature) -> float:
    logits = []
    for v in range(len(weight)):
        value = sum(float(h) * float(w) for h, w in zip(hidden, weight[v], strict=True))
        value = (value + (float(bias[v]) if bias is not None else 0.0)) * scale
        value = softcap * math.tanh(value / softcap) if softcap else value
        logits.append(value / temperature)
    return logits[token] - math.log(sum(math.exp(x) for x in logits))


HEADS = pytest.mark.parametrize(("bias", "softcap", "scale"), [(False, None, 1.0), (True, None, 1.0), (True, 3.0, 1.0), (False, 3.0, 0.4)])


@HEADS
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_of_any_size_equal_a_slow_loop(bias, softcap, scale, chunk):
    batch, hidden, weight, offset = random_case(bias=bias)
    head = Head(weight, offset, softcap=softcap, scale=scale)
    values, entropy = token_logprobs(hidden, head, batch.ids, batch.parent, batch.completion_mask, temperature=0.7, block=chunk)
    settings = {"softcap": softcap, "scale": scale, "temperature": 0.7}
    for row, column in torch.cartesian_prod(torch.arange(values.shape[0]), torch.arange(values.shape[1])).tolist():
        if not batch.completion_mask[row, column]:
            assert values[row, column] == entropy[row, column] == 0
            continue
        state = hidden[row, batch.parent[row, column]]
        every = [slow_logprob(state, weight, offset, token, **settings) for token in range(7)]
        assert float(values[row, column]) == pytest.approx(every[batch.ids[row, column]], abs=1e-12)
        assert float(entropy[row, column]) == pytest.approx(-sum(math.exp(p) * p for p in every), abs=1e-12)


@HEADS
@pytest.mark.parametrize("chunk", [2, 100])
def test_the_gradient_is_that_of_central_differences(bias, softcap, scale, chunk):
    batch, hidden, weight, offset = random_case(bias=bias)

    def compute(hidden, weight, *offset):
        head = Head(weight, offset[0] if offset else None, softcap=softcap, scale=scale)
        return token_logprobs(hidden, head, batch.ids, batch.parent, batch.completion_mask, temperature=0.7, block=chunk)[0]

    inputs = [x.requires_grad_() for x in (hidden, weight, offset) if x is not None]
    assert torch.autograd.gradcheck(compute, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("shape", [{}, {"softcap": 3.0}, {"scale": 0.5}, {"softcap": 2.0, "scale": 0.25}])
def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same(shape):
    slopes = []
    for frozen in (True, False):
        batch, hidden, weight, _ = random_case(bias=False)
        hidden.requires_grad_()
        weight.requires_grad_(not frozen)
        head = Head(weight, **shape)
        values, _ = token_logprobs(hidden, head, batch.ids, batch.parent, batch.completion_mask, temperature=0.7, block=2)
        (values * torch.arange(values.numel()).reshape(values.shape)).sum().backward()
        slopes.append(hidden.grad)
        assert (weight.grad is None) == frozen
    assert slopes[0].abs().sum() > 0
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_logits_of_any_size_overflow_nowhere_and_blocks_of_the_vocabulary_may_rise_or_fall(frozen):
    # exp(900) is no number in float64: what was summed before a larger logit came has to be scaled down, and its pull with it.
    batch, hidden, weight, _ = random_case(bias=False)
    for order in (range(7), reversed(range(7))):
        steep = (weight + 300.0 * torch.tensor(list(order), dtype=torch.float64)[:, None] * hidden[0, 1]).requires_grad_(not frozen)
        places = (batch.ids, batch.parent, batch.completion_mask)
        slopes = []
        for compute in ("plain", "blocks"):
            states = hidden.clone().requires_grad_()
            if compute == "plain":
                values = logprobs_from_logits(states @ steep.T, *places, temperature=1.0)
            else:
                values, entropy = token_logprobs(states, Head(steep), *places, temperature=1.0, block=1)
                assert torch.isfinite(entropy).all()
            values.sum().backward()
            slopes += [values.detach(), states.grad]
        torch.testing.assert_close(slopes[2:], slopes[:2], rtol=1e-10, atol=1e-10)


def test_frozen_hidden_states_leave_the_head_its_gradient():
    batch, hidden, weight, offset = random_case(bias=True)
    head = Head(weight.requires_grad_(), offset.requires_grad_())
    values, _ = token_logprobs(hidden, head, batch.ids, batch.parent, batch.completion_mask, temperature=1.0, block=2)
    values.sum().backward()
    # Over the vocabulary the pull on the logits sums to nothing: what one token gains the others lose.
    assert float(offset.grad.sum()) == pytest.approx(0, abs=1e-12)
    assert float(weight.grad.abs().sum()) > 0


def test_narrow_weights_give_log_probs_in_float32():
    batch, hidden, weight, _ = random_case(bias=False, dtype=torch.bfloat16)
    head = Head(weight.requires_grad_())
    values, entropy = token_logprobs(
        hidden.requires_grad_(), head, batch.ids, batch.parent, batch.completion_mask, temperature=1.0, block=2
    )
    values.sum().backward()
    assert values.dtype == entropy.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    # Every probability of one state, from the same bf16 logits: a log-softmax that was itself in bf16 would miss 1 by about 1 %.
    ids = torch.arange(7)[None].expand(7, 7).T.contiguous()
    one = torch.zeros(7, 7, 4, dtype=torch.bfloat16) + hidden[0, 0].detach()
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[:, 1] = True
    every, _ = token_logprobs(one, head, ids, torch.zeros(7, 7, dtype=torch.long), mask, temperature=1.0, block=100)
    assert float(every[:, 1].detach().exp().sum()) == pytest.approx(1, abs=1e-6)


def test_a_batch_that_counts_nothing_is_zero_with_zero_gradient():
    batch, hidden, weight, _ = random_case(bias=False)
    nothing = torch.zeros_like(batch.completion_mask)
    head = Head(weight.requires_grad_())
    values, entropy = token_logprobs(hidden.requires_grad_(), head, batch.ids, batch.parent, nothing, temperature=1.0, block=2)
    values.sum().backward()
    assert float(values.detach().abs().sum()) == float(entropy.abs().sum()) == 0
    assert float(hidden.grad.abs().sum()) == float(weight.grad.abs().sum()) == 0


def test_the_log_probs_of_a_sequence_multiply_to_its_probability():
    # All 9 answers of two tokens after one prompt: their probabilities sum to 1.
    answers = tuple((a, b) for a in range(3) for b in range(3))
    batch = collate([Group((0,), answers, 0)], 0, tree=False)
    logits = LOGITS[:, :3].expand(9, 3, 3)
    values = logprobs_from_logits(logits, batch.ids, batch.parent, batch.completion_mask, temperature=1.0)
    assert float(sequence_sum(values, batch.sequence, 9).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_tensors_of_different_lengths_are_refused():
    batch, hidden, weight, _ = random_case(bias=False)
    head, mask = Head(weight), batch.completion_mask
    with pytest.raises(ShapeError, match=r"ids is \[2, 7\] but mask is \[2, 6\]"):
        token_logprobs(hidden, head, batch.ids, batch.parent, mask[:, 1:], temperature=1.0, block=2)
    with pytest.raises(ShapeError, match=r"hidden is \[2, 6, 4\] but ids is \[2, 7\]"):
        token_logprobs(hidden[:, 1:], head, batch.ids, batch.parent, mask, temperature=1.0, block=2)
    with pytest.raises(ShapeError, match=r"parent is \[2, 7\] but hidden is \[2, 6\]"):
        predicting(hidden[:, 1:], batch.parent, mask)
    with pytest.raises(ShapeError, match=r"ids is \[2, 7\] but parent is \[2, 6\]"):
        logprobs_from_logits(hidden, batch.ids, batch.parent[:, 1:], mask, temperature=1.0)
