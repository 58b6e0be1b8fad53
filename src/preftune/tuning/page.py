"""The sweep over strengths as one HTML file: what is chosen and why, what is won and kept at each strength, the table.

No network and no script; it follows light and dark, prints, and fits a narrow screen, as the report does whose looks it shares.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from preftune.data.pages import write_html
from preftune.evaluate.plots import Track, tracks
from preftune.evaluate.story import Measured, measured
from preftune.evaluate.wording import Unit, interval, listed, plain

WON = {"style": "style won", "score": "score won", "preference": "held-out preference won"}
UNITS: dict[str, Unit] = {"style": "points", "score": "gain", "preference": "points"}
STRENGTH = "strength of the adapter (1 = as trained)"
Point = dict[str, Any]


def write_page(result: dict[str, Any], path: Path) -> None:
    """Write the page of a sweep (the content of scale.json) to a file, whole or not at all."""
    contents = {"result": result, "verdict": verdict(result), "notes": notes(result), "plots": _plots(result)}
    write_html(path, "scale.html.j2", "preftune.tuning", "preftune.evaluate", **contents, heads=heads(result), rows=rows(result))


def verdict(result: dict[str, Any]) -> str:
    """Return one sentence: which strength is chosen, and what it wins, spends and keeps."""
    point = chosen_point(result)
    if point is None:
        return "No strength is chosen: at each of them knowledge was lost beyond its margin."
    return (
        f"Strength {point['strength']:g} is chosen: {WON[result['by']]} {_said(point['gain'], UNITS[result['by']])}, "
        f"KL {_said(point['kl'], 'nats')} from the base, retention {point['retention']['overall']}."
    )


def notes(result: dict[str, Any]) -> list[str]:
    """Return what else has to be known to read the choice."""
    lost = [f"{p['strength']:g}" for p in result["points"] if p["retention"]["overall"] == "lost"]
    found = [f"Out, because knowledge was lost there: {'strength' if len(lost) == 1 else 'strengths'} {listed(lost)}."] if lost else []
    point = chosen_point(result)
    if point is not None:
        best = max((p for p in result["points"] if p["retention"]["overall"] != "lost"), key=lambda p: float(p["gain"]["value"]))
        if best is not point:
            found.append(
                f"Strength {best['strength']:g} won {_said(best['gain'], UNITS[result['by']])}: more, but not by more than one standard "
                "error on the same items, so the one nearer to the base is taken."
            )
        if point["gain"]["low"] <= 0:
            found.append("That anything was won is not shown: the interval of the gain reaches 0.")
    return found


def chosen_point(result: dict[str, Any]) -> Point | None:
    """Return the point of the chosen strength, or None."""
    return next((p for p in result["points"] if p["run"] == result["chosen"]), None)


def heads(result: dict[str, Any]) -> list[str]:
    """Return the heads of the table's columns."""
    tasks = [task["name"] for task in result["points"][0]["retention"]["tasks"]]
    return ["strength", *(name for name, _ in _columns(result)), *tasks, "retention"]


def rows(result: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """Return the table, a row a strength, each cell as (value, spread in small print)."""
    return [
        [
            (f"{point['strength']:g}", "chosen" if point["run"] == result["chosen"] else ""),
            *(cell(point) for _, cell in _columns(result)),
            *(_task_cell(task) for task in point["retention"]["tasks"]),
            (point["retention"]["overall"], ""),
        ]
        for point in result["points"]
    ]


def _columns(result: dict[str, Any]) -> list[tuple[str, Callable[[Point], tuple[str, str]]]]:
    """Return (head, cell) of what was measured beside retention; what was not measured at all has no column."""

    def cell(key: str, unit: Unit) -> Callable[[Point], tuple[str, str]]:
        return lambda point: (plain(measured(point[key]).value, unit), interval(measured(point[key]), unit))  # type: ignore[union-attr]  # checked below

    columns: list[tuple[str, str, Unit]] = [
        (WON[result["by"]], "gain", UNITS[result["by"]]),
        ("style won", "style_gain", "points"),
        ("win rate", "win_rate", "share"),
        ("held-out pairs right", "accuracy", "share"),
        ("KL", "kl", "nats"),
        ("answers that end", "ends_by_itself", "share"),
    ]
    same = {"style": "style_gain"}.get(result["by"])  # the gain itself, which already has its column
    return [
        (head, cell(key, unit))
        for head, key, unit in columns
        if key != same and all(measured(p[key]) is not None for p in result["points"])
    ]


def _task_cell(task: dict[str, Any]) -> tuple[str, str]:
    unit: Unit = "percent" if "bits" in task["unit"] else "points"
    estimate = Measured(task["difference"], task["low"], task["high"])
    return plain(task["difference"], unit), interval(estimate, unit)


def _said(value: dict[str, Any], unit: Unit) -> str:
    estimate = measured(value)
    assert estimate is not None
    return f"{plain(estimate.value, unit)} (95 % CI {interval(estimate, unit)}, n = {estimate.n})"


def _plots(result: dict[str, Any]) -> list[tuple[str, str, Markup]]:
    """Return (caption, explanation, drawing) of each plot."""
    points, chosen = result["points"], chosen_point(result)
    place = None if chosen is None else float(chosen["strength"])
    xs = [float(p["strength"]) for p in points]
    share = UNITS[result["by"]] == "points"
    won = [Track(WON[result["by"]], xs, [_scaled(p["gain"], 100 if share else 1) for p in points])]
    if share and result["by"] != "preference" and points[0]["accuracy"]:
        won.append(Track("held-out pairs right, over one half", xs, [_scaled(p["accuracy"], 100, shift=0.5) for p in points]))
    gated = [task["name"] for task in points[0]["retention"]["tasks"] if task["gated"]]
    kept = [Track(name, xs, [_in_margins(p, name) for p in points]) for name in gated]
    kl = [Track("KL", xs, [_scaled(p["kl"], 1) for p in points])]
    return [
        (
            "Won",
            "Higher is better; the bars are 95 % intervals.",
            tracks(
                "won", "What is won at each strength", verdict(result), won,
                x_unit=STRENGTH, unit="points" if share else "standard deviations", guides=[(0, "base")], chosen=place,
            ),
        ),
        (
            "Kept",
            "Change of each retention task, in units of its own margin: 0 is the base, above it better, below −1 more lost than allowed.",
            tracks(
                "kept", "What is kept at each strength", "Change of facts, prose and code in units of their margins.", kept,
                x_unit=STRENGTH, unit="change, in margins", guides=[(-1, "margin")], chosen=place,
            ),
        ),
        (
            "Spent",
            "How far the model's own answers went from the base.",
            tracks("kl", "KL at each strength", "KL from the base.", kl, x_unit=STRENGTH, unit="KL, nats an answer", chosen=place),
        ),
    ]  # fmt: skip


def _scaled(value: dict[str, Any], factor: float, *, shift: float = 0.0) -> Measured:
    middle, low, high = (factor * (value[key] - shift) for key in ("value", "low", "high"))
    return Measured(middle, low, high, value["n"])


def _in_margins(point: Point, name: str) -> Measured:
    task = next(task for task in point["retention"]["tasks"] if task["name"] == name)
    middle, low, high = (task[key] / task["margin"] for key in ("difference", "low", "high"))
    return Measured(middle, low, high, task["n"])
