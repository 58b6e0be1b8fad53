"""The gate: a model is released when its evaluation shows what was won, that nothing was lost, and that it stayed near its base.

Six questions, each answered by one check with its numbers:

- preference won: the paired gain in style over the base is above 0 with its whole interval; where no style is measured, the
  win rate against the base is above one half with its whole interval;
- knowledge kept: the retention verdict is "kept", over the built-in tasks and those that the team adds. "Lost" and "not proved"
  both refuse: the one says that something fell beyond its margin, the other that the measurement cannot exclude it;
- code still works: where small functions were tried against tests, it is not proved that more than 10 points fewer pass than before.
  They are too few to prove the opposite, so this refuses a proved loss alone; a reward that pays for form is caught by it (PPO on the
  sample learned to stop after a function's docstring, with facts and texts kept: docs/benchmarks.md);
- near the base: the mean KL from the base is at most 50 nats an answer. A best-of-n choice among 50 answers spends 3 nats, PPO on
  a small model 5 to 15, a DPO run that still writes sensible text 10 to 40; beyond 50 the answers are all but unknown to the base;
- answers end: at least half of them end by themselves, and at most 10 points fewer than the base's where these are known;
- card complete, asked when a model is released: every run and snapshot on its way is still there and unchanged, so that the card
  can be printed whole from their manifests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, DataError
from preftune.manifest import read_manifest

EVALUATION = "evaluation.json"
MAX_KL_NATS = 50.0
MIN_SHARE_ENDING = 0.5
MAX_FALL_IN_ENDING = 0.10
MAX_FALL_IN_FUNCTIONS = 0.10


@dataclass(frozen=True)
class Check:
    """One question of the gate; text: the answer with its numbers, one sentence."""

    name: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Gate:
    """The gate's word. reasons: the texts of the checks that failed."""

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]


def judge(evaluation: Mapping[str, Any], *, holes: Sequence[str] | None = None) -> Gate:
    """Return whether this evaluation (the content of evaluation.json) lets its model be released, and why not.

    holes: what the card would lack, each in words; None where no card is to be printed, and the question is not asked.

    Where the evaluation has `before.ends_by_itself`, the base's share of answers that end, a fall of it is judged too.
    Raises DataError where a part of the evaluation is missing or is something else.
    """
    try:
        checks = [_preference(evaluation), _retention(evaluation), _functions(evaluation), _drift(evaluation), _ending(evaluation)]
    except (KeyError, TypeError) as error:
        raise DataError(f"this is no evaluation of preftune ({error!r})", "evaluation.json", "Run preftune evaluate anew.") from error
    if holes is not None:
        told = f"The card would lack what only these could tell: {'; '.join(holes)}." if holes else "The card can be printed whole."
        checks.append(Check("card complete", not holes, told))
    reasons = tuple(check.text for check in checks if not check.passed)
    return Gate(not reasons, reasons, tuple(checks))


def check_same_run(run: Path, evaluation: Path) -> None:
    """Raise ConfigError unless this evaluation folder is of this very run: no reason can force the numbers of another model."""
    if not (evaluation / EVALUATION).exists():
        raise ConfigError(f"there is no {EVALUATION} here", str(evaluation), "Give a folder that preftune evaluate has written.")
    wanted, found = read_manifest(run)["id"], read_manifest(evaluation)["inputs"].get("model")
    if found != wanted:
        raise ConfigError(
            f"this evaluation is of another model ({found}), not of {wanted}", str(evaluation), f"Run preftune evaluate {run} first."
        )


