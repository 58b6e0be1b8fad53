"""How often a reward model is right: on a snapshot's held-out pairs, on one's own files, and on files like RewardBench's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.data.snapshot import load_snapshot
from preftune.errors import DataError
from preftune.evaluate.judging import RewardJudge
from preftune.evaluate.reward_bench import Item, assess, read_items
from preftune.manifest import MANIFEST, begin, hash_folder, write_json
from preftune.progress import Progress, Silent, counted
from preftune.records import Prompt

BENCH = "reward_bench.json"


def bench(run: Path, files: Sequence[Path], *, out: Path = Path("reports"), seed: int = 0, progress: Progress | None = None) -> Path:
    """Return a folder that says how often the scores of `run` put the right answer first: `reward_bench.json`, by file.

    run: of train reward or train dpo. files: snapshots (their held-out pairs), or .jsonl, .json and .parquet files of items.
    """
    progress = progress or Silent()
    judge = RewardJudge(run, progress)
    items = {str(path): items_of(path) for path in files}
    inputs = {"reward_model": hash_folder(run)} | {str(path): hash_folder(path) for path in files}
    final, work = begin(out, "reward_bench", inputs, {"seed": seed})
    if work is None:
        return final
    found: dict[str, Any] = {}
    for name, own in items.items():
        scores = judge.score_all([(item.prompt, item.answers) for item in own], f"scores of {Path(name).name}")
        found[name] = asdict(assess(own, scores, seed=seed)) | {"items": len(own)}
    judge.close()
    write_json(work.path / BENCH, {"reward_model": str(run), "files": found})
    return work.finish(final)


def read_bench(folder: Path) -> dict[str, Any]:
    """Return what a folder of `bench` says."""
    return dict(json.loads((folder / BENCH).read_text(encoding="utf-8")))


def items_of(path: Path) -> list[Item]:
    """Return the items of a file, or the held-out pairs of a snapshot. Raises DataError where there are none."""
    if not path.exists():
        raise DataError("there is no such file", str(path), "Give a file of pairs, or a snapshot.")
    if not (path / MANIFEST).exists():
        return read_items(path)
    pairs = load_snapshot(path).held_out
    if not pairs:
        raise DataError("the snapshot holds no pair out", str(path), "Take a snapshot with held_out above 0.")
    return [Item(Prompt(messages=pair.messages), (pair.chosen, pair.rejected), 1, pair.kind or "held out") for pair in pairs]


def bench_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what was found as lines for a person."""
    rows = [f"The reward of {result['reward_model']}: how often the right answer scores highest, with 95 % intervals."]
    for name, found in result["files"].items():
        rows += ["", f"{name}: {counted(found['items'], 'items')}"]
        told = [("all", found["everything"])]
        told += [(f"section {key}", value) for key, value in found["sections"].items()]
        told += [("mean of the above", found["overall"])] if found["overall"] and found["sections"] else []
        told += [("mean over subsets", found["overall"])] if found["overall"] and not found["sections"] else []
        told += list(found["subsets"].items()) if len(found["subsets"]) > 1 else []
        width = max(len(label) for label, _ in told)
        for label, one in told:
            rows.append(
                f"  {label:<{width}}  {100 * one['value']:5.1f} % ({100 * one['low']:.1f} to {100 * one['high']:.1f}, n = {one['n']:,})"
            )
        bars = f"  By dice {100 * found['chance']:.0f} %; by taking the longest answer {100 * found['longer']:.1f} %."
        everything = found["everything"]
        if everything["low"] <= max(found["chance"], found["longer"]) <= everything["high"]:
            bars += " It cannot be told from the better of these."
        rows.append(bars)
        if found["unread"]:
            rows.append(f"  {counted(found['unread'], 'items are')} longer than it reads, and count in nothing.")
    return rows
