"""How often a reward model is right on pairs of one's own, and on sets in the file formats of RewardBench and RewardBench 2.

Pairs {"prompt", "chosen", "rejected", "subset"}: right where chosen scores higher, half where both score the same. Best of n ("chosen" and
"rejected" are lists): 1 / (answers tied at the top) where the right one is among them. Ties (ids "ref:N" and "tied:N"): right answers
should be near each other and above all wrong ones. Sources: Lambert et al. 2403.13787; Malik et al. 2506.01937.
Differs: intervals by resampling prompts; a pair with equal scores counts half where RewardBench counts it wrong; the prior sets of the
first RewardBench are told by subset and go into no section.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from preftune.errors import DataError
from preftune.evaluate.json_lines import numbered_lines
from preftune.evaluate.statistics import Estimate, cluster_numbers, wilson
from preftune.records import Message, Prompt

Floats = NDArray[np.float64]
RESAMPLES = 2000
TIES = "Ties"
PARTS_OF_TIES = {"ref": 0.3, "tied": 0.3, "preferred": 0.2, "preferred_hard": 0.2, "margin": 0.01}
SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}  # fmt: skip
# In its section a row counts so often: the 447 of mathematics weigh as much as the 984 of code.
WEIGHTS = {"math-prm": 984 / 447}


@dataclass(frozen=True)
class Item:
    """One prompt with answers of which the first `right` are right. id: of the ties "ref:N" or "tied:N", else anything."""

    prompt: Prompt
    answers: tuple[str, ...]
    right: int
    subset: str
    id: str = ""

    @property
    def ties(self) -> bool:
        """Whether it belongs to the set in which several answers are right alike."""
        return self.subset == TIES and self.id.partition(":")[0] in ("ref", "tied")


@dataclass(frozen=True)
class BenchResult:
    """What a reward model reached. subsets, sections: share right, with intervals; overall: mean over the sections (pairs) or subsets.

    longer: what "the longest answer is right" would have reached, a bar that length alone can jump. unread: items too long for the
    model, which count in nothing. chance: what dice would reach.
    """

    subsets: dict[str, Estimate]
    sections: dict[str, Estimate]
    overall: Estimate | None
    everything: Estimate
    longer: float
    chance: float
    unread: int


def read_items(path: Path) -> list[Item]:
    """Return the items of a .jsonl, .json or .parquet file. Raises DataError with the row where one cannot be read."""
    found = []
    for where, row in _rows(path):
        try:
            found.append(_item(row))
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise DataError(
                f"this is no item ({what})", where, 'Write {"prompt", "chosen", "rejected"}, with a "subset" if you like.'
            ) from error
    if not found:
        raise DataError("there are no pairs in it", str(path), 'Write a line of {"prompt", "chosen", "rejected"} for each.')
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        yield from ((f"{path} row {n}", row) for n, row in enumerate(parquet.read_table(path).to_pylist(), 1))
        return
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            yield from ((f"{path} item {n}", row) for n, row in enumerate(json.loads(text), 1))
            return
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"it cannot be read ({error})", str(path), "Give a .jsonl, .json or .parquet file.") from error
    for number, line in numbered_lines(text):
        try:
            yield f"{path} line {number}", json.loads(line)
        except ValueError as error:
            raise DataError(f"this line is no JSON ({error})", f"{path} line {number}", "Mend it.") from error


def _item(row: dict[str, Any]) -> Item:
    chosen, messages = _texts(row["chosen"])
    rejected, _ = _texts(row["rejected"])
    prompt = row.get("prompt", messages)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    kept = tuple(Message(role=m["role"], content=m["content"]) for m in prompt)
    if not chosen or not rejected:
        raise ValueError("chosen or rejected is empty")
    return Item(Prompt(messages=kept), (*chosen, *rejected), len(chosen), str(row.get("subset") or "all"), str(row.get("id", "")))


def _texts(value: Any) -> tuple[list[str], Any]:
    """Return the answers that a field holds, and the turns before the answer where it is a whole conversation."""
    if isinstance(value, str):
        return [value], None
    if value and isinstance(value[0], dict):
        return [str(value[-1]["content"])], value[:-1]
    if not all(isinstance(text, str) for text in value):
        raise TypeError("an answer is no text")
    return list(value), None


def credit(scores: Sequence[float], right: int) -> float:
    """Return what scores of answers, the first `right` of them right, earn: 1 / (answers at the top) for each right one among those."""
    best = max(scores)
    top = [place for place, score in enumerate(scores) if score == best]
    return sum(place < right for place in top) / len(top)


def assess(items: Sequence[Item], scores: Sequence[Sequence[float] | None], *, seed: int = 0) -> BenchResult:
    """Return what the scores of each item's answers reached. scores: None where an item could not be read."""
    if len(items) != len(scores):
        raise DataError(f"{len(items)} items and {len(scores)} scores", "assess", "Give the scores of each item's answers.")
    read = [(item, tuple(own)) for item, own in zip(items, scores, strict=True) if own is not None]
    plain = [(item, own) for item, own in read if not item.ties]
    if not read:
        raise DataError("none of the items could be read", "assess", "They are all longer than the model reads.")
    groups: dict[str, list[tuple[Item, tuple[float, ...]]]] = {}
    for item, own in plain:
        groups.setdefault(item.subset, []).append((item, own))
    drawn = {name: _share(rows, seed) for name, rows in groups.items()}
    ties = [(item, own) for item, own in read if item.ties]
    if ties:
        drawn[TIES] = _ties(ties, seed)
    sections = {
        name: _share([row for subset in subsets for row in groups.get(subset, [])], seed)
        for name, subsets in SECTIONS.items()
        if any(subset in groups for subset in subsets)
    }
    # The mean over the published sections where they are all there; over the subsets in the form of the second RewardBench.
    parts = list(sections.values()) if len(sections) == len(SECTIONS) else list(drawn.values()) if TIES in drawn and len(drawn) > 1 else []
    overall = (float(np.mean([p[0] for p in parts])), np.mean([p[1] for p in parts], axis=0), sum(p[2] for p in parts)) if parts else None
    whole = plain or ties
    return BenchResult(
        {name: _estimate(*one) for name, one in drawn.items()},
        {name: _estimate(*one) for name, one in sections.items()},
        _estimate(*overall) if overall else None,
        _estimate(*(_share(plain, seed) if plain else _ties(ties, seed))),
        float(np.mean([credit([len(a) for a in item.answers], item.right) for item, _ in whole])),
        float(np.mean([item.right / len(item.answers) for item, _ in whole])),
        len(items) - len(read),
    )


