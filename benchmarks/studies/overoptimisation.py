"""Gold against proxy over √KL, for best-of-n and PPO, three sizes of proxy, and what ensembles repair: after Gao et al. (2210.10760).

    python benchmarks/studies/overoptimisation.py --out DIR

The task is that of `_tiny.py`. Proxies learn from 1,000 pairs with a quarter of the labels flipped. Best-of-n by the estimator that is
exact over all subsets of one pool; PPO without a KL penalty, looked at every 4 steps. An ensemble (Coste et al. 2310.02743) has four
proxies of the smallest size, from the same pairs: their mean, the worst, or the mean less their sd. Both rewards are in sd of the
reference's answers. Gold is fitted by d (α − β d) for best-of-n and d (α − β log d) for PPO, d = √KL, for each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _out import COLOURS, INK, MARKERS, arguments, plt, told, write
from _tiny import Grammar, Proxy, Settings, fit, gold, labelled, look, ppo, pretrain
from scipy.special import gammaln
from torch import Tensor

from preftune.rollout.rewards.models import pessimistic

WIDTHS = (2, 6, 24)
MEMBERS = 4
COMBINE: dict[str, Callable[[Tensor], Tensor]] = {  # [S, members] → [S]
    "mean": lambda scores: pessimistic(scores, None),
    "worst": lambda scores: pessimistic(scores, "worst"),
    "mean − sd": lambda scores: pessimistic(scores, 1.0),
}


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


def law(points: list[tuple[float, float]], form: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Return (α, β) of gold = d (α − β form(d)), least squares."""
    d, value = np.array([p for p in points if p[0] > 0.2]).T
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -d * form(d)], 1), value, rcond=None)
    return float(alpha), float(beta)


def runs_of(seed: int, size: Size) -> list[dict[str, Any]]:
    """Return the rows of one seed: grammar, pairs, proxies and PPO are all its own."""
    draw = torch.Generator().manual_seed(seed)
    reference = pretrain(Grammar(seed), size.pretraining, seed)
    pool = reference.sample(size.pool, draw)
    unit, centre = float(gold(pool).std()), float(gold(pool).mean())
    pairs, wins = labelled(reference, size.pairs, draw)
    held = reference.sample(4000, draw).view(2000, 2, -1)
    held_gold = gold(held.flatten(0, 1)).view(-1, 2)
    rewards: dict[str, tuple[Callable[[Tensor], Tensor], list[Proxy]]] = {}
    members = [fit(WIDTHS[0], pairs, wins, pool[:4000], steps=size.fitting, seed=100 * seed + i) for i in range(MEMBERS)]
    for width in WIDTHS:
        one = members[0] if width == WIDTHS[0] else fit(width, pairs, wins, pool[:4000], steps=size.fitting, seed=100 * seed)
        rewards[f"width {width}"] = (one, [one])
    for name, combine in COMBINE.items():
        rewards[f"ensemble, {name}"] = (lambda ids, c=combine: c(torch.stack([m(ids) for m in members], 1)), members)
    rows = []
    for name, (reward, _) in rewards.items():
        with torch.no_grad():
            on_pool = reward(pool)
            first, second = reward(held.flatten(0, 1)).view(-1, 2).unbind(1)
        right = ((first > second) == (held_gold[:, 0] > held_gold[:, 1]))[held_gold[:, 0] != held_gold[:, 1]]
        share = float(right.float().mean())
        common = {"seed": seed, "reward": name, "accuracy": share}
        for n in [2**i for i in range(int(math.log2(size.pool)) - 2)]:
            found = {"gold": (best_of(n, on_pool, gold(pool)) - centre) / unit, "proxy": best_of(n, on_pool, on_pool)}
            rows.append(common | {"by": "best-of-n", "n": n, "kl": math.log(n) - (n - 1) / n} | found)
        for policy in ppo(reference, reward, Settings(steps=size.steps), seed):
            kl, ids = look(policy, reference, size.looks, draw)
            with torch.no_grad():
                found = {"gold": (float(gold(ids).mean()) - centre) / unit, "proxy": float(reward(ids).mean())}
            rows.append(common | {"by": "ppo", "kl": max(kl, 0.0)} | found)
    return rows


