"""What PPO loses of what it was not asked about, with and without the pretraining mix, at equal reward: after InstructGPT (2203.02155).

    python benchmarks/studies/retention.py --out DIR

A Llama of two layers learns the world of `_english.py`. Its reward is how many warm words an answer has, counted by a function; the stage
`train ppo` trains all weights on it, for several numbers of steps, in three ways: as it is, with a stronger KL penalty, and with the mix
(`ptx_coef`, `ptx_text`). The mix holds passages, and facts about half of the people. Measured on held-out passages (bits per byte), on the
facts about either half (share answered rightly among eight towns; nats by which the right town wins), and on answers to new prompts
(reward, KL to the start). "At equal reward" means: straight between runs, at the highest reward that all three ways reach. The reward
model only lends the critic its body: it counts nothing.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _english import NAMES, NOUNS, TOWNS, WARM, World, pretrain, warmth
from _out import COLOURS, INK, MARKERS, arguments, plt, spread, told, write

from preftune.data.batches import Group
from preftune.data.importing import import_preferences
from preftune.data.snapshot import snapshot
from preftune.evaluate.subject import Subject
from preftune.records import Message
from preftune.stages import ppo, reward

WAYS: dict[str, dict[str, Any]] = {
    "PPO": {"kl_coef": 0.05},
    "PPO, 3 × the KL penalty": {"kl_coef": 0.15},
    "PPO with the mix": {"kl_coef": 0.05, "ptx_coef": 2.0, "ptx_text": "mix.txt"},
}
REWARD = f"""WARM = {WARM}


{getsource(warmth)}

def words(prompts, completions, facts):
    return [warmth(text) for text in completions]
"""  # the very function that the exam counts with
IN_MIX, NOT_IN_MIX = NAMES[::2], NAMES[1::2]
ANSWER_TOKENS = 24
MEASURES = ("bits per byte", "facts in the mix", "facts not in it", "lead in the mix", "lead not in it")
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is run."""

    seeds: int
    pretraining: int
    pairs: int
    steps: tuple[int, ...]
    texts: int
    prompts: int


class Exam:
    """What a model is asked: texts, facts and prompts of a world that no training text was drawn with."""

    def __init__(self, world: World, size: Size, start: Path) -> None:
        draw = random.Random("exam")
        self.world, self.start = world, Subject(start)
        self.texts = [world.passage(draw) for _ in range(size.texts)]
        self.prompts = [(Message(role="user", content=f"{i}: tell me about the {draw.choice(NOUNS)}."),) for i in range(size.prompts)]

    def _answers(self, subject: Subject) -> list[Group]:
        samples = subject.sample(self.prompts, max_new_tokens=ANSWER_TOKENS, temperature=1.0, seed=0)
        asked = zip(self.prompts, samples, strict=True)
        return [Group(tuple(subject.renderer.prompt_ids(prompt)), (sample.ids,), i) for i, (prompt, sample) in enumerate(asked)]

    def take(self, folder: Path) -> dict[str, float]:
        """Return the measures of a model, with its reward (warm words an answer) and its KL to the start."""
        subject = Subject(folder)
        bits, covered = zip(*subject.bits(self.texts), strict=True)
        found: dict[str, float] = {"bits per byte": sum(bits) / sum(covered)}
        for which, names in (("in the mix", IN_MIX), ("not in it", NOT_IN_MIX)):
            leads = self._leads(subject, names)
            found |= {f"facts {which}": float((leads > 0).mean()), f"lead {which}": float(leads.mean())}
        groups = self._answers(subject)
        mine, its = (model.completion_logprobs(groups) for model in (subject, self.start))
        found["kl"] = float(np.mean([one[0] - other[0] for one, other in zip(mine, its, strict=True)]))
        return found | {"reward": float(np.mean([warmth(subject.renderer.decode(group.completions[0])) for group in groups]))}

    def _leads(self, subject: Subject, names: list[str]) -> np.ndarray:
        """Return the nats by which the right town is likelier than the likeliest wrong one, of each name."""
        told_ = [f"{name} lives in {town}." for name in names for town in TOWNS]
        nats = -np.log(2) * np.array([bits for bits, _ in subject.bits(told_)]).reshape(len(names), len(TOWNS))
        right = np.array([[self.world.homes[name] == town for town in TOWNS] for name in names])
        return nats[right] - np.where(right, -np.inf, nats).max(1)


