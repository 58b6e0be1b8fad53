"""Entropy and KL of whole distributions: by hand, against whole logits, and without ever holding them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from preftune.data.batches import Group, collate
from preftune.errors import ShapeError
from preftune.losses.distributions import token_entropy, token_kl, top_kl, top_logprobs
from preftune.losses.logprobs import Head, predicting, token_logprobs

BATCH = collate([Group((1, 2), ((3, 4, 6), (5, 6)), 0), Group((2,), ((0, 6),), 1)], 0)
MASK, PARENT = BATCH.completion_mask, BATCH.parent
COUNT, VOCABULARY = int(MASK.sum()), 11
SETTINGS = {"temperature": 0.7, "chunk_tokens": 3}
HEADS = pytest.mark.parametrize(
    "shape", [{}, {"bias": True}, {"softcap": 3.0}, {"scale": 0.5}, {"bias": True, "softcap": 2.0, "scale": 0.25}], ids=str
)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(seed: int, shape: dict | None = None, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Head]:
    settings = dict(shape or {})
    bias = draw(VOCABULARY, seed=seed + 2, dtype=dtype).requires_grad_() if settings.pop("bias", False) else None
    hidden = draw(*BATCH.ids.shape, 4, seed=seed, dtype=dtype).requires_grad_()
    return hidden, Head(draw(VOCABULARY, 4, seed=seed + 1, dtype=dtype).requires_grad_(), bias, **settings)


def plain(hidden: torch.Tensor, head: Head, temperature: float = 0.7) -> torch.Tensor:
    """All log-probs of all counted places, [N, V]: what must never be there."""
    return (head.logits(predicting(hidden, PARENT, MASK)) / temperature).log_softmax(-1)


def slopes(value: torch.Tensor, hidden: torch.Tensor, head: Head) -> list[torch.Tensor]:
    inputs = [x for x in (hidden, head.weight, head.bias) if x is not None]
    pull = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    return list(torch.autograd.grad((value * pull).sum(), inputs, retain_graph=True))


def assert_same(ours: torch.Tensor, rows: torch.Tensor, hidden: torch.Tensor, head: Head, tolerance: float) -> None:
    """Value and gradient are those of one number a counted place from whole logits."""
    expected = torch.zeros_like(ours).masked_scatter(MASK, rows)
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
    for got, wanted in zip(slopes(ours, hidden, head), slopes(expected, hidden, head), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * max(1.0, float(wanted.abs().max())))


@HEADS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_entropy_and_kl_and_their_gradients_are_those_of_whole_logits(shape, dtype, tolerance):
    hidden, head = case(1, shape, dtype)
    ref_hidden, ref_head = case(11, shape, dtype)
    logprobs, ref_logprobs = plain(hidden, head), plain(ref_hidden, ref_head).detach()
    probs = logprobs.exp()
    assert_same(token_entropy(hidden, head, PARENT, MASK, **SETTINGS), -(probs * logprobs).sum(-1), hidden, head, tolerance)
    ours = token_kl(hidden, head, ref_hidden.detach(), ref_head, PARENT, MASK, **SETTINGS)
    assert_same(ours, (probs * (logprobs - ref_logprobs)).sum(-1), hidden, head, tolerance)
    ids, ref_top = top_logprobs(ref_hidden, ref_head, PARENT, MASK, top=4, **SETTINGS)
    coarse = 0
    for column in range(4):
        p = logprobs.gather(1, ids[:, column, None]).squeeze(1)
        coarse = coarse + p.exp() * (p - ref_top[:, column])
    others = torch.ones_like(probs).scatter(1, ids, 0.0)
    rest = (probs * others).sum(-1)
    coarse = coarse + rest * (rest.log() - (ref_logprobs.exp() * others).sum(-1).log())
    assert_same(top_kl(hidden, head, ids, ref_top, PARENT, MASK, **SETTINGS), coarse, hidden, head, tolerance)


def test_by_hand():
    # One answer token of three, after a prompt of one: policy (1/2, 1/4, 1/4), reference (1/4, 1/2, 1/4).
    batch = collate([Group((0,), ((1,),), 0)], 0)
    eye = Head(torch.eye(3, dtype=torch.float64))
    policy, reference = (torch.tensor([[p, [0.0] * 3]], dtype=torch.float64).log() for p in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    places = {"temperature": 1.0, "chunk_tokens": 8}
    entropy = token_entropy(policy, eye, batch.parent, batch.completion_mask, **places)
    assert entropy.tolist() == [[0.0, pytest.approx(1.5 * math.log(2))]]
    kl = token_kl(policy, eye, reference, eye, batch.parent, batch.completion_mask, **places)
    assert kl.tolist() == [[0.0, pytest.approx(0.25 * math.log(2))]]
    # The reference's likeliest is token 1; the other two together have 3/4 and 1/2.
    ids, top = top_logprobs(reference, eye, batch.parent, batch.completion_mask, top=1, **places)
    assert ids.tolist() == [[1]]
    assert top.exp().tolist() == [[pytest.approx(0.5), pytest.approx(0.5)]]
    coarse = top_kl(policy, eye, ids, top, batch.parent, batch.completion_mask, **places)
    assert coarse.tolist() == [[0.0, pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))]]


def test_kl_of_a_model_to_itself_is_0_and_so_is_its_slope():
    hidden, head = case(1, {"bias": True})
    ids, top = top_logprobs(hidden, head, PARENT, MASK, top=3, **SETTINGS)
    for value in (
        token_kl(hidden, head, hidden.detach(), Head(head.weight.detach(), head.bias.detach()), PARENT, MASK, **SETTINGS),
        top_kl(hidden, head, ids, top, PARENT, MASK, **SETTINGS),
    ):
        assert float(value.detach().abs().max()) < 1e-12
        assert all(float(slope.abs().max()) < 1e-10 for slope in slopes(value, hidden, head))


@pytest.mark.parametrize("seed", range(5))
def test_the_kl_of_the_likeliest_grows_with_their_number_up_to_the_whole(seed):
    (hidden, head), (ref_hidden, ref_head) = case(3 * seed), case(3 * seed + 50)
    whole = token_kl(hidden, head, ref_hidden, ref_head, PARENT, MASK, **SETTINGS)
    before = torch.zeros_like(whole)
    for top in (1, 2, 5, VOCABULARY - 1):
        ids, values = top_logprobs(ref_hidden, ref_head, PARENT, MASK, top=top, **SETTINGS)
        now = top_kl(hidden, head, ids, values, PARENT, MASK, **SETTINGS)
        assert bool((now >= before - 1e-12).all())
        before = now
    torch.testing.assert_close(before, whole, rtol=0, atol=1e-12)  # all but one: the rest is one token


@HEADS
def test_the_slopes_are_those_of_central_differences(shape):
    hidden, head = case(1, shape)
    ref_hidden, ref_head = case(11)

    def compute(hidden, ref_hidden, weight, *bias):
        mine = Head(weight, bias[0] if bias else None, softcap=head.softcap, scale=head.scale)
        both = token_kl(hidden, mine, ref_hidden, ref_head, PARENT, MASK, **SETTINGS)
        return both + token_entropy(hidden, mine, PARENT, MASK, **SETTINGS)

    inputs = [x for x in (hidden, ref_hidden, head.weight, head.bias) if x is not None]
    assert torch.autograd.gradcheck(compute, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


def test_the_entropy_is_the_one_that_is_made_beside_the_log_probs():
    hidden, head = case(1, {"bias": True, "softcap": 3.0})
    _, beside = token_logprobs(hidden, head, BATCH.ids, PARENT, MASK, temperature=SETTINGS["temperature"], block=2)
    torch.testing.assert_close(token_entropy(hidden, head, PARENT, MASK, **SETTINGS), beside, rtol=0, atol=1e-12)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, torch.Tensor):
                self.size = max(self.size, made.numel())
        return out


def test_no_tensor_of_tokens_times_vocabulary_is_made_forward_or_backward():
    tokens, vocabulary, chunk = 64, 512, 4
    batch = collate([Group((1,), (tuple(range(tokens)),), 0)], 0)
    hidden, ref_hidden = (draw(*batch.ids.shape, 8, seed=seed).requires_grad_() for seed in (1, 2))
    head = Head(draw(vocabulary, 8, seed=3))
    settings = {"temperature": 1.0, "chunk_tokens": chunk}
    with Largest() as seen:
        ids, top = top_logprobs(ref_hidden, head, batch.parent, batch.completion_mask, top=5, **settings)
        total = token_kl(hidden, head, ref_hidden, head, batch.parent, batch.completion_mask, **settings).sum()
        total = total + token_entropy(hidden, head, batch.parent, batch.completion_mask, **settings).sum()
        total = total + top_kl(hidden, head, ids, top, batch.parent, batch.completion_mask, **settings).sum()
        total.backward()
    assert chunk * vocabulary <= seen.size <= max(chunk, 8) * vocabulary < tokens * vocabulary
    assert float(hidden.grad.abs().sum()) > 0


def test_where_nothing_counts_all_is_0():
    (hidden, head), nothing = case(1), torch.zeros_like(MASK)
    ids, top = top_logprobs(hidden, head, PARENT, nothing, top=2, **SETTINGS)
    assert (ids.shape, top.shape) == ((0, 2), (0, 3))
    for value in (
        token_entropy(hidden, head, PARENT, nothing, **SETTINGS),
        token_kl(hidden, head, hidden, head, PARENT, nothing, **SETTINGS),
        top_kl(hidden, head, ids, top, PARENT, nothing, **SETTINGS),
    ):
        assert value.shape == MASK.shape
        assert float(value.detach().abs().sum()) == 0


def test_what_does_not_fit_together_is_refused():
    hidden, head = case(1)
    with pytest.raises(ShapeError, match=r"hidden is \[2, 7, 4\] but ref_hidden is \[2, 6, 4\]"):
        token_kl(hidden, head, hidden[:, 1:], head, PARENT, MASK, **SETTINGS)
    with pytest.raises(ShapeError, match="top is 11, but should be from 1 to 10, one less than the vocabulary"):
        top_logprobs(hidden, head, PARENT, MASK, top=VOCABULARY, **SETTINGS)
    ids, top = top_logprobs(hidden, head, PARENT, MASK, top=2, **SETTINGS)
    with pytest.raises(ShapeError, match=r"ids is \[6\] but ref_logprobs is \[7\]"):
        top_kl(hidden, head, ids[1:], top, PARENT, MASK, **SETTINGS)
