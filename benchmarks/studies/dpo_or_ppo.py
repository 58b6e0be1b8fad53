"""DPO or PPO? On the built-in sample, from the same pairs and the same SFT model: what each won, how far it went, what it kept and cost.

    python benchmarks/studies/dpo_or_ppo.py --out DIR DEMO [DEMO …]

Reads `summary.json` of folders that `preftune demo DEMO --full --seed N` left. One folder: the intervals are over its 100 held-out
requests. Several: mean and 95 % interval over the seeds. Memory is that of the whole demo, which measures no stage alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _out import COLOURS, INK, plt, told, write

METHODS = ("dpo", "ppo")


def figures(summary: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """Return what is compared, each as value, low and high where it was estimated; the demo writes both methods alike."""
    own = summary[method]
    points = {key: 100 * number for key, number in summary["style"][f"{method}_gain"].items() if key != "n"}
    found: dict[str, dict[str, Any]] = {"style, points won": points, "win rate, %": {k: 100 * own["win_rate"][k] for k in points}}
    found["KL, nats an answer"] = own["kl_interval"]
    found["reward, sd of the base"] = {"value": own["reward_gain_sd"]}
    for task in summary["retention"][method]["tasks"]:
        found[f"{task['name']}: {task['unit']}, change (above 0 is better)"] = {
            "value": task["difference"],
            "low": task["low"],
            "high": task["high"],
        }
    # PPO needs the reward model besides; DPO needs none.
    extra = summary["seconds"]["reward"] if method == "ppo" else 0.0
    return found | {"minutes, with the reward model that it needs": {"value": (own["seconds"] + extra) / 60}}


def cell(estimates: list[dict[str, Any]]) -> str:
    """Return "value (low to high)" of one folder, "mean ± half-width" of several."""
    if len(estimates) > 1:
        return told([e["value"] for e in estimates])
    one = estimates[0]
    return f"{one['value']:.3g}" + (f" ({one['low']:.3g} to {one['high']:.3g})" if "low" in one else "")


def plot(first: dict[str, dict[str, dict[str, Any]]]) -> object:
    """Return what was won and how far it went, of the first folder, with intervals."""
    shown = ("style, points won", "win rate, %", "KL, nats an answer")
    figure, panels = plt.subplots(1, len(shown), figsize=(8, 2.4))
    for axes, name in zip(panels, shown, strict=True):
        for i, method in enumerate(METHODS):
            one = first[method][name]
            axes.errorbar(
                [one["value"]], [i], xerr=[[one["value"] - one["low"]], [one["high"] - one["value"]]], fmt="os"[i], color=COLOURS[i]
            )
        axes.set(title=name, yticks=[0, 1], yticklabels=[m.upper() for m in METHODS], ylim=(-0.7, 1.7))
        axes.grid(axis="x", color=INK, lw=0.3)
    figure.tight_layout()
    return figure


def main() -> None:
    """Read, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="as without: nothing is run")
    parser.add_argument("demos", type=Path, nargs="+")
    options = parser.parse_args()
    summaries = [json.loads((demo / "summary.json").read_text(encoding="utf-8")) for demo in options.demos]
    found = [{method: figures(summary, method) for method in METHODS} for summary in summaries]
    names = found[0]["dpo"]
    shown = [{"": name} | {m.upper(): cell([one[m][name] for one in found]) for m in METHODS} for name in names]
    verdicts = {f"{m}_retention": [s["retention"][m]["overall"] for s in summaries] for m in METHODS}
    verdicts |= {f"{m}_refused": ["; ".join(s["refusals"].get(m, [])) or None for s in summaries] for m in METHODS}
    rows = [{"seed": s["seed"], "figures": one} for s, one in zip(summaries, found, strict=True)]
    whole = {"seeds": [s["seed"] for s in summaries], "peak_memory_gib_of_the_demo": [s["peak_memory_gib"] for s in summaries]}
    write(options.out, "dpo_or_ppo", rows, shown, plot(found[0]), whole | verdicts)


if __name__ == "__main__":
    main()