def of(rows: list[dict[str, Any]], **wanted: object) -> list[dict[str, Any]]:
    """Return the rows that have these values, in their order."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def table(rows: list[dict[str, Any]], seeds: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Return the shown rows and what is told in one line: humps, and the ensembles' gold at the KL where the single proxy ends."""
    shown, summary = [], {}
    for by, form in (("best-of-n", lambda d: d), ("ppo", np.log)):
        for name in dict.fromkeys(row["reward"] for row in rows):
            its = [of(rows, by=by, reward=name, seed=seed) for seed in range(seeds)]
            fits = [law([(math.sqrt(r["kl"]), r["gold"]) for r in run], form) for run in its]
            ends = [float(np.mean([r["gold"] for r in run[-3:]])) for run in its]
            peaks = [max(r["gold"] for r in run) for run in its]
            summary[f"{by}, {name}"] = {"end": ends, "peak": peaks, "alpha": [f[0] for f in fits], "beta": [f[1] for f in fits]}
            cells = {"proxy's accuracy": told([run[0]["accuracy"] for run in its], 2), "α": told([f[0] for f in fits], 2)}
            cells |= {"β": told([f[1] for f in fits], 2), "KL at the end": told([run[-1]["kl"] for run in its], 1)}
            cells |= {"gold, most": told(peaks, 2), "gold, end": told(ends, 2), "proxy, end": told([run[-1]["proxy"] for run in its], 2)}
            shown.append({"by": by, "reward": name} | cells)
    return shown, summary


def gold_at(run: list[dict[str, Any]], kl: float) -> float:
    """Return a run's gold at a KL, straight between looks."""
    run = sorted(run, key=lambda row: row["kl"])
    return float(np.interp(kl, [row["kl"] for row in run], [row["gold"] for row in run]))


def repaired(rows: list[dict[str, Any]], seeds: int) -> dict[str, list[float]]:
    """Return each ensemble's gold by PPO less that of one small proxy, at the farthest KL that both reach, of each seed."""
    gains: dict[str, list[float]] = {}
    for name in COMBINE:
        for seed in range(seeds):
            one, all_ = (of(rows, by="ppo", reward=r, seed=seed) for r in (f"width {WIDTHS[0]}", f"ensemble, {name}"))
            kl = min(max(r["kl"] for r in run) for run in (one, all_))
            gains.setdefault(name, []).append(gold_at(all_, kl) - gold_at(one, kl))
    return gains


def plot(rows: list[dict[str, Any]], seeds: int) -> object:
    """Return two panels; solid = gold, dotted = proxy, thin = each seed."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axes, by in zip(panels, ("best-of-n", "ppo"), strict=True):
        for i, name in enumerate(dict.fromkeys(row["reward"] for row in rows)):
            for seed in range(seeds):
                run = of(rows, by=by, reward=name, seed=seed)
                d = [math.sqrt(r["kl"]) for r in run]
                axes.plot(d, [r["gold"] for r in run], color=COLOURS[i], marker=MARKERS[i], ms=2.5, lw=1, label=name if seed == 0 else None)
                if name.startswith("width"):
                    axes.plot(d, [r["proxy"] for r in run], color=COLOURS[i], lw=0.8, ls=":")
        axes.axhline(0, color=INK, lw=0.5)
        axes.set(title=by, xlabel="√KL, √nats")
    panels[0].set(ylabel="reward, sd of the reference (dotted: proxy)", ylim=(-4, 6))
    panels[0].legend(fontsize=8)
    return figure


def main() -> None:
    """Run all seeds, fit, write."""
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    size = Size(3, 200, 1000, 150, 10000, 80, 384)
    if options.quick:
        size = Size(2, 20, 100, 10, 512, 8, 64)
    rows = [row for seed in range(size.seeds) for row in runs_of(seed, size)]
    shown, summary = table(rows, size.seeds)
    gains = repaired(rows, size.seeds)
    summary["ensemble_gain_at_equal_kl"] = {name: told(values, 2) for name, values in gains.items()}
    write(options.out, "overoptimisation", rows, shown, plot(rows, size.seeds), {"quick": options.quick} | summary)


if __name__ == "__main__":
    main()
