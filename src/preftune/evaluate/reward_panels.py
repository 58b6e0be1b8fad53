"""How good each reward model is: beside length and beside people, among which pairs, how sure, and what it pays for.

All from the `held_out` and `probes` of its manifest, which `data/pair_report.py` and `rollout/reward_probes.py` have filled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from preftune.data.calibration import ece, reliability_bins
from preftune.evaluate import plots
from preftune.evaluate.findings import longer_wins
from preftune.evaluate.sources import Sources
from preftune.evaluate.statistics import wilson
from preftune.evaluate.story import Measured, Story, measured, number
from preftune.evaluate.wording import NONE, plain

FEWEST_CALIBRATED = 20  # predictions below which a calibration plot is noise
FEWEST_ALIKE = 5.0  # pairs of one length below which nothing is said of them
BY = {"by_kind": "Kind of prompt", "by_language": "Language", "by_raters": "Raters"}
Bins = list[tuple[float, float, int]]


@dataclass(frozen=True)
class Group:
    """The accuracy among some of the held-out pairs: what kind of group, its name, the accuracy as HTML, and the number of pairs."""

    by: str
    name: str
    accuracy: Markup
    n: str


@dataclass(frozen=True)
class Probed:
    """One change that makes no answer better, and what the reward model pays for it, in sd of its scores."""

    change: str
    paid: Markup


@dataclass(frozen=True)
class RewardView:
    """How good one reward model is on held-out pairs, each number as HTML.

    beside: its accuracy beside what length and people reach. drawing: its calibration, where there is enough to draw. facts: further
    sentences (people, temperature, heads).
    """

    label: str
    accuracy: Markup
    longer: Markup
    ece: Markup
    reading: str
    drawing: Markup
    beside: Markup
    facts: tuple[Markup, ...]
    groups: tuple[Group, ...]
    probes: tuple[Probed, ...]


def reward_views(story: Story, sources: Sources) -> list[RewardView]:
    """Return a view of each reward model of which held-out figures are known."""
    names = [name for name in story.ordered_runs if story.kind(name) == "reward"] or ["reward"]
    return [view for name in names if (view := reward_view(story, sources, name))]


def reward_view(story: Story, sources: Sources, name: str = "reward") -> RewardView | None:
    """Return a reward model's held-out figures, from the summary or else from its run; None where there are none."""
    facts = story.summary.get("reward_model", {})
    manifest = story.runs[name].manifest if name in story.runs else {}
    held_out = manifest.get("held_out", {})
    margins = [margin for value in held_out.get("margins", []) if (margin := number(value)) is not None]
    accuracy, file, key = measured(facts.get("accuracy")), "summary", "reward_model.accuracy"
    if accuracy is None and margins:
        share = wilson(sum(_right(margin) for margin in margins), len(margins))
        low, high = held_out.get("accuracy_interval") or (share.low, share.high)  # clustered by prompt, where the run told it
        accuracy, file, key = Measured(share.value, low, high, share.n), f"run-{name}", "held_out.accuracy"
    if accuracy is None:
        return None
    longer, longer_file, longer_key = longer_wins(story, name)
    sure = [1 / (1 + math.exp(-min(abs(margin), 700.0))) for margin in margins]
    right = [_right(margin) for margin in margins]
    gap, gap_file, gap_key = number(facts.get("ece")), "summary", "reward_model.ece"
    if gap is None and len(margins) >= FEWEST_CALIBRATED:
        gap, gap_file, gap_key = ece(sure, right, bins=5), f"run-{name}", "held_out.margins"
    told = {} if name not in story.runs else held_out
    return RewardView(
        label=story.run_labels.get(name, "Reward model"),
        accuracy=sources.value(accuracy, "share", file, key),
        longer=sources.value(longer, "share", longer_file, longer_key),
        ece=sources.cite(plain(gap, "points").lstrip("+"), gap_file, gap_key),
        reading=_reward_reading(accuracy, longer),
        drawing=_calibration(f"calibration-{name}", told, sure, right) if len(margins) >= FEWEST_CALIBRATED else Markup(),
        beside=_beside(f"beside-{name}", accuracy, longer, told),
        facts=tuple(_facts(told, sources, f"run-{name}")),
        groups=tuple(_groups(told, sources, f"run-{name}")),
        probes=tuple(_probes(manifest, sources, f"run-{name}")),
    )