def percent(estimate: Mapping[str, Any]) -> str:
    """Return an estimate of a share as "62.0 % (95 % interval 58.0 to 66.0, n = 100)"."""
    value, low, high = (f"{100 * estimate[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} % (95 % interval {low} to {high}, n = {estimate['n']:,})"


def points(estimate: Mapping[str, Any]) -> str:
    """Return an estimate of a difference of shares as "+31.0 points (95 % interval +26.0 to +36.0, n = 100)"."""
    value, low, high = (f"{100 * estimate[key]:+.1f}" for key in ("value", "low", "high"))
    return f"{value} points (95 % interval {low} to {high}, n = {estimate['n']:,})"


def nats(estimate: Mapping[str, Any]) -> str:
    """Return an estimate of a KL as "12.3 nats an answer (95 % interval 11.0 to 13.6, n = 100)"."""
    value, low, high = (f"{estimate[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} nats an answer (95 % interval {low} to {high}, n = {estimate['n']:,})"


def change(task: Mapping[str, Any], key: str) -> str:
    """Return a number of a retention task (`difference`, `lower`, `margin`) in the unit that its margin has."""
    share = "points" if not str(task["unit"]).startswith("relative") else "%"
    sign = "" if key == "margin" else "+"
    return f"{100 * task[key]:{sign}.2f} {share}"


def _preference(evaluation: Mapping[str, Any]) -> Check:
    name = "preference won"
    gain, wins = evaluation["style_gain"], evaluation["win_rate"]
    if gain is not None:
        won = bool(gain["low"] > 0)
        told = "Style rose against the base" if won else "A gain in style over the base is not shown"
        return Check(name, won, f"{told}: {points(gain)}.")
    if wins is not None:
        won = bool(wins["low"] > 0.5)
        told = "The answers win against the base's" if won else "It is not shown that the answers win against the base's"
        return Check(name, won, f"{told}: win rate {percent(wins)}.")
    return Check(name, False, "Neither a gain in style nor a win rate against the base was measured, so nothing is shown to be won.")


def _retention(evaluation: Mapping[str, Any]) -> Check:
    name = "knowledge kept"
    verdict = (evaluation["retention"] or {}).get("verdict")
    if verdict is None:
        return Check(name, False, "Retention was not measured against the base, so nobody knows what was lost.")
    gated = [task for task in verdict["tasks"] if task["gated"]]
    overall = verdict["overall"]
    if overall == "kept":
        told = ", ".join(f"{t['name']} {change(t, 'lower')} at worst (margin {change(t, 'margin')})" for t in gated)
        return Check(name, True, f"What the base knew is kept within its margins, each at one-sided 95 %: {told}.")
    # One that is not proved only because of the others, by the correction for several tasks, is not what stands in the way.
    guilty = [t for t in gated if t["verdict"] == overall and (overall == "lost" or t["lower"] <= -t["margin"])]
    told = ", ".join(
        f"{t['name']} {change(t, 'difference')}, {change(t, 'lower')} at worst, margin {change(t, 'margin')}, n = {t['n']:,}"
        for t in guilty
    )
    if overall == "lost":
        return Check(name, False, f"Retention is lost: it fell by more than its margin on {told}.")
    return Check(
        name,
        False,
        f"Retention is not proved: the items are too few, or the fall too near its margin, to exclude a loss on {told}.",
    )


def _functions(evaluation: Mapping[str, Any]) -> Check:
    name, verdict = "code still works", (evaluation["retention"] or {}).get("verdict")
    task = next((t for t in verdict["tasks"] if t["name"] == "functions"), None) if verdict else None
    if task is None or task.get("high") is None:
        return Check(name, True, "No functions were tried against tests.")
    lost = bool(task["high"] < -MAX_FALL_IN_FUNCTIONS)
    told = "Fewer functions pass their tests" if lost else "No large fall of the functions that pass their tests is proved"
    fall = points({"value": task["difference"], "low": task["low"], "high": task["high"], "n": task["n"]})
    return Check(name, not lost, f"{told}: {fall}; refused is what is proved to fall by more than {100 * MAX_FALL_IN_FUNCTIONS:.0f}.")


def _drift(evaluation: Mapping[str, Any]) -> Check:
    name, kl = "near the base", evaluation["kl"]
    if kl is None:
        return Check(name, False, "The KL from the base was not measured.")
    near = bool(kl["value"] <= MAX_KL_NATS)
    told = "The answers stay near the base" if near else "The answers went too far from the base"
    return Check(name, near, f"{told}: KL {nats(kl)}, at most {MAX_KL_NATS:.0f} are let through.")


def _ending(evaluation: Mapping[str, Any]) -> Check:
    ending = evaluation["ends_by_itself"]
    before = (evaluation.get("before") or {}).get("ends_by_itself")
    least = max(MIN_SHARE_ENDING, before["value"] - MAX_FALL_IN_ENDING) if before else MIN_SHARE_ENDING
    passed = bool(ending["value"] >= least)
    told = "Answers end by themselves" if passed else "Too few answers end by themselves"
    compared = f" The base: {percent(before)}." if before else ""
    return Check("answers end", passed, f"{told}: {percent(ending)}, at least {100 * least:.1f} % are needed.{compared}")
