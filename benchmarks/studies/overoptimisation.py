"""Gold against proxy over √KL, for best-of-n and PPO, three sizes of proxy, and what ensembles repair: after Gao et al. (2210.10760).

    python benchmarks/studies/overoptimisation.py --out DIR

The task is that of `_tiny.py`. Proxies learn from 1,000 pairs with a quarter of the labels flipped. Best-of-n by the estimator that is
exact over all subsets of one pool; PPO without a KL penalty, looked at every 4 steps until it is 40 nats from where it began. An ensemble
(Coste et al. 2310.02743) has four proxies of the smallest size, from the same pairs: their mean, the worst, or the mean less their
sd. It is compared with the mean of its four members, each optimised alone. Both rewards are in sd of the reference's answers. Gold
is fitted by d (α − β d) for best-of-n and d (α − β log d) for PPO, d = √KL, for each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _out import COLOURS, INK, MARKERS, arguments, plt, spread, told, write
from _tiny import Grammar, Proxy, Settings, fit, gold, labelled, look, ppo, pretrain
from scipy.special import gammaln
from torch import Tensor

from preftune.rollout.rewards.models import pessimistic

WIDTHS = (3, 8, 24)
MEMBERS = 4
SMALL = f"width {WIDTHS[0]}"
COMBINE: dict[str, Callable[[Tensor], Tensor]] = {  # [S, members] → [S]
    "ensemble, mean": lambda scores: pessimistic(scores, None),
    "ensemble, worst": lambda scores: pessimistic(scores, "worst"),
    "ensemble, mean − sd": lambda scores: pessimistic(scores, 1.0),
}
FAR = 40.0  # nats; a run that has gone as far is ended
KLS = {"best-of-n": (0, 0.5, 1, 2, 3, 4, 5, 7), "ppo": (0, 0.5, 1, 2, 4, 8, 16, 32)}
SHOWN = (0.5, 1, 2, 4, 7, 8, 16)
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"best-of-n": lambda d: d, "ppo": np.log}
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is run."""

    seeds: int
    pretraining: int
    pairs: int
    fitting: int
    pool: int
    steps: int
    looks: int  # answers a look


def best_of(n: int, proxy: Tensor, value: Tensor) -> float:
    """Return the mean value of the answer that has the most proxy among n drawn from the pool without return, over all subsets."""
    order = np.asarray(value[proxy.argsort()], dtype=float)
    size = len(order)
    rank = np.arange(n, size + 1)
    # C(rank − 1, n − 1) / C(size, n): the share of subsets whose best has this rank.
    log_share = gammaln(rank) - gammaln(rank - n + 1) - gammaln(n) - (gammaln(size + 1) - gammaln(n + 1) - gammaln(size - n + 1))
    return float((np.exp(log_share) * order[n - 1 :]).sum())


