"""Does choosing the pairs to ask about save judgements? Held-out reward accuracy against the number of judgements, chosen and at random.

    python benchmarks/selection.py [--quick] [--data FOLDER]

The answers are real texts where the test data lie beside the checkout (or in FOLDER), else generated ones. The raters are synthetic, so
that what they want is known: a utility of words, of form (each seed another taste) and of a length that hangs on the sort of prompt, with
a Bradley–Terry choice so noisy that two raters agree in 75 % of the pairs. Both arms begin with the same 50 random pairs; then one goes on
at random, the other as preftune.data.selection chooses, in batches of 50, each time with the reward fitted anew. Accuracy is that of the
fitted reward's sign against the noiseless utility on the pairs of held-out prompts. The last line is one JSON object: judgements_random
and judgements_ours are what each arm needs for the same accuracy (the lower of the two final ones), ratio is judgements_random /
judgements_ours (> 1: choosing saves judgements) with a 95 % bootstrap interval over seeds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from preftune.data.probe import DIMENSIONS, answer_features, fit_bradley_terry, fit_ensemble, hashed_ngrams
from preftune.data.selection import draw

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
AGREEMENT = 0.75
BATCH = 50
HELD_OUT = 0.25
TALK = re.compile(r"\n\n(?:Human|Assistant): ?")


@dataclass(frozen=True)
class Pool:
    """Prompts with two answers each: the prompts' features, the difference of the answers' features, and what the raters look at.

    words: [pairs, 2, 2048], share of each hashed word in each answer. form: [pairs, 2, features], as the probe sees it, without the length.
    lengths: [pairs, 2], log characters. sort: of prompt, from 0.
    """

    prompts: Floats
    differences: Floats
    words: Floats
    form: Floats
    lengths: Floats
    sort: Ints


@dataclass(frozen=True)
class Curve:
    """Held-out accuracy after so many judgements."""

    judgements: list[int]
    accuracy: list[float]


def real_pairs(data: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield (sort, prompt, answer, answer) of every real file that is there."""
    for name in ("llmbar_pairs", "mt_bench_human_majority_pairs"):
        for row in map(json.loads, (data / "eval" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()):
            yield name, row["input"], row["output_1"], row["output_2"]
    for row in json.loads((data / "eval" / "pandalm_testset_3_annotators.json").read_text(encoding="utf-8")):
        yield "pandalm", f"{row['instruction']}\n{row['input']}", row["response1"], row["response2"]
    for row in map(json.loads, (data / "code_style_pairs.jsonl").read_text(encoding="utf-8").splitlines()):
        yield "code", row["instruction"], row["chosen"], row["rejected"]
    with gzip.open(data / "hh_harmless_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            turns = TALK.split(row["chosen"])
            yield "talk", "\n".join(turns[:-1]), turns[-1], TALK.split(row["rejected"])[-1]


def generated_pairs(n: int = 2000) -> Iterator[tuple[str, str, str, str]]:
    """Yield pairs of made-up texts on ten topics: a topic has its own words beside the common ones."""
    random = np.random.default_rng(7)
    for number in range(n):
        topic = number % 10
        common, own = random.integers(0, 300, size=400), random.integers(0, 80, size=400) + 1000 * (topic + 1)
        words = [f"w{w}" for w in np.where(random.random(400) < 0.5, common, own)]
        ends = 20 + random.integers(10, 180, size=2)
        yield f"topic{topic}", " ".join(words[:20]), " ".join(words[20 : ends[0]]), " ".join(words[200 : 180 + ends[1]])


def pool_of(pairs: Iterator[tuple[str, str, str, str]]) -> Pool:
    """Return the pool of all pairs with two different, non-empty answers."""
    seen: dict[str, tuple[str, str, str, str]] = {}
    for sort, prompt, a, b in pairs:
        if isinstance(a, str) and isinstance(b, str) and a.strip() and b.strip() and a != b:
            seen.setdefault(prompt, (sort, prompt, a, b))
    rows = list(seen.values())
    sorts = {name: number for number, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    first, second = [row[2] for row in rows], [row[3] for row in rows]
    features = np.stack((answer_features(first), answer_features(second)), axis=1)
    form = features[:, :, DIMENSIONS + 1 :]
    return Pool(
        prompts=hashed_ngrams([row[1] for row in rows]),
        differences=features[:, 0] - features[:, 1],
        form=form / np.maximum((form[:, 0] - form[:, 1]).std(axis=0), 1e-9),
        words=np.stack((word_shares(first), word_shares(second)), axis=1),
        lengths=np.log([[len(a), len(b)] for a, b in zip(first, second, strict=True)]),
        sort=np.array([sorts[row[0]] for row in rows]),
    )


def word_shares(texts: list[str]) -> Floats:
    """Return how large a share of each text each of 2,048 classes of words has; other classes than the reward's."""
    found = np.zeros((len(texts), 2048))
    for row, text in enumerate(texts):
        words = re.findall(r"\w+", text.casefold())
        for word in words:
            found[row, zlib.adler32(word[::-1].encode()) * 2654435761 % 2**32 >> 21] += 1 / len(words)
    return found


def utilities(pool: Pool, seed: int) -> Floats:
    """Return what each answer is worth to the raters of this seed, [pairs, 2]."""
    random = np.random.default_rng([seed, 1])
    common = np.argsort(-pool.words.mean(axis=(0, 1)))[:200]
    liked = random.choice(common, 30, replace=False)
    ideal = random.normal(loc=pool.lengths.mean(), scale=1.0, size=pool.sort.max() + 1)[pool.sort]
    parts = [
        pool.words[:, :, liked] @ random.normal(size=30),
        pool.form @ random.normal(size=pool.form.shape[2]),
        -np.abs(pool.lengths - ideal[:, None]),
    ]
    return np.asarray(sum(part / (part[:, 0] - part[:, 1]).std() for part in parts))


def noisy_choices(margins: Floats, seed: int) -> Floats:
    """Return 1 where the first is chosen, else 0; two such raters agree in 75 % of the pairs."""

    def surplus(log_scale: float) -> float:
        p = special.expit(margins * np.exp(log_scale))
        return float((p**2 + (1 - p) ** 2).mean() - AGREEMENT)

    scale = np.exp(optimize.brentq(surplus, -6.0, 6.0))
    return (np.random.default_rng([seed, 2]).random(len(margins)) < special.expit(margins * scale)).astype(np.float64)


def at_random(pool: Pool, asked: Ints, left: Ints, members: Floats, seed: int) -> Ints:
    """Choose the next batch at random."""
    return np.random.default_rng([seed, 3]).choice(left, min(BATCH, len(left)), replace=False)


def chosen(pool: Pool, asked: Ints, left: Ints, members: Floats, seed: int) -> Ints:
    """Choose the next batch as the program does."""
    margins = (pool.differences[left] @ members.T).T
    return left[draw(left, pool.prompts, BATCH, margins=margins, judged=asked, seed=seed).places]


Policy = Callable[[Pool, Ints, Ints, Floats, int], Ints]


def learning_curve(pool: Pool, policy: Policy, seed: int, budget: int) -> Curve:
    """Return the accuracy as judgements grow, from 50 random ones on."""
    worth = utilities(pool, seed)
    margins = worth[:, 0] - worth[:, 1]
    said = noisy_choices(margins, seed)
    order = np.random.default_rng([seed, 4]).permutation(len(margins))
    test, rest = order[: round(HELD_OUT * len(order))], order[round(HELD_OUT * len(order)) :]
    asked, left = rest[:BATCH], np.sort(rest[BATCH:])
    curve = Curve([], [])
    while True:
        members = fit_ensemble(pool.differences[asked], said[asked], asked, seed=seed)
        reward = fit_bradley_terry(pool.differences[asked], said[asked], np.ones(len(asked)))
        right = np.sign(pool.differences[test] @ reward) == np.sign(margins[test])
        curve.judgements.append(len(asked))
        curve.accuracy.append(float(right.mean()))
        if len(asked) >= budget or not len(left):
            return curve
        batch = policy(pool, asked, left, members, seed * 1000 + len(asked))
        asked, left = np.concatenate((asked, batch)), np.setdiff1d(left, batch)


def needed(curves: list[Curve], target: float, grid: Floats) -> float:
    """Return how many judgements the mean curve needs to reach an accuracy; the grid's end where it does not."""
    mean = np.maximum.accumulate(np.mean([np.interp(grid, c.judgements, c.accuracy) for c in curves], axis=0))
    if mean[-1] < target:
        return float(grid[-1])
    place = int(np.argmax(mean >= target))
    if place == 0:
        return float(grid[0])
    low, high = mean[place - 1], mean[place]
    return float(grid[place - 1] + (grid[place] - grid[place - 1]) * (target - low) / (high - low))


def compare(random: list[Curve], ours: list[Curve], budget: int) -> dict[str, Any]:
    """Return what each arm needs for the same accuracy, their ratio and its interval over seeds."""
    grid = np.linspace(BATCH, budget, 400)

    def ratio_of(picked: Ints) -> tuple[float, float, float]:
        a, b = [random[i] for i in picked], [ours[i] for i in picked]
        target = min(max(np.mean([np.interp(grid, c.judgements, c.accuracy) for c in arm], axis=0)) for arm in (a, b))
        return needed(a, target, grid), needed(b, target, grid), float(target)

    everything = np.arange(len(random))
    by_random, by_us, target = ratio_of(everything)
    draws = np.random.default_rng(0)
    ratios = [one / other for one, other, _ in (ratio_of(draws.choice(everything, len(everything))) for _ in range(500))]
    gains = [
        np.interp(grid, b.judgements, b.accuracy).mean() - np.interp(grid, a.judgements, a.accuracy).mean()
        for a, b in zip(random, ours, strict=True)
    ]
    spread = 1.96 * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    return {
        "judgements_random": round(by_random),
        "judgements_ours": round(by_us),
        "ratio": round(by_random / by_us, 3),
        "ratio_interval": [round(float(q), 3) for q in np.quantile(ratios, (0.025, 0.975))],
        "accuracy": round(target, 4),
        "mean_gain_points": round(100 * float(np.mean(gains)), 2),
        "mean_gain_interval": [round(100 * (float(np.mean(gains)) + side * spread), 2) for side in (-1, 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least that still means something, in under a minute")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the test data")
    options = parser.parse_args()
    started = time.time()
    seeds, budget = (4, 300) if options.quick else (20, 800)
    real = (options.data / "code_style_pairs.jsonl").exists()
    pool = pool_of(real_pairs(options.data) if real else generated_pairs())
    print(f"{len(pool.sort):,} {'real' if real else 'generated'} pairs ({time.time() - started:.0f} s)", file=sys.stderr)
    arms: dict[str, list[Curve]] = {"random": [], "ours": []}
    for seed in range(100, 100 + seeds):  # the scheme was chosen with seeds under 100
        for name, policy in (("random", at_random), ("ours", chosen)):
            arms[name].append(learning_curve(pool, policy, seed, budget))
        last = {name: curves[-1].accuracy[-1] for name, curves in arms.items()}
        print(f"seed {seed}: {last} ({time.time() - started:.0f} s)", file=sys.stderr)
    for step in range(0, budget // BATCH, 2):
        at = BATCH * (step + 1)
        means = {name: np.mean([np.interp(at, c.judgements, c.accuracy) for c in curves]) for name, curves in arms.items()}
        print(f"{at:5} judgements: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
    found = compare(arms["random"], arms["ours"], budget)
    found |= {"seeds": seeds, "budget": budget, "pairs": len(pool.sort), "texts": "real" if real else "generated"}
    print(json.dumps(found | {"rater_agreement": AGREEMENT, "seconds": round(time.time() - started)}))


if __name__ == "__main__":
    main()
