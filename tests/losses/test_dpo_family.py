"""The kin of DPO: hand cases, the peer's own numbers, slopes, symmetries, and what hundreds of nats do."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, permutations

import pytest
import torch
from torch import Tensor

from preftune.errors import ShapeError
from preftune.losses import preference as p
from preftune.losses.reduce import weighted_sum


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


WIN, TIE = torch.tensor([False]), torch.tensor([True])
GOOD, BAD = torch.tensor([True]), torch.tensor([False])
RANKS = torch.tensor([[1, 2, 3]])

# Log-ratios 1 and −1, log π −12 and −15 over 6 and 10 tokens. Each figure was worked out by hand and by a second formula.
HAND: dict[str, tuple[Callable[[], Tensor], float]] = {
    "robust": (lambda: p.robust_dpo(row(1), row(-1), beta=0.1, label_smoothing=0.1), 0.573139),
    "IPO, sums": (lambda: p.ipo(row(1), row(-1), tau=0.1), 9.0),
    "IPO, means": (lambda: p.ipo(row(1 / 6), row(-1 / 10), tau=0.1), 22.404444),
    "hinge": (lambda: p.hinge(row(1), row(-1), beta=0.1), 0.8),
    "DPOP, chosen likelier": (lambda: p.dpop(row(1), row(-1), beta=0.1, penalty=5.0), 0.598139),
    "DPOP, chosen less likely": (lambda: p.dpop(row(-0.5), row(-1), beta=0.1, penalty=5.0), 0.798139),
    "offset by nothing": (lambda: p.offset_dpo(row(1), row(-1), row(0), beta=0.1, gamma=0.3), 0.598139),
    "offset to a gap of 0.7": (lambda: p.offset_dpo(row(8), row(-1), row(2), beta=0.1, gamma=0.1), 0.403186),
    "length-normalised": (lambda: p.dpo(row(1 / 6), row(-1 / 10), beta=0.1, label_smoothing=0.0), 0.679903),
    "length-desensitised": (lambda: p.dpo(row(1), row(-0.4 + 0.5 * -0.6), beta=0.1, label_smoothing=0.0), 0.611755),
    "BCO": (lambda: p.bco(row(1), row(-1), beta=0.1, shift=0.02), 1.288893),
    "EXO": (lambda: p.exo(row(1), row(-1), beta=0.1, label_smoothing=0.1), 0.406304),
    "APO zero": (lambda: p.apo_zero(row(1), row(-1), beta=0.1), 0.950042),
    "APO down": (lambda: p.apo_down(row(1), row(-1), beta=0.1), 0.975145),
    "SimPO": (lambda: p.simpo(row(-12 / 6), row(-15 / 10), beta=2.0, gamma=1.0), 2.126928),
    "CPO": (lambda: p.cpo(row(-12), row(-15), beta=0.1, label_smoothing=0.0), 0.554355),
    "CPO with NLL": (lambda: p.cpo(row(-12), row(-15), beta=0.1, label_smoothing=0.0) + p.nll(row(-12 / 6)), 2.554355),
    "RPO": (lambda: p.dpo(row(1), row(-1), beta=0.1, label_smoothing=0.0) + p.nll(row(-12 / 6)), 2.598139),
    "ORPO's odds": (lambda: p.orpo(row(-12 / 6), row(-15 / 10)), 1.042058),
    "ORPO": (lambda: p.nll(row(-12 / 6)) + 0.1 * p.orpo(row(-12 / 6), row(-15 / 10)), 2.104206),
    "KTO, desirable": (lambda: p.kto(row(1), GOOD, 0.2, beta=0.1), 0.480011),
    "KTO, undesirable": (lambda: p.kto(row(-1), BAD, 0.2, beta=0.1), 0.470036),
    "Rao–Kupper, win": (lambda: p.rao_kupper_dpo(row(1), row(-1), WIN, beta=0.1, nu=3.0), 1.240167),
    "Rao–Kupper, tie": (lambda: p.rao_kupper_dpo(row(1), row(-1), TIE, beta=0.1, nu=3.0), 0.700644),
    "Davidson, win": (lambda: p.davidson_dpo(row(1), row(-1), WIN, beta=0.1, nu=1.0), 1.288793),
    "Davidson, tie": (lambda: p.davidson_dpo(row(1), row(-1), TIE, beta=0.1, nu=1.0), 0.695646),
    "Plackett–Luce": (lambda: p.plackett_luce_dpo(row(1, 0, -1)[None], RANKS, beta=0.1), 1.646340),
}


@pytest.mark.parametrize("name", HAND)
def test_the_hand_cases(name):
    loss, expected = HAND[name]
    assert loss().item() == pytest.approx(expected, abs=1e-6)


def test_aot_by_hand():
    u, v = row(3, 1), row(0.5, 2)
    assert p.matched_by_rank(u, v).tolist() == [2, 0.5]
    assert p.aot(u, p.matched_by_rank(u, v), beta=0.1).mean().item() == pytest.approx(0.656428, abs=1e-6)
    assert p.aot(u, v, beta=0.1).mean().item() == pytest.approx(0.660168, abs=1e-6)  # unmatched it is DPO


# The peer, TRL 1.16, on four pairs: python tests/losses/peer_losses.py, which says where to run it.

CHOSEN = [[-1.0, -0.5, -2.0], [-0.25, -0.75], [-3.0, -1.0, -0.5, -0.25], [-2.0]]
REJECTED = [[-1.5, -2.5], [-0.5, -1.0, -1.5, -0.25], [-1.0, -0.125, -0.25], [-0.75, -4.0]]
REF_CHOSEN = [[-1.5, -1.0, -1.5], [-0.5, -0.5], [-1.0, -1.5, -0.25, -0.25], [-1.0]]
REF_REJECTED = [[-1.0, -1.0], [-0.75, -1.0, -1.0, -0.75], [-0.5, -0.25, -0.5], [-1.0, -3.0]]


def sums(rows: list[list[float]]) -> Tensor:
    return row(*map(sum, rows))


def means(rows: list[list[float]]) -> Tensor:
    return row(*(sum(r) / len(r) for r in rows))


def desensitised(rows: list[list[float]], others: list[list[float]]) -> Tensor:
    width = max(map(len, rows))
    filled = torch.tensor([[*r, *[math.nan] * (width - len(r))] for r in rows], dtype=torch.float64)
    shared = torch.tensor([min(len(r), len(o)) for r, o in zip(rows, others, strict=True)])
    return p.length_desensitised(filled, filled.isfinite(), shared, tail_weight=0.5)


H_CHOSEN, H_REJECTED = sums(CHOSEN) - sums(REF_CHOSEN), sums(REJECTED) - sums(REF_REJECTED)
MEANS = means(CHOSEN) - means(REF_CHOSEN), means(REJECTED) - means(REF_REJECTED)
U, V = sums(CHOSEN) - sums(REJECTED), sums(REF_CHOSEN) - sums(REF_REJECTED)
LD = (
    desensitised(CHOSEN, REJECTED) - desensitised(REF_CHOSEN, REF_REJECTED),
    desensitised(REJECTED, CHOSEN) - desensitised(REF_REJECTED, REF_CHOSEN),
)
ALL, SIDES = torch.cat([H_CHOSEN, H_REJECTED]), torch.tensor([True] * 4 + [False] * 4)
PEER: dict[str, tuple[Callable[[], Tensor], float | list[float]]] = {
    "dpo": (lambda: p.dpo(H_CHOSEN, H_REJECTED, beta=0.1, label_smoothing=0.0), 0.6912710908503596),
    "hinge": (lambda: p.hinge(H_CHOSEN, H_REJECTED, beta=0.1), 0.990625),
    "ipo": (lambda: p.ipo(*MEANS, tau=0.5), 1.4364149305555556),
    "exo": (lambda: p.exo(H_CHOSEN, H_REJECTED, beta=0.1, label_smoothing=0.1), 0.5086037707900993),
    "robust": (lambda: p.robust_dpo(H_CHOSEN, H_REJECTED, beta=0.1, label_smoothing=0.1), 0.6900992158503596),
    "bco without its shift": (lambda: p.bco(H_CHOSEN, H_REJECTED, beta=0.1, shift=0.0), 1.3844012361816378),
    "aot": (lambda: p.aot(U, p.matched_by_rank(U, V), beta=0.1), 0.690667802888608),
    "apo_zero": (lambda: p.apo_zero(H_CHOSEN, H_REJECTED, beta=0.1), 0.9976674950574436),
    "apo_down": (lambda: p.apo_down(H_CHOSEN, H_REJECTED, beta=0.1), 0.9836845522888009),
    "length-normalised": (lambda: p.dpo(*MEANS, beta=5.0, label_smoothing=0.0), 1.5352697349681033),
    "length-desensitised": (lambda: p.dpo(*LD, beta=0.1, label_smoothing=0.0), 0.6949601121283663),
    "nll over tokens": (lambda: -sums(CHOSEN).sum() / sum(map(len, CHOSEN)), 1.125),
    "kto": (lambda: p.kto(ALL, SIDES, p.kto_kl(row(0.1, 0.3)), beta=0.1), 0.49883435992411107),
    "kto below": (lambda: p.kto(ALL, SIDES, p.kto_kl(row(-0.1, -0.3)), beta=0.1), 0.4988337475287218),
    "cpo": (
        lambda: p.cpo(sums(CHOSEN), sums(REJECTED), beta=0.1, label_smoothing=0.0),
        [0.6684596480132863, 0.5869620020497037, 0.8760683943536864, 0.5650706676896001],
    ),
    "simpo": (
        lambda: p.simpo(means(CHOSEN), means(REJECTED), beta=2.0, gamma=1.0),
        [0.4143700868520721, 0.8981232641398401, 2.5404454011215774, 0.8259394198788436],
    ),
    "orpo": (
        lambda: p.orpo(means(CHOSEN), means(REJECTED)),
        [0.297213613986969, 0.41707319021224976, 1.5931841135025024, 0.5039337873458862],
    ),
}


@pytest.mark.parametrize("name", PEER)
def test_the_peer_gives_the_same_on_the_same_batch(name):
    ours, theirs = PEER[name]
    got = ours()
    tolerance = 1e-6 if name in ("orpo", "exo") else 1e-9  # which the peer computes in float32, the one in part
    assert (got.tolist() if isinstance(theirs, list) else got.mean().item()) == pytest.approx(theirs, abs=tolerance)


# Laws. Every loss of two log-ratios (or means, below 0) with settings that are not the usual ones.

TIED, STRENGTHS = torch.tensor([True, False, False, True, False, True]), row(0, 1, 2, 3, 1, 0)
PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dpo": lambda c, r: p.dpo(c, r, beta=0.7, label_smoothing=0.2),
    "robust": lambda c, r: p.robust_dpo(c, r, beta=0.7, label_smoothing=0.2),
    "ipo": lambda c, r: p.ipo(c, r, tau=0.3),
    "hinge": lambda c, r: p.hinge(c, r, beta=0.7),
    "dpop": lambda c, r: p.dpop(c, r, beta=0.7, penalty=3.0),
    "offset": lambda c, r: p.offset_dpo(c, r, STRENGTHS[: len(c)].to(c), beta=0.7, gamma=0.5),
    "bco": lambda c, r: p.bco(c, r, beta=0.7, shift=0.3),
    "exo": lambda c, r: p.exo(c, r, beta=0.7, label_smoothing=0.05),
    "apo_zero": lambda c, r: p.apo_zero(c, r, beta=0.7),
    "apo_down": lambda c, r: p.apo_down(c, r, beta=0.7),
    "aot": lambda c, r: p.aot(c, r.detach(), beta=0.7),
    "simpo": lambda c, r: p.simpo(c, r, beta=0.7, gamma=0.4),
    "cpo": lambda c, r: p.cpo(c, r, beta=0.7, label_smoothing=0.1),
    "orpo": lambda c, r: p.orpo(-c.abs(), -r.abs()),
    "rao_kupper": lambda c, r: p.rao_kupper_dpo(c, r, TIED[: len(c)], beta=0.7, nu=2.0),
    "davidson": lambda c, r: p.davidson_dpo(c, r, TIED[: len(c)], beta=0.7, nu=0.6),
    "kto": lambda c, r: p.kto(c, TIED[: len(c)], p.kto_kl(r), beta=0.7),
    "plackett_luce": lambda c, r: p.plackett_luce_dpo(torch.stack([c, r], 1), torch.tensor([[1, 2]] * len(c)), beta=0.7),
}
every_loss = pytest.mark.parametrize("name", PAIRED)


def draws(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2)]


@every_loss
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gradient_is_that_of_central_differences(name, seed):
    chosen, rejected = draws(seed)  # nowhere near the kinks of hinge and DPOP
    chosen.requires_grad_()
    if name not in ("aot", "kto"):  # the other side is a constant there
        rejected.requires_grad_()
    assert torch.autograd.gradcheck(PAIRED[name], (chosen, rejected))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [50.0, 1e4])
def test_thousands_of_nats_give_neither_nan_nor_inf_and_no_wild_slope(name, dtype, far):
    signs = [(1, -1), (-1, 1), (1, 1), (-1, -1), (0, 1), (0, 0)]
    chosen, rejected = (torch.tensor([far * s[i] for s in signs], dtype=dtype, requires_grad=True) for i in (0, 1))
    loss = PAIRED[name](chosen, rejected)
    assert loss.isfinite().all()
    loss.sum().backward()
    slope = 1e5 if name == "ipo" else 10  # a parabola; all others are straight lines far out
    for side in (chosen, rejected):
        assert side.grad is None or side.grad.abs().max() < slope


@pytest.mark.parametrize("name", sorted(PAIRED.keys() - {"kto"}))  # whose point of reference is the batch's
def test_a_pair_is_worth_the_same_whichever_pairs_stand_beside_it(name):
    chosen, rejected = draws(3)
    torch.testing.assert_close(PAIRED[name](chosen[:3], rejected[:3]), PAIRED[name](chosen, rejected)[:3], rtol=0, atol=1e-12)


@every_loss
def test_shapes_that_differ_are_refused(name):
    if name == "plackett_luce":
        with pytest.raises(ShapeError, match=r"logratios is \[1, 3\] but ranks is \[1, 2\]"):
            p.plackett_luce_dpo(torch.zeros(1, 3), torch.tensor([[1, 2]]), beta=0.1)
        return
    if name == "kto":
        with pytest.raises(ShapeError, match=r"logratios is \[2\] but desirable is \[1\]"):
            p.kto(torch.zeros(2), GOOD, 0.0, beta=0.1)
        return
    with pytest.raises(ShapeError, match=r"is \[2\] but [a-z_]+ is \[3\]"):
        PAIRED[name](torch.zeros(2), torch.zeros(3))


@every_loss
def test_a_pair_that_does_not_count_gives_no_slope_even_where_it_is_no_number(name):
    chosen, rejected = (torch.tensor([1.0, math.nan], requires_grad=True) for _ in range(2))
    if name == "kto":
        rejected = torch.tensor([1.0, 0.5])  # one point of reference for all
    weighted_sum(PAIRED[name](chosen, rejected), torch.tensor([1.0, 0.0])).backward()
    assert chosen.grad[0].isfinite()


# Symmetries and special cases.


def test_probabilities_of_win_tie_and_loss_add_to_1():
    chosen, rejected = draws(4)
    for loss, nu in ((p.rao_kupper_dpo, 2.5), (p.davidson_dpo, 0.8)):
        said = [(chosen, rejected, False), (rejected, chosen, False), (chosen, rejected, True)]
        total = sum((-loss(a, b, torch.full((6,), tie), beta=0.4, nu=nu)).exp() for a, b, tie in said)
        torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64))
        tied = torch.ones(6, dtype=torch.bool)
        swapped = [loss(a, b, tied, beta=0.4, nu=nu) for a, b in ((chosen, rejected), (rejected, chosen))]
        torch.testing.assert_close(*swapped)


@pytest.mark.parametrize(("loss", "nu"), [(p.rao_kupper_dpo, 3.0), (p.davidson_dpo, 1.0)])
def test_the_default_of_both_tie_models_calls_half_of_equal_answers_ties(loss, nu):
    assert loss(row(0), row(0), TIE, beta=0.1, nu=nu).item() == pytest.approx(math.log(2))


def test_a_tie_pulls_the_two_answers_together():
    for loss, nu in ((p.rao_kupper_dpo, 3.0), (p.davidson_dpo, 1.0)):
        chosen = torch.tensor([4.0], requires_grad=True)
        loss(chosen, torch.zeros(1), TIE, beta=0.5, nu=nu).sum().backward()
        assert chosen.grad.item() > 0  # descent lowers the one that is ahead


def test_without_ties_rao_kupper_at_nu_1_is_dpo():
    chosen, rejected = draws(5)
    plain = p.dpo(chosen, rejected, beta=0.3, label_smoothing=0.0)
    for_nu_1 = p.rao_kupper_dpo(chosen, rejected, torch.zeros(6, dtype=torch.bool), beta=0.3, nu=1.0 + 1e-12)
    torch.testing.assert_close(for_nu_1, plain)


def test_plackett_luce_of_two_answers_is_dpo_and_all_orders_add_to_1():
    chosen, rejected = draws(6)
    two = torch.stack([rejected, chosen], 1)
    torch.testing.assert_close(
        p.plackett_luce_dpo(two, torch.tensor([[2, 1]] * 6), beta=0.3), p.dpo(chosen, rejected, beta=0.3, label_smoothing=0.0)
    )
    orders = torch.tensor(list(permutations((1, 2, 3, 4))))
    answers = chosen[:4].expand(len(orders), 4)
    assert (-p.plackett_luce_dpo(answers, orders, beta=0.9)).exp().sum().item() == pytest.approx(1)


def test_plackett_luce_says_nothing_between_tied_answers_and_nothing_of_places_without_an_answer():
    logratios = row(0.5, -0.2, 0.9, 1.3)
    slow = 0.0
    for better in (0, 1):  # tied at the top, each before the third
        rivals = [logratios[better].item(), logratios[2].item()]
        slow += math.log(sum(math.exp(0.4 * x) for x in rivals)) - 0.4 * rivals[0]
    ranks = torch.tensor([[1, 1, 2, 0]])
    assert p.plackett_luce_dpo(logratios[None], ranks, beta=0.4).item() == pytest.approx(slow, abs=1e-12)
    with_nan = torch.cat([logratios[:3], row(math.nan)])[None].requires_grad_()
    loss = p.plackett_luce_dpo(with_nan, ranks, beta=0.4)
    loss.sum().backward()
    assert loss.item() == pytest.approx(slow, abs=1e-12)
    assert with_nan.grad[0, 3] == 0
    assert p.plackett_luce_dpo(logratios[None], torch.tensor([[1, 1, 1, 1]]), beta=0.4).tolist() == [0]


def test_robust_dpo_is_dpo_on_clean_labels_in_the_mean_over_flips():
    chosen, rejected = draws(7)
    flipped = 0.8 * p.robust_dpo(chosen, rejected, beta=0.3, label_smoothing=0.2)
    flipped += 0.2 * p.robust_dpo(rejected, chosen, beta=0.3, label_smoothing=0.2)
    torch.testing.assert_close(flipped, p.dpo(chosen, rejected, beta=0.3, label_smoothing=0.0))


def test_exo_is_least_where_the_model_is_as_sure_as_the_labels():
    goal = math.log(0.9 / 0.1) / 0.5
    at = [p.exo(row(goal + shift), row(0), beta=0.5, label_smoothing=0.1).item() for shift in (-1, 0, 1)]
    assert at[1] == pytest.approx(0, abs=1e-12)
    assert min(at[0], at[2]) > 1e-3


def test_ld_dpo_is_dpo_at_weight_1_and_ignores_the_tail_at_0():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, math.nan]])
    mask, shared = torch.tensor([[True, True, True], [True, True, False]]), torch.tensor([2, 2])
    assert [p.length_desensitised(logprobs, mask, shared, tail_weight=a).tolist() for a in (1.0, 0.5, 0.0)] == [
        [-7, -24], [-5, -24], [-3, -24],
    ]  # fmt: skip


def test_orpo_of_an_answer_that_is_certain_is_finite_and_still_pulls_the_rejected_one_down():
    for almost in (0.0, -1e-8, -1e-12):
        chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (almost, almost))
        loss = p.orpo(chosen, rejected)
        loss.sum().backward()
        assert loss.item() == pytest.approx(math.log(2))
        assert chosen.grad.isfinite().all()
        assert rejected.grad.isfinite().all()
    assert p.orpo(torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-2.0], dtype=torch.bfloat16)).dtype == torch.float32


def test_matching_by_rank_keeps_each_number_and_gives_no_slope():
    margins, others = draws(8)
    matched = p.matched_by_rank(margins.requires_grad_(), others)
    assert not matched.requires_grad
    assert sorted(matched.tolist()) == sorted(others.tolist())
    along = matched[margins.argsort()].tolist()
    assert all(a <= b for a, b in pairwise(along))
