"""The simulations of `statistics.py`, which says what they are: that name is the standard library's too, so it holds nothing else."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from preftune.data.sequential import verdict
from preftune.evaluate.length_control import fit, length_controlled
from preftune.evaluate.orders import fleiss_kappa, orders
from preftune.evaluate.statistics import clustered_rate, non_inferiority
from preftune.evaluate.tango import power_of_kept, required_items

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def coverage(runs: int, *, prompts: int = 150, rows: int = 4, rate: float = 0.6, seed: int = 0) -> dict[str, float]:
    """Return how often the interval holds the true rate, with the prompts told and without; the rate varies by prompt (icc 0.25)."""
    random, hits, blind = np.random.default_rng(seed), 0, 0
    clusters = np.repeat(np.arange(prompts), rows).tolist()
    for _ in range(runs):
        own = random.beta(3 * rate, 3 * (1 - rate), size=prompts)  # the sum of the two is 1 / icc - 1
        scores = (random.random((prompts, rows)) < own[:, None]).astype(float).ravel()
        told, untold = clustered_rate(scores, clusters), clustered_rate(scores)
        hits += told.low <= rate <= told.high
        blind += untold.low <= rate <= untold.high
    return {"by_prompt": hits / runs, "prompts_not_told": blind / runs}


def kept_share(runs: int, *, n: int, margin: float, lost: float, gained: float, seed: int = 0) -> float:
    """Return how often "kept" is said of n items of which these shares are lost and gained in truth."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n, [lost, gained, 1 - lost - gained], size=runs)[:, :2]
    tables, times = np.unique(drawn, axis=0, return_counts=True)
    kept = [_kept(n, int(b), int(c), margin) for b, c in tables]
    return float(times[kept].sum() / runs)


def _kept(n: int, lost: int, gained: int, margin: float) -> bool:
    before = np.concatenate([np.ones(lost), np.zeros(gained), np.ones(n - lost - gained)])
    after = np.concatenate([np.zeros(lost), np.ones(gained), np.ones(n - lost - gained)])
    return non_inferiority(before, after, margin=margin).verdict == "kept"


def peeking(runs: int, *, judgements: int = 200, ties: float = 0.2, seed: int = 0) -> float:
    """Return how often two alike are called different, looked at after each of so many judgements."""
    random, told = np.random.default_rng(seed), 0
    known: dict[tuple[int, int, int], bool] = {}
    for _ in range(runs):
        counts = np.cumsum(random.multinomial(1, [(1 - ties) / 2, ties, (1 - ties) / 2], size=judgements), axis=0)
        for wins, tied, losses in counts.tolist():
            if (wins, tied, losses) not in known:
                known[wins, tied, losses] = bool(verdict_of(wins, tied, losses))
            if known[wins, tied, losses]:
                told += 1
                break
    return told / runs


def verdict_of(wins: int, ties: int, losses: int) -> str:
    from preftune.data.sequential import ALPHA, log_wealth

    even = float(log_wealth(wins, ties, losses, 0.5)[0])  # what `verdict` decides by; all of it would take the intervals too
    return "" if even < -np.log(ALPHA) else verdict(wins, ties, losses).preferred


def length_bias(runs: int, *, n: int = 400, pull: float = 1.2, seed: int = 0) -> dict[str, float]:
    """Return the mean plain and controlled win rate of two alike, where A writes longer and the judge likes length.

    covers_half: how often the controlled interval, which refits a thousand times and so is taken of every twentieth run, holds 50 %.
    """
    random, raw, controlled, hits = np.random.default_rng(seed), [], [], []
    for run in range(runs):
        a, b = random.normal(650, 200, n), random.normal(500, 200, n)
        x = np.tanh((a - b) / (a - b).std(ddof=1))
        wins = (random.random(n) < 1 / (1 + np.exp(-pull * x))).astype(float)
        raw.append(float(wins.mean()))
        controlled.append(float(1 / (1 + np.exp(-fit(wins, x, np.ones((1, n)))[0][0]))))
        if run % 20 == 0:
            rate = length_controlled(wins, a, b).rate
            hits.append(rate.low <= 0.5 <= rate.high)
    return {"raw": float(np.mean(raw)), "controlled": float(np.mean(controlled)), "covers_half": float(np.mean(hits))}


def published(data: Path) -> dict[str, float | None]:
    """Return the consistency of LLMBar's judges and PandaLM's Fleiss κ, from their verdicts; None where a file is not there."""
    verdicts, raters = data / "eval" / "llmbar_judge_verdicts.jsonl", data / "eval" / "pandalm_testset_3_annotators.json"
    found: dict[str, float | None] = {"gpt4_consistency": None, "chatgpt_consistency": None, "fleiss_kappa": None}
    if verdicts.exists():
        rows = [json.loads(line) for line in verdicts.read_text(encoding="utf-8").splitlines()]
        read = {"1": 1.0, "2": 0.0}
        for key, judge in (("gpt4_consistency", "GPT-4"), ("chatgpt_consistency", "ChatGPT")):
            own = [row for row in rows if row["judge"] == judge and row["prompting"] == "Vanilla"]
            share = orders([read.get(row["winner"]) for row in own], [read.get(row["winner_swapped"]) for row in own]).consistency
            found[key] = share.value if share else None
    if raters.exists():
        said = [[row[f"annotator{i}"] for i in (1, 2, 3)] for row in json.loads(raters.read_text(encoding="utf-8"))]
        found["fleiss_kappa"] = fleiss_kappa([[row.count(value) for value in (0, 1, 2)] for row in said])
    return found


def main(description: str) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    parser.add_argument("--data", type=Path, default=DATA, help="where eval/ with the published verdicts lies")
    options = parser.parse_args()
    part = 10 if options.quick else 1
    items = required_items(0.03, 0.08)
    steps: dict[str, Callable[[], Any]] = {
        "coverage": lambda: coverage(2000 // part),
        "coverage_near_one": lambda: coverage(2000 // part, prompts=60, rate=0.9, seed=1),
        "kept_on_the_margin": lambda: kept_share(200_000 // part, n=400, margin=0.03, lost=0.05, gained=0.02),
        "kept_on_the_margin_many": lambda: kept_share(200_000 // part, n=1000, margin=0.02, lost=0.06, gained=0.04),
        "kept_with_nothing_lost": lambda: kept_share(50_000 // part, n=items, margin=0.03, lost=0.04, gained=0.04),
        "kept_with_nothing_lost_by_enumeration": lambda: power_of_kept(items, 0.03, 0.04, 0.04),
        "called_different_under_peeking": lambda: peeking(5000 // part),
        "length": lambda: length_bias(2000 // part),
        "published": lambda: published(options.data),
    }
    found: dict[str, Any] = {}
    for name, step in steps.items():
        started = time.monotonic()
        found[name] = step()
        print(f"{name}: {found[name]} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
    print(json.dumps({**found, "items_for_80_percent": items}))