def rows_of(seed: int, size: Size, folder: Path) -> list[Row]:
    """Return the rows of one seed: world, start, pairs, reward model and PPO are all its own."""
    world, draw = World(seed), random.Random(f"pairs {seed}")
    base = pretrain(world, folder / "base", steps=size.pretraining, seed=seed)
    lines = [json.dumps(row) for row in world.pairs(draw, size.pairs)]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    mix = [world.passage(draw) if i % 2 else world.facts(draw, IN_MIX) for i in range(600)]
    (folder / "mix.txt").write_text("\n\n".join(mix), encoding="utf-8")
    (folder / "warm.py").write_text(REWARD, encoding="utf-8")
    import_preferences(folder / "pairs.jsonl", folder / "store.db")
    data = snapshot(folder / "store.db", folder / "snapshots", held_out=0.1)
    common = {"data": str(data), "model": str(base), "adapter": None, "seed": seed, "max_tokens": 128}
    judge = reward.run(reward.RewardConfig(**common, lr=1e-3, epochs=1, batch_size=16), folder / "runs")
    exam = Exam(world, size, base)
    start = exam.take(base)
    rewards = [{"model": str(judge), "weight": 0.0}, {"function": "warm.py:words"}]
    rows: list[Row] = []
    for way, settings in WAYS.items():
        rows.append({"seed": seed, "way": way, "steps": 0} | start)
        for steps in size.steps:
            own = settings | ({"ptx_text": str(folder / "mix.txt")} if "ptx_text" in settings else {})
            run = ppo.run(
                ppo.PPOConfig(
                    **common, reward_model=str(judge), rewards=rewards, steps=steps, prompts_per_step=16,
                    samples_per_prompt=4, max_new_tokens=ANSWER_TOKENS,
                    lr=5e-4, value_lr=1e-3, warmup=0.0, **own,
                ),
                folder / "runs",
            )  # fmt: skip
            rows.append({"seed": seed, "way": way, "steps": steps} | exam.take(run))
    return rows


def of(rows: list[Row], way: str, seed: int) -> list[Row]:
    """Return the rows of a way and seed, by steps."""
    return sorted((row for row in rows if row["way"] == way and row["seed"] == seed), key=lambda row: row["steps"])


def at(run: list[Row], level: float, what: str) -> float:
    """Return a measure at a reward: straight between the first two runs, by steps, that have it between them."""
    for before, after in pairwise(run):
        if before["reward"] <= level <= after["reward"]:
            share = (level - before["reward"]) / max(after["reward"] - before["reward"], 1e-9)
            return float(before[what] + share * (after[what] - before[what]))
    raise ValueError(f"{run[0]['way']} has no reward of {level}")


def table(rows: list[Row], seeds: int) -> tuple[list[list[dict[str, str]]], dict[str, Any]]:
    """Return what is shown: each measure at equal reward less the start's, its difference to plain PPO's; every run; one line's worth."""
    levels = [min(max(row["reward"] for row in of(rows, way, seed)) for way in WAYS) for seed in range(seeds)]
    equal, summary = [], {"reward": spread(levels)}
    change = {
        (way, what): [at(of(rows, way, seed), level, what) - of(rows, way, seed)[0][what] for seed, level in enumerate(levels)]
        for way in WAYS
        for what in ("kl", *MEASURES)
    }
    for way in WAYS:
        cells = {
            "reward": told(levels, 2),
            "KL, nats": told(change[way, "kl"], 2),
        }
        cells |= {f"{what}, change": told(change[way, what], 4 if what == "bits per byte" else 2) for what in MEASURES}
        equal.append({"way": way} | cells)
        kept = {what: [a - b for a, b in zip(change[way, what], change["PPO", what], strict=True)] for what in MEASURES}
        summary[way] = {what: {"change": spread(change[way, what]), "less_ppos": spread(kept[what])} for what in MEASURES}
    runs = []
    for way in WAYS:
        for steps in dict.fromkeys(row["steps"] for row in rows):
            its = [row for row in rows if row["way"] == way and row["steps"] == steps]
            cells = {what: told([row[what] for row in its], 3 if what == "bits per byte" else 2) for what in ("reward", "kl", *MEASURES)}
            runs.append({"way": way, "steps": str(steps)} | cells)
    return [equal, runs], summary


def plot(rows: list[Row], seeds: int) -> object:
    """Return two panels over reward: bits per byte, and the facts' lead (solid = not in the mix, dotted = in it); a line a seed."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8))
    for i, way in enumerate(WAYS):
        for seed in range(seeds):
            run = of(rows, way, seed)
            rewards = [row["reward"] for row in run]
            style = {"color": COLOURS[i], "marker": MARKERS[i], "ms": 3.5, "lw": 1, "alpha": 0.8}
            panels[0].plot(rewards, [row["bits per byte"] for row in run], **style, label=way if seed == 0 else None)
            panels[1].plot(rewards, [row["lead not in it"] for row in run], **style)
            panels[1].plot(rewards, [row["lead in the mix"] for row in run], **style | {"ls": ":", "lw": 0.8})
    panels[0].set(xlabel="reward, warm words an answer", ylabel="neutral prose, bits per byte")
    panels[1].set(xlabel="reward, warm words an answer", ylabel="lead of the right town, nats (dotted: in the mix)")
    panels[1].axhline(0, color=INK, lw=0.5)
    panels[0].legend()
    return figure


def main() -> None:
    """Run all seeds, compare, write."""
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    size = Size(seeds=4, pretraining=600, pairs=60, steps=(8, 24), texts=150, prompts=150)
    if options.quick:
        size = Size(seeds=2, pretraining=60, pairs=60, steps=(2,), texts=20, prompts=20)
    rows: list[Row] = []
    for seed in range(size.seeds):
        with TemporaryDirectory() as folder:
            rows += rows_of(seed, size, Path(folder))
    shown, summary = table(rows, size.seeds)
    write(options.out, "retention", rows, shown[0], plot(rows, size.seeds), {"quick": options.quick} | summary, more=shown[1:])


if __name__ == "__main__":
    main()