def law(run: list[Row], form: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
    """Return (α, β, R²) of gold = d (α − β form(d)), least squares over d > 0.3."""
    d, value = np.array([(math.sqrt(r["kl"]), r["gold"]) for r in run if r["kl"] > 0.09]).T
    design = np.stack([d, -d * form(d)], 1)
    found, *_ = np.linalg.lstsq(design, value, rcond=None)
    left = value - design @ found
    return float(found[0]), float(found[1]), float(1 - (left**2).sum() / ((value - value.mean()) ** 2).sum())


class Gold:
    """Gold reward of a seed's reference, in sd of the reference's answers."""

    def __init__(self, pool: Tensor) -> None:
        self.mean, self.sd = float(gold(pool).mean()), float(gold(pool).std())

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the gold reward of each answer, [S]."""
        return (gold(ids) - self.mean) / self.sd


def rewards_of(pairs: Tensor, wins: Tensor, seen: Tensor, steps: int, seed: int) -> list[tuple[str, int, Callable[[Tensor], Tensor]]]:
    """Return (name, member, reward) of each proxy and ensemble. The smallest proxies, which are the ensemble's, come first."""

    def learned(width: int, member: int) -> Proxy:
        return fit(width, pairs, wins, seen, steps=steps, seed=100 * seed + member)

    members = [learned(WIDTHS[0], i) for i in range(MEMBERS)]
    singles = [(SMALL, i, one) for i, one in enumerate(members)] + [(f"width {width}", 0, learned(width, 0)) for width in WIDTHS[1:]]

    def together(combine: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda ids: combine(torch.stack([one(ids) for one in members], 1))

    return singles + [(name, 0, together(combine)) for name, combine in COMBINE.items()]


def rows_of(seed: int, size: Size) -> Iterator[Row]:
    """Yield the rows of one seed: grammar, reference, pairs, proxies and PPO are all its own."""
    draw = torch.Generator().manual_seed(seed)
    reference = pretrain(Grammar(seed), size.pretraining, seed)
    pool, held = reference.sample(size.pool, draw), reference.sample(4000, draw)
    true = Gold(pool)
    of_pool, held_gold = true(pool), true(held).view(-1, 2)
    differ = held_gold[:, 0] != held_gold[:, 1]
    pairs, wins = labelled(reference, size.pairs, draw)
    for name, member, reward in rewards_of(pairs, wins, pool[:4000], size.fitting, seed):
        scores, on_held = reward(pool), reward(held).view(-1, 2)
        right = (on_held[:, 0] > on_held[:, 1]) == (held_gold[:, 0] > held_gold[:, 1])
        common = {"seed": seed, "reward": name, "member": member, "accuracy": float(right[differ].float().mean())}
        for n in [2**i for i in range(int(math.log2(size.pool)) - 2)]:
            found = {"gold": best_of(n, scores, of_pool), "proxy": best_of(n, scores, scores)}
            yield common | {"by": "best-of-n", "n": n, "kl": math.log(n) - (n - 1) / n} | found
        for policy in ppo(reference, reward, Settings(steps=size.steps, lr=1e-3), seed):
            kl, ids = look(policy, reference, size.looks, draw)
            yield common | {"by": "ppo", "kl": max(kl, 0.0), "gold": float(true(ids).mean()), "proxy": float(reward(ids).mean())}
            if kl > FAR:
                break


def of(rows: list[Row], **wanted: object) -> list[Row]:
    """Return the rows that have these values, in their order."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def reach(rows: list[Row]) -> float:
    """Return the farthest KL that every run among the rows has come to."""
    farthest: dict[tuple[object, ...], float] = {}
    for row in rows:
        run = (row["by"], row["reward"], row["seed"], row["member"])
        farthest[run] = max(farthest.get(run, 0.0), row["kl"])
    return min(farthest.values())


def at(run: list[Row], kl: float, what: str = "gold") -> float:
    """Return a seed's reward at a KL, straight between looks, mean over members; nan where one of them did not go as far."""
    found = []
    for member in {row["member"] for row in run}:
        own = sorted(of(run, member=member), key=lambda row: row["kl"])
        found.append(float(np.interp(kl, [row["kl"] for row in own], [row[what] for row in own], right=math.nan)))
    return float(np.mean(found))


def fall(runs: list[list[Row]], kls: list[float]) -> tuple[list[float], list[float], list[float]]:
    """Return for each seed (KL of the peak, gold there, how far gold has fallen from there at the farthest KL).

    Where a seed's peak lies is read from the other seeds' mean, so that no peak is made of luck.
    """
    gold_at = np.array([[at(run, kl) for kl in kls] for run in runs])
    peaks = [int(np.delete(gold_at, i, axis=0).mean(0).argmax()) for i in range(len(runs))]
    most = [float(gold_at[i, peak]) for i, peak in enumerate(peaks)]
    return [kls[peak] for peak in peaks], most, [m - float(gold_at[i, -1]) for i, m in enumerate(most)]


def tables(rows: list[Row], seeds: int) -> tuple[list[list[dict[str, str]]], dict[str, Any]]:
    """Return what is shown: the curves and their fits; what ensembles gain; and what is told in one line."""
    curves, gains, summary = [], [], {}
    for by, form in FORMS.items():
        runs = {name: [of(rows, by=by, reward=name, seed=seed) for seed in range(seeds)] for name in names_of(rows)}
        kls = [kl for kl in KLS[by] if kl <= reach(of(rows, by=by))]
        for name, its in runs.items():
            alpha, beta, explained = zip(*[law(run, form) for run in its], strict=True)
            peaks, most, falls = fall(its, kls)
            cells = {"accuracy": told([float(np.mean([r["accuracy"] for r in run])) for run in its], 2)}
            cells |= {"α": told(alpha, 2), "β": told(beta, 2), "R²": f"{np.median(explained):.2f}"}
            cells |= {"peak at KL": f"{np.median(peaks):g}", "gold there": told(most, 2)}
            cells |= {"fall from there": f"{told(falls, 2)} at KL {kls[-1]:g}"}
            cells |= {"proxy at the end": told([at(run, kls[-1], "proxy") for run in its], 2)}
            curves.append({"by": by, "reward": name} | cells)
            summary[f"{by}, {name}"] = {"fall": spread(falls), "to": kls[-1]}
        for name in COMBINE:
            more = {kl: [at(a, kl) - at(b, kl) for a, b in zip(runs[name], runs[SMALL], strict=True)] for kl in kls[1:]}
            gains.append({"by": by, "reward": name} | {f"KL {kl:g}": told(more[kl], 2) if kl in more else "–" for kl in SHOWN})
            summary[f"{by}, {name}"]["gain"] = {kl: spread(values) for kl, values in more.items()}
    return [curves, gains], summary


def names_of(rows: list[Row]) -> list[str]:
    """Return the rewards' names, in their order."""
    return list(dict.fromkeys(row["reward"] for row in rows))


def plot(rows: list[Row], seeds: int) -> object:
    """Return two panels: solid = gold, dotted = proxy, means over seeds; the band is the 95 % interval of gold."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2))
    for axes, by in zip(panels, FORMS, strict=True):
        for i, name in enumerate(names_of(rows)):
            runs = [of(rows, by=by, reward=name, seed=seed) for seed in range(seeds)]
            far = reach(of(rows, by=by, reward=name))
            kls = [far * (j / 24) ** 2 for j in range(25)]
            d = [math.sqrt(kl) for kl in kls]
            middle, half = np.array([spread([at(run, kl) for run in runs]) for kl in kls]).T
            axes.plot(d, middle, color=COLOURS[i], marker=MARKERS[i], ms=3, markevery=4, lw=1.2, label=name)
            axes.fill_between(d, middle - half, middle + half, color=COLOURS[i], alpha=0.12, lw=0)
            if name.startswith("width"):
                axes.plot(d, [np.mean([at(run, kl, "proxy") for run in runs]) for kl in kls], color=COLOURS[i], lw=0.9, ls=":")
        axes.axhline(0, color=INK, lw=0.5)
        axes.set(title=by, xlabel="√KL, √nats")
    panels[0].set(ylabel="reward, sd of the reference (dotted: proxy)")
    panels[0].legend(fontsize=8)
    return figure


def main() -> None:
    """Run all seeds, fit, write."""
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    size = Size(8, 300, 1000, 150, 60_000, 160, 384)
    if options.quick:
        size = Size(2, 20, 100, 10, 512, 24, 64)
    rows = [row for seed in range(size.seeds) for row in rows_of(seed, size)]
    shown, summary = tables(rows, size.seeds)
    write(options.out, "overoptimisation", rows, shown[0], plot(rows, size.seeds), {"quick": options.quick} | summary, more=shown[1:])


if __name__ == "__main__":
    main()