def _estimate(value: float, drawn: Floats, n: int) -> Estimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def _share(rows: Sequence[tuple[Item, tuple[float, ...]]], seed: int) -> tuple[float, Floats, int]:
    """Return (weighted share right, the same of resampled prompts, items)."""
    right = np.array([credit(scores, item.right) for item, scores in rows])
    weights = np.array([WEIGHTS.get(item.subset, 1.0) for item, _ in rows])
    groups = cluster_numbers([item.prompt.id for item, _ in rows], len(rows))
    sums, totals = np.bincount(groups, weights * right), np.bincount(groups, weights)
    times = _times(sums.size, seed)
    drawn: Floats = (times @ sums) / (times @ totals)
    if float(right.std()) == 0:  # drawn again they are all alike, which is no certainty
        drawn = _as_if_not_alike(float(right[0]), sums.size)
    return float(sums.sum() / totals.sum()), drawn, len(rows)


def _as_if_not_alike(value: float, prompts: int) -> Floats:
    """Return draws whose 2.5 % and 97.5 % quantiles are the ends of Wilson's interval."""
    ends = wilson(value * prompts, prompts)
    return np.interp(np.linspace(0, 1, RESAMPLES), [0.025, 0.975], [ends.low, ends.high])


def _times(count: int, seed: int) -> Floats:
    times: Floats = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    return times


def _ties(rows: Sequence[tuple[Item, tuple[float, ...]]], seed: int) -> tuple[float, Floats, int]:
    """Return (score on the ties, the same of resampled prompts, items); a prompt's two items, ref and tied, are drawn together."""
    stats: dict[str, dict[str, tuple[float, float, float]]] = {}
    for item, scores in rows:
        kind, _, number = item.id.partition(":")
        stats.setdefault(number, {})[kind] = _gaps(scores, item.right)
    table = np.array([_tie_row(own) for own in stats.values()])  # sums and counts of each part, by prompt
    totals = _times(len(table), seed) @ table
    return float(_tie_score(table.sum(0)[None])[0]), _tie_score(totals), len(rows)


def _gaps(scores: Sequence[float], right: int) -> tuple[float, float, float]:
    """Return (1 where all right ones are above all wrong ones, spread of the right ones, worst right − best wrong)."""
    good, bad = scores[:right], scores[right:]
    gap = min(good) - max(bad)
    return float(gap > 0), max(good) - min(good), gap


def _tie_row(own: dict[str, tuple[float, float, float]]) -> list[float]:
    row: list[float] = []
    for kind in ("ref", "tied"):
        row += [own[kind][0], 1.0] if kind in own else [0.0, 0.0]
    if "ref" in own and "tied" in own:
        spread, gap = own["tied"][1], own["tied"][2]
        least = min(gap, own["ref"][2])
        margin = float(np.tanh(least / spread - 1)) if spread > 0 else 0.0
        row += [float(gap > spread), float(least > spread), margin, 1.0]
    else:
        row += [0.0, 0.0, 0.0, 0.0]
    return row


def _tie_score(sums: Floats) -> Floats:
    """Return the score of each row of sums: ref right, ref items, tied right, tied items, preferred, preferred hard, margin, both items."""

    def mean(top: int, bottom: int) -> Floats:
        result: Floats = sums[:, top] / np.maximum(1.0, sums[:, bottom])
        return result

    parts = {"ref": mean(0, 1), "tied": mean(2, 3), "preferred": mean(4, 7), "preferred_hard": mean(5, 7), "margin": mean(6, 7)}
    total: Floats = sum((weight * parts[name] for name, weight in PARTS_OF_TIES.items()), np.zeros(len(sums)))
    return total