def _right(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def _reward_reading(accuracy: Measured, longer: Measured | None) -> str:
    if accuracy.low is not None and accuracy.low <= 0.5:
        return "The interval reaches down to a coin toss, so it is not shown that the reward model learned anything; PPO cannot rest on it."
    if longer is None:
        return "How far length alone would tell the answers apart was not measured."
    best = max(longer.value, 1 - longer.value)
    more = accuracy.low is not None and accuracy.low > best
    told = "the reward model knows more than length" if more else "it is not shown that the reward model knows more than length"
    return f"Always taking the longer, or always the shorter, answer would be right in {plain(best, 'share')}: {told}."


def _beside(name: str, accuracy: Measured, longer: Measured | None, held_out: dict[str, Any]) -> Markup:
    """Return the accuracy beside what else would reach, as a drawing; empty where nothing else is known."""
    people = held_out.get("human_agreement") or {}
    heads = [value for head in held_out.get("accuracy_of_heads", []) if (value := number(head)) is not None]
    rows = [
        ("reward model", accuracy),
        *((f"head {place}", Measured(head)) for place, head in enumerate(heads, 1)),
        ("among alike lengths", measured(held_out.get("same_length"))),
        ("the longer one wins", longer),
        ("two raters agree", measured(people)),
        ("a perfect model, by raters", Measured(ceiling) if (ceiling := number(people.get("ceiling"))) is not None else None),
    ]
    marks = [plots.Mark(label, value) for label, value in rows if value is not None]
    if len(marks) < 2:
        return Markup()
    told = " ".join(f"{mark.label}: {plain(mark.estimate.value, 'share')}." for mark in marks)
    return plots.estimates(
        name, "The reward model beside length and people", told, marks, unit="held-out pairs that are right", percent=True
    )


def _facts(held_out: dict[str, Any], sources: Sources, file: str) -> Iterator[Markup]:
    alike, people = measured(held_out.get("same_length")), held_out.get("human_agreement") or {}
    if alike and (alike.n or 0) >= FEWEST_ALIKE:
        yield Markup("Among pairs whose answers are about as long, it is right in {}.").format(
            sources.value(alike, "share", file, "held_out.same_length")
        )
    if measured(people):
        agree = sources.value(measured(people), "share", file, "held_out.human_agreement")
        best = plain(number(people.get("ceiling")), "share")
        yield Markup("Two raters agree in {}; a model without fault would agree with one of them in {}.").format(agree, best)
    calibration = held_out.get("calibration") or {}
    warmth, after = number(calibration.get("temperature")), number(calibration.get("ece_after"))
    if warmth is not None:
        said = "surer than it is right" if warmth > 1 else "less sure than it could be"
        text = "Its best temperature is {}, so it is {}; with it the calibration error is {}."
        shown = sources.cite(f"{warmth:.2f}", file, "held_out.calibration")
        yield Markup(text).format(shown, said, plain(after, "points").lstrip("+"))
    heads = [value for head in held_out.get("accuracy_of_heads", []) if (value := number(head)) is not None]
    if heads:
        each = sources.cite(", ".join(plain(head, "share") for head in heads), file, "held_out.accuracy_of_heads")
        spread = plain(max(heads) - min(heads), "points").lstrip("+")
        yield Markup("It has {} heads, right in {}: they lie {} apart. Heads on one backbone share its errors.").format(
            len(heads), each, spread
        )


def _groups(held_out: dict[str, Any], sources: Sources, file: str) -> Iterator[Group]:
    for key, by in BY.items():
        for name, value in (held_out.get(key) or {}).items():
            share = measured(value)
            if share:
                cell = sources.cell(Measured(share.value, share.low, share.high), "share", file, f"held_out.{key}")
                yield Group(by, str(name), cell, f"{share.n:,}" if share.n is not None else NONE)


def _probes(manifest: dict[str, Any], sources: Sources, file: str) -> Iterator[Probed]:
    for change, value in (manifest.get("probes", {}).get("probes") or {}).items():
        mean = measured(value | {"value": value.get("mean")} if isinstance(value, dict) else value)
        if mean:
            yield Probed(str(change), sources.cell(mean, "gain", file, "probes.probes"))


def _calibration(name: str, held_out: dict[str, Any], sure: list[float], right: list[float]) -> Markup:
    bins: Bins = [(b.confidence, b.accuracy, b.count) for b in reliability_bins(sure, right, bins=5)]
    cooled = (held_out.get("calibration") or {}).get("bins_after") or []
    after: Bins = [(b["confidence"], b["accuracy"], b["count"]) for b in cooled]
    told = " ".join(f"{100 * b[0]:.0f} % sure: right in {100 * b[1]:.0f} % of {b[2]} pairs." for b in bins)
    return plots.calibration(name, "Reward model: how sure and how often right", told, bins, after)
